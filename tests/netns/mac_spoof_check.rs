//! `macspoofchk`: the rules compared with those of the Go plugin, and their effect on frames.

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, requires, skip_for_go, small_network, testing_go};

fn with_spoof_check() -> Value {
    let mut config = small_network();
    config["macspoofchk"] = true.into();
    config
}

fn layer_2() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0", "macspoofchk": true })
}

/// The table, with HOST as the name of the host end.
fn rules(node: &Node, host: &str) -> String {
    let ruleset = node.run("nft list ruleset bridge");
    ruleset.replace(host, "HOST")
}

fn expected(container: &str, mac: &str) -> String {
    let (chain, comment) = (
        format!("cni-br-iface-{container}-eth0"),
        format!("comment \"macspoofchk-{container}-eth0\""),
    );
    format!(
        "table bridge nat {{\n\
         \tchain PREROUTING {{\n\
         \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
         \t\tiifname \"HOST\" jump {chain} {comment}\n\
         \t}}\n\n\
         \tchain {chain} {{\n\
         \t\tjump {chain}-mac {comment}\n\
         \t}}\n\n\
         \tchain {chain}-mac {{\n\
         \t\tether saddr {mac} return {comment}\n\
         \t\tdrop {comment}\n\
         \t}}\n\
         }}\n"
    )
}

const EMPTY: &str = "table bridge nat {\n\
     \tchain PREROUTING {\n\
     \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
     \t}\n\
     }\n";

fn mac_of(pod: &Pod) -> String {
    pod.link("eth0").unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn the_rules_equal_those_of_the_go_plugin() {
    requires!("nft", "cni:bridge", "cni:host-local");
    let [gangplank, go] = ["bridge", "go-bridge"].map(|plugin| {
        let node = Node::new("node");
        node.install_go_plugin("bridge");
        let network = node.network(with_spoof_check()).with("type", plugin);
        let network = network.with("runtimeConfig", json!({ "mac": "02:11:22:33:44:55" }));
        let pod = node.pod("spec-ctr-0001");
        let result = network.add(&pod);
        rules(&node, &Network::host_link(&result))
    });
    assert_eq!(go, expected("spec-ctr-0001", "02:11:22:33:44:55"));
    assert_eq!(gangplank, go);
}

#[test]
fn frames_with_another_source_mac_address_are_dropped() {
    requires!("nft", "ping");
    let node = Node::new("node");
    let network = node.network(with_spoof_check());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    let own = mac_of(&a);
    a.reaches("10.77.0.3");
    a.run("ip link set eth0 address 02:00:00:00:00:99");
    a.does_not_reach("10.77.0.3");
    a.does_not_reach("10.77.0.1");
    b.reaches("10.77.0.1");
    a.run(&format!("ip link set eth0 address {own}"));
    a.reaches("10.77.0.3");
}

#[test]
fn del_removes_the_rules_after_the_namespace_was_deleted() {
    requires!("nft");
    if skip_for_go("D1: the rules are never removed") {
        return;
    }
    let node = Node::new("node");
    for config in [with_spoof_check(), layer_2()] {
        let network = node.network(config);
        let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
        for pod in [&a, &b, &c] {
            network.add(pod);
        }
        network.call("DEL", &a).netns("").run().ok();
        let call = network.call("DEL", &b);
        b.end();
        call.run().ok();
        let left = rules(&node, "?");
        assert!(left.contains("-c-eth0-mac"), "{left}");
        for other in ["-a-eth0", "-b-eth0"] {
            assert!(!left.contains(other), "{left}");
        }
        // With another configuration than that of ADD.
        network.with("macspoofchk", false).del(&c);
        assert_eq!(rules(&node, "?"), EMPTY);
        call.run().ok();
        a.end();
        c.end();
    }
}

#[test]
fn each_implementation_removes_the_rules_of_the_other() {
    requires!("nft", "cni:bridge", "cni:host-local");
    if testing_go() {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let gangplank = node.network(with_spoof_check());
    let go = gangplank.with("type", "go-bridge");
    for (add, del) in [(&gangplank, &go), (&go, &gangplank)] {
        let pod = node.pod("a");
        let result = add.add(&pod);
        gangplank.check(&pod, &result).ok();
        del.del(&pod);
        assert_eq!(rules(&node, "?"), EMPTY);
        pod.end();
    }
}

#[test]
fn check_names_the_changed_chain() {
    requires!("nft");
    if skip_for_go("it does not check this") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(with_spoof_check());
    let pod = node.pod("a");
    let changes = [
        ("nft flush chain bridge nat PREROUTING", "chain PREROUTING"),
        (
            "nft flush chain bridge nat cni-br-iface-a-eth0",
            "chain cni-br-iface-a-eth0 ",
        ),
        (
            "nft insert rule bridge nat cni-br-iface-a-eth0-mac accept",
            "chain cni-br-iface-a-eth0-mac ",
        ),
        ("nft delete table bridge nat", "chain PREROUTING"),
    ];
    network.assert_check_names(&pod, &changes);
}

#[test]
fn a_repeated_add_neither_duplicates_nor_removes_the_rules() {
    requires!("nft");
    if skip_for_go("D16: the jump is duplicated") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(layer_2());
    let pod = node.pod("a");
    let host = Network::host_link(&network.add(&pod));
    let before = rules(&node, &host);
    assert_eq!(before, expected("a", &mac_of(&pod)));
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("already exists"), "{error:?}");
    assert_eq!(rules(&node, &host), before);
    // Rules left by an earlier container with the same ID are replaced.
    pod.run("ip link del eth0");
    network.add(&pod);
    assert_eq!(rules(&node, &host), expected("a", &mac_of(&pod)));
}

#[test]
fn a_failed_add_leaves_no_rules() {
    requires!("nft");
    if skip_for_go("D3: nothing is undone") {
        return;
    }
    let node = Node::new("node");
    let mut config = with_spoof_check();
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.1" }]);
    let network = node.network(config);
    let pod = node.pod("a");
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("10.9.0.0/16"), "{error:?}");
    assert_eq!(rules(&node, "?"), EMPTY);
}

