//! Neighbours' caches: whoever gets an address that another pod just gave back is found at once.

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

/// Everybody talks to the first owner; then another pod gets its addresses, and everybody talks to that one.
fn the_next_owner_is_found(node: &Node, first: &Network, next: &Network) {
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
        // Half a second is far below the seconds after which a stale entry is probed again.
        for place in [&**node, &*neighbour] {
            let answered = place.run(&format!("ping -n -c 1 -W 0.5 {address}"));
            let (_, time) = answered
                .split_once("time=")
                .unwrap_or_else(|| panic!("{answered}"));
            let milliseconds: f64 = time.split(' ').next().unwrap().parse().unwrap();
            assert!(milliseconds < 50.0, "{answered}");
        }
    }
    assert!(added.elapsed() < Duration::from_secs(2));
}

#[test]
fn after_a_pod_of_the_reference_with_its_random_mac() {
    requires!("ping", "cni:bridge", "cni:host-local");
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let ours = node.network(network());
    the_next_owner_is_found(&node, &ours.with("type", "go-bridge"), &ours);
}

#[test]
fn after_a_pod_that_asked_for_a_mac() {
    requires!("ping");
    if skip_for_go("it announces an address before its port forwards") {
        return;
    }
    let node = Node::new("node");
    let ours = node.network(network());
    let asked = ours.with("runtimeConfig", json!({"mac": "02:00:00:00:00:77"}));
    the_next_owner_is_found(&node, &asked, &ours);
}

#[test]
fn when_the_next_pod_asks_for_a_mac() {
    requires!("ping");
    if skip_for_go("it announces an address before its port forwards") {
        return;
    }
    let node = Node::new("node");
    let ours = node.network(network());
    let asked = ours.with("runtimeConfig", json!({"mac": "02:00:00:00:00:77"}));
    the_next_owner_is_found(&node, &ours, &asked);
}
