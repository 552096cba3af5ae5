//! A failed ADD leaves no link, rule or lease, and the next ADD succeeds.

use serde_json::{Value, json};

use crate::support::{
    CniError, Network, Node, NodeState, Pod, leases, requires, skip_for_go, small_network,
    testing_go,
};

fn masqueraded() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

/// Runs an ADD of `config`, which must fail without a trace, on a node with another pod. An ADD of the configuration
/// that `repaired` returns must then succeed.
fn assert_undone(node: &Node, config: Value, repaired: &dyn Fn(&Node) -> Value) -> CniError {
    let neighbour = node.pod("neighbour");
    node.network(small_network()).add(&neighbour);
    let pod = node.pod("victim");
    assert_undone_for(node, &config, &pod, repaired)
}

fn assert_undone_for(
    node: &Node,
    config: &Value,
    pod: &Pod,
    repaired: &dyn Fn(&Node) -> Value,
) -> CniError {
    let before = NodeState::of_pods(node);
    let links_in_pod = pod.run("ip -o link") + &pod.run("ip -o addr");
    let error = node.network(config.clone()).call("ADD", pod).run().error();
    if !testing_go() {
        let after = NodeState::of_pods(node);
        assert_eq!(after.links, before.links, "{error:?}");
        assert_eq!(after.rules, before.rules, "{error:?}");
        assert_eq!(after.files, before.files, "{error:?}");
        assert_eq!(pod.run("ip -o link") + &pod.run("ip -o addr"), links_in_pod);
        let config = repaired(node);
        let result = node.network(config).add(pod);
        assert_eq!(result["interfaces"][2]["name"], "eth0");
    }
    error
}

#[test]
fn add_with_an_exhausted_range_is_undone() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = masqueraded();
    config["name"] = "tiny".into();
    config["bridge"] = "br1".into();
    config["ipam"]["subnet"] = "10.66.0.0/30".into();
    node.network(config.clone()).add(&node.pod("only"));
    let error = assert_undone(&node, config, &|node| {
        let mut config = masqueraded();
        config["name"] = "tiny".into();
        config["bridge"] = "br1".into();
        config["ipam"]["subnet"] = "10.66.0.0/30".into();
        node.network(config.clone())
            .call_for("DEL", "only")
            .run()
            .ok();
        config
    });
    assert!(error.text().contains("10.66.0."), "{error:?}");
}

#[test]
fn add_with_an_exhausted_second_range_set_is_undone() {
    requires!();
    let node = Node::new("node");
    let mut config = small_network();
    config["name"] = "tiny".into();
    config["isGateway"] = false.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.66.0.0/30" }]]);
    node.network(config.clone()).add(&node.pod("only"));
    assert_undone(&node, config, &|_| small_network());
    assert_eq!(leases(&node, "tiny").len(), 2);
}

#[test]
fn add_with_another_address_on_the_bridge_is_undone() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = masqueraded();
    config["name"] = "clash".into();
    config["ipam"]["subnet"] = "10.66.0.0/24".into();
    let error = assert_undone(&node, config.clone(), &|_| {
        let mut config = config.clone();
        config["forceAddress"] = true.into();
        config
    });
    for word in ["br0", "10.77.0.1/24"] {
        assert!(error.text().contains(word) || testing_go(), "{error:?}");
    }
}

#[test]
fn add_with_a_bridge_name_of_another_link_type_is_undone() {
    requires!();
    let node = Node::new("node");
    node.run("ip link add taken type veth peer name other");
    let mut config = masqueraded();
    config["bridge"] = "taken".into();
    let error = assert_undone(&node, config, &|_| masqueraded());
    assert!(error.text().contains("taken"), "{error:?}");
}

#[test]
fn add_with_an_unreachable_next_hop_is_undone() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = masqueraded();
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.99.99.99" }]);
    let error = assert_undone(&node, config, &|_| masqueraded());
    for word in ["192.0.2.0/24", "10.99.99.99"] {
        assert!(
            error.text().contains(word) || testing_go(),
            "{word}: {error:?}"
        );
    }
}

