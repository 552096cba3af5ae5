//! `gangplank doctor --fix`: what it repairs is repaired, and what lives is left alone.

use serde_json::{Value, json};

use crate::fixture::{CACHE, CONF, Fixture, LEASES};
use crate::support::{Network, Node, NodeState, requires, small_network, wire};

fn masquerading() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

#[test]
fn leases_and_rules_of_the_dead_go_and_those_of_the_living_stay() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = masquerading();
        config["ipMasqBackend"] = backend.into();
        let fixture = Fixture::with(&config);
        let network = fixture.network(config.clone());
        let pods = ["ours", "go-kept", "go-bare"].map(|name| fixture.pod(name));
        network.add(&pods[0]);
        if backend == "iptables" {
            fixture.run_pod(&fixture.go(&config), &pods[1]);
            fixture.go(&config).add(&pods[2]);
        }
        let living = NodeState::of_pods(&fixture);
        let dead = fixture.pod("dead");
        let result = network.add(&dead);
        fixture.run(&format!("ip link del {}", Network::host_link(&result)));
        let address = Network::address(&result);
        fixture.age("small", &address);
        for lease in living.files.keys() {
            fixture.run(&format!("touch --no-create --date=-1hour {lease}"));
        }
        fixture.write(&format!("{LEASES}/small/10.77.0.99"), "");
        // Without the memory of Go's pod its link may be any.
        let found = fixture.findings();
        let fixed = fixture.fix();
        if backend == "nftables" {
            assert_eq!(found.ids(), ["garbled-lease", "stale-lease"]);
            assert!(fixed.all.iter().all(|it| it["fixed"] == true), "{fixed:#?}");
            fixture.is_healthy();
            assert_eq!(NodeState::of_pods(&fixture), living);
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
fn a_living_pod_of_go_keeps_its_lease_whatever_became_of_its_port_and_bridge() {
    requires!("iptables", "cni:bridge", "cni:host-local");
    let config = masquerading();
    for harm in [
        "ip link set VETH nomaster",
        "ip link del br0",
        "ip link set br0 down",
        "ip link set VETH down",
    ] {
        for memory in ["none", "garbled", "old", "whole"] {
            let fixture = Fixture::with(&config);
            let pod = fixture.pod("go");
            let go = fixture.go(&config);
            let mut result = go.add(&pod);
            let veth = Network::host_link(&result);
            match memory {
                "none" => {}
                "garbled" => fixture.remember(&go, &pod, &json!("what?")),
                // Results of CNI 0.2.0 tell no interfaces.
                "old" => fixture.remember(
                    &go,
                    &pod,
                    &json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.77.0.2/24" } }),
                ),
                _ => {
                    result["cniVersion"] = "1.0.0".into();
                    fixture.remember(&go, &pod, &result);
                }
            }
            fixture.age("small", "10.77.0.2");
            fixture.run(&harm.replace("VETH", &veth));
            let fixed = fixture.fix();
            if harm == "ip link del br0" && memory != "whole" {
                fixed.the("bridge-missing");
            }
            assert!(
                fixture.lease("small", "10.77.0.2").is_some(),
                "{harm}, {memory}: {fixed:#?}"
            );
            assert!(
                !fixed.ids().contains(&"stale-lease"),
                "{harm}, {memory}: {fixed:#?}"
            );
            let chains = fixture.nat("iptables");
            assert!(
                chains.iter().any(|rule| rule.contains("MASQUERADE")),
                "{harm}, {memory}: {chains:?}"
            );
        }
    }
}

#[test]
fn a_pod_that_lost_its_link_but_lives_keeps_its_lease() {
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
    assert!(fixed.the("stale-lease").contains("restart the pod"));
    assert!(fixture.lease("small", "10.77.0.2").is_some());
}

#[test]
fn a_name_that_two_networks_share_is_reason_to_free_nothing() {
    requires!();
    let config = small_network();
    let fixture = Fixture::with(&config);
    let other =
        json!({ "cniVersion": "1.0.0", "name": "small", "type": "ptp", "ipam": config["ipam"] });
    fixture.configure("20-ptp.conflist", &other);
    // A pod of the other plugin, of whose links nobody here knows.
    fixture.run(&format!("mkdir -p {LEASES}/small"));
    fixture.write(&format!("{LEASES}/small/10.77.0.5"), "other\r\neth0");
    fixture.age("small", "10.77.0.5");
    let fixed = fixture.fix();
    assert!(fixed.ids().contains(&"same-name"), "{fixed:#?}");
    assert!(fixture.lease("small", "10.77.0.5").is_some(), "{fixed:#?}");
}

#[test]
fn masquerading_left_over_goes_whoever_made_it_and_whatever_network() {
    requires!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerading();
        config["ipMasqBackend"] = backend.into();
        let fixture = Fixture::with(&config);
        let (stays, goes) = (fixture.pod("stays"), fixture.pod("goes"));
        let network = if go {
            fixture.go(&config)
        } else {
            fixture.network(config.clone())
        };
        fixture.run_pod(&network, &stays);
        let rules = fixture.run("nft list ruleset");
        let result = network.add(&goes);
        fixture.run(&format!("ip link del {}", Network::host_link(&result)));
        fixture.run(&format!("rm {LEASES}/small/{}", Network::address(&result)));
        let fixed = fixture.fix();
        assert_eq!(fixed.ids(), ["masquerade-left-over"], "{backend} {go}");
        fixture.is_healthy();
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
fn masquerading_of_a_network_whose_leases_are_elsewhere_stays() {
    requires!("iptables", "nft");
    for backend in ["iptables", "nftables"] {
        let fixture = Fixture::with(&small_network());
        // As flannel does it: the plugin that a configuration names calls bridge with leases in a place of its own.
        let mut config = masquerading();
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
                    .the("masquerade-left-over")
                    .contains("no leases of that network"),
                "{backend}: {fixed:#?}"
            );
            assert_eq!(NodeState::of(&fixture), before, "{backend}");
        }
    }
}

