//! `gangplank reconcile`: after a firewall reload or a network manager packets flow again.

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::support::{Network, Node, NodeState, Pod, requires, small_network, wire};

fn full() -> Value {
    let mut config = small_network();
    for key in ["ipMasq", "hairpinMode", "macspoofchk"] {
        config[key] = true.into();
    }
    config
}

/// Two pods on a network, and a node outside it that knows no way back to them.
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
        wire(&fixture, "up0", &outside, "eth0");
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
        attached.flows();
        attached
    }

    fn flows(&self) {
        let [a, b] = &self.pods;
        a.reaches("10.77.0.3");
        b.reaches("10.77.0.1");
        self.fixture.reaches("10.77.0.2");
        if self.config["ipMasq"] == true {
            assert_eq!(a.seen_as(&self.outside, "192.0.2.2"), "192.0.2.1");
        }
    }

    fn harm(&self, lines: &str) {
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

    /// Breaks the node, looks without changing, restores, and looks once more.
    fn comes_back(&self, lines: &str) {
        let whole = flags(&self.fixture);
        self.harm(lines);
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
        self.flows();
        assert_eq!(flags(&self.fixture), whole, "{lines}");
        self.fixture.is_healthy();
    }
}

/// What `ip` says of the ports and the bridge, but for what is new when it was made again.
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
fn what_a_firewall_reload_took_comes_back() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    attached.comes_back("iptables -t nat -F");
    attached.comes_back("iptables -t nat -F; iptables -t nat -X");
    attached.comes_back("iptables -t nat -F POSTROUTING");
    attached.comes_back("nft flush table bridge nat");
    attached.comes_back("nft delete table bridge nat");
    attached.comes_back("sysctl -qw net.ipv4.ip_forward=0");
}

#[test]
fn a_flushed_ruleset_comes_back_with_the_nftables_backend() {
    requires!("ping", "iptables", "nft");
    let mut config = full();
    config["ipMasqBackend"] = "nftables".into();
    let attached = Attached::new(&config);
    attached.comes_back("nft flush ruleset");
    attached.comes_back("nft flush table inet gangplank");
    attached.comes_back("nft delete table inet gangplank");
}

#[test]
fn what_a_network_manager_took_comes_back() {
    requires!("ping", "iptables", "nft");
    let mut config = full();
    config["promiscMode"] = true.into();
    config["hairpinMode"] = false.into();
    let attached = Attached::new(&config);
    attached.comes_back("ip addr flush dev br0");
    attached.comes_back("ip link set VETH1 nomaster");
    attached.comes_back("ip link set VETH1 nomaster; ip link set VETH1 down; ip link set VETH2 type bridge_slave hairpin on");
    attached.comes_back("ip link set br0 promisc off");
    attached.comes_back("ip link set br0 down");
    attached.comes_back("ip link del br0");
}

#[test]
fn router_advertisements_of_pods_are_refused_again() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    for link in ["br0", &attached.veths[0]] {
        attached.comes_back(&format!("sysctl -qw net.ipv6.conf.{link}.accept_ra=1"));
        let parameter = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        assert_eq!(attached.fixture.read(&parameter), "0\n");
    }
}

#[test]
fn the_mac_address_of_a_bridge_is_fixed_as_it_is() {
    requires!("cni:bridge");
    // Without a gateway the Go plugin leaves it to the kernel, and only /sys tells.
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
    let said = fixture.reconcile("");
    assert!(
        said.success().contains("MAC address of the bridge"),
        "{said:?}"
    );
    assert_eq!(state(), [mac, "3\n".to_owned()]);
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
    fixture.is_healthy();
}

#[test]
fn ports_stay_on_their_bridge_when_the_configuration_names_another() {
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
            let said = fixture.reconcile("");
            let said = said.success();
            for veth in &attached.veths {
                assert!(said.contains(&format!("left port {veth}")), "{said}");
            }
            assert!(
                said.contains("on bridge br0") && !said.contains("restored"),
                "{said}"
            );
            let fixed = fixture.fix();
            assert_eq!(fixed.ids(), ["port-elsewhere"], "{fixed:#?}");
            assert!(fixed.the("port-elsewhere").contains("restart these pods"));
            assert_eq!(
                (NodeState::of(fixture), flags(fixture)),
                before,
                "{existing}"
            );
            attached.flows();
        }
        // What does not depend on the bridge comes back all the same.
        fixture.run("iptables -t nat -F");
        let said = fixture.reconcile("");
        assert!(said.success().contains("restored masquerading"), "{said:?}");
        attached.flows();
    }
}

