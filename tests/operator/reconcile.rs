//! `gangplank reconcile`: after a firewall reload or a network manager packets flow again.

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::{Footprint, Network, Node, Pod, needs, small_network, wire};

fn full() -> Value {
    let mut config = small_network();
    for key in ["ipMasq", "hairpinMode", "macspoofchk"] {
        config[key] = true.into();
    }
    config
}

/// Two pods on a network, and a node outside it that knows no way back to them.
struct Scene {
    site: Site,
    outside: Node,
    pods: [Pod; 2],
    veths: Vec<String>,
    config: Value,
}

impl Scene {
    fn new(config: &Value) -> Scene {
        Scene::of(config, false)
    }

    fn of(config: &Value, is_go: bool) -> Scene {
        let site = Site::with(config);
        let outside = Node::new("outside");
        wire(&site, "up0", &outside, "eth0");
        site.run("ip addr add 192.0.2.1/24 dev up0");
        outside.run("ip addr add 192.0.2.2/24 dev eth0");
        let pods = ["a", "b"].map(|name| site.pod(name));
        let mut veths = Vec::new();
        for pod in &pods {
            let network = if is_go {
                site.go(config)
            } else {
                site.network(config.clone())
            };
            let result = site.run_pod(&network, pod);
            veths.push(Network::host_link(&result));
            pod.run("ip route replace default via 10.77.0.1");
        }
        let scene = Scene {
            site,
            outside,
            pods,
            veths,
            config: config.clone(),
        };
        scene.flows();
        scene
    }

    fn flows(&self) {
        let [a, b] = &self.pods;
        a.reaches("10.77.0.3");
        b.reaches("10.77.0.1");
        self.site.reaches("10.77.0.2");
        if self.config["ipMasq"] == true {
            assert_eq!(a.seen_as(&self.outside, "192.0.2.2"), "192.0.2.1");
        }
    }

    fn harm(&self, lines: &str) {
        let [one, two] = &self.veths[..] else {
            panic!()
        };
        self.site.run_all(
            &lines
                .replace("VETH1", one)
                .replace("VETH2", two)
                .replace("; ", "\n"),
        );
    }

    /// Breaks the node, looks without changing, restores, and looks once more.
    fn comes_back(&self, lines: &str) {
        let whole = flags(&self.site);
        self.harm(lines);
        let broken = (Footprint::of(&self.site), flags(&self.site));
        let plan = self.site.reconcile("--dry-run --json").ok();
        assert_eq!(plan["dryRun"], true);
        assert_ne!(plan["restored"], json!([]), "{lines}");
        assert_eq!(
            (Footprint::of(&self.site), flags(&self.site)),
            broken,
            "a dry run changed something: {lines}"
        );
        let done = self.site.reconcile("--json").ok();
        assert_eq!(done["failures"], json!([]), "{lines}");
        assert_eq!(done["restored"], plan["restored"], "{lines}");
        assert_eq!(
            self.site.reconcile("").said(),
            "nothing to restore\n",
            "{lines}"
        );
        self.flows();
        assert_eq!(flags(&self.site), whole, "{lines}");
        self.site.is_healthy();
    }
}

/// What `ip` says of the ports and the bridge, but for what is new when it was made again.
fn flags(site: &Site) -> Vec<String> {
    let links: Value = serde_json::from_str(&site.run("ip -d -j link")).unwrap();
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
    flags.push(site.read("/proc/sys/net/ipv4/ip_forward"));
    flags
}

#[test]
fn what_a_firewall_reload_took_comes_back() {
    needs!("ping", "iptables", "nft");
    let scene = Scene::new(&full());
    scene.comes_back("iptables -t nat -F");
    scene.comes_back("iptables -t nat -F; iptables -t nat -X");
    scene.comes_back("iptables -t nat -F POSTROUTING");
    scene.comes_back("nft flush table bridge nat");
    scene.comes_back("nft delete table bridge nat");
    scene.comes_back("sysctl -qw net.ipv4.ip_forward=0");
}

