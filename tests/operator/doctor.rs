//! `gangplank doctor`: each finding on a node that is broken in just that way, and none on one that is not.

use serde_json::{Value, json};

use crate::site::{CACHE, CONF, LEASES, Site, doctors_places};
use crate::support::{Network, Node, binary, needs, small_network, wire};

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
fn populated(config: &Value) -> (Site, crate::support::Pod, String) {
    let site = Site::with(config);
    let pod = site.pod("a");
    let result = site.run_pod(&site.network(config.clone()), &pod);
    (site, pod, Network::host_link(&result))
}

#[test]
fn a_healthy_node_has_nothing_whoever_made_its_pods() {
    needs!("iptables", "nft", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = dual();
        config["ipMasqBackend"] = backend.into();
        config["macspoofchk"] = true.into();
        let site = Site::with(&config);
        site.is_healthy();
        let pods = ["ours", "kept", "theirs", "bare"].map(|name| site.pod(name));
        let network = site.network(config.clone());
        network.add(&pods[0]);
        site.run_pod(&network, &pods[1]);
        // Backends of Go that both write into one table would be in each other's way.
        if backend == "iptables" {
            site.run_pod(&site.go(&config), &pods[2]);
            site.go(&config).add(&pods[3]);
        }
        site.is_healthy();
        let text = site.doctor("");
        assert_eq!(text.said(), "ok: nothing found\n");
        assert!(site.fix().all.is_empty());
    }
}

#[test]
fn pods_that_come_and_go_meanwhile_are_no_finding() {
    needs!("iptables");
    let config = masquerading();
    let site = Site::with(&config);
    let network = site.network(config);
    let still = site.pod("still");
    site.run_pod(&network, &still);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (network, site) = (&network, &site);
            scope.spawn(move || {
                for turn in 0..12 {
                    let pod = site.pod(&format!("p{worker}-{turn}"));
                    network.add(&pod);
                    // As old as those of pods that run for long.
                    site.run(&format!("find {LEASES}/small -name 10.* -exec touch --no-create --date=-1hour {{}} +"));
                    network.del(&pod);
                }
            });
        }
        for at in 0..8 {
            let findings = if at % 2 == 0 {
                site.findings()
            } else {
                site.fix()
            };
            assert!(findings.all.is_empty(), "{:#?}", findings.all);
        }
    });
    site.is_healthy();
}

#[test]
fn leases_of_pods_that_are_gone_are_found() {
    needs!("cni:bridge", "cni:host-local");
    let config = small_network();
    let site = Site::with(&config);
    let network = site.network(config.clone());
    let gone = site.pod("gone");
    network.add(&gone);
    gone.end();
    // The one end of a veth takes the other with it, but not at once.
    let mut left = 50;
    while site.run("ip link").contains("veth") && left > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        left -= 1;
    }
    // It may be an ADD at work.
    site.is_healthy();
    site.age("small", "10.77.0.2");
    let findings = site.findings();
    assert_eq!(findings.ids(), ["stale-lease"]);
    let stale = findings.the("stale-lease");
    assert!(
        stale.contains("10.77.0.2") && stale.contains("gone") && stale.contains("60 min"),
        "{stale}"
    );
    let text = site.doctor("");
    assert_eq!(text.code, Some(3));
    assert!(
        text.stdout.contains("(or gangplank doctor --fix)"),
        "{text:?}"
    );
}

#[test]
fn links_without_a_lease_are_found_with_and_without_a_runtimes_memory() {
    needs!();
    let (site, _pod, veth) = populated(&small_network());
    site.run(&format!("rm {LEASES}/small/10.77.0.2"));
    let found = site.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.the("link-without-lease").contains(&veth));
    assert!(found.the("link-without-lease").contains("shop/a-0"));
    site.run(&format!("rm {CACHE}/small-a-eth0"));
    let found = site.findings();
    assert_eq!(found.ids(), ["link-without-lease"]);
    assert!(found.the("link-without-lease").contains(&veth));
}

