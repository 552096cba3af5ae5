//! `gangplank doctor`: each finding on a node that is broken in just that way, and none on one that is not.

use serde_json::{Value, json};

use crate::fixture::{CACHE, CONF, Fixture, LEASES, doctors_places};
use crate::support::{Network, Node, binary, requires, small_network, wire};

fn masquerading() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

fn dual() -> Value {
    let mut config = masquerading();
    config["hairpinMode"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    config
}

/// A node with one pod of a network; the name of its link.
fn populated(config: &Value) -> (Fixture, crate::support::Pod, String) {
    let fixture = Fixture::with(config);
    let pod = fixture.pod("a");
    let result = fixture.run_pod(&fixture.network(config.clone()), &pod);
    (fixture, pod, Network::host_link(&result))
}

#[test]
fn a_healthy_node_has_nothing_whoever_made_its_pods() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = dual();
        config["ipMasqBackend"] = backend.into();
        config["macspoofchk"] = true.into();
        let fixture = Fixture::with(&config);
        fixture.is_healthy();
        let pods = ["ours", "kept", "theirs", "bare"].map(|name| fixture.pod(name));
        let network = fixture.network(config.clone());
        network.add(&pods[0]);
        fixture.run_pod(&network, &pods[1]);
        // Backends of Go that both write into one table would be in each other's way.
        if backend == "iptables" {
            fixture.run_pod(&fixture.go(&config), &pods[2]);
            fixture.go(&config).add(&pods[3]);
        }
        fixture.is_healthy();
        let text = fixture.doctor("");
        assert_eq!(text.success(), "ok: nothing found\n");
        assert!(fixture.fix().all.is_empty());
    }
}

#[test]
fn pods_that_come_and_go_meanwhile_are_no_finding() {
    requires!("iptables");
    let config = masquerading();
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
                    // As old as those of pods that run for long.
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
    fixture.is_healthy();
}

#[test]
fn leases_of_pods_that_are_gone_are_found() {
    requires!("cni:bridge", "cni:host-local");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config.clone());
    let gone = fixture.pod("gone");
    network.add(&gone);
    gone.end();
    // The one end of a veth takes the other with it, but not at once.
    let mut left = 50;
    while fixture.run("ip link").contains("veth") && left > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        left -= 1;
    }
    // It may be an ADD at work.
    fixture.is_healthy();
    fixture.age("small", "10.77.0.2");
    let findings = fixture.findings();
    assert_eq!(findings.ids(), ["stale-lease"]);
    let stale = findings.the("stale-lease");
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
fn links_without_a_lease_are_found_with_and_without_a_runtimes_memory() {
    requires!();
    let (fixture, _pod, veth) = populated(&small_network());
    fixture.run(&format!("rm {LEASES}/small/10.77.0.2"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.the("link-without-lease").contains(&veth));
    assert!(found.the("link-without-lease").contains("shop/a-0"));
    fixture.run(&format!("rm {CACHE}/small-a-eth0"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.the("link-without-lease").contains(&veth));
}

#[test]
fn empty_and_garbled_leases_are_found() {
    requires!();
    let (fixture, _pod, _) = populated(&small_network());
    fixture.write(&format!("{LEASES}/small/10.77.0.8"), "");
    fixture.write(&format!("{LEASES}/small/10.77.0.9"), "\0\0\0\0");
    // These are no leases.
    fixture.write(&format!("{LEASES}/small/notes.txt"), "mine");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["garbled-lease"], "{found:#?}");
    let found = found.the("garbled-lease");
    assert!(
        found.contains("10.77.0.8")
            && found.contains("10.77.0.9")
            && found.contains("2 lease files"),
        "{found}"
    );
}

#[test]
fn ranges_that_are_used_up_are_found() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "10.77.0.0/28".into();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let pods: Vec<_> = (0..13).map(|at| fixture.pod(&format!("p{at}"))).collect();
    for pod in &pods[..11] {
        network.add(pod);
    }
    fixture.is_healthy();
    network.add(&pods[11]);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["range-nearly-full"]);
    assert!(found.the("range-nearly-full").contains("12 of 13"));
    network.add(&pods[12]);
    assert_eq!(fixture.findings().ids(), ["range-full"]);
}

#[test]
fn ranges_of_two_networks_that_overlap_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    other["ipam"]["subnet"] = "10.77.0.128/25".into();
    fixture.configure("20-other.conflist", &other);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["overlapping-ranges"]);
    let found = found.the("overlapping-ranges");
    assert!(
        found.contains("10-net.conflist") && found.contains("20-other.conflist"),
        "{found}"
    );
}

