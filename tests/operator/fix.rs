//! `gangplank doctor --fix`: repairs its findings, and keeps the resources of running pods.

use serde_json::{Value, json};

use crate::fixture::{CACHE, CONF, Fixture, LEASES};
use crate::support::{Network, Node, NodeState, connect, requires, small_network};

fn masquerade_network() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

#[test]
fn leases_and_rules_of_deleted_pods_are_removed_and_others_kept() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = masquerade_network();
        config["ipMasqBackend"] = backend.into();
        let fixture = Fixture::with(&config);
        let network = fixture.network(config.clone());
        let pods = ["ours", "go-kept", "go-bare"].map(|name| fixture.pod(name));
        network.add(&pods[0]);
        if backend == "iptables" {
            fixture.run_pod(&fixture.go(&config), &pods[1]);
            fixture.go(&config).add(&pods[2]);
        }
        let before = NodeState::of_pods(&fixture);
        let dead = fixture.pod("dead");
        let result = network.add(&dead);
        fixture.run(&format!("ip link del {}", Network::host_link(&result)));
        let address = Network::address(&result);
        fixture.age("small", &address);
        for lease in before.files.keys() {
            fixture.run(&format!("touch --no-create --date=-1hour {lease}"));
        }
        fixture.write(&format!("{LEASES}/small/10.77.0.99"), "");
        // Without a cache entry, the link of a pod of the Go plugin cannot be identified.
        let found = fixture.findings();
        let fixed = fixture.fix();
        if backend == "nftables" {
            assert_eq!(found.ids(), ["garbled-lease", "stale-lease"]);
            assert!(fixed.all.iter().all(|it| it["fixed"] == true), "{fixed:#?}");
            fixture.assert_healthy();
            assert_eq!(NodeState::of_pods(&fixture), before);
        } else {
            assert_eq!(found.ids(), ["garbled-lease"]);
            assert!(fixture.lease("small", &address).is_some());
        }
        for pod in pods.iter().filter(|pod| pod.link("eth0").is_some()) {
            assert_eq!(pod.reaches("10.77.0.1"), 64);
        }
    }
}

#[test]
fn a_running_pod_of_the_go_plugin_keeps_its_lease_despite_a_broken_port_or_bridge() {
    requires!("iptables", "cni:bridge", "cni:host-local");
    let config = masquerade_network();
    for damage in [
        "ip link set VETH nomaster",
        "ip link del br0",
        "ip link set br0 down",
        "ip link set VETH down",
    ] {
        for cache in ["none", "garbled", "old", "whole"] {
            let fixture = Fixture::with(&config);
            let pod = fixture.pod("go");
            let go = fixture.go(&config);
            let mut result = go.add(&pod);
            let veth = Network::host_link(&result);
            match cache {
                "none" => {}
                "garbled" => fixture.write_cache(&go, &pod, &json!("what?")),
                // Results of CNI 0.2.0 have no interfaces.
                "old" => fixture.write_cache(
                    &go,
                    &pod,
                    &json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.77.0.2/24" } }),
                ),
                _ => {
                    result["cniVersion"] = "1.0.0".into();
                    fixture.write_cache(&go, &pod, &result);
                }
            }
            fixture.age("small", "10.77.0.2");
            fixture.run(&damage.replace("VETH", &veth));
            let fixed = fixture.fix();
            if damage == "ip link del br0" && cache != "whole" {
                fixed.text_of("bridge-missing");
            }
            assert!(
                fixture.lease("small", "10.77.0.2").is_some(),
                "{damage}, {cache}: {fixed:#?}"
            );
            assert!(
                !fixed.ids().contains(&"stale-lease"),
                "{damage}, {cache}: {fixed:#?}"
            );
            let chains = fixture.nat("iptables");
            assert!(
                chains.iter().any(|rule| rule.contains("MASQUERADE")),
                "{damage}, {cache}: {chains:?}"
            );
        }
    }
}