#[test]
fn empty_and_garbled_leases_are_found() {
    needs!();
    let (site, _pod, _) = populated(&small_network());
    site.write(&format!("{LEASES}/small/10.77.0.8"), "");
    site.write(&format!("{LEASES}/small/10.77.0.9"), "\0\0\0\0");
    // These are no leases.
    site.write(&format!("{LEASES}/small/notes.txt"), "mine");
    let found = site.findings();
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
    needs!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "10.77.0.0/28".into();
    let site = Site::with(&config);
    let network = site.network(config);
    let pods: Vec<_> = (0..13).map(|at| site.pod(&format!("p{at}"))).collect();
    for pod in &pods[..11] {
        network.add(pod);
    }
    site.is_healthy();
    network.add(&pods[11]);
    let found = site.findings();
    assert_eq!(found.ids(), ["range-nearly-full"]);
    assert!(found.the("range-nearly-full").contains("12 of 13"));
    network.add(&pods[12]);
    assert_eq!(site.findings().ids(), ["range-full"]);
}

#[test]
fn ranges_of_two_networks_that_overlap_are_found() {
    needs!();
    let site = Site::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    other["ipam"]["subnet"] = "10.77.0.128/25".into();
    site.configure("20-other.conflist", &other);
    let found = site.findings();
    assert_eq!(found.ids(), ["overlapping-ranges"]);
    let found = found.the("overlapping-ranges");
    assert!(
        found.contains("10-net.conflist") && found.contains("20-other.conflist"),
        "{found}"
    );
}

#[test]
fn leases_of_a_network_that_is_not_configured_are_found() {
    needs!();
    let (site, _pod, _) = populated(&small_network());
    site.run(&format!(
        "mv {CONF}/10-net.conflist {CONF}/10-net.conflist.off"
    ));
    let found = site.findings();
    assert_eq!(found.ids(), ["unknown-network"]);
    assert!(found.the("unknown-network").contains("/small: 10.77.0.2"));
}

#[test]
fn configurations_that_no_runtime_can_use_are_found() {
    needs!();
    let site = Site::new();
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
        site.write(&format!("{CONF}/{file}"), text);
        let found = site.findings();
        assert_eq!(found.ids(), ["unusable-configuration"], "{text}");
        let found = found.the("unusable-configuration");
        assert!(found.contains(wanted) && found.contains(file), "{found}");
        site.run(&format!("rm {CONF}/{file}"));
    }
    // Runtimes read no other files.
    site.write(&format!("{CONF}/notes.txt"), "{");
    site.write(&format!("{CONF}/old.conflist.bak"), "{");
    site.is_healthy();
}

#[test]
fn a_name_given_twice_and_plugins_that_are_missing_are_found() {
    needs!();
    let site = Site::with(&small_network());
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    site.configure_list("20-again.conflist", &[&small_network(), &portmap]);
    let found = site.findings();
    assert_eq!(found.ids(), ["plugin-missing", "same-name"], "{found:#?}");
    assert!(found.the("plugin-missing").contains("portmap"));
    assert!(found.the("same-name").contains("20-again.conflist"));
    site.run(&format!("rm {CONF}/20-again.conflist"));
    site.run(&format!("rm {}/host-local", Node::BIN));
    let mut delegating = small_network();
    delegating["ipam"] = json!({ "type": "dhcp" });
    site.configure("10-net.conflist", &delegating);
    let found = site.findings();
    assert_eq!(found.ids(), ["plugin-missing"], "{found:#?}");
    assert!(found.the("plugin-missing").contains("dhcp"));
}

#[test]
fn plugins_that_are_not_this_program_are_found() {
    needs!("cni:bridge");
    let site = Site::with(&small_network());
    site.run_all(&format!(
        "mkdir /run/bin\ncp /usr/lib/cni/bridge /run/bin/bridge\ncp -L {} /run/bin/host-local",
        binary().display()
    ));
    site.write(
        "/run/bin/loopback",
        "#!/bin/sh\necho 'CNI plugin loopback (gangplank 0.0.1)' >&2\n",
    );
    site.run("chmod 755 /run/bin/loopback");
    let flags = format!(
        "--json --cni-path /run/none:/run/bin --conf-dir {CONF} --data-dir {LEASES} --cache-dir {CACHE}"
    );
    let answer = site.gangplank(&format!("doctor {flags}"));
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
    let answer = site.under(&line);
    assert!(answer.stdout.contains("[plugin-foreign]"), "{answer:?}");
}

#[test]
fn what_others_took_from_living_pods_is_found() {
    needs!("iptables", "nft");
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
        let (site, _pod, veth) = populated(if harm.contains("promisc") {
            &promiscuous
        } else {
            &config
        });
        site.is_healthy();
        site.run(&harm.replace("VETH", &veth));
        let found = site.findings();
        let mut found = found.ids();
        // Taking the only port or the bridge down takes the pod's carrier too, and IPv6 addresses go with a link that is down.
        found.retain(|id| ids.contains(id) || *id != "gateway-address");
        assert_eq!(found, ids, "{harm}");
    }
}

