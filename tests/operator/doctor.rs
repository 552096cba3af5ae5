//! `gangplank doctor`: each finding on a node with exactly that problem, and none on a healthy node.

use serde_json::{Value, json};

use crate::fixture::{CACHE, CONF, Fixture, LEASES, doctor_flags};
use crate::support::{Network, Node, binary, connect, requires, small_network};

fn masquerade_network() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

fn dual() -> Value {
    let mut config = masquerade_network();
    config["hairpinMode"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    config
}

/// A node with one pod, and the name of the pod's link on the host.
fn node_with_pod(config: &Value) -> (Fixture, crate::support::Pod, String) {
    let fixture = Fixture::with(config);
    let pod = fixture.pod("a");
    let result = fixture.run_pod(&fixture.network(config.clone()), &pod);
    (fixture, pod, Network::host_link(&result))
}

#[test]
fn a_healthy_node_has_no_findings() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = dual();
        config["ipMasqBackend"] = backend.into();
        config["macspoofchk"] = true.into();
        let fixture = Fixture::with(&config);
        fixture.assert_healthy();
        let pods = ["ours", "kept", "theirs", "bare"].map(|name| fixture.pod(name));
        let network = fixture.network(config.clone());
        network.add(&pods[0]);
        fixture.run_pod(&network, &pods[1]);
        // The backends of the Go plugins would conflict in one table.
        if backend == "iptables" {
            fixture.run_pod(&fixture.go(&config), &pods[2]);
            fixture.go(&config).add(&pods[3]);
        }
        fixture.assert_healthy();
        let text = fixture.doctor("");
        assert_eq!(text.success(), "ok: nothing found\n");
        assert!(fixture.fix().all.is_empty());
    }
}

#[test]
fn concurrent_adds_and_dels_cause_no_findings() {
    requires!("iptables");
    let config = masquerade_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let still = fixture.pod("still");
    fixture.run_pod(&network, &still);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (network, fixture) = (&network, &fixture);
            scope.spawn(move || {
                for turn in 0..12 {
                    let pod = fixture.pod(&format!("p{worker}-{turn}"));
                    network.add(&pod);
                    // As old as the leases of long-running pods.
                    fixture.run(&format!("find {LEASES}/small -name 10.* -exec touch --no-create --date=-1hour {{}} +"));
                    network.del(&pod);
                }
            });
        }
        for at in 0..8 {
            let findings = if at % 2 == 0 {
                fixture.findings()
            } else {
                fixture.fix()
            };
            assert!(findings.all.is_empty(), "{:#?}", findings.all);
        }
    });
    fixture.assert_healthy();
}

#[test]
fn leases_of_deleted_pods_are_found() {
    requires!("cni:bridge", "cni:host-local");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config.clone());
    let gone = fixture.pod("gone");
    network.add(&gone);
    gone.end();
    // The kernel deletes the other end of a veth asynchronously.
    let mut left = 50;
    while fixture.run("ip link").contains("veth") && left > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        left -= 1;
    }
    // An ADD may be in progress.
    fixture.assert_healthy();
    fixture.age("small", "10.77.0.2");
    let findings = fixture.findings();
    assert_eq!(findings.ids(), ["stale-lease"]);
    let stale = findings.text_of("stale-lease");
    assert!(
        stale.contains("10.77.0.2") && stale.contains("gone") && stale.contains("60 min"),
        "{stale}"
    );
    let text = fixture.doctor("");
    assert_eq!(text.code, Some(3));
    assert!(
        text.stdout.contains("(or gangplank doctor --fix)"),
        "{text:?}"
    );
}

