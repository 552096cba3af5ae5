//! `gangplank reconcile`: restores connectivity after a firewall reload or changes by a network manager.

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::support::{Network, Node, NodeState, Pod, connect, requires, small_network};

fn full() -> Value {
    let mut config = small_network();
    for key in ["ipMasq", "hairpinMode", "macspoofchk"] {
        config[key] = true.into();
    }
    config
}

/// Two pods on a network, and a host outside without routes to them.
struct Attached {
    fixture: Fixture,
    outside: Node,
    pods: [Pod; 2],
    veths: Vec<String>,
    config: Value,
}

impl Attached {
    fn new(config: &Value) -> Attached {
        Attached::of(config, false)
    }

    fn of(config: &Value, is_go: bool) -> Attached {
        let fixture = Fixture::with(config);
        let outside = Node::new("outside");
        connect(&fixture, "up0", &outside, "eth0");
        fixture.run("ip addr add 192.0.2.1/24 dev up0");
        outside.run("ip addr add 192.0.2.2/24 dev eth0");
        let pods = ["a", "b"].map(|name| fixture.pod(name));
        let mut veths = Vec::new();
        for pod in &pods {
            let network = if is_go {
                fixture.go(config)
            } else {
                fixture.network(config.clone())
            };
            let result = fixture.run_pod(&network, pod);
            veths.push(Network::host_link(&result));
            pod.run("ip route replace default via 10.77.0.1");
        }
        let attached = Attached {
            fixture,
            outside,
            pods,
            veths,
            config: config.clone(),
        };
        attached.assert_connectivity();
        attached
    }

    fn assert_connectivity(&self) {
        let [a, b] = &self.pods;
        a.reaches("10.77.0.3");
        b.reaches("10.77.0.1");
        self.fixture.reaches("10.77.0.2");
        if self.config["ipMasq"] == true {
            assert_eq!(a.seen_as(&self.outside, "192.0.2.2"), "192.0.2.1");
        }
    }

    fn damage(&self, lines: &str) {
        let [one, two] = &self.veths[..] else {
            panic!()
        };
        self.fixture.run_all(
            &lines
                .replace("VETH1", one)
                .replace("VETH2", two)
                .replace("; ", "\n"),
        );
    }

    /// Damages the node, then runs a dry run, a reconcile, and a second reconcile that has nothing to restore.
    fn assert_restored(&self, lines: &str) {
        let complete = flags(&self.fixture);
        self.damage(lines);
        let broken = (NodeState::of(&self.fixture), flags(&self.fixture));
        let plan = self.fixture.reconcile("--dry-run --json").ok();
        assert_eq!(plan["dryRun"], true);
        assert_ne!(plan["restored"], json!([]), "{lines}");
        assert_eq!(
            (NodeState::of(&self.fixture), flags(&self.fixture)),
            broken,
            "a dry run changed something: {lines}"
        );
        let done = self.fixture.reconcile("--json").ok();
        assert_eq!(done["failures"], json!([]), "{lines}");
        assert_eq!(done["restored"], plan["restored"], "{lines}");
        assert_eq!(
            self.fixture.reconcile("").success(),
            "nothing to restore\n",
            "{lines}"
        );
        self.assert_connectivity();
        assert_eq!(flags(&self.fixture), complete, "{lines}");
        self.fixture.assert_healthy();
    }
}

/// The state of ports and bridge as `ip` shows it, without values that change when they are recreated.
fn flags(fixture: &Fixture) -> Vec<String> {
    let links: Value = serde_json::from_str(&fixture.run("ip -d -j link")).unwrap();
    let mut flags: Vec<String> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| {
            let port = &link["linkinfo"]["info_slave_data"];
            format!(
                "{} {} {} {} {} {}",
                link["ifname"],
                link["master"],
                link["promiscuity"].as_u64().unwrap_or(0) > 0,
                port["hairpin"],
                port["isolated"],
                link["flags"].as_array().unwrap().contains(&"UP".into())
            )
        })
        .collect();
    flags.sort();
    flags.push(fixture.read("/proc/sys/net/ipv4/ip_forward"));
    flags
}

