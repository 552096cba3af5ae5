//! `gangplank doctor --fix`: what it repairs is repaired, and what lives is left alone.

use serde_json::{Value, json};

use crate::site::{CACHE, CONF, LEASES, Site};
use crate::support::{Footprint, Network, Node, needs, small_network, wire};

fn masquerading() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

#[test]
fn leases_and_rules_of_the_dead_go_and_those_of_the_living_stay() {
    needs!("ping", "iptables", "cni:bridge", "cni:host-local");
    for backend in ["iptables", "nftables"] {
        let mut config = masquerading();
        config["ipMasqBackend"] = backend.into();
        let site = Site::with(&config);
        let network = site.network(config.clone());
        let pods = ["ours", "go-kept", "go-bare"].map(|name| site.pod(name));
        network.add(&pods[0]);
        if backend == "iptables" {
            site.run_pod(&site.go(&config), &pods[1]);
            site.go(&config).add(&pods[2]);
        }
        let living = Footprint::of_pods(&site);
        let dead = site.pod("dead");
        let result = network.add(&dead);
        site.run(&format!("ip link del {}", Network::host_link(&result)));
        let address = Network::address(&result);
        site.age("small", &address);
        for lease in living.files.keys() {
            site.run(&format!("touch --no-create --date=-1hour {lease}"));
        }
        site.write(&format!("{LEASES}/small/10.77.0.99"), "");
        // Without the memory of Go's pod its link may be any.
        let found = site.findings();
        let fixed = site.fix();
        if backend == "nftables" {
            assert_eq!(found.ids(), ["garbled-lease", "stale-lease"]);
            assert!(fixed.all.iter().all(|it| it["fixed"] == true), "{fixed:#?}");
            site.is_healthy();
            assert_eq!(Footprint::of_pods(&site), living);
        } else {
            assert_eq!(found.ids(), ["garbled-lease"]);
            assert!(site.lease("small", &address).is_some());
        }
        for pod in pods.iter().filter(|pod| pod.link("eth0").is_some()) {
            assert_eq!(pod.reaches("10.77.0.1"), 64);
        }
    }
}

#[test]
fn a_living_pod_of_go_keeps_its_lease_whatever_became_of_its_port_and_bridge() {
    needs!("iptables", "cni:bridge", "cni:host-local");
    let config = masquerading();
    for harm in [
        "ip link set VETH nomaster",
        "ip link del br0",
        "ip link set br0 down",
        "ip link set VETH down",
    ] {
        for memory in ["none", "garbled", "old", "whole"] {
            let site = Site::with(&config);
            let pod = site.pod("go");
            let go = site.go(&config);
            let mut result = go.add(&pod);
            let veth = Network::host_link(&result);
            match memory {
                "none" => {}
                "garbled" => site.remember(&go, &pod, &json!("what?")),
                // Results of CNI 0.2.0 tell no interfaces.
                "old" => site.remember(
                    &go,
                    &pod,
                    &json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.77.0.2/24" } }),
                ),
                _ => {
                    result["cniVersion"] = "1.0.0".into();
                    site.remember(&go, &pod, &result);
                }
            }
            site.age("small", "10.77.0.2");
            site.run(&harm.replace("VETH", &veth));
            let fixed = site.fix();
            if harm == "ip link del br0" && memory != "whole" {
                fixed.the("bridge-missing");
            }
            assert!(
                site.lease("small", "10.77.0.2").is_some(),
                "{harm}, {memory}: {fixed:#?}"
            );
            assert!(
                !fixed.ids().contains(&"stale-lease"),
                "{harm}, {memory}: {fixed:#?}"
            );
            let chains = site.nat("iptables");
            assert!(
                chains.iter().any(|rule| rule.contains("MASQUERADE")),
                "{harm}, {memory}: {chains:?}"
            );
        }
    }
}

#[test]
fn a_pod_that_lost_its_link_but_lives_keeps_its_lease() {
    needs!();
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("a");
    let result = site.run_pod(&site.network(config), &pod);
    site.run(&format!("ip link del {}", Network::host_link(&result)));
    site.age("small", "10.77.0.2");
    let fixed = site.fix();
    assert_eq!(fixed.ids(), ["stale-lease"]);
    assert_eq!(fixed.all[0]["fixable"], false);
    assert!(fixed.the("stale-lease").contains("restart the pod"));
    assert!(site.lease("small", "10.77.0.2").is_some());
}