#[test]
fn links_without_a_lease_are_found_with_and_without_a_cache_entry() {
    requires!();
    let (fixture, _pod, veth) = node_with_pod(&small_network());
    fixture.run(&format!("rm {LEASES}/small/10.77.0.2"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.text_of("link-without-lease").contains(&veth));
    assert!(found.text_of("link-without-lease").contains("shop/a-0"));
    fixture.run(&format!("rm {CACHE}/small-a-eth0"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.text_of("link-without-lease").contains(&veth));
}

#[test]
fn empty_and_corrupt_leases_are_found() {
    requires!();
    let (fixture, _pod, _) = node_with_pod(&small_network());
    fixture.write(&format!("{LEASES}/small/10.77.0.8"), "");
    fixture.write(&format!("{LEASES}/small/10.77.0.9"), "\0\0\0\0");
    // These files are no leases.
    fixture.write(&format!("{LEASES}/small/notes.txt"), "mine");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["garbled-lease"], "{found:#?}");
    let found = found.text_of("garbled-lease");
    assert!(
        found.contains("10.77.0.8")
            && found.contains("10.77.0.9")
            && found.contains("2 lease files"),
        "{found}"
    );
}

#[test]
fn exhausted_ranges_are_found() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "10.77.0.0/28".into();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let pods: Vec<_> = (0..13).map(|at| fixture.pod(&format!("p{at}"))).collect();
    for pod in &pods[..11] {
        network.add(pod);
    }
    fixture.assert_healthy();
    network.add(&pods[11]);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["range-nearly-full"]);
    assert!(found.text_of("range-nearly-full").contains("12 of 13"));
    network.add(&pods[12]);
    assert_eq!(fixture.findings().ids(), ["range-full"]);
}

#[test]
fn overlapping_ranges_of_two_networks_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    other["ipam"]["subnet"] = "10.77.0.128/25".into();
    fixture.configure("20-other.conflist", &other);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["overlapping-ranges"]);
    let found = found.text_of("overlapping-ranges");
    assert!(
        found.contains("10-net.conflist") && found.contains("20-other.conflist"),
        "{found}"
    );
}

#[test]
fn leases_of_an_unknown_network_are_found() {
    requires!();
    let (fixture, _pod, _) = node_with_pod(&small_network());
    fixture.run(&format!(
        "mv {CONF}/10-net.conflist {CONF}/10-net.conflist.off"
    ));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["unknown-network"]);
    assert!(
        found
            .text_of("unknown-network")
            .contains("/small: 10.77.0.2")
    );
}

#[test]
fn unusable_configurations_are_found() {
    requires!();
    let fixture = Fixture::new();
    for (file, text, wanted) in [
        ("1.conf", "{", "not JSON"),
        ("2.conf", "[]", "not a JSON object"),
        (
            "3.conflist",
            r#"{"name": "a", "plugins": []}"#,
            "empty list",
        ),
        ("4.conflist", r#"{"name": "b", "plugins": {}}"#, "no list"),
        ("5.conf", r#"{"type": "bridge"}"#, "no name"),
        (
            "6.conflist",
            r#"{"name": "c", "plugins": [{"bridge": "x"}]}"#,
            "without a type",
        ),
        (
            "7.conf",
            r#"{"name": "d", "type": "bridge", "bridge": "much-too-long-a-name"}"#,
            "much-too-long",
        ),
        (
            "8.conf",
            r#"{"name": "e", "type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/33"}}"#,
            "10.0.0.0/33",
        ),
        (
            "9.conflist",
            r#"{"name": "f", "plugins": [5]}"#,
            "no object",
        ),
    ] {
        fixture.write(&format!("{CONF}/{file}"), text);
        let found = fixture.findings();
        assert_eq!(found.ids(), ["unusable-configuration"], "{text}");
        let found = found.text_of("unusable-configuration");
        assert!(found.contains(wanted) && found.contains(file), "{found}");
        fixture.run(&format!("rm {CONF}/{file}"));
    }
    // Runtimes ignore other files.
    fixture.write(&format!("{CONF}/notes.txt"), "{");
    fixture.write(&format!("{CONF}/old.conflist.bak"), "{");
    fixture.assert_healthy();
}

#[test]
fn duplicate_names_and_missing_plugins_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    let sbr = json!({ "type": "sbr" });
    fixture.configure_list("20-again.conflist", &[&small_network(), &sbr]);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["plugin-missing", "same-name"], "{found:#?}");
    assert!(found.text_of("plugin-missing").contains("sbr"));
    assert!(found.text_of("same-name").contains("20-again.conflist"));
    fixture.run(&format!("rm {CONF}/20-again.conflist"));
    fixture.run(&format!("rm {}/host-local", Node::BIN));
    let mut delegating = small_network();
    delegating["ipam"] = json!({ "type": "dhcp" });
    fixture.configure("10-net.conflist", &delegating);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["plugin-missing"], "{found:#?}");
    assert!(found.text_of("plugin-missing").contains("dhcp"));
}