#[test]
fn a_flushed_ruleset_comes_back_with_the_nftables_backend() {
    needs!("ping", "iptables", "nft");
    let mut config = full();
    config["ipMasqBackend"] = "nftables".into();
    let scene = Scene::new(&config);
    scene.comes_back("nft flush ruleset");
    scene.comes_back("nft flush table inet gangplank");
    scene.comes_back("nft delete table inet gangplank");
}

#[test]
fn what_a_network_manager_took_comes_back() {
    needs!("ping", "iptables", "nft");
    let mut config = full();
    config["promiscMode"] = true.into();
    config["hairpinMode"] = false.into();
    let scene = Scene::new(&config);
    scene.comes_back("ip addr flush dev br0");
    scene.comes_back("ip link set VETH1 nomaster");
    scene.comes_back("ip link set VETH1 nomaster; ip link set VETH1 down; ip link set VETH2 type bridge_slave hairpin on");
    scene.comes_back("ip link set br0 promisc off");
    scene.comes_back("ip link set br0 down");
    scene.comes_back("ip link del br0");
}

#[test]
fn router_advertisements_of_pods_are_refused_again() {
    needs!("ping", "iptables", "nft");
    let scene = Scene::new(&full());
    for link in ["br0", &scene.veths[0]] {
        scene.comes_back(&format!("sysctl -qw net.ipv6.conf.{link}.accept_ra=1"));
        let parameter = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        assert_eq!(scene.site.read(&parameter), "0\n");
    }
}

#[test]
fn the_mac_address_of_a_bridge_is_fixed_as_it_is() {
    needs!("cni:bridge");
    // Without a gateway the Go plugin leaves it to the kernel, and only /sys tells.
    let config =
        json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0" });
    let site = Site::with(&config);
    site.run("mount -t sysfs none /sys");
    let pod = site.pod("a");
    let mut go = config.clone();
    go["type"] = "go-bridge".into();
    site.run_pod(&site.network(go), &pod);
    let state =
        || ["address", "addr_assign_type"].map(|it| site.read(&format!("/sys/class/net/br0/{it}")));
    let [mac, before] = state();
    assert_ne!(before, "3\n");
    assert_eq!(site.findings().ids(), ["bridge-mac"]);
    let said = site.reconcile("");
    assert!(
        said.said().contains("MAC address of the bridge"),
        "{said:?}"
    );
    assert_eq!(state(), [mac, "3\n".to_owned()]);
    assert_eq!(site.reconcile("").said(), "nothing to restore\n");
    site.is_healthy();
}

#[test]
fn ports_stay_on_their_bridge_when_the_configuration_names_another() {
    needs!("ping", "iptables", "nft", "cni:bridge", "cni:host-local");
    for is_go in [false, true] {
        let mut config = small_network();
        config["ipMasq"] = true.into();
        let scene = Scene::of(&config, is_go);
        let site = &scene.site;
        config["bridge"] = "br1".into();
        config["portIsolation"] = true.into();
        config["hairpinMode"] = true.into();
        config["forceAddress"] = true.into();
        site.configure("10-net.conflist", &config);
        for existing in ["", "ip link add br1 type bridge\nip link set br1 up"] {
            site.run_all(existing);
            let before = (Footprint::of(site), flags(site));
            let said = site.reconcile("");
            let said = said.said();
            for veth in &scene.veths {
                assert!(said.contains(&format!("left port {veth}")), "{said}");
            }
            assert!(
                said.contains("on bridge br0") && !said.contains("restored"),
                "{said}"
            );
            let fixed = site.fix();
            assert_eq!(fixed.ids(), ["port-elsewhere"], "{fixed:#?}");
            assert!(fixed.the("port-elsewhere").contains("restart these pods"));
            assert_eq!((Footprint::of(site), flags(site)), before, "{existing}");
            scene.flows();
        }
        // What does not depend on the bridge comes back all the same.
        site.run("iptables -t nat -F");
        let said = site.reconcile("");
        assert!(said.said().contains("restored masquerading"), "{said:?}");
        scene.flows();
    }
}

