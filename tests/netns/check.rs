//! CHECK: succeeds after ADD, and names the first difference after a change.

use serde_json::{Value, json};

use crate::support::{
    CniError, Network, Node, Pod, requires, skip_for_go, small_network, testing_go,
};

fn config() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["isDefaultGateway"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.77.0.1" }]);
    config
}

/// The error of CHECK after `change`, which follows a successful CHECK.
#[track_caller]
fn error_after(change: impl FnOnce(&Node, &Pod, &Value)) -> CniError {
    let node = Node::new("node");
    let network = node.network(config());
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    change(&node, &pod, &result);
    network.check(&pod, &result).error()
}

/// Asserts that the error contains all words. The Go plugins' messages are not compared.
#[track_caller]
fn assert_names(error: &CniError, words: &[&str]) {
    for word in words {
        assert!(
            error.text().contains(word) || testing_go(),
            "{word:?} in {error:?}"
        );
    }
}

#[test]
fn check_succeeds_in_all_versions_that_have_it() {
    requires!("iptables", "ip6tables");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        if testing_go() && version == "1.1.0" {
            continue;
        }
        let node = Node::new("node");
        let network = node
            .network(config())
            .with("cniVersion", version)
            .with("ipMasq", true);
        let (a, b) = (node.pod("a"), node.pod("b"));
        let at_a = network.add(&a);
        let at_b = network.add(&b);
        assert_eq!(network.check(&a, &at_a).ok(), Value::Null);
        network.check(&b, &at_b).ok();
        network.del(&b);
        network.check(&a, &at_a).ok();
    }
}

#[test]
fn check_succeeds_on_a_layer_2_network() {
    requires!();
    if skip_for_go("D8: it always fails") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(
        json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0" }),
    );
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    pod.run("ip link del eth0");
    network.check(&pod, &result).error();
}

#[test]
fn check_succeeds_without_a_gateway_after_more_pods_were_added() {
    requires!();
    if skip_for_go("D6: the bridge's MAC address has changed") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(small_network()).with("isGateway", false);
    let pod = node.pod("a");
    let result = network.add(&pod);
    for n in 0..5 {
        network.add(&node.pod(&format!("p{n}")));
    }
    network.check(&pod, &result).ok();
}

#[test]
fn check_succeeds_for_a_route_without_gw() {
    requires!();
    if skip_for_go("it requires `gw` in all routes except the default route") {
        return;
    }
    let node = Node::new("node");
    let mut config = config();
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24" }]);
    let network = node.network(config);
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
}

#[test]
fn check_compares_routes_in_other_tables() {
    requires!();
    if skip_for_go("D8b: only the main table is searched; Debian's ignores `table`") {
        return;
    }
    let node = Node::new("node");
    let mut config = config();
    config["ipam"]["routes"] = json!([{ "dst": "203.0.113.0/24", "table": 100 }]);
    let network = node.network(config);
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    pod.run("ip route del 203.0.113.0/24 table 100");
    let error = network.check(&pod, &result).error();
    assert_names(&error, &["203.0.113.0/24"]);
}

#[test]
fn a_missing_address_is_named() {
    requires!();
    let error = error_after(|_, pod, _| {
        pod.run("ip addr del 10.77.0.2/24 dev eth0");
    });
    assert_names(&error, &["10.77.0.2/24", "eth0"]);
    let error = error_after(|_, pod, _| {
        pod.run("ip addr del fd00:77::2/64 dev eth0");
    });
    assert_names(&error, &["fd00:77::2/64"]);
}

#[test]
fn a_missing_route_is_named() {
    requires!();
    let error = error_after(|_, pod, _| {
        pod.run("ip route del 192.0.2.0/24");
    });
    assert_names(&error, &["192.0.2.0/24"]);
    let error = error_after(|_, pod, _| {
        pod.run("ip -6 route del default");
    });
    assert_names(&error, &["::/0"]);
}

#[test]
fn a_missing_interface_is_named() {
    requires!();
    let error = error_after(|_, pod, _| {
        pod.run("ip link del eth0");
    });
    assert_names(&error, &["eth0"]);
}

#[test]
fn a_changed_mac_address_is_named() {
    requires!();
    let error = error_after(|_, pod, _| {
        pod.run("ip link set eth0 address 02:00:00:00:00:99");
    });
    assert_names(&error, &["eth0", "02:00:00:00:00:99"]);
}

#[test]
fn a_port_removed_from_the_bridge_is_named() {
    requires!();
    let error = error_after(|node, _, result| {
        let host = Network::host_link(result);
        node.run(&format!("ip link set {host} nomaster"));
    });
    assert_names(&error, &["veth", "br0"]);
}

#[test]
fn a_missing_bridge_is_named() {
    requires!();
    let error = error_after(|node, _, _| {
        node.run("ip link del br0");
    });
    assert_names(&error, &["br0"]);
}

#[test]
fn a_missing_lease_is_named() {
    requires!();
    let error = error_after(|node, _, _| {
        for address in ["10.77.0.2", "fd00:77::2"] {
            node.run(&format!("rm /var/lib/cni/networks/small/{address}"));
        }
    });
    assert_names(&error, &["small"]);
}