#[test]
fn plugins_other_than_this_program_are_found() {
    requires!("cni:bridge");
    let fixture = Fixture::with(&small_network());
    fixture.run_all(&format!(
        "mkdir /run/bin\ncp /usr/lib/cni/bridge /run/bin/bridge\ncp -L {} /run/bin/host-local",
        binary().display()
    ));
    fixture.write_executable(
        "/run/bin/loopback",
        "#!/bin/sh\necho 'CNI plugin loopback (gangplank 0.0.1)' >&2\n",
    );
    let flags = format!(
        "--json --cni-path /run/none:/run/bin --conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE}"
    );
    let answer = fixture.gangplank(&format!("doctor {flags}"));
    assert_eq!(answer.code, Some(3), "{answer:?}");
    let found: Value = serde_json::from_str(&answer.stdout).unwrap();
    let ids: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"plugin-foreign"), "{found}");
    assert!(
        found
            .to_string()
            .contains("/run/bin/bridge is not gangplank"),
        "{found}"
    );
    assert!(
        !found.to_string().contains("/run/bin/host-local"),
        "{found}"
    );
    // CNI_PATH is equivalent to the flag.
    let line = format!(
        "env CNI_PATH=/run/bin BINARY doctor --conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE}"
    );
    let answer = fixture.under(&line);
    assert!(answer.stdout.contains("[plugin-foreign]"), "{answer:?}");
    assert!(
        answer
            .stdout
            .contains("gangplank install /run/bin --only bridge"),
        "{answer:?}"
    );
    // No configuration calls portmap.
    fixture.write_executable("/run/bin/portmap", "#!/bin/sh\n");
    let answer = fixture.under(&line);
    assert!(!answer.stdout.contains("/run/bin/portmap"), "{answer:?}");
}

#[test]
fn resources_of_running_pods_removed_by_other_tools_are_found() {
    requires!("iptables", "nft");
    let mut config = dual();
    config["macspoofchk"] = true.into();
    let mut promiscuous = config.clone();
    promiscuous["promiscMode"] = true.into();
    promiscuous["hairpinMode"] = false.into();
    for (harm, ids) in [
        ("ip link set br0 down", vec!["bridge-down"]),
        ("ip link set br0 promisc off", vec!["bridge-down"]),
        ("ip addr del 10.77.0.1/24 dev br0", vec!["gateway-address"]),
        ("ip addr flush dev br0", vec!["gateway-address"]),
        ("ip link set VETH nomaster", vec!["port"]),
        (
            "ip link set VETH type bridge_slave hairpin off",
            vec!["port"],
        ),
        ("ip link set VETH down", vec!["port"]),
        ("iptables -t nat -F", vec!["masquerade-missing"]),
        ("ip6tables -t nat -F", vec!["masquerade-missing"]),
        ("nft flush table bridge nat", vec!["mac-check-missing"]),
        ("sysctl -qw net.ipv4.ip_forward=0", vec!["forwarding-off"]),
        (
            "sysctl -qw net.ipv6.conf.all.forwarding=0",
            vec!["forwarding-off"],
        ),
    ] {
        let (fixture, _pod, veth) = node_with_pod(if harm.contains("promisc") {
            &promiscuous
        } else {
            &config
        });
        fixture.assert_healthy();
        fixture.run(&harm.replace("VETH", &veth));
        let found = fixture.findings();
        let mut found = found.ids();
        // Without the only port or the bridge the pod has no carrier, and IPv6 addresses are removed from a link that
        // is down.
        found.retain(|id| ids.contains(id) || *id != "gateway-address");
        assert_eq!(found, ids, "{harm}");
    }
}

#[test]
fn a_pod_interface_that_is_down_is_found() {
    requires!();
    let (fixture, pod, veth) = node_with_pod(&small_network());
    pod.run("ip link set eth0 down");
    // The kernel updates the carrier of the port when it is queried (rtnl_getlink), or after a short time.
    fixture.link(&veth);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["pod-link-down"]);
    assert!(found.text_of("pod-link-down").contains("shop/a-0"));
    assert_eq!(fixture.fix().ids(), ["pod-link-down"]);
}