#[test]
fn ports_keep_their_flags_when_the_configuration_asks_for_others() {
    requires!("ping", "iptables");
    let attached = Attached::new(&small_network());
    let mut config = attached.config.clone();
    config["portIsolation"] = true.into();
    attached.fixture.configure("10-net.conflist", &config);
    let before = flags(&attached.fixture);
    let said = attached.fixture.reconcile("");
    assert!(
        said.success().contains("left the flags of port"),
        "{said:?}"
    );
    let fixed = attached.fixture.fix();
    assert_eq!(fixed.ids(), ["port-flags"], "{fixed:#?}");
    assert_eq!(flags(&attached.fixture), before);
    attached.flows();
    // A port that has come off the bridge is attached as the configuration says.
    attached.harm("ip link set VETH1 nomaster; ip link set VETH2 down");
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
    attached.flows();
}

#[test]
fn masquerading_stays_when_the_configuration_has_another_subnet() {
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
        attached.flows();
        if remembers {
            attached.fixture.run("iptables -t nat -F");
            assert!(
                attached
                    .fixture
                    .reconcile("")
                    .success()
                    .contains("masquerading")
            );
            attached.flows();
        }
    }
}

#[test]
fn a_port_that_an_administrator_has_moved_is_reported_and_stays() {
    requires!("ping", "iptables", "nft");
    let attached = Attached::new(&full());
    attached.harm(
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
    // Once it is on no bridge it is a port that somebody took.
    attached.harm("ip link set VETH1 nomaster");
    assert_eq!(attached.fixture.reconcile("--json").ok()["left"], json!([]));
    attached.flows();
}

#[test]
fn a_gateway_that_another_network_has_replaced_is_left_to_the_operator() {
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
fn isolated_ports_are_isolated_again() {
    requires!();
    let mut config = small_network();
    config["portIsolation"] = true.into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    let veth = Network::host_link(&fixture.network(config).add(&pod));
    let whole = flags(&fixture);
    fixture.run(&format!(
        "ip link set {veth} type bridge_slave isolated off hairpin on"
    ));
    assert!(fixture.reconcile("small").success().contains(&veth));
    assert_eq!(flags(&fixture), whole);
    assert_eq!(fixture.reconcile("small").success(), "nothing to restore\n");
}

#[test]
fn pods_of_go_come_back_too_when_their_runtime_remembers_them() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let attached = Attached::of(&config, true);
    attached.comes_back("iptables -t nat -F; ip addr flush dev br0; ip link set VETH1 nomaster");
    attached.comes_back("ip link del br0; iptables -t nat -F");
}

#[test]
fn both_families_come_back() {
    requires!("ping", "iptables", "ip6tables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    let attached = Attached::new(&config);
    attached.comes_back("ip addr flush dev br0");
    attached.pods[0].reaches("fd77::1");
    attached.comes_back("ip6tables -t nat -F");
    attached.comes_back("ip link del br0; sysctl -qw net.ipv6.conf.all.forwarding=0");
    attached.pods[0].reaches("fd77::1");
    attached.pods[0].reaches("fd77::3");
}

#[test]
fn addresses_of_another_ipam_plugin_come_back() {
    requires!("ping", "iptables", "cni:static");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "static", "addresses": [{ "address": "10.77.0.2/24", "gateway": "10.77.0.1" }] });
    let fixture = Fixture::with(&config);
    fixture.install("static");
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    pod.reaches("10.77.0.1");
    fixture.run_all("iptables -t nat -F\nip addr flush dev br0");
    let said = fixture.reconcile("");
    assert!(
        said.success().contains("masquerading of")
            && said.success().contains("gateway address 10.77.0.1/24"),
        "{said:?}"
    );
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
    pod.reaches("10.77.0.1");
}

#[test]
fn nothing_comes_back_for_pods_that_are_gone_and_nothing_is_invented() {
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
fn what_cannot_be_put_back_is_said_and_the_rest_is_put_back() {
    requires!("iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.run_pod(&fixture.network(config), &pod);
    // Somebody else's address in the place of ours: that is for the operator to decide.
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
fn one_network_can_be_asked_for() {
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
    let said = fixture.reconcile("other");
    assert!(said.success().starts_with("other: restored"), "{said:?}");
    assert_eq!(fixture.addresses("br0"), [""; 0]);
    assert!(fixture.reconcile("nope").failure().contains("\"nope\""));
}

#[test]
fn pods_stay_on_the_bridge_that_they_are_on_when_two_networks_share_a_name() {
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
    // Also when there is such a bridge.
    attached.fixture.run("ip link add br7 type bridge");
    attached.fixture.fix();
    attached.fixture.run("ip link del br7");
    assert_eq!(
        (NodeState::of(&attached.fixture), flags(&attached.fixture)),
        before
    );
    attached.flows();
}