#[test]
fn a_pod_whose_own_end_is_down_is_found() {
    needs!();
    let (site, pod, veth) = populated(&small_network());
    pod.run("ip link set eth0 down");
    // The kernel settles the port's carrier when it is asked for that one (rtnl_getlink), and else in a moment.
    site.link(&veth);
    let found = site.findings();
    assert_eq!(found.ids(), ["pod-link-down"]);
    assert!(found.the("pod-link-down").contains("shop/a-0"));
    assert_eq!(site.fix().ids(), ["pod-link-down"]);
}

#[test]
fn a_bridge_with_another_address_and_a_link_in_its_place_are_found() {
    needs!();
    let site = Site::with(&small_network());
    site.run_all(
        "ip link add br0 type bridge\nip link set br0 up\nip addr add 10.9.9.1/24 dev br0",
    );
    let found = site.findings();
    assert_eq!(found.ids(), ["bridge-address"]);
    let found = found.the("bridge-address");
    assert!(
        found.contains("10.9.9.1/24") && found.contains("10.77.0.1/24"),
        "{found}"
    );
    site.run_all("ip link del br0\nip link add br0 type veth peer name other");
    assert_eq!(site.findings().ids(), ["not-a-bridge"]);
    assert_eq!(site.fix().ids(), ["not-a-bridge"]);
}

#[test]
fn mtus_at_odds_are_found() {
    needs!();
    let mut config = small_network();
    config["mtu"] = 1400.into();
    let (site, _pod, veth) = populated(&config);
    let outside = Node::new("outside");
    wire(&site, "up0", &outside, "eth0");
    site.run_all("ip addr add 192.0.2.1/24 dev up0\nip route add default via 192.0.2.2");
    site.is_healthy();
    site.run("ip link set up0 mtu 1300");
    let found = site.findings();
    assert_eq!(found.ids(), ["mtu-uplink"]);
    assert!(found.the("mtu-uplink").contains("1300") && found.the("mtu-uplink").contains("up0"));
    site.run("ip link set up0 mtu 1500");
    let other = site.pod("b");
    site.run_pod(&site.network(config), &other);
    site.run(&format!("ip link set {veth} mtu 1450"));
    let found = site.findings();
    assert_eq!(found.ids(), ["mtu-differs"], "{found:#?}");
    let found = found.the("mtu-differs");
    assert!(
        found.contains("pod shop/a-0 (container a) has 1450") && !found.contains("b-0"),
        "{found}"
    );
}

#[test]
fn masquerading_of_pods_that_are_gone_is_found_whoever_made_it() {
    needs!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerading();
        config["ipMasqBackend"] = backend.into();
        let site = Site::with(&config);
        let pod = site.pod("gone");
        let network = match go {
            true => site.go(&config),
            false => site.network(config.clone()),
        };
        let veth = Network::host_link(&network.add(&pod));
        site.run_all(&format!("ip link del {veth}\nrm {LEASES}/small/10.77.0.2"));
        let found = site.findings();
        assert_eq!(found.ids(), ["masquerade-left-over"], "{backend} {go}");
        assert!(found.the("masquerade-left-over").contains("gone"));
        let status = site.status("--json").ok();
        assert_eq!(status[0]["masquerade"], json!([backend]), "{go}");
    }
}

#[test]
fn forwarding_that_is_off_or_dropped_is_found() {
    needs!("iptables");
    let site = Site::with(&dual());
    site.run_all("sysctl -qw net.ipv4.ip_forward=0\nsysctl -qw net.ipv6.conf.all.forwarding=0");
    assert_eq!(site.findings().ids(), ["forwarding-off", "forwarding-off"]);
    site.run_all("sysctl -qw net.ipv4.ip_forward=1\nsysctl -qw net.ipv6.conf.all.forwarding=1");
    site.is_healthy();
    site.run("iptables -P FORWARD DROP");
    let found = site.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(
        found
            .the("forward-drop")
            .contains("policy of FORWARD is DROP")
    );
    site.run_all("iptables -A FORWARD -i br0 -j ACCEPT\niptables -A FORWARD -o br0 -j ACCEPT");
    site.is_healthy();
    site.run("ip6tables -I FORWARD -i br0 -j REJECT");
    let found = site.findings();
    assert_eq!(found.ids(), ["forward-drop"]);
    assert!(found.the("forward-drop").contains("IPv6"), "{found:#?}");
}