#[test]
fn ports_keep_their_flags_when_the_configuration_asks_for_others() {
    needs!("ping", "iptables");
    let scene = Scene::new(&small_network());
    let mut config = scene.config.clone();
    config["portIsolation"] = true.into();
    scene.site.configure("10-net.conflist", &config);
    let before = flags(&scene.site);
    let said = scene.site.reconcile("");
    assert!(said.said().contains("left the flags of port"), "{said:?}");
    let fixed = scene.site.fix();
    assert_eq!(fixed.ids(), ["port-flags"], "{fixed:#?}");
    assert_eq!(flags(&scene.site), before);
    scene.flows();
    // A port that has come off the bridge is attached as the configuration says.
    scene.harm("ip link set VETH1 nomaster; ip link set VETH2 down");
    assert!(scene.site.reconcile("").said().contains("restored port"));
    let isolated = |veth: &str| {
        scene.site.link(veth).unwrap()["linkinfo"]["info_slave_data"]["isolated"].clone()
    };
    assert_eq!(
        [0, 1].map(|at| isolated(&scene.veths[at])),
        [json!(true), json!(false)]
    );
    scene.flows();
}

#[test]
fn masquerading_stays_when_the_configuration_has_another_subnet() {
    needs!("ping", "iptables");
    for remembers in [true, false] {
        let mut config = small_network();
        config["ipMasq"] = true.into();
        let scene = Scene::new(&config);
        let rules = scene.site.nat("iptables");
        config["ipam"]["subnet"] = "10.78.0.0/24".into();
        config["forceAddress"] = true.into();
        scene.site.configure("10-net.conflist", &config);
        if !remembers {
            scene
                .site
                .run(&format!("find {} -type f -delete", crate::site::CACHE));
        }
        assert_eq!(scene.site.reconcile("").said(), "nothing to restore\n");
        scene.site.fix();
        assert_eq!(scene.site.nat("iptables"), rules);
        scene.flows();
        if remembers {
            scene.site.run("iptables -t nat -F");
            assert!(scene.site.reconcile("").said().contains("masquerading"));
            scene.flows();
        }
    }
}

#[test]
fn a_port_that_an_administrator_has_moved_is_reported_and_stays() {
    needs!("ping", "iptables", "nft");
    let scene = Scene::new(&full());
    scene.harm(
        "ip link add other type bridge; ip link set other up; ip link set VETH1 master other",
    );
    let before = flags(&scene.site);
    let report = scene.site.reconcile("--json").ok();
    assert_eq!(
        (&report["restored"], &report["failures"]),
        (&json!([]), &json!([]))
    );
    let left = report["left"][0]["what"].as_str().unwrap();
    assert!(
        left.contains(&scene.veths[0]) && left.contains("bridge other"),
        "{left}"
    );
    assert_eq!(flags(&scene.site), before);
    // Once it is on no bridge it is a port that somebody took.
    scene.harm("ip link set VETH1 nomaster");
    assert_eq!(scene.site.reconcile("--json").ok()["left"], json!([]));
    scene.flows();
}

#[test]
fn a_gateway_that_another_network_has_replaced_is_left_to_the_operator() {
    needs!("ping", "iptables");
    let mut config = small_network();
    config["forceAddress"] = true.into();
    let scene = Scene::new(&config);
    let site = &scene.site;
    site.run_all("ip addr del 10.77.0.1/24 dev br0\nip addr add 10.78.0.1/24 dev br0");
    let done = site.reconcile("");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("10.78.0.1/24"), "{done:?}");
    assert_eq!(site.addresses("br0"), ["10.78.0.1/24"]);
}

#[test]
fn isolated_ports_are_isolated_again() {
    needs!();
    let mut config = small_network();
    config["portIsolation"] = true.into();
    let site = Site::with(&config);
    let pod = site.pod("a");
    let veth = Network::host_link(&site.network(config).add(&pod));
    let whole = flags(&site);
    site.run(&format!(
        "ip link set {veth} type bridge_slave isolated off hairpin on"
    ));
    assert!(site.reconcile("small").said().contains(&veth));
    assert_eq!(flags(&site), whole);
    assert_eq!(site.reconcile("small").said(), "nothing to restore\n");
}