#[test]
fn another_address_on_the_bridge_and_another_link_with_its_name_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    fixture.run_all(
        "ip link add br0 type bridge\nip link set br0 up\nip addr add 10.9.9.1/24 dev br0",
    );
    let found = fixture.findings();
    assert_eq!(found.ids(), ["bridge-address"]);
    let found = found.text_of("bridge-address");
    assert!(
        found.contains("10.9.9.1/24") && found.contains("10.77.0.1/24"),
        "{found}"
    );
    fixture.run_all("ip link del br0\nip link add br0 type veth peer name other");
    assert_eq!(fixture.findings().ids(), ["not-a-bridge"]);
    assert_eq!(fixture.fix().ids(), ["not-a-bridge"]);
}

#[test]
fn mtu_mismatches_are_found() {
    requires!();
    let mut config = small_network();
    config["mtu"] = 1400.into();
    let (fixture, _pod, veth) = node_with_pod(&config);
    let outside = Node::new("outside");
    connect(&fixture, "up0", &outside, "eth0");
    fixture.run_all("ip addr add 192.0.2.1/24 dev up0\nip route add default via 192.0.2.2");
    fixture.assert_healthy();
    fixture.run("ip link set up0 mtu 1300");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["mtu-uplink"]);
    assert!(
        found.text_of("mtu-uplink").contains("1300") && found.text_of("mtu-uplink").contains("up0")
    );
    fixture.run("ip link set up0 mtu 1500");
    let other = fixture.pod("b");
    fixture.run_pod(&fixture.network(config), &other);
    fixture.run(&format!("ip link set {veth} mtu 1450"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["mtu-differs"], "{found:#?}");
    let found = found.text_of("mtu-differs");
    assert!(
        found.contains("pod shop/a-0 (container a) has 1450") && !found.contains("b-0"),
        "{found}"
    );
}

#[test]
fn stale_masquerade_rules_of_both_implementations_are_found() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerade_network();
        config["ipMasqBackend"] = backend.into();
        let fixture = Fixture::with(&config);
        let pod = fixture.pod("gone");
        let network = match go {
            true => fixture.go(&config),
            false => fixture.network(config.clone()),
        };
        let veth = Network::host_link(&network.add(&pod));
        fixture.run_all(&format!("ip link del {veth}\nrm {LEASES}/small/10.77.0.2"));
        let found = fixture.findings();
        assert_eq!(found.ids(), ["masquerade-left-over"], "{backend} {go}");
        assert!(found.text_of("masquerade-left-over").contains("gone"));
        let status = fixture.status("--json").ok();
        assert_eq!(status[0]["masquerade"], json!([backend]), "{go}");
    }
}

#[test]
fn disabled_forwarding_and_a_drop_policy_are_found() {
    requires!("iptables");
    let fixture = Fixture::with(&dual());
    fixture.run_all("sysctl -qw net.ipv4.ip_forward=0\nsysctl -qw net.ipv6.conf.all.forwarding=0");
    assert_eq!(
        fixture.findings().ids(),
        ["forwarding-off", "forwarding-off"]
    );
    fixture.run_all("sysctl -qw net.ipv4.ip_forward=1\nsysctl -qw net.ipv6.conf.all.forwarding=1");
    fixture.assert_healthy();
    fixture.run("iptables -P FORWARD DROP");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(
        found
            .text_of("forward-drop")
            .contains("policy of FORWARD is DROP")
    );
    fixture.run_all("iptables -A FORWARD -i br0 -j ACCEPT\niptables -A FORWARD -o br0 -j ACCEPT");
    fixture.assert_healthy();
    fixture.run("ip6tables -I FORWARD -i br0 -j REJECT");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(found.text_of("forward-drop").contains("IPv6"), "{found:#?}");
}

