//! `macspoofchk`: the rules beside those of the Go plugin, and what frames make of them.

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, requires, skip_for_go, small_network, testing_go};

fn guarded() -> Value {
    let mut config = small_network();
    config["macspoofchk"] = true.into();
    config
}

fn flat() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0", "macspoofchk": true })
}

/// The table, with the host's interface called HOST.
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
fn the_rules_are_word_for_word_those_of_the_go_plugin() {
    requires!("nft", "cni:bridge", "cni:host-local");
    let [ours, theirs] = ["bridge", "go-bridge"].map(|plugin| {
        let node = Node::new("node");
        node.install_go_plugin("bridge");
        let network = node.network(guarded()).with("type", plugin);
        let network = network.with("runtimeConfig", json!({ "mac": "02:11:22:33:44:55" }));
        let pod = node.pod("spec-ctr-0001");
        let result = network.add(&pod);
        rules(&node, &Network::host_link(&result))
    });
    assert_eq!(theirs, expected("spec-ctr-0001", "02:11:22:33:44:55"));
    assert_eq!(ours, theirs);
}

#[test]
fn a_pod_that_changes_its_mac_address_is_cut_off_until_it_changes_it_back() {
    requires!("nft", "ping");
    let node = Node::new("node");
    let network = node.network(guarded());
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
fn del_takes_the_rules_also_when_the_namespace_has_gone() {
    requires!("nft");
    if skip_for_go("D1: the rules stay for ever") {
        return;
    }
    let node = Node::new("node");
    for config in [guarded(), flat()] {
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
        // The configuration has changed meanwhile.
        network.with("macspoofchk", false).del(&c);
        assert_eq!(rules(&node, "?"), EMPTY);
        call.run().ok();
        a.end();
        c.end();
    }
}

#[test]
fn either_plugin_takes_down_what_the_other_set_up_and_ours_confirms_it() {
    requires!("nft", "cni:bridge", "cni:host-local");
    if testing_go() {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let ours = node.network(guarded());
    let theirs = ours.with("type", "go-bridge");
    for (add, del) in [(&ours, &theirs), (&theirs, &ours)] {
        let pod = node.pod("a");
        let result = add.add(&pod);
        ours.check(&pod, &result).ok();
        del.del(&pod);
        assert_eq!(rules(&node, "?"), EMPTY);
        pod.end();
    }
}

#[test]
fn check_names_the_chain_that_is_not_as_it_was() {
    requires!("nft");
    if skip_for_go("it does not look") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(guarded());
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
    for (change, named) in changes {
        let result = network.add(&pod);
        network.check(&pod, &result).ok();
        node.run(change);
        let error = network.check(&pod, &result).error();
        assert!(error.text().contains(named), "{change}: {error:?}");
        network.del(&pod);
    }
}

#[test]
fn a_second_add_neither_doubles_nor_takes_the_rules_of_the_first() {
    requires!("nft");
    if skip_for_go("D16: the jump is there twice") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(flat());
    let pod = node.pod("a");
    let host = Network::host_link(&network.add(&pod));
    let before = rules(&node, &host);
    assert_eq!(before, expected("a", &mac_of(&pod)));
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("already exists"), "{error:?}");
    assert_eq!(rules(&node, &host), before);
    // What an earlier life of the container left is replaced, not added to.
    pod.run("ip link del eth0");
    network.add(&pod);
    assert_eq!(rules(&node, &host), expected("a", &mac_of(&pod)));
}

#[test]
fn a_failed_add_leaves_no_rules() {
    requires!("nft");
    if skip_for_go("D3: what was made stays") {
        return;
    }
    let node = Node::new("node");
    let mut config = guarded();
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.1" }]);
    let network = node.network(config);
    let pod = node.pod("a");
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("10.9.0.0/16"), "{error:?}");
    assert_eq!(rules(&node, "?"), EMPTY);
}

#[test]
fn a_container_id_that_is_too_long_is_refused_before_anything_is_touched() {
    requires!("nft");
    if skip_for_go("D15: nft refuses it when the link is there already") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(guarded());
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
fn two_interfaces_of_a_container_are_guarded_each_by_itself() {
    requires!("nft");
    let node = Node::new("node");
    let network = node.network(guarded());
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
fn gc_takes_the_rules_of_what_is_certain_to_be_dead() {
    requires!("nft", "cni:bridge", "cni:host-local");
    if skip_for_go("it has no GC") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let network = node.network(guarded());
    let theirs = network.with("type", "go-bridge");
    let other = network.with("name", "other");
    let names = ["kept", "stale", "go-live", "go-dead", "foreign"];
    let pods = names.map(|name| node.pod(name));
    let [kept, stale, go_live, go_dead, foreign] = &pods;
    network.add(kept);
    network.add(stale);
    theirs.add(go_live);
    let dead = Network::host_link(&theirs.add(go_dead));
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