#[test]
fn answers_that_forward_would_drop_are_found() {
    needs!("iptables");
    let site = Site::with(&small_network());
    site.run_all("iptables -P FORWARD DROP\niptables -A FORWARD -i br0 -j ACCEPT");
    let found = site.findings();
    assert_eq!(found.ids(), ["forward-drop"], "{found:#?}");
    site.run("iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    site.is_healthy();
}

#[test]
fn a_default_route_in_danger_is_found() {
    needs!();
    let site = Site::with(&dual());
    let outside = Node::new("outside");
    wire(&site, "up0", &outside, "eth0");
    site.run("ip -6 addr add 2001:db8::2/64 dev up0 nodad");
    site.run("ip -6 route add default via 2001:db8::1 dev up0 proto ra");
    let found = site.findings();
    assert!(found.ids().contains(&"advertised-route"), "{found:#?}");
    assert!(found.the("advertised-route").contains("up0"));
    site.run("sysctl -qw net.ipv6.conf.up0.accept_ra=2");
    assert!(!site.findings().ids().contains(&"advertised-route"));
}

#[test]
fn kube_proxy_without_bridge_netfilter_and_both_kinds_of_iptables_are_found() {
    needs!("iptables-legacy", "iptables-nft");
    let site = Site::with(&small_network());
    site.is_healthy();
    site.run("iptables-nft -t nat -N KUBE-SERVICES");
    let has = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if has {
        site.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    }
    site.lay_iptables("xtables-nft-multi");
    let found = site.findings();
    assert_eq!(found.ids(), ["bridge-netfilter"], "{found:#?}");
    site.run_all("iptables-nft -t nat -X KUBE-SERVICES\niptables-nft -t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT");
    site.run("iptables-legacy -t nat -A POSTROUTING -s 192.0.2.2 -j ACCEPT");
    let found = site.findings();
    assert_eq!(found.ids(), ["two-iptables"], "{found:#?}");
    let found = found.the("two-iptables");
    assert!(
        found.contains("192.0.2.1") && found.contains("192.0.2.2"),
        "{found}"
    );
}

#[test]
fn a_node_without_iptables_is_examined_all_the_same() {
    needs!();
    let mut config = masquerading();
    config["ipMasqBackend"] = "nftables".into();
    let site = Site::with(&config);
    // This node has nothing there.
    site.run("mount -t tmpfs tmpfs /usr/sbin");
    let pod = site.pod("a");
    site.run_pod(&site.network(config), &pod);
    site.is_healthy();
    assert_eq!(
        site.status("--json").ok()[0]["masquerade"],
        json!(["nftables"])
    );
}

#[test]
fn ipv6_alone_and_a_directory_of_many_leases_are_no_finding() {
    needs!();
    let mut config = masquerading();
    config["ipam"] = json!({ "type": "host-local", "subnet": "fd77::/64" });
    let (site, _pod, _) = populated(&config);
    site.is_healthy();
    let status = site.status("--json").ok();
    assert_eq!(
        status[0]["ranges"][0]["size"], "18446744073709551614",
        "{status}"
    );
    // Ten thousand files, all young.
    site.write("/run/many", &format!("cd {LEASES}/small && for i in $(seq 2 9999); do printf 'c%s\\r\\neth0' $i >fd77::1:$i; done\n"));
    site.run("bash /run/many");
    let start = std::time::Instant::now();
    let status = site.under(&format!(
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
    needs!("setpriv");
    let (site, _pod, _) = populated(&small_network());
    site.run_all(&format!(
        "cp -L {} /run/gangplank\nchmod 755 /run/gangplank",
        binary().display()
    ));
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all /run/gangplank";
    let answer = site.under(&format!("{user} doctor {}", doctors_places()));
    assert!(
        answer.complaint().contains("Permission denied")
            && answer.stderr.contains("run it as root"),
        "{answer:?}"
    );
    // Without a lease there is nothing that it may not read but rules.
    site.run(&format!("rm -r {LEASES}/small"));
    for flag in ["", "--fix"] {
        let answer = site.under(&format!("{user} doctor {flag} {}", doctors_places()));
        assert_eq!(answer.code, Some(3), "{answer:?}");
        assert!(
            answer.stdout.contains("[not-seen]") && answer.stdout.contains("run it as root"),
            "{answer:?}"
        );
    }
}