#[test]
fn a_running_pod_without_its_link_keeps_its_lease() {
    requires!();
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    let result = fixture.run_pod(&fixture.network(config), &pod);
    fixture.run(&format!("ip link del {}", Network::host_link(&result)));
    fixture.age("small", "10.77.0.2");
    let fixed = fixture.fix();
    assert_eq!(fixed.ids(), ["stale-lease"]);
    assert_eq!(fixed.all[0]["fixable"], false);
    assert!(fixed.text_of("stale-lease").contains("restart the pod"));
    assert!(fixture.lease("small", "10.77.0.2").is_some());
}

#[test]
fn no_lease_is_released_if_two_networks_share_a_name() {
    requires!();
    let config = small_network();
    let fixture = Fixture::with(&config);
    let other =
        json!({ "cniVersion": "1.0.0", "name": "small", "type": "ptp", "ipam": config["ipam"] });
    fixture.configure("20-ptp.conflist", &other);
    // A pod of another plugin, with an unknown link.
    fixture.run(&format!("mkdir -p {LEASES}/small"));
    fixture.write(&format!("{LEASES}/small/10.77.0.5"), "other\r\neth0");
    fixture.age("small", "10.77.0.5");
    let fixed = fixture.fix();
    assert!(fixed.ids().contains(&"same-name"), "{fixed:#?}");
    assert!(fixture.lease("small", "10.77.0.5").is_some(), "{fixed:#?}");
}

#[test]
fn stale_masquerade_rules_of_all_implementations_and_networks_are_removed() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerade_network();
        config["ipMasqBackend"] = backend.into();
        let fixture = Fixture::with(&config);
        let (running, deleted) = (fixture.pod("stays"), fixture.pod("goes"));
        let network = if go {
            fixture.go(&config)
        } else {
            fixture.network(config.clone())
        };
        fixture.run_pod(&network, &running);
        let rules = fixture.run("nft list ruleset");
        let result = network.add(&deleted);
        fixture.run(&format!("ip link del {}", Network::host_link(&result)));
        fixture.run(&format!("rm {LEASES}/small/{}", Network::address(&result)));
        let fixed = fixture.fix();
        assert_eq!(fixed.ids(), ["masquerade-left-over"], "{backend} {go}");
        fixture.assert_healthy();
        let handles = |text: String| {
            text.lines()
                .filter(|line| !line.contains("packets"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            handles(fixture.run("nft list ruleset")),
            handles(rules),
            "{backend} {go}"
        );
    }
}

#[test]
fn masquerade_rules_of_a_network_with_another_data_dir_are_kept() {
    requires!("iptables", "nft");
    for backend in ["iptables", "nftables"] {
        let fixture = Fixture::with(&small_network());
        // As with flannel: the configured plugin delegates to bridge, with another lease directory.
        let mut config = masquerade_network();
        config["name"] = "cbr0".into();
        config["ipMasqBackend"] = backend.into();
        config["ipam"]["dataDir"] = "/run/elsewhere".into();
        config["ipam"]["subnet"] = "10.78.0.0/24".into();
        config["bridge"] = "br9".into();
        let pod = fixture.pod("lives");
        fixture.network(config.clone()).add(&pod);
        config["type"] = "flannel".into();
        for is_named in [false, true] {
            if is_named {
                fixture.configure("20-flannel.conflist", &config);
            }
            let before = NodeState::of(&fixture);
            let fixed = fixture.fix();
            assert!(
                fixed
                    .text_of("masquerade-left-over")
                    .contains("no leases of that network"),
                "{backend}: {fixed:#?}"
            );
            assert_eq!(NodeState::of(&fixture), before, "{backend}");
        }
    }
}