#[test]
fn the_effects_of_a_firewall_reload_are_repaired() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    attached.assert_restored("iptables -t nat -F");
    attached.assert_restored("iptables -t nat -F; iptables -t nat -X");
    attached.assert_restored("iptables -t nat -F POSTROUTING");
    attached.assert_restored("nft flush table bridge nat");
    attached.assert_restored("nft delete table bridge nat");
    attached.assert_restored("sysctl -qw net.ipv4.ip_forward=0");
}

#[test]
fn a_flushed_nftables_ruleset_is_restored() {
    requires!("ping", "iptables", "nft");
    let mut config = full();
    config["ipMasqBackend"] = "nftables".into();
    let attached = Attached::new(&config);
    attached.assert_restored("nft flush ruleset");
    attached.assert_restored("nft flush table inet gangplank");
    attached.assert_restored("nft delete table inet gangplank");
}

#[test]
fn the_effects_of_a_network_manager_are_repaired() {
    requires!("ping", "iptables", "nft");
    let mut config = full();
    config["promiscMode"] = true.into();
    config["hairpinMode"] = false.into();
    let attached = Attached::new(&config);
    attached.assert_restored("ip addr flush dev br0");
    attached.assert_restored("ip link set VETH1 nomaster");
    attached.assert_restored("ip link set VETH1 nomaster; ip link set VETH1 down; ip link set VETH2 type bridge_slave hairpin on");
    attached.assert_restored("ip link set br0 promisc off");
    attached.assert_restored("ip link set br0 down");
    attached.assert_restored("ip link del br0");
}

#[test]
fn accept_ra_is_disabled_again() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    for link in ["br0", &attached.veths[0]] {
        attached.assert_restored(&format!("sysctl -qw net.ipv6.conf.{link}.accept_ra=1"));
        let parameter = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        assert_eq!(attached.fixture.read(&parameter), "0\n");
    }
}

#[test]
fn the_mac_address_of_a_bridge_is_pinned() {
    requires!("cni:bridge");
    // Without a gateway the Go plugin does not set it, which only addr_assign_type in /sys shows.
    let config =
        json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0" });
    let fixture = Fixture::with(&config);
    fixture.run("mount -t sysfs none /sys");
    let pod = fixture.pod("a");
    let mut go = config.clone();
    go["type"] = "go-bridge".into();
    fixture.run_pod(&fixture.network(go), &pod);
    let state = || {
        ["address", "addr_assign_type"].map(|it| fixture.read(&format!("/sys/class/net/br0/{it}")))
    };
    let [mac, before] = state();
    assert_ne!(before, "3\n");
    assert_eq!(fixture.findings().ids(), ["bridge-mac"]);
    let answer = fixture.reconcile("");
    assert!(
        answer.success().contains("MAC address of the bridge"),
        "{answer:?}"
    );
    assert_eq!(state(), [mac, "3\n".to_owned()]);
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
    fixture.assert_healthy();
}

#[test]
fn ports_stay_on_their_bridge_if_the_configuration_names_another() {
    requires!("ping", "iptables", "nft", "cni:bridge", "cni:host-local");
    for is_go in [false, true] {
        let mut config = small_network();
        config["ipMasq"] = true.into();
        let attached = Attached::of(&config, is_go);
        let fixture = &attached.fixture;
        config["bridge"] = "br1".into();
        config["portIsolation"] = true.into();
        config["hairpinMode"] = true.into();
        config["forceAddress"] = true.into();
        fixture.configure("10-net.conflist", &config);
        for existing in ["", "ip link add br1 type bridge\nip link set br1 up"] {
            fixture.run_all(existing);
            let before = (NodeState::of(fixture), flags(fixture));
            let answer = fixture.reconcile("");
            let answer = answer.success();
            for veth in &attached.veths {
                assert!(answer.contains(&format!("left port {veth}")), "{answer}");
            }
            assert!(
                answer.contains("on bridge br0") && !answer.contains("restored"),
                "{answer}"
            );
            let fixed = fixture.fix();
            assert_eq!(fixed.ids(), ["port-elsewhere"], "{fixed:#?}");
            assert!(
                fixed
                    .text_of("port-elsewhere")
                    .contains("restart these pods")
            );
            assert_eq!(
                (NodeState::of(fixture), flags(fixture)),
                before,
                "{existing}"
            );
            attached.assert_connectivity();
        }
        // Resources that do not depend on the bridge are restored.
        fixture.run("iptables -t nat -F");
        let answer = fixture.reconcile("");
        assert!(
            answer.success().contains("restored masquerading"),
            "{answer:?}"
        );
        attached.assert_connectivity();
    }
}

