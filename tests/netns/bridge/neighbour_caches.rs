//! Neighbour caches: a pod that gets a just released address is reachable immediately.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Network, Node, requires, skip_for_go, small_network};

const ADDRESSES: [&str; 2] = ["10.77.0.9", "fd77::9"];

fn network() -> Value {
    let mut config = small_network();
    config["ipam"] = json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
    });
    config["args"]["cni"]["ips"] = json!(ADDRESSES);
    config
}

/// Pings the first owner of the addresses from the host and from a pod, moves the addresses to another pod, and pings
/// that one.
fn assert_next_owner_is_reachable(node: &Node, first: &Network, next: &Network) {
    let others = node.network(network()).with("args", json!({}));
    let (neighbour, old, new) = (node.pod("neighbour"), node.pod("old"), node.pod("new"));
    others.add(&neighbour);
    first.add(&old);
    for address in ADDRESSES {
        node.reaches(address);
        neighbour.reaches(address);
    }
    first.del(&old);
    next.add(&new);
    let added = Instant::now();
    for address in ADDRESSES {
        // A stale neighbour entry is probed only after several seconds.
        for namespace in [&**node, &*neighbour] {
            let output = namespace.run(&format!("ping -n -c 1 -W 0.5 {address}"));
            let (_, time) = output
                .split_once("time=")
                .unwrap_or_else(|| panic!("{output}"));
            let milliseconds: f64 = time.split(' ').next().unwrap().parse().unwrap();
            assert!(milliseconds < 50.0, "{output}");
        }
    }
    assert!(added.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_next_pod_is_reachable_after_a_go_pod_with_a_random_mac_address() {
    requires!("ping", "cni:bridge", "cni:host-local");
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let gangplank = node.network(network());
    assert_next_owner_is_reachable(&node, &gangplank.with("type", "go-bridge"), &gangplank);
}

#[test]
fn the_next_pod_is_reachable_after_a_pod_with_a_requested_mac_address() {
    requires!("ping");
    if skip_for_go("it announces the address before the port is in the forwarding state") {
        return;
    }
    let node = Node::new("node");
    let gangplank = node.network(network());
    let asked = gangplank.with("runtimeConfig", json!({"mac": "02:00:00:00:00:77"}));
    assert_next_owner_is_reachable(&node, &asked, &gangplank);
}

#[test]
fn a_pod_with_a_requested_mac_address_is_reachable_after_another_pod() {
    requires!("ping");
    if skip_for_go("it announces the address before the port is in the forwarding state") {
        return;
    }
    let node = Node::new("node");
    let gangplank = node.network(network());
    let asked = gangplank.with("runtimeConfig", json!({"mac": "02:00:00:00:00:77"}));
    assert_next_owner_is_reachable(&node, &gangplank, &asked);
}