#[test]
fn rules_of_a_newer_go_plugin_are_seen_and_those_of_the_dead_go() {
    requires!("nft");
    let mut config = masquerading();
    config["ipMasqBackend"] = "nftables".into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("stays");
    fixture.run_pod(&fixture.network(config), &pod);
    // As version 1.6 and later writes them: one rule for each address, its comment begins with two hashes.
    let told = fixture.run("nft list map inet gangplank pods4");
    let comment = told.split('"').nth(1).unwrap();
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
        fixed.the("masquerade-left-over").contains("container gone"),
        "{fixed:#?}"
    );
    fixture.is_healthy();
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
fn what_others_took_comes_back() {
    requires!("ping", "iptables", "nft");
    let mut config = masquerading();
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
    fixture.is_healthy();
    a.reaches(&to);
    a.reaches("10.77.0.1");
}

#[test]
fn the_default_route_is_kept_from_vanishing() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    let fixture = Fixture::with(&config);
    let outside = Node::new("outside");
    wire(&fixture, "up0", &outside, "eth0");
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
    fixture.is_healthy();
}

#[test]
fn advertisements_that_a_network_manager_handles_stay_out_of_the_kernel() {
    requires!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    for accepted in [0, 2] {
        let fixture = Fixture::with(&config);
        let outside = Node::new("outside");
        wire(&fixture, "up0", &outside, "eth0");
        fixture.run_all(&format!(
            "sysctl -qw net.ipv6.conf.up0.accept_ra={accepted}\nip -6 addr add 2001:db8::2/64 dev up0 nodad\nip -6 route add default via 2001:db8::1 dev up0 proto ra"
        ));
        let parameter = "/proc/sys/net/ipv6/conf/up0/accept_ra";
        assert_eq!(fixture.fix().ids(), Vec::<&str>::new());
        assert_eq!(fixture.read(parameter), format!("{accepted}\n"));
        // Nor does an ADD of an IPv6 pod touch it.
        fixture.network(config.clone()).add(&fixture.pod("a"));
        assert_eq!(fixture.read(parameter), format!("{accepted}\n"));
    }
}

#[test]
fn a_default_route_that_a_pod_advertised_is_shown() {
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
            .the("route-from-pod")
            .contains("ip -6 route del default dev br0")
    );
    fixture.run("ip -6 route del default dev br0 proto ra");
    fixture.is_healthy();
}

#[test]
fn what_is_not_safe_is_left_to_the_operator() {
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