#[test]
fn a_container_id_that_is_too_long_is_rejected_before_any_change() {
    requires!("nft");
    if skip_for_go("D15: nft fails after the link was created") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(with_spoof_check());
    let pod = node.pod("a");
    let long = "x".repeat(240);
    let error = network.call("ADD", &pod).container(&long).run().error();
    assert_eq!(error.code, 4);
    assert!(error.text().contains("CNI_CONTAINERID"), "{error:?}");
    assert!(node.link("br0").is_none());
    assert_eq!(node.files("/var/lib/cni").len(), 0);
    network.call("DEL", &pod).container(&long).run().ok();
}

#[test]
fn two_interfaces_of_a_container_are_checked_separately() {
    requires!("nft");
    let node = Node::new("node");
    let network = node.network(with_spoof_check());
    let pod = node.pod("a");
    network.add(&pod);
    network.call("ADD", &pod).ifname("net1").run().ok();
    network.del(&pod);
    let left = rules(&node, "?");
    assert!(
        left.contains("-a-net1-mac") && !left.contains("-a-eth0"),
        "{left}"
    );
}

#[test]
fn gc_removes_only_rules_that_are_certainly_stale() {
    requires!("nft", "cni:bridge", "cni:host-local");
    if skip_for_go("it has no GC") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let network = node.network(with_spoof_check());
    let go = network.with("type", "go-bridge");
    let other = network.with("name", "other");
    let names = ["kept", "stale", "go-live", "go-dead", "foreign"];
    let pods = names.map(|name| node.pod(name));
    let [kept, stale, go_live, go_dead, foreign] = &pods;
    network.add(kept);
    network.add(stale);
    go.add(go_live);
    let dead = Network::host_link(&go.add(go_dead));
    node.run(&format!("ip link del {dead}"));
    other.add(foreign);
    let gc = network.with("cniVersion", "1.1.0").with(
        "cni.dev/valid-attachments",
        json!([{ "containerID": "kept", "ifname": "eth0" }]),
    );
    gc.call_for("GC", "-").unset("CNI_CONTAINERID").run().ok();
    let left = rules(&node, "?");
    for (name, stays) in names.into_iter().zip([true, false, false, false, true]) {
        assert_eq!(
            left.contains(&format!("-{name}-eth0-mac")),
            stays,
            "{name}: {left}"
        );
    }
}