#[test]
fn ports_keep_their_flags_if_the_configuration_changed() {
    requires!("ping", "iptables");
    let attached = Attached::new(&small_network());
    let mut config = attached.config.clone();
    config["portIsolation"] = true.into();
    attached.fixture.configure("10-net.conflist", &config);
    let before = flags(&attached.fixture);
    let answer = attached.fixture.reconcile("");
    assert!(
        answer.success().contains("left the flags of port"),
        "{answer:?}"
    );
    let fixed = attached.fixture.fix();
    assert_eq!(fixed.ids(), ["port-flags"], "{fixed:#?}");
    assert_eq!(flags(&attached.fixture), before);
    attached.assert_connectivity();
    // A port that was removed from the bridge is added with the configured flags.
    attached.damage("ip link set VETH1 nomaster; ip link set VETH2 down");
    assert!(
        attached
            .fixture
            .reconcile("")
            .success()
            .contains("restored port")
    );
    let isolated = |veth: &str| {
        attached.fixture.link(veth).unwrap()["linkinfo"]["info_slave_data"]["isolated"].clone()
    };
    assert_eq!(
        [0, 1].map(|at| isolated(&attached.veths[at])),
        [json!(true), json!(false)]
    );
    attached.assert_connectivity();
}

#[test]
fn masquerade_rules_are_kept_if_the_configured_subnet_changed() {
    requires!("ping", "iptables");
    for remembers in [true, false] {
        let mut config = small_network();
        config["ipMasq"] = true.into();
        let attached = Attached::new(&config);
        let rules = attached.fixture.nat("iptables");
        config["ipam"]["subnet"] = "10.78.0.0/24".into();
        config["forceAddress"] = true.into();
        attached.fixture.configure("10-net.conflist", &config);
        if !remembers {
            attached
                .fixture
                .run(&format!("find {} -type f -delete", crate::fixture::CACHE));
        }
        assert_eq!(
            attached.fixture.reconcile("").success(),
            "nothing to restore\n"
        );
        attached.fixture.fix();
        assert_eq!(attached.fixture.nat("iptables"), rules);
        attached.assert_connectivity();
        if remembers {
            attached.fixture.run("iptables -t nat -F");
            assert!(
                attached
                    .fixture
                    .reconcile("")
                    .success()
                    .contains("masquerading")
            );
            attached.assert_connectivity();
        }
    }
}

#[test]
fn a_port_moved_by_an_administrator_is_reported_and_kept() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    attached.damage(
        "ip link add other type bridge; ip link set other up; ip link set VETH1 master other",
    );
    let before = flags(&attached.fixture);
    let report = attached.fixture.reconcile("--json").ok();
    assert_eq!(
        (&report["restored"], &report["failures"]),
        (&json!([]), &json!([]))
    );
    let left = report["left"][0]["what"].as_str().unwrap();
    assert!(
        left.contains(&attached.veths[0]) && left.contains("bridge other"),
        "{left}"
    );
    assert_eq!(flags(&attached.fixture), before);
    // A port that is on no bridge is restored.
    attached.damage("ip link set VETH1 nomaster");
    assert_eq!(attached.fixture.reconcile("--json").ok()["left"], json!([]));
    attached.assert_connectivity();
}

#[test]
fn a_gateway_replaced_by_another_network_is_left_to_the_operator() {
    requires!("ping", "iptables");
    let mut config = small_network();
    config["forceAddress"] = true.into();
    let attached = Attached::new(&config);
    let fixture = &attached.fixture;
    fixture.run_all("ip addr del 10.77.0.1/24 dev br0\nip addr add 10.78.0.1/24 dev br0");
    let done = fixture.reconcile("");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("10.78.0.1/24"), "{done:?}");
    assert_eq!(fixture.addresses("br0"), ["10.78.0.1/24"]);
}

#[test]
fn port_isolation_is_restored() {
    requires!();
    let mut config = small_network();
    config["portIsolation"] = true.into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    let veth = Network::host_link(&fixture.network(config).add(&pod));
    let complete = flags(&fixture);
    fixture.run(&format!(
        "ip link set {veth} type bridge_slave isolated off hairpin on"
    ));
    assert!(fixture.reconcile("small").success().contains(&veth));
    assert_eq!(flags(&fixture), complete);
    assert_eq!(fixture.reconcile("small").success(), "nothing to restore\n");
}