#[test]
fn masquerade_rules_of_a_network_without_a_bridge_are_those_of_its_leases() {
    requires!("iptables", "nft");
    for backend in ["iptables", "nftables"] {
        let mut config = masquerade_network();
        config["type"] = "ptp".into();
        config["ipMasqBackend"] = backend.into();
        for data_dir in [None, Some("/run/elsewhere")] {
            if let Some(data_dir) = data_dir {
                config["ipam"]["dataDir"] = data_dir.into();
            }
            let fixture = Fixture::with(&config);
            let network = fixture.network(config.clone());
            let (running, deleted) = (fixture.pod("stays"), fixture.pod("goes"));
            fixture.run_pod(&network, &running);
            let result = network.add(&deleted);
            fixture.assert_healthy();
            fixture.run(&format!("ip link del {}", Network::host_link(&result)));
            let leases = data_dir.unwrap_or(LEASES);
            fixture.run(&format!("rm {leases}/small/{}", Network::address(&result)));
            let fixed = fixture.fix();
            assert_eq!(fixed.ids(), ["masquerade-left-over"], "{backend}");
            let evidence = fixed.text_of("masquerade-left-over");
            assert!(evidence.contains("goes"), "{evidence}");
            assert!(!evidence.contains("stays"), "{evidence}");
            fixture.assert_healthy();
        }
    }
}

#[test]
fn stale_nftables_rules_of_newer_go_plugins_are_removed() {
    requires!("nft");
    let mut config = masquerade_network();
    config["ipMasqBackend"] = "nftables".into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("stays");
    fixture.run_pod(&fixture.network(config), &pod);
    // The format of version 1.6 and later: one rule per address, with a comment that begins with two hashes.
    let map = fixture.run("nft list map inet gangplank pods4");
    let comment = map.split('"').nth(1).unwrap();
    let of = |container: &str, address: &str| {
        let comment = match container {
            "stays" => comment.to_owned(),
            _ => format!(
                "{}-0123456789abcdef, net: small, if: eth0, id: {container}",
                &comment[..16]
            ),
        };
        format!("ip saddr {address} masquerade comment \"{comment}\"")
    };
    let chain = format!(
        "table inet cni_plugins_masquerade {{\nchain masq_checks {{\n{}\n{}\n}}\n}}\n",
        of("stays", "10.77.0.2"),
        of("gone", "10.77.0.9")
    );
    fixture.write("/run/go.nft", &chain);
    fixture.run_all("nft -f /run/go.nft\nnft delete table inet gangplank");
    let fixed = fixture.fix();
    assert_eq!(fixed.ids(), ["masquerade-left-over"], "{fixed:#?}");
    assert!(
        fixed
            .text_of("masquerade-left-over")
            .contains("container gone"),
        "{fixed:#?}"
    );
    fixture.assert_healthy();
    let left = fixture.run("nft list table inet cni_plugins_masquerade");
    assert!(
        left.contains("10.77.0.2") && !left.contains("10.77.0.9"),
        "{left}"
    );
    assert_eq!(
        fixture.status("--json").ok()[0]["masquerade"],
        json!(["nftables"])
    );
}

#[test]
fn resources_removed_by_other_tools_are_restored() {
    requires!("ping", "iptables", "nft");
    let mut config = masquerade_network();
    config["macspoofchk"] = true.into();
    config["hairpinMode"] = true.into();
    let fixture = Fixture::with(&config);
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    let network = fixture.network(config);
    let veth = Network::host_link(&fixture.run_pod(&network, &a));
    let to = Network::address(&fixture.run_pod(&network, &b));
    fixture.run_all(&format!(
        "ip addr flush dev br0\nip link set {veth} nomaster\niptables -t nat -F\nnft flush table bridge nat\nsysctl -qw net.ipv4.ip_forward=0"
    ));
    let fixed = fixture.fix();
    let ids = fixed.ids();
    for id in [
        "forwarding-off",
        "gateway-address",
        "mac-check-missing",
        "masquerade-missing",
        "port",
    ] {
        assert!(ids.contains(&id), "{id}: {ids:?}");
    }
    assert!(fixed.all.iter().all(|it| it["fixed"] == true), "{fixed:#?}");
    fixture.assert_healthy();
    a.reaches(&to);
    a.reaches("10.77.0.1");
}