#[test]
fn dropped_replies_in_forward_are_found() {
    requires!("iptables");
    let fixture = Fixture::with(&small_network());
    fixture.run_all("iptables -P FORWARD DROP\niptables -A FORWARD -i br0 -j ACCEPT");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"], "{found:#?}");
    fixture.run("iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    fixture.assert_healthy();
}

#[test]
fn a_default_route_that_would_expire_is_found() {
    requires!();
    let fixture = Fixture::with(&dual());
    let outside = Node::new("outside");
    connect(&fixture, "up0", &outside, "eth0");
    fixture.run("ip -6 addr add 2001:db8::2/64 dev up0 nodad");
    fixture.run("ip -6 route add default via 2001:db8::1 dev up0 proto ra");
    let found = fixture.findings();
    assert!(found.ids().contains(&"advertised-route"), "{found:#?}");
    assert!(found.text_of("advertised-route").contains("up0"));
    fixture.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2");
    assert!(!fixture.findings().ids().contains(&"advertised-route"));
}

#[test]
fn kube_proxy_without_bridge_netfilter_and_mixed_iptables_variants_are_found() {
    requires!("iptables-legacy", "iptables-nft");
    let fixture = Fixture::with(&small_network());
    fixture.assert_healthy();
    fixture.run("iptables-nft -t nat -N KUBE-SERVICES");
    let has = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if has {
        fixture.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    }
    fixture.use_iptables_variant("xtables-nft-multi");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["bridge-netfilter"], "{found:#?}");
    fixture.run_all("iptables-nft -t nat -X KUBE-SERVICES\niptables-nft -t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT");
    fixture.run("iptables-legacy -t nat -A POSTROUTING -s 192.0.2.2 -j ACCEPT");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["two-iptables"], "{found:#?}");
    let found = found.text_of("two-iptables");
    assert!(
        found.contains("192.0.2.1") && found.contains("192.0.2.2"),
        "{found}"
    );
}

#[test]
fn a_node_without_iptables_is_examined() {
    requires!();
    let mut config = masquerade_network();
    config["ipMasqBackend"] = "nftables".into();
    let fixture = Fixture::with(&config);
    // This node has no iptables.
    fixture.run("mount -t tmpfs tmpfs /usr/sbin");
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    fixture.assert_healthy();
    assert_eq!(
        fixture.status("--json").ok()[0]["masquerade"],
        json!(["nftables"])
    );
}

