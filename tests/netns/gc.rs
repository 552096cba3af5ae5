//! GC: removes the resources of attachments that are not valid, of any implementation, and nothing else.

use serde_json::{Value, json};

use crate::support::{
    Answer, Network, Node, NodeState, Pod, leases, requires, skip_for_go, small_network,
};

fn dual_stack_masquerade() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "1.1.0".into();
    config["ipMasq"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

/// Runs GC; the `eth0` of these pods are the valid attachments.
fn gc(node: &Node, config: &Value, keep: &[&Pod]) -> Answer {
    let keep = keep
        .iter()
        .map(|pod| json!({ "containerID": pod.id(), "ifname": "eth0" }));
    let mut config = config.clone();
    config["cni.dev/valid-attachments"] = keep.collect();
    let plugin = config["type"].as_str().unwrap();
    node.cni(plugin).verb("GC").config(&config).run()
}

#[test]
fn resources_of_invalid_attachments_are_removed_and_others_kept() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(dual_stack_masquerade());
    let kept = node.pod("kept");
    let result = network.add(&kept);
    let before = NodeState::of_pods(&node);
    let (gone, second) = (node.pod("gone"), node.pod("second"));
    network.add(&gone);
    network.add(&second);
    gone.end();
    assert_eq!(gc(&node, &network.config, &[&kept]).ok(), Value::Null);
    assert_eq!(NodeState::of_pods(&node), before);
    network.check(&kept, &result).ok();
    kept.reaches("10.77.0.1");
    // A repeated GC changes nothing. An empty list removes all.
    gc(&node, &network.config, &[&kept]).ok();
    gc(&node, &network.config, &[]).ok();
    assert_eq!(leases(&node, "small").len(), 0);
    assert_eq!(node.nat("iptables"), [""; 0]);
    assert_eq!(node.nat("ip6tables"), [""; 0]);
}

#[test]
fn another_network_on_the_same_bridge_is_kept() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(dual_stack_masquerade());
    let mut other = dual_stack_masquerade();
    other["name"] = "small2".into();
    other["isGateway"] = false.into();
    let pod = node.pod("a");
    node.network(other.clone()).add(&pod);
    let before = NodeState::of_pods(&node);
    let second = node.pod("b");
    network.add(&second);
    gc(&node, &network.config, &[]).ok();
    assert_eq!(NodeState::of_pods(&node).rules, before.rules);
    assert_eq!(NodeState::of_pods(&node).links, before.links);
    assert_eq!(leases(&node, "small2").len(), 2);
}

#[test]
fn resources_of_the_go_plugins_are_removed() {
    requires!("iptables", "ip6tables", "cni:bridge", "cni:host-local");
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let mut old = dual_stack_masquerade();
    old["cniVersion"] = "1.0.0".into();
    old["type"] = "go-bridge".into();
    let go = node.network(old);
    let (kept, gone) = (node.pod("kept"), node.pod("gone"));
    let result = go.add(&kept);
    go.add(&gone);
    gone.end();
    gc(&node, &dual_stack_masquerade(), &[&kept]).ok();
    assert_eq!(leases(&node, "small").len(), 2);
    for program in ["iptables", "ip6tables"] {
        assert_eq!(node.nat(program).len(), 4, "{:?}", node.nat(program));
    }
    node.network(dual_stack_masquerade())
        .check(&kept, &result)
        .ok();
}

#[test]
fn an_invalid_list_of_attachments_removes_nothing() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D4d: it does not read the list") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(dual_stack_masquerade());
    network.add(&node.pod("a"));
    let before = NodeState::of(&node);
    for plugin in ["bridge", "host-local"] {
        let call = |config: &Value| node.cni(plugin).verb("GC").config(config).run();
        // `cnitool gc` omits the list, and libcni passes null for an empty one.
        call(&network.config).ok();
        let key = "cni.dev/valid-attachments";
        call(&network.with(key, Value::Null).config).ok();
        let wrong = json!([{ "containerID": 5, "ifname": "eth0" }]);
        let error = call(&network.with(key, wrong).config).error();
        assert_eq!(error.code, 6);
        assert!(error.msg.contains(key), "{error:?}");
    }
    let error = network
        .with("cniVersion", "1.0.0")
        .call_for("GC", "x")
        .run()
        .error();
    assert_eq!(error.code, 1);
    assert_eq!(NodeState::of(&node), before);
}

#[test]
fn host_local_releases_leases_of_all_implementations() {
    requires!();
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    let config = json!({
        "cniVersion": "1.1.0", "name": "lan", "type": "host-local",
        "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" },
    });
    // GC does not create the directory.
    gc(&node, &config, &[]).ok();
    assert!(node.files("/var/lib/cni").is_empty());
    let pod = node.pod("a");
    node.network(config.clone()).add(&pod);
    let directory = "/var/lib/cni/networks/lan";
    for (name, content) in [
        ("10.1.0.3", "b\r\neth0"),
        ("10.1.0.4", "b"),
        ("10.1.0.5", ""),
    ] {
        node.write(&format!("{directory}/{name}"), content);
    }
    node.write(&format!("{directory}/.gangplank.new"), "b\r\neth0");
    gc(&node, &config, &[&pod]).ok();
    let held = leases(&node, "lan");
    assert_eq!(held.len(), 1);
    assert_eq!(node.lease("lan", "10.1.0.2").unwrap(), "a\r\neth0");
    assert!(
        !node
            .files(directory)
            .contains_key(&format!("{directory}/.gangplank.new"))
    );
}

#[test]
fn gc_calls_the_delegate_with_the_same_stdin_and_returns_its_error() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D4d: it does not forward GC") {
        return;
    }
    let node = Node::new("node");
    let mut config = dual_stack_masquerade();
    config["ipam"] = json!({ "type": "spy" });
    let spy = format!("{}/spy", Node::BIN);
    node.write_executable(
        &spy,
        "#!/bin/sh\ncat > /run/stdin; echo $CNI_COMMAND > /run/verb\n",
    );
    let text = config
        .to_string()
        .replacen('{', "{ \"cni.dev/valid-attachments\" : [],\n", 1);
    node.cni("bridge").verb("GC").stdin(text.clone()).run().ok();
    assert_eq!(node.read("/run/verb"), "GC\n");
    assert_eq!(node.read("/run/stdin"), text);
    node.write(
        &spy,
        "#!/bin/sh\necho '{\"code\": 123, \"msg\": \"no server\"}'; exit 1\n",
    );
    let error = node.cni("bridge").verb("GC").stdin(text).run().error();
    assert_eq!((error.code, error.msg.as_str()), (123, "no server"));
}

#[test]
fn twenty_gcs_during_forty_adds_remove_no_valid_attachment() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(dual_stack_masquerade());
    let pods: Vec<Pod> = (0..40).map(|n| node.pod(&format!("c{n}"))).collect();
    let all: Vec<&Pod> = pods.iter().collect();
    std::thread::scope(|scope| {
        let (node, network, all) = (&node, &network, &all);
        for pod in &pods[..20] {
            scope.spawn(move || drop(network.add(pod)));
            scope.spawn(move || gc(node, &network.config, all).ok());
        }
    });
    std::thread::scope(|scope| {
        let (node, network) = (&node, &network);
        for pod in &pods[..20] {
            scope.spawn(move || network.del(pod));
            scope.spawn(move || gc(node, &network.config, &[]).ok());
        }
    });
    assert_eq!(leases(&node, "small").len(), 0);
    assert_eq!(node.nat("iptables"), [""; 0]);
    let result = network.add(&pods[39]);
    assert!(!Network::address(&result).is_empty());
}