#[test]
fn pods_of_go_come_back_too_when_their_runtime_remembers_them() {
    needs!("ping", "iptables", "cni:bridge", "cni:host-local");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let scene = Scene::of(&config, true);
    scene.comes_back("iptables -t nat -F; ip addr flush dev br0; ip link set VETH1 nomaster");
    scene.comes_back("ip link del br0; iptables -t nat -F");
}

#[test]
fn both_families_come_back() {
    needs!("ping", "iptables", "ip6tables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    let scene = Scene::new(&config);
    scene.comes_back("ip addr flush dev br0");
    scene.pods[0].reaches("fd77::1");
    scene.comes_back("ip6tables -t nat -F");
    scene.comes_back("ip link del br0; sysctl -qw net.ipv6.conf.all.forwarding=0");
    scene.pods[0].reaches("fd77::1");
    scene.pods[0].reaches("fd77::3");
}

#[test]
fn addresses_of_another_ipam_plugin_come_back() {
    needs!("ping", "iptables", "cni:static");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "static", "addresses": [{ "address": "10.77.0.2/24", "gateway": "10.77.0.1" }] });
    let site = Site::with(&config);
    site.install("static");
    let pod = site.pod("a");
    site.run_pod(&site.network(config), &pod);
    pod.reaches("10.77.0.1");
    site.run_all("iptables -t nat -F\nip addr flush dev br0");
    let said = site.reconcile("");
    assert!(
        said.said().contains("masquerading of")
            && said.said().contains("gateway address 10.77.0.1/24"),
        "{said:?}"
    );
    assert_eq!(site.reconcile("").said(), "nothing to restore\n");
    pod.reaches("10.77.0.1");
}

#[test]
fn nothing_comes_back_for_pods_that_are_gone_and_nothing_is_invented() {
    needs!("iptables");
    let config = full();
    let site = Site::with(&config);
    let pod = site.pod("a");
    let network = site.network(config);
    let veth = Network::host_link(&network.add(&pod));
    site.run_all(&format!(
        "ip link del {veth}\nip link del br0\niptables -t nat -F"
    ));
    let before = Footprint::of(&site);
    assert_eq!(site.reconcile("").said(), "nothing to restore\n");
    assert_eq!(Footprint::of(&site), before);
}

#[test]
fn what_cannot_be_put_back_is_said_and_the_rest_is_put_back() {
    needs!("iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let site = Site::with(&config);
    let pod = site.pod("a");
    site.run_pod(&site.network(config), &pod);
    // Somebody else's address in the place of ours: that is for the operator to decide.
    site.run_all("ip addr flush dev br0\nip addr add 10.9.9.1/24 dev br0\niptables -t nat -F");
    let answer = site.reconcile("");
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
    let json = site.reconcile("--json");
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
    needs!("iptables");
    let site = Site::with(&small_network());
    let mut other = small_network();
    other["name"] = "other".into();
    other["bridge"] = "br1".into();
    other["ipam"]["subnet"] = "10.78.0.0/24".into();
    site.configure("20-other.conflist", &other);
    let (a, b) = (site.pod("a"), site.pod("b"));
    site.network(small_network()).add(&a);
    site.network(other).add(&b);
    site.run_all("ip addr flush dev br0\nip addr flush dev br1");
    let said = site.reconcile("other");
    assert!(said.said().starts_with("other: restored"), "{said:?}");
    assert_eq!(site.addresses("br0"), [""; 0]);
    assert!(site.reconcile("nope").complaint().contains("\"nope\""));
}

#[test]
fn pods_stay_on_the_bridge_that_they_are_on_when_two_networks_share_a_name() {
    needs!("ping", "iptables", "nft");
    let scene = Scene::new(&full());
    let mut twin = full();
    twin["bridge"] = "br7".into();
    scene.site.configure("20-twin.conflist", &twin);
    let before = (Footprint::of(&scene.site), flags(&scene.site));
    assert_eq!(scene.site.reconcile("").said(), "nothing to restore\n");
    // Also when there is such a bridge.
    scene.site.run("ip link add br7 type bridge");
    scene.site.fix();
    scene.site.run("ip link del br7");
    assert_eq!((Footprint::of(&scene.site), flags(&scene.site)), before);
    scene.flows();
}