#[test]
fn an_ipv6_only_network_with_many_leases_has_no_findings() {
    requires!();
    let mut config = masquerade_network();
    config["ipam"] = json!({ "type": "host-local", "subnet": "fd77::/64" });
    let (fixture, _pod, _) = node_with_pod(&config);
    fixture.assert_healthy();
    let status = fixture.status("--json").ok();
    assert_eq!(
        status[0]["ranges"][0]["size"], "18446744073709551614",
        "{status}"
    );
    // Ten thousand recent files.
    fixture.write("/run/many", &format!("cd {LEASES}/small && for i in $(seq 2 9999); do printf 'c%s\\r\\neth0' $i >fd77::1:$i; done\n"));
    fixture.run("bash /run/many");
    let start = std::time::Instant::now();
    let status = fixture.under(&format!(
        "timeout 60 BINARY doctor --json {}",
        doctor_flags()
    ));
    let took = start.elapsed();
    assert_eq!(
        status.code,
        Some(0),
        "{}",
        status.stdout.chars().take(500).collect::<String>()
    );
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

#[test]
fn missing_permissions_are_reported() {
    requires!("setpriv");
    let (fixture, _pod, _) = node_with_pod(&small_network());
    fixture.run_all(&format!(
        "cp -L {} /run/gangplank\nchmod 755 /run/gangplank",
        binary().display()
    ));
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all /run/gangplank";
    let answer = fixture.under(&format!("{user} doctor {}", doctor_flags()));
    assert!(
        answer.failure().contains("Permission denied") && answer.stderr.contains("run it as root"),
        "{answer:?}"
    );
    // Without a lease, only rules are unreadable.
    fixture.run(&format!("rm -r {LEASES}/small"));
    for flag in ["", "--fix"] {
        let answer = fixture.under(&format!("{user} doctor {flag} {}", doctor_flags()));
        assert_eq!(answer.code, Some(3), "{answer:?}");
        assert!(
            answer.stdout.contains("[not-seen]") && answer.stdout.contains("run it as root"),
            "{answer:?}"
        );
    }
}

#[test]
fn plugins_that_do_not_support_the_version_or_status_are_found() {
    requires!("cni:vlan", "cni:sbr");
    let mut config = small_network();
    config["cniVersion"] = "1.1.0".into();
    let fixture = Fixture::new();
    let bin = "/run/chain";
    fixture.run_all(&format!(
        "mkdir {bin}\ncp -L {} {bin}/bridge",
        crate::support::binary().display()
    ));
    let script = "case $CNI_COMMAND in VERSION) echo '{\"supportedVersions\":[\"1.1.0\"]}';; *) cat >/run/asked; echo '{\"code\":50,\"msg\":\"no firewall\"}'; exit 1;; esac\n";
    fixture.write(&format!("{bin}/sbr"), &format!("#!/bin/sh\n{script}"));
    fixture.write(&format!("{bin}/vlan"), "#!/bin/sh\ncase $CNI_COMMAND in VERSION) echo '{\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}';; *) echo 'missing containerID' >&2; exit 1;; esac\n");
    fixture.run(&format!("chmod 755 {bin}/sbr {bin}/vlan"));
    let chained = |kind: &str| json!({ "type": kind });
    let found = |config: &Value| -> Vec<Value> {
        fixture.configure_list(
            "10-net.conflist",
            &[config, &chained("vlan"), &chained("sbr")],
        );
        let directory_flags =
            format!("--conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE} --cni-path {bin}");
        let answer = fixture.gangplank(&format!("doctor --json {directory_flags}"));
        let found: Value = serde_json::from_str(&answer.stdout).unwrap();
        let found = found.as_array().unwrap().iter();
        found
            .filter(|it| {
                ["plugin-cni-version", "plugin-status"].contains(&it["id"].as_str().unwrap())
            })
            .cloned()
            .collect()
    };
    let [version, status] = <[Value; 2]>::try_from(found(&config)).unwrap();
    assert_eq!(
        (&version["id"], &status["id"]),
        (&json!("plugin-cni-version"), &json!("plugin-status"))
    );
    for (finding, words) in [
        (
            &version,
            [
                "plugin vlan",
                "VERSION: 0.4.0, 1.0.0",
                "missing containerID",
                "set cniVersion to 1.0.0",
            ],
        ),
        (
            &status,
            [
                "plugin sbr",
                "no firewall (code 50)",
                "10-net.conflist",
                "NotReady",
            ],
        ),
    ] {
        for word in words {
            assert!(finding.to_string().contains(word), "{word}: {finding}");
        }
    }
    // The plugin was called as by a runtime.
    let asked: Value = serde_json::from_str(&fixture.read("/run/asked")).unwrap();
    assert_eq!(
        asked,
        json!({ "type": "sbr", "name": "small", "cniVersion": "1.1.0" })
    );
    // STATUS requires 1.1.0, and sbr does not support 1.0.0.
    config["cniVersion"] = "1.0.0".into();
    let ids: Vec<Value> = found(&config)
        .iter()
        .map(|it| it["cause"].clone())
        .collect();
    assert!(
        ids.len() == 1
            && ids[0]
                .as_str()
                .unwrap()
                .contains("plugin sbr does not support"),
        "{ids:?}"
    );
}

#[test]
fn ineffective_keys_are_reported() {
    requires!();
    let mut config = small_network();
    config["mtu"] = json!(-1);
    config["ipMasqBackend"] = "ipvs".into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24", "gateway": "10.78.0.1" }],
        [{ "subnet": "fd00:77::/64", "gateway": "fe80::1" }],
        [{ "subnet": "10.79.0.0/24", "rangeStart": "10.79.0.255", "gateway": "10.79.0.1" }],
    ], "routes": [
        { "dst": "fd09::7/64" }, { "dst": "fd09::7/64" }, { "dst": "10.9.0.0/16", "mtu": -5, "scope": 256 },
    ]});
    let fixture = Fixture::with(&config);
    let answer = fixture.gangplank(&format!(
        "doctor --json --conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE} --cni-path {}",
        Node::BIN
    ));
    let found: Value = serde_json::from_str(&answer.stdout).unwrap();
    let found: Vec<&Value> = found
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["id"] == "questionable-key")
        .collect();
    let words = [
        "mtu is -1",
        "ipMasqBackend is",
        "gateway 10.78.0.1 is not in the subnet",
        "range 10.79.0.255-10.79.0.255 has no address but",
        "route fd09::7/64 has host bits",
        "route fd09::7/64 is listed twice",
        "mtu -5 of route",
        "scope 256 of route",
    ];
    for word in words {
        let named = found
            .iter()
            .any(|it| it["cause"].as_str().unwrap().contains(word) && it["severity"] == "warning");
        assert!(named, "{word}: {found:?}");
    }
    assert!(
        !format!("{found:?}").contains("gateway fe80::1"),
        "{found:?}"
    );
}