#[test]
fn pods_of_the_go_plugins_are_restored_if_they_have_cache_entries() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let attached = Attached::of(&config, true);
    attached
        .assert_restored("iptables -t nat -F; ip addr flush dev br0; ip link set VETH1 nomaster");
    attached.assert_restored("ip link del br0; iptables -t nat -F");
}

#[test]
fn both_families_are_restored() {
    requires!("ping", "iptables", "ip6tables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    let attached = Attached::new(&config);
    attached.assert_restored("ip addr flush dev br0");
    attached.pods[0].reaches("fd77::1");
    attached.assert_restored("ip6tables -t nat -F");
    attached.assert_restored("ip link del br0; sysctl -qw net.ipv6.conf.all.forwarding=0");
    attached.pods[0].reaches("fd77::1");
    attached.pods[0].reaches("fd77::3");
}

#[test]
fn pods_with_another_ipam_plugin_are_restored() {
    requires!("ping", "iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "static", "addresses": [{ "address": "10.77.0.2/24", "gateway": "10.77.0.1" }] });
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    pod.reaches("10.77.0.1");
    fixture.run_all("iptables -t nat -F\nip addr flush dev br0");
    let answer = fixture.reconcile("");
    assert!(
        answer.success().contains("masquerading of")
            && answer.success().contains("gateway address 10.77.0.1/24"),
        "{answer:?}"
    );
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
    pod.reaches("10.77.0.1");
}

#[test]
fn nothing_is_restored_for_deleted_pods() {
    requires!("iptables");
    let config = full();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    let network = fixture.network(config);
    let veth = Network::host_link(&network.add(&pod));
    fixture.run_all(&format!(
        "ip link del {veth}\nip link del br0\niptables -t nat -F"
    ));
    let before = NodeState::of(&fixture);
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
    assert_eq!(NodeState::of(&fixture), before);
}

#[test]
fn failures_are_reported_and_everything_else_is_restored() {
    requires!("iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    // A foreign address instead of the gateway: left to the operator.
    fixture.run_all("ip addr flush dev br0\nip addr add 10.9.9.1/24 dev br0\niptables -t nat -F");
    let answer = fixture.reconcile("");
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(
        answer
            .stdout
            .contains("small: failed: gateway address 10.77.0.1/24"),
        "{answer:?}"
    );
    assert!(
        answer.stdout.contains("small: restored masquerading of"),
        "{answer:?}"
    );
    let json = fixture.reconcile("--json");
    assert_eq!(json.code, Some(1));
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["restored"], json!([]));
    assert!(
        report["failures"][0]["what"]
            .as_str()
            .unwrap()
            .contains("10.9.9.1/24"),
        "{report}"
    );
}

#[test]
fn a_single_network_can_be_selected() {
    requires!("iptables");
    let fixture = Fixture::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    other["ipam"]["subnet"] = "10.78.0.0/24".into();
    fixture.configure("20-other.conflist", &other);
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    fixture.network(small_network()).add(&a);
    fixture.network(other).add(&b);
    fixture.run_all("ip addr flush dev br0\nip addr flush dev br1");
    let answer = fixture.reconcile("other");
    assert!(
        answer.success().starts_with("other: restored"),
        "{answer:?}"
    );
    assert_eq!(fixture.addresses("br0"), [""; 0]);
    assert!(fixture.reconcile("nope").failure().contains("\"nope\""));
}

#[test]
fn pods_stay_on_their_bridge_if_two_networks_share_a_name() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    let mut twin = full();
    twin["bridge"] = "br7".into();
    attached.fixture.configure("20-twin.conflist", &twin);
    let before = (NodeState::of(&attached.fixture), flags(&attached.fixture));
    assert_eq!(
        attached.fixture.reconcile("").success(),
        "nothing to restore\n"
    );
    // The same if the other bridge exists.
    attached.fixture.run("ip link add br7 type bridge");
    attached.fixture.fix();
    attached.fixture.run("ip link del br7");
    assert_eq!(
        (NodeState::of(&attached.fixture), flags(&attached.fixture)),
        before
    );
    attached.assert_connectivity();
}