#[test]
fn leases_of_a_network_that_is_not_configured_are_found() {
    requires!();
    let (fixture, _pod, _) = populated(&small_network());
    fixture.run(&format!(
        "mv {CONF}/10-net.conflist {CONF}/10-net.conflist.off"
    ));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["unknown-network"]);
    assert!(found.the("unknown-network").contains("/small: 10.77.0.2"));
}

#[test]
fn configurations_that_no_runtime_can_use_are_found() {
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
        let found = found.the("unusable-configuration");
        assert!(found.contains(wanted) && found.contains(file), "{found}");
        fixture.run(&format!("rm {CONF}/{file}"));
    }
    // Runtimes read no other files.
    fixture.write(&format!("{CONF}/notes.txt"), "{");
    fixture.write(&format!("{CONF}/old.conflist.bak"), "{");
    fixture.is_healthy();
}

#[test]
fn a_name_given_twice_and_plugins_that_are_missing_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    fixture.configure_list("20-again.conflist", &[&small_network(), &portmap]);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["plugin-missing", "same-name"], "{found:#?}");
    assert!(found.the("plugin-missing").contains("portmap"));
    assert!(found.the("same-name").contains("20-again.conflist"));
    fixture.run(&format!("rm {CONF}/20-again.conflist"));
    fixture.run(&format!("rm {}/host-local", Node::BIN));
    let mut delegating = small_network();
    delegating["ipam"] = json!({ "type": "dhcp" });
    fixture.configure("10-net.conflist", &delegating);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["plugin-missing"], "{found:#?}");
    assert!(found.the("plugin-missing").contains("dhcp"));
}

#[test]
fn plugins_that_are_not_this_program_are_found() {
    requires!("cni:bridge");
    let fixture = Fixture::with(&small_network());
    fixture.run_all(&format!(
        "mkdir /run/bin\ncp /usr/lib/cni/bridge /run/bin/bridge\ncp -L {} /run/bin/host-local",
        binary().display()
    ));
    fixture.write(
        "/run/bin/loopback",
        "#!/bin/sh\necho 'CNI plugin loopback (gangplank 0.0.1)' >&2\n",
    );
    fixture.run("chmod 755 /run/bin/loopback");
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
    // CNI_PATH says the same as the flag.
    let line = format!(
        "env CNI_PATH=/run/bin BINARY doctor --conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE}"
    );
    let answer = fixture.under(&line);
    assert!(answer.stdout.contains("[plugin-foreign]"), "{answer:?}");
}

#[test]
fn what_others_took_from_living_pods_is_found() {
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
        let (fixture, _pod, veth) = populated(if harm.contains("promisc") {
            &promiscuous
        } else {
            &config
        });
        fixture.is_healthy();
        fixture.run(&harm.replace("VETH", &veth));
        let found = fixture.findings();
        let mut found = found.ids();
        // Taking the only port or the bridge down takes the pod's carrier too, and IPv6 addresses go with a link that is down.
        found.retain(|id| ids.contains(id) || *id != "gateway-address");
        assert_eq!(found, ids, "{harm}");
    }
}

#[test]
fn a_pod_whose_own_end_is_down_is_found() {
    requires!();
    let (fixture, pod, veth) = populated(&small_network());
    pod.run("ip link set eth0 down");
    // The kernel settles the port's carrier when it is asked for that one (rtnl_getlink), and else in a moment.
    fixture.link(&veth);
    let found = fixture.findings();
    assert_eq!(found.ids(), ["pod-link-down"]);
    assert!(found.the("pod-link-down").contains("shop/a-0"));
    assert_eq!(fixture.fix().ids(), ["pod-link-down"]);
}

#[test]
fn a_bridge_with_another_address_and_a_link_in_its_place_are_found() {
    requires!();
    let fixture = Fixture::with(&small_network());
    fixture.run_all(
        "ip link add br0 type bridge\nip link set br0 up\nip addr add 10.9.9.1/24 dev br0",
    );
    let found = fixture.findings();
    assert_eq!(found.ids(), ["bridge-address"]);
    let found = found.the("bridge-address");
    assert!(
        found.contains("10.9.9.1/24") && found.contains("10.77.0.1/24"),
        "{found}"
    );
    fixture.run_all("ip link del br0\nip link add br0 type veth peer name other");
    assert_eq!(fixture.findings().ids(), ["not-a-bridge"]);
    assert_eq!(fixture.fix().ids(), ["not-a-bridge"]);
}