#[test]
fn a_name_that_two_networks_share_is_reason_to_free_nothing() {
    needs!();
    let config = small_network();
    let site = Site::with(&config);
    let other =
        json!({ "cniVersion": "1.0.0", "name": "small", "type": "ptp", "ipam": config["ipam"] });
    site.configure("20-ptp.conflist", &other);
    // A pod of the other plugin, of whose links nobody here knows.
    site.run(&format!("mkdir -p {LEASES}/small"));
    site.write(&format!("{LEASES}/small/10.77.0.5"), "other\r\neth0");
    site.age("small", "10.77.0.5");
    let fixed = site.fix();
    assert!(fixed.ids().contains(&"same-name"), "{fixed:#?}");
    assert!(site.lease("small", "10.77.0.5").is_some(), "{fixed:#?}");
}

#[test]
fn masquerading_left_over_goes_whoever_made_it_and_whatever_network() {
    needs!("iptables", "nft", "cni:bridge", "cni:host-local");
    for (backend, go) in [("iptables", true), ("iptables", false), ("nftables", false)] {
        let mut config = masquerading();
        config["ipMasqBackend"] = backend.into();
        let site = Site::with(&config);
        let (stays, goes) = (site.pod("stays"), site.pod("goes"));
        let network = if go {
            site.go(&config)
        } else {
            site.network(config.clone())
        };
        site.run_pod(&network, &stays);
        let rules = site.run("nft list ruleset");
        let result = network.add(&goes);
        site.run(&format!("ip link del {}", Network::host_link(&result)));
        site.run(&format!("rm {LEASES}/small/{}", Network::address(&result)));
        let fixed = site.fix();
        assert_eq!(fixed.ids(), ["masquerade-left-over"], "{backend} {go}");
        site.is_healthy();
        let handles = |text: String| {
            text.lines()
                .filter(|line| !line.contains("packets"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            handles(site.run("nft list ruleset")),
            handles(rules),
            "{backend} {go}"
        );
    }
}

#[test]
fn masquerading_of_a_network_whose_leases_are_elsewhere_stays() {
    needs!("iptables", "nft");
    for backend in ["iptables", "nftables"] {
        let site = Site::with(&small_network());
        // As flannel does it: the plugin that a configuration names calls bridge with leases in a place of its own.
        let mut config = masquerading();
        config["name"] = "cbr0".into();
        config["ipMasqBackend"] = backend.into();
        config["ipam"]["dataDir"] = "/run/elsewhere".into();
        config["ipam"]["subnet"] = "10.78.0.0/24".into();
        config["bridge"] = "br9".into();
        let pod = site.pod("lives");
        site.network(config.clone()).add(&pod);
        config["type"] = "flannel".into();
        for is_named in [false, true] {
            if is_named {
                site.configure("20-flannel.conflist", &config);
            }
            let before = Footprint::of(&site);
            let fixed = site.fix();
            assert!(
                fixed
                    .the("masquerade-left-over")
                    .contains("no leases of that network"),
                "{backend}: {fixed:#?}"
            );
            assert_eq!(Footprint::of(&site), before, "{backend}");
        }
    }
}

#[test]
fn rules_of_a_newer_go_plugin_are_seen_and_those_of_the_dead_go() {
    needs!("nft");
    let mut config = masquerading();
    config["ipMasqBackend"] = "nftables".into();
    let site = Site::with(&config);
    let pod = site.pod("stays");
    site.run_pod(&site.network(config), &pod);
    // As version 1.6 and later writes them: one rule for each address, its comment begins with two hashes.
    let told = site.run("nft list map inet gangplank pods4");
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
    site.write("/run/go.nft", &chain);
    site.run_all("nft -f /run/go.nft\nnft delete table inet gangplank");
    let fixed = site.fix();
    assert_eq!(fixed.ids(), ["masquerade-left-over"], "{fixed:#?}");
    assert!(
        fixed.the("masquerade-left-over").contains("container gone"),
        "{fixed:#?}"
    );
    site.is_healthy();
    let left = site.run("nft list table inet cni_plugins_masquerade");
    assert!(
        left.contains("10.77.0.2") && !left.contains("10.77.0.9"),
        "{left}"
    );
    assert_eq!(
        site.status("--json").ok()[0]["masquerade"],
        json!(["nftables"])
    );
}

#[test]
fn what_others_took_comes_back() {
    needs!("ping", "iptables", "nft");
    let mut config = masquerading();
    config["macspoofchk"] = true.into();
    config["hairpinMode"] = true.into();
    let site = Site::with(&config);
    let (a, b) = (site.pod("a"), site.pod("b"));
    let network = site.network(config);
    let veth = Network::host_link(&site.run_pod(&network, &a));
    let to = Network::address(&site.run_pod(&network, &b));
    site.run_all(&format!(
        "ip addr flush dev br0\nip link set {veth} nomaster\niptables -t nat -F\nnft flush table bridge nat\nsysctl -qw net.ipv4.ip_forward=0"
    ));
    let fixed = site.fix();
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
    site.is_healthy();
    a.reaches(&to);
    a.reaches("10.77.0.1");
}

#[test]
fn the_default_route_is_kept_from_vanishing() {
    needs!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    let site = Site::with(&config);
    let outside = Node::new("outside");
    wire(&site, "up0", &outside, "eth0");
    site.run_all(
        "sysctl -qw net.ipv6.conf.all.forwarding=0\nip -6 addr add 2001:db8::2/64 dev up0 nodad\nip -6 route add default via 2001:db8::1 dev up0 proto ra",
    );
    let fixed = site.fix();
    assert_eq!(fixed.ids(), ["advertised-route", "forwarding-off"]);
    assert_eq!(site.read("/proc/sys/net/ipv6/conf/up0/accept_ra"), "2\n");
    assert_eq!(site.read("/proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
    site.is_healthy();
}

#[test]
fn advertisements_that_a_network_manager_handles_stay_out_of_the_kernel() {
    needs!();
    let mut config = small_network();
    config["ipam"]["subnet"] = "fd77::/64".into();
    for accepted in [0, 2] {
        let site = Site::with(&config);
        let outside = Node::new("outside");
        wire(&site, "up0", &outside, "eth0");
        site.run_all(&format!(
            "sysctl -qw net.ipv6.conf.up0.accept_ra={accepted}\nip -6 addr add 2001:db8::2/64 dev up0 nodad\nip -6 route add default via 2001:db8::1 dev up0 proto ra"
        ));
        let parameter = "/proc/sys/net/ipv6/conf/up0/accept_ra";
        assert_eq!(site.fix().ids(), Vec::<&str>::new());
        assert_eq!(site.read(parameter), format!("{accepted}\n"));
        // Nor does an ADD of an IPv6 pod touch it.
        site.network(config.clone()).add(&site.pod("a"));
        assert_eq!(site.read(parameter), format!("{accepted}\n"));
    }
}

#[test]
fn a_default_route_that_a_pod_advertised_is_shown() {
    needs!("iptables");
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("a");
    site.run_pod(&site.network(config), &pod);
    site.run("ip -6 route add default via fe80::1 dev br0 proto ra");
    let fixed = site.fix();
    assert_eq!(fixed.ids(), ["route-from-pod"]);
    assert!(
        fixed
            .the("route-from-pod")
            .contains("ip -6 route del default dev br0")
    );
    site.run("ip -6 route del default dev br0 proto ra");
    site.is_healthy();
}

#[test]
fn what_is_not_safe_is_left_to_the_operator() {
    needs!("iptables");
    let site = Site::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    site.configure("20-other.conflist", &other);
    site.write(&format!("{CONF}/30-half.conf"), "{");
    site.run_all(
        "ip link add br0 type bridge\nip addr add 10.9.9.1/24 dev br0\niptables -P FORWARD DROP",
    );
    site.run(&format!("mkdir -p {LEASES}/unknown"));
    site.write(&format!("{LEASES}/unknown/10.5.0.2"), "x\r\neth0");
    site.age("unknown", "10.5.0.2");
    let before = (
        Footprint::of(&site),
        site.files(CONF),
        site.files(CACHE),
        site.run("iptables -S"),
    );
    let fixed = site.fix();
    assert!(
        fixed
            .all
            .iter()
            .all(|it| it["fixed"] == false && it["fixable"] == false),
        "{fixed:#?}"
    );
    assert!(fixed.all.len() >= 5, "{fixed:#?}");
    let after = (
        Footprint::of(&site),
        site.files(CONF),
        site.files(CACHE),
        site.run("iptables -S"),
    );
    assert_eq!(before, after);
}