#[test]
fn accept_ra_is_set_to_keep_the_default_route() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    let fixture = Fixture::with(&config);
    let outside = Node::new("outside");
    connect(&fixture, "up0", &outside, "eth0");
    fixture.run_all(
        "sysctl -qw net.ipv6.conf.all.forwarding=0\nip -6 addr add 2001:db8::2/64 dev up0 nodad\nip -6 route add default via 2001:db8::1 dev up0 proto ra",
    );
    let fixed = fixture.fix();
    assert_eq!(fixed.ids(), ["advertised-route", "forwarding-off"]);
    assert_eq!(fixture.read("/proc/sys/net/ipv6/conf/up0/accept_ra"), "2\n");
    assert_eq!(
        fixture.read("/proc/sys/net/ipv6/conf/all/forwarding"),
        "1\n"
    );
    fixture.assert_healthy();
}

#[test]
fn accept_ra_is_kept_if_a_network_manager_handles_router_advertisements() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    for accepted in [0, 2] {
        let fixture = Fixture::with(&config);
        let outside = Node::new("outside");
        connect(&fixture, "up0", &outside, "eth0");
        fixture.run_all(&format!(
            "sysctl -qw net.ipv6.conf.up0.accept_ra={accepted}\nip -6 addr add 2001:db8::2/64 dev up0 nodad\nip -6 route add default via 2001:db8::1 dev up0 proto ra"
        ));
        let parameter = "/proc/sys/net/ipv6/conf/up0/accept_ra";
        assert_eq!(fixture.fix().ids(), Vec::<&str>::new());
        assert_eq!(fixture.read(parameter), format!("{accepted}\n"));
        // An ADD of an IPv6 pod does not change it either.
        fixture.network(config.clone()).add(&fixture.pod("a"));
        assert_eq!(fixture.read(parameter), format!("{accepted}\n"));
    }
}

#[test]
fn a_default_route_advertised_by_a_pod_is_reported() {
    requires!("iptables");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    fixture.run("ip -6 route add default via fe80::1 dev br0 proto ra");
    let fixed = fixture.fix();
    assert_eq!(fixed.ids(), ["route-from-pod"]);
    assert!(
        fixed
            .text_of("route-from-pod")
            .contains("ip -6 route del default dev br0")
    );
    fixture.run("ip -6 route del default dev br0 proto ra");
    fixture.assert_healthy();
}

#[test]
fn unsafe_repairs_are_left_to_the_operator() {
    requires!("iptables");
    let fixture = Fixture::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    fixture.configure("20-other.conflist", &other);
    fixture.write(&format!("{CONF}/30-half.conf"), "{");
    fixture.run_all(
        "ip link add br0 type bridge\nip addr add 10.9.9.1/24 dev br0\niptables -P FORWARD DROP",
    );
    fixture.run(&format!("mkdir -p {LEASES}/unknown"));
    fixture.write(&format!("{LEASES}/unknown/10.5.0.2"), "x\r\neth0");
    fixture.age("unknown", "10.5.0.2");
    let before = (
        NodeState::of(&fixture),
        fixture.files(CONF),
        fixture.files(CACHE),
        fixture.run("iptables -S"),
    );
    let fixed = fixture.fix();
    assert!(
        fixed
            .all
            .iter()
            .all(|it| it["fixed"] == false && it["fixable"] == false),
        "{fixed:#?}"
    );
    assert!(fixed.all.len() >= 5, "{fixed:#?}");
    let after = (
        NodeState::of(&fixture),
        fixture.files(CONF),
        fixture.files(CACHE),
        fixture.run("iptables -S"),
    );
    assert_eq!(before, after);
}