#[test]
fn a_link_that_is_down_is_named() {
    requires!();
    if skip_for_go("it does not check whether links are up") {
        return;
    }
    let error = error_after(|node, _, result| {
        let host = Network::host_link(result);
        node.run(&format!("ip link set {host} down"));
    });
    assert_names(&error, &["veth", "down"]);
}

#[test]
fn missing_masquerade_rules_are_named() {
    requires!("iptables", "ip6tables");
    if skip_for_go("it does not check the rules") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(config()).with("ipMasq", true);
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    node.run("iptables -t nat -F POSTROUTING");
    let error = network.check(&pod, &result).error();
    assert_names(&error, &["10.77.0.2"]);
}

#[test]
fn a_missing_rule_is_named_by_its_address_and_rules_of_the_go_plugin_are_accepted() {
    requires!("iptables", "ip6tables", "cni:bridge", "cni:host-local");
    if skip_for_go("it does not check the rules") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let network = node.network(config()).with("ipMasq", true);
    let pod = node.pod("a");
    let result = network.with("type", "go-bridge").add(&pod);
    network.check(&pod, &result).ok();
    let chain = crate::support::chain_of("small", "a");
    for (program, address) in [("iptables", "10.77.0.2"), ("ip6tables", "fd00:77::2")] {
        for rule in ["1", "2"] {
            let listed = node.run(&format!("{program}-save -t nat"));
            node.run(&format!("{program} -t nat -D {chain} {rule}"));
            let error = network.check(&pod, &result).error();
            assert_names(&error, &[address, &chain]);
            node.write("/run/nat", &listed);
            node.run(&format!("{program}-restore /run/nat"));
            network.check(&pod, &result).ok();
        }
    }
}

#[test]
fn similar_rules_are_not_accepted() {
    requires!("iptables", "ip6tables");
    if skip_for_go("it does not check the rules") {
        return;
    }
    let changes = [
        ("-d 10.77.0.0/24", "-d 10.77.1.0/24"),
        ("-d 10.77.0.0/24", "-d 10.77.0.0/25"),
        ("-j ACCEPT", "-j RETURN"),
        ("! -d 224.0.0.0/4", "! -d 224.0.0.0/5"),
        ("! -d 224.0.0.0/4", "-d 224.0.0.0/4"),
        ("-j MASQUERADE", "-j MASQUERADE --random"),
        (r#"id: \"a\""#, r#"id: \"b\""#),
        ("-s 10.77.0.2/32", "-s 10.77.0.3/32"),
        ("-s 10.77.0.2/32", "! -s 10.77.0.2/32"),
    ];
    for variant in ["xtables-nft-multi", "xtables-legacy-multi"] {
        let node = Node::new("node");
        node.use_iptables_variant(variant);
        let mut config = small_network();
        config["ipMasq"] = true.into();
        let network = node.network(config);
        let pod = node.pod("a");
        let result = network.add(&pod);
        let listed = node.run("iptables-save -t nat");
        let restore = |text: &str| {
            node.write("/run/nat", text);
            node.run("iptables-restore /run/nat");
        };
        for (right, wrong) in changes {
            assert!(listed.contains(right), "{right} in {listed}");
            restore(&listed.replace(right, wrong));
            let error = network.check(&pod, &result).error();
            assert_names(&error, &["10.77.0.2"]);
            restore(&listed);
            network.check(&pod, &result).ok();
        }
    }
}

#[test]
fn a_missing_namespace_is_named() {
    requires!();
    let node = Node::new("node");
    let network = node.network(config());
    let pod = node.pod("a");
    let result = network.add(&pod);
    let call = network
        .with("prevResult", result.clone())
        .call("CHECK", &pod);
    pod.end();
    assert_names(&call.run().error(), &["/run/netns/a"]);
}

#[test]
fn check_requires_a_prev_result_of_this_pod() {
    requires!();
    let node = Node::new("node");
    let network = node.network(config());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let at_a = network.add(&a);
    network.add(&b);
    let error = network.call("CHECK", &a).run().error();
    assert_names(&error, &["prevResult"]);
    network.check(&b, &at_a).error();
    let mut other = at_a.clone();
    other["ips"][0]["address"] = "10.77.0.200/24".into();
    let error = network.check(&a, &other).error();
    assert_names(&error, &["10.77.0.200/24"]);
}

#[test]
fn check_changes_nothing() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let network = node.network(config());
    let pod = node.pod("a");
    let result = network.add(&pod);
    let before = crate::support::NodeState::of(&node);
    network.check(&pod, &result).ok();
    assert_eq!(crate::support::NodeState::of(&node), before);
}

#[test]
fn changed_flags_of_the_port_are_reported() {
    requires!();
    if skip_for_go("it does not compare the flags of the port") {
        return;
    }
    for (key, flag) in [("hairpinMode", "hairpin"), ("portIsolation", "isolated")] {
        let node = Node::new("node");
        let network = node.network(config()).with(key, true);
        let pod = node.pod("a");
        let result = network.add(&pod);
        network.check(&pod, &result).ok();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        node.run(&format!("ip link set {port} type bridge_slave {flag} off"));
        let error = network.check(&pod, &result).error();
        assert_names(&error, &[port, flag]);
    }
}