#[test]
fn add_with_an_existing_interface_in_the_pod_is_undone() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let pod = node.pod("victim");
    pod.run("ip link add eth0 type veth peer name other");
    let neighbour = node.pod("neighbour");
    node.network(small_network()).add(&neighbour);
    let error = assert_undone_for(&node, &masqueraded(), &pod, &|_| {
        pod.run("ip link del eth0");
        masqueraded()
    });
    assert!(error.text().contains("eth0"), "{error:?}");
    assert_eq!(leases(&node, "small").len(), 2 - usize::from(testing_go()));
}

#[test]
fn add_with_an_unavailable_address_is_undone() {
    requires!();
    let node = Node::new("node");
    let mut config = small_network();
    config["args"] = json!({ "cni": { "ips": ["10.77.0.2"] } });
    let error = assert_undone(&node, config, &|_| small_network());
    assert!(error.text().contains("10.77.0.2"), "{error:?}");
}

/// Lets one of the iptables programs fail with this message on stderr.
fn break_program(node: &Node, program: &str, message: &str) {
    let script = format!("[ $name = {program} ] && echo '{message}' >&2 && exit 4");
    node.run_before_iptables("/usr/sbin/xtables-nft-multi", &script);
}

#[test]
fn add_with_a_failing_iptables_restore_is_undone() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D3: the veth stays") {
        return;
    }
    let node = Node::new("node");
    break_program(&node, "iptables-restore", "injected failure");
    let error = assert_undone(&node, masqueraded(), &|node| {
        node.unbind("/usr/sbin/iptables-restore");
        masqueraded()
    });
    assert!(error.text().contains("injected failure"), "{error:?}");
}

#[test]
fn add_with_a_failing_ip6tables_restore_is_undone() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D18: the rules of the first family stay") {
        return;
    }
    let node = Node::new("node");
    let mut config = masqueraded();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    break_program(&node, "ip6tables-restore", "no v6 here");
    let error = assert_undone(&node, config.clone(), &|node| {
        node.unbind("/usr/sbin/ip6tables-restore");
        config.clone()
    });
    assert!(error.text().contains("no v6 here"), "{error:?}");
}

#[test]
fn add_with_a_failing_missing_or_broken_ipam_plugin_is_undone() {
    requires!();
    let node = Node::new("node");
    let scripts = [
        (
            "fails",
            r#"echo '{"code": 123, "msg": "no more addresses today"}'; exit 1"#,
            "no more addresses today",
        ),
        ("mute", "exit 3", "mute"),
        ("nonsense", "echo hello", "nonsense"),
        ("empty", r#"echo '{"cniVersion": "1.0.0"}'"#, "empty"),
    ];
    let neighbour = node.pod("neighbour");
    node.network(small_network()).add(&neighbour);
    for (name, script, word) in scripts {
        let file = format!("{}/{name}", Node::BIN);
        node.write_executable(&file, &format!("#!/bin/sh\n{script}\n"));
        let mut config = masqueraded();
        config["ipam"] = json!({ "type": name });
        let pod = node.pod(&format!("pod-{name}"));
        let error = assert_undone_for(&node, &config, &pod, &|_| small_network());
        assert!(error.text().contains(word) || testing_go(), "{error:?}");
        if name == "fails" {
            assert_eq!(error.code, 123, "the code of the delegate is passed on");
        }
    }
    let mut config = small_network();
    config["ipam"] = json!({ "type": "absent" });
    let pod = node.pod("victim");
    let error = assert_undone_for(&node, &config, &pod, &|_| small_network());
    assert!(error.text().contains("absent"), "{error:?}");
    assert!(error.text().contains(Node::BIN), "{error:?}");
}

#[test]
fn after_a_failed_first_add_of_a_network_the_next_one_succeeds() {
    requires!("ping");
    let node = Node::new("node");
    let mut config = small_network();
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.99.99.99" }]);
    let pod = node.pod("a");
    node.network(config).call("ADD", &pod).run().error();
    if skip_for_go("D3: the interface stays in the pod") {
        return;
    }
    let result = node.network(small_network()).add(&pod);
    node.reaches(&Network::address(&result));
}
