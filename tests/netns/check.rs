//! CHECK: it confirms what ADD has made, and names what is no longer as it was.

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

/// What a CHECK says after `damage` was done to a pod that a CHECK had confirmed.
#[track_caller]
fn refusal_after(damage: impl FnOnce(&Node, &Pod, &Value)) -> CniError {
    let node = Node::new("node");
    let network = node.network(config());
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    damage(&node, &pod, &result);
    network.check(&pod, &result).error()
}

/// Fails unless the error names these; the reference's words are its own.
#[track_caller]
fn names(error: &CniError, words: &[&str]) {
    for word in words {
        assert!(
            error.text().contains(word) || testing_go(),
            "{word:?} in {error:?}"
        );
    }
}

#[test]
fn every_version_that_has_check_confirms_an_add() {
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
fn a_layer_2_network_is_confirmed() {
    requires!();
    if skip_for_go("D8: it never is") {
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
fn a_pod_without_a_gateway_is_confirmed_when_others_have_come() {
    requires!();
    if skip_for_go("D6: the bridge's MAC has changed by then") {
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
fn a_route_that_does_not_say_its_next_hop_is_confirmed() {
    requires!();
    if skip_for_go("it misses every route but the default one that has no `gw`") {
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
fn routes_in_a_table_of_their_own_are_confirmed_and_missed() {
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
    names(&error, &["203.0.113.0/24"]);
}

#[test]
fn an_address_that_went_is_named() {
    requires!();
    let error = refusal_after(|_, pod, _| {
        pod.run("ip addr del 10.77.0.2/24 dev eth0");
    });
    names(&error, &["10.77.0.2/24", "eth0"]);
    let error = refusal_after(|_, pod, _| {
        pod.run("ip addr del fd00:77::2/64 dev eth0");
    });
    names(&error, &["fd00:77::2/64"]);
}

#[test]
fn a_route_that_went_is_named() {
    requires!();
    let error = refusal_after(|_, pod, _| {
        pod.run("ip route del 192.0.2.0/24");
    });
    names(&error, &["192.0.2.0/24"]);
    let error = refusal_after(|_, pod, _| {
        pod.run("ip -6 route del default");
    });
    names(&error, &["::/0"]);
}

#[test]
fn an_interface_that_went_from_the_pod_is_named() {
    requires!();
    let error = refusal_after(|_, pod, _| {
        pod.run("ip link del eth0");
    });
    names(&error, &["eth0"]);
}

#[test]
fn an_interface_with_another_mac_is_named() {
    requires!();
    let error = refusal_after(|_, pod, _| {
        pod.run("ip link set eth0 address 02:00:00:00:00:99");
    });
    names(&error, &["eth0", "02:00:00:00:00:99"]);
}

#[test]
fn a_port_that_left_the_bridge_is_named() {
    requires!();
    let error = refusal_after(|node, _, result| {
        let host = Network::host_link(result);
        node.run(&format!("ip link set {host} nomaster"));
    });
    names(&error, &["veth", "br0"]);
}

#[test]
fn a_bridge_that_went_is_named() {
    requires!();
    let error = refusal_after(|node, _, _| {
        node.run("ip link del br0");
    });
    names(&error, &["br0"]);
}

#[test]
fn a_lease_that_went_is_named() {
    requires!();
    let error = refusal_after(|node, _, _| {
        for address in ["10.77.0.2", "fd00:77::2"] {
            node.run(&format!("rm /var/lib/cni/networks/small/{address}"));
        }
    });
    names(&error, &["small"]);
}

#[test]
fn a_link_that_is_down_is_named() {
    requires!();
    if skip_for_go("it does not look at the state of links") {
        return;
    }
    let error = refusal_after(|node, _, result| {
        let host = Network::host_link(result);
        node.run(&format!("ip link set {host} down"));
    });
    names(&error, &["veth", "down"]);
}

#[test]
fn masquerade_that_went_is_named() {
    requires!("iptables", "ip6tables");
    if skip_for_go("it does not look at the rules") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(config()).with("ipMasq", true);
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    node.run("iptables -t nat -F POSTROUTING");
    let error = network.check(&pod, &result).error();
    names(&error, &["10.77.0.2"]);
}

#[test]
fn each_missing_rule_is_told_by_its_address_and_rules_of_the_reference_count() {
    requires!("iptables", "ip6tables", "cni:bridge", "cni:host-local");
    if skip_for_go("it does not look at the rules") {
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
            names(&error, &[address, &chain]);
            node.write("/run/nat", &listed);
            node.run(&format!("{program}-restore /run/nat"));
            network.check(&pod, &result).ok();
        }
    }
}

#[test]
fn rules_that_are_nearly_the_same_do_not_count() {
    requires!("iptables", "ip6tables");
    if skip_for_go("it does not look at the rules") {
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
            names(&error, &["10.77.0.2"]);
            restore(&listed);
            network.check(&pod, &result).ok();
        }
    }
}

#[test]
fn a_namespace_that_went_is_named() {
    requires!();
    let node = Node::new("node");
    let network = node.network(config());
    let pod = node.pod("a");
    let result = network.add(&pod);
    let call = network
        .with("prevResult", result.clone())
        .call("CHECK", &pod);
    pod.end();
    names(&call.run().error(), &["/run/netns/a"]);
}

#[test]
fn check_needs_a_previous_result_that_is_about_this_pod() {
    requires!();
    let node = Node::new("node");
    let network = node.network(config());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let at_a = network.add(&a);
    network.add(&b);
    let error = network.call("CHECK", &a).run().error();
    names(&error, &["prevResult"]);
    network.check(&b, &at_a).error();
    let mut other = at_a.clone();
    other["ips"][0]["address"] = "10.77.0.200/24".into();
    let error = network.check(&a, &other).error();
    names(&error, &["10.77.0.200/24"]);
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
fn flags_of_the_port_that_were_changed_are_reported() {
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
        names(&error, &[port, flag]);
    }
}