#[test]
fn mtus_at_odds_are_found() {
    requires!();
    let mut config = small_network();
    config["mtu"] = 1400.into();
    let (fixture, _pod, veth) = populated(&config);
    let outside = Node::new("outside");
    wire(&fixture, "up0", &outside, "eth0");
    fixture.run_all("ip addr add 192.0.2.1/24 dev up0\nip route add default via 192.0.2.2");
    fixture.is_healthy();
    fixture.run("ip link set up0 mtu 1300");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["mtu-uplink"]);
    assert!(found.the("mtu-uplink").contains("1300") && found.the("mtu-uplink").contains("up0"));
    fixture.run("ip link set up0 mtu 1500");
    let other = fixture.pod("b");
    fixture.run_pod(&fixture.network(config), &other);
    fixture.run(&format!("ip link set {veth} mtu 1450"));
    let found = fixture.findings();
    assert_eq!(found.ids(), ["mtu-differs"], "{found:#?}");
    let found = found.the("mtu-differs");
    assert!(
        found.contains("pod shop/a-0 (container a) has 1450") && !found.contains("b-0"),
        "{found}"
    );
}

#[test]
fn masquerading_of_pods_that_are_gone_is_found_whoever_made_it() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerading();
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
        assert!(found.the("masquerade-left-over").contains("gone"));
        let status = fixture.status("--json").ok();
        assert_eq!(status[0]["masquerade"], json!([backend]), "{go}");
    }
}

#[test]
fn forwarding_that_is_off_or_dropped_is_found() {
    requires!("iptables");
    let fixture = Fixture::with(&dual());
    fixture.run_all("sysctl -qw net.ipv4.ip_forward=0\nsysctl -qw net.ipv6.conf.all.forwarding=0");
    assert_eq!(
        fixture.findings().ids(),
        ["forwarding-off", "forwarding-off"]
    );
    fixture.run_all("sysctl -qw net.ipv4.ip_forward=1\nsysctl -qw net.ipv6.conf.all.forwarding=1");
    fixture.is_healthy();
    fixture.run("iptables -P FORWARD DROP");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(
        found
            .the("forward-drop")
            .contains("policy of FORWARD is DROP")
    );
    fixture.run_all("iptables -A FORWARD -i br0 -j ACCEPT\niptables -A FORWARD -o br0 -j ACCEPT");
    fixture.is_healthy();
    fixture.run("ip6tables -I FORWARD -i br0 -j REJECT");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(found.the("forward-drop").contains("IPv6"), "{found:#?}");
}

