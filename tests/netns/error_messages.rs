//! Error messages name the operation, the object, the cause and a remedy.

use serde_json::json;

use crate::support::{Node, requires, skip_for_go, small_network};

/// Asserts that the error contains all words.
#[track_caller]
fn assert_contains(answer: crate::support::Answer, words: &[&str]) {
    let text = answer.error().text();
    let missing = words.iter().find(|word| !text.contains(**word));
    assert!(missing.is_none(), "no {missing:?} in: {text}");
}

#[test]
fn an_exhausted_range_is_reported_with_its_size_and_oldest_leases() {
    requires!();
    if skip_for_go("it reports only that the range is full") {
        return;
    }
    let node = Node::new("node");
    let mut network = node.network(small_network());
    network.config["ipam"]["subnet"] = json!("10.77.0.0/30");
    network.config["ipam"]["gateway"] = json!("10.77.0.2");
    network.add(&node.pod("first"));
    let answer = network.call("ADD", &node.pod("second")).run();
    let words = [
        "no IP addresses available in range set: 10.77.0.1-10.77.0.2",
        "all 1 are reserved in /var/lib/cni/networks/small",
        "10.77.0.1 by container first interface eth0 for ",
        "need a DEL",
    ];
    assert_contains(answer, &words);
}

#[test]
fn a_gateway_conflict_is_reported_with_addresses_ports_and_remedies() {
    requires!();
    if skip_for_go("its error names neither the ports nor a remedy") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("here-first");
    network.add(&pod);
    let mut other = node.network(small_network());
    other.config["name"] = json!("other");
    other.config["ipam"]["subnet"] = json!("10.78.0.0/24");
    let answer = other.call("ADD", &node.pod("later")).run();
    let words = [
        "bridge br0",
        "10.77.0.1/24",
        "10.78.0.1/24",
        "its ports are veth",
        "(here-first)",
        "ip address del 10.77.0.1/24 dev br0",
        "forceAddress",
    ];
    assert_contains(answer, &words);
    let bare = Node::new("bare");
    bare.run_all("ip link add br0 type bridge\n ip addr add 10.9.0.1/24 dev br0");
    let answer = bare
        .network(small_network())
        .call("ADD", &bare.pod("pod"))
        .run();
    assert_contains(answer, &["10.9.0.1/24", "br0 has no ports"]);
}

#[test]
fn an_existing_interface_is_reported_with_its_owner() {
    requires!();
    if skip_for_go("it reports only that the name exists") {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("pod");
    let network = node.network(small_network());
    let of_shop = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
    network.call("ADD", &pod).args(of_shop).run().ok();
    let mut other = node.network(small_network());
    other.config["name"] = json!("other");
    let words = [
        "interface eth0 already exists in /run/netns/pod",
        "(shop/web)",
        "run DEL",
    ];
    assert_contains(other.call("ADD", &pod).run(), &words);

    let pod = node.pod("self-made");
    pod.run("ip link add eth0 type bridge");
    let words = ["it is a bridge", "something else made it"];
    assert_contains(network.call("ADD", &pod).run(), &words);
}

#[test]
fn an_unreachable_next_hop_is_reported_with_the_requirement() {
    requires!();
    if skip_for_go("its error is: network is unreachable") {
        return;
    }
    let node = Node::new("node");
    let mut network = node.network(small_network());
    network.config["ipam"]["routes"] = json!([{ "dst": "10.99.0.0/16", "gw": "10.98.0.1" }]);
    let words = [
        "add route 10.99.0.0/16 via 10.98.0.1 over eth0",
        "must lie in a subnet of the container's addresses",
    ];
    assert_contains(network.call("ADD", &node.pod("pod")).run(), &words);
}