#[test]
fn answers_that_forward_would_drop_are_found() {
    requires!("iptables");
    let fixture = Fixture::with(&small_network());
    fixture.run_all("iptables -P FORWARD DROP\niptables -A FORWARD -i br0 -j ACCEPT");
    let found = fixture.findings();
    assert_eq!(found.ids(), ["forward-drop"], "{found:#?}");
    fixture.run("iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    fixture.is_healthy();
}

#[test]
fn a_default_route_in_danger_is_found() {
    requires!();
    let fixture = Fixture::with(&dual());
    let outside = Node::new("outside");
    wire(&fixture, "up0", &outside, "eth0");
    fixture.run("ip -6 addr add 2001:db8::2/64 dev up0 nodad");
    fixture.run("ip -6 route add default via 2001:db8::1 dev up0 proto ra");
    let found = fixture.findings();
    assert!(found.ids().contains(&"advertised-route"), "{found:#?}");
    assert!(found.the("advertised-route").contains("up0"));
    fixture.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2");
    assert!(!fixture.findings().ids().contains(&"advertised-route"));
}

#[test]
fn kube_proxy_without_bridge_netfilter_and_both_kinds_of_iptables_are_found() {
    requires!("iptables-legacy", "iptables-nft");
    let fixture = Fixture::with(&small_network());
    fixture.is_healthy();
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
    let found = found.the("two-iptables");
    assert!(
        found.contains("192.0.2.1") && found.contains("192.0.2.2"),
        "{found}"
    );
}

#[test]
fn a_node_without_iptables_is_examined_all_the_same() {
    requires!();
    let mut config = masquerading();
    config["ipMasqBackend"] = "nftables".into();
    let fixture = Fixture::with(&config);
    // This node has nothing there.
    fixture.run("mount -t tmpfs tmpfs /usr/sbin");
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    fixture.is_healthy();
    assert_eq!(
        fixture.status("--json").ok()[0]["masquerade"],
        json!(["nftables"])
    );
}

#[test]
fn ipv6_alone_and_a_directory_of_many_leases_are_no_finding() {
    requires!();
    let mut config = masquerading();
    config["ipam"] = json!({ "type": "host-local", "subnet": "fd77::/64" });
    let (fixture, _pod, _) = populated(&config);
    fixture.is_healthy();
    let status = fixture.status("--json").ok();
    assert_eq!(
        status[0]["ranges"][0]["size"], "18446744073709551614",
        "{status}"
    );
    // Ten thousand files, all young.
    fixture.write("/run/many", &format!("cd {LEASES}/small && for i in $(seq 2 9999); do printf 'c%s\\r\\neth0' $i >fd77::1:$i; done\n"));
    fixture.run("bash /run/many");
    let start = std::time::Instant::now();
    let status = fixture.under(&format!(
        "timeout 60 BINARY doctor --json {}",
        doctors_places()
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
fn somebody_who_may_not_look_is_told_so() {
    requires!("setpriv");
    let (fixture, _pod, _) = populated(&small_network());
    fixture.run_all(&format!(
        "cp -L {} /run/gangplank\nchmod 755 /run/gangplank",
        binary().display()
    ));
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all /run/gangplank";
    let answer = fixture.under(&format!("{user} doctor {}", doctors_places()));
    assert!(
        answer.failure().contains("Permission denied") && answer.stderr.contains("run it as root"),
        "{answer:?}"
    );
    // Without a lease there is nothing that it may not read but rules.
    fixture.run(&format!("rm -r {LEASES}/small"));
    for flag in ["", "--fix"] {
        let answer = fixture.under(&format!("{user} doctor {flag} {}", doctors_places()));
        assert_eq!(answer.code, Some(3), "{answer:?}");
        assert!(
            answer.stdout.contains("[not-seen]") && answer.stdout.contains("run it as root"),
            "{answer:?}"
        );
    }
}

#[test]
fn plugins_of_a_list_that_do_not_know_its_version_or_status_are_found() {
    requires!("cni:portmap", "cni:tuning");
    let mut config = small_network();
    config["cniVersion"] = "1.1.0".into();
    let fixture = Fixture::new();
    let bin = "/run/chain";
    fixture.run_all(&format!(
        "mkdir {bin}\ncp -L {} {bin}/bridge",
        crate::support::binary().display()
    ));
    let script = "case $CNI_COMMAND in VERSION) echo '{\"supportedVersions\":[\"1.1.0\"]}';; *) cat >/run/asked; echo '{\"code\":50,\"msg\":\"no firewall\"}'; exit 1;; esac\n";
    fixture.write(&format!("{bin}/tuning"), &format!("#!/bin/sh\n{script}"));
    fixture.write(&format!("{bin}/portmap"), "#!/bin/sh\ncase $CNI_COMMAND in VERSION) echo '{\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}';; *) echo 'missing containerID' >&2; exit 1;; esac\n");
    fixture.run(&format!("chmod 755 {bin}/tuning {bin}/portmap"));
    let chained = |kind: &str| json!({ "type": kind });
    let found = |config: &Value| -> Vec<Value> {
        fixture.configure_list(
            "10-net.conflist",
            &[config, &chained("portmap"), &chained("tuning")],
        );
        let places =
            format!("--conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE} --cni-path {bin}");
        let answer = fixture.gangplank(&format!("doctor --json {places}"));
        let found: Value = serde_json::from_str(&answer.stdout).unwrap();
        let found = found.as_array().unwrap().iter();
        found
            .filter(|it| it["id"].as_str().unwrap().starts_with("plugin-"))
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
                "plugin portmap",
                "VERSION: 0.4.0, 1.0.0",
                "missing containerID",
                "set cniVersion to 1.0.0",
            ],
        ),
        (
            &status,
            [
                "plugin tuning",
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
    // It was asked as a runtime asks it.
    let asked: Value = serde_json::from_str(&fixture.read("/run/asked")).unwrap();
    assert_eq!(
        asked,
        json!({ "type": "tuning", "name": "small", "cniVersion": "1.1.0" })
    );
    // Before 1.1.0 there is no STATUS, and tuning does not support 1.0.0.
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
                .contains("plugin tuning does not support"),
        "{ids:?}"
    );
}

#[test]
fn keys_that_work_but_not_as_they_seem_are_named() {
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
