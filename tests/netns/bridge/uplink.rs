//! `mtu` "auto": links get the MTU of the node's default route.

use crate::support::{Node, connect, requires, skip_for_go, small_network};

/// The MTUs of a new pod's interface and of the bridge.
fn mtus(node: &Node, bridge: &str) -> [u64; 2] {
    let mut config = small_network();
    config["mtu"] = "auto".into();
    config["bridge"] = bridge.into();
    config["name"] = bridge.into();
    config["forceAddress"] = true.into();
    let pod = node.pod(&format!("pod-{bridge}"));
    let network = node.network(config);
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    let mtu = |link: Option<serde_json::Value>| link.unwrap()["mtu"].as_u64().unwrap();
    let found = [mtu(pod.link("eth0")), mtu(node.link(bridge))];
    network.del(&pod);
    found
}

fn uplink(node: &Node, mtu: u32) -> Node {
    let outside = Node::new("outside");
    connect(node, "up0", &outside, "up0");
    node.run_all(&format!(
        "ip link set up0 mtu {mtu}\nip addr add 172.18.0.5/24 dev up0\nip addr add fd18::5/64 dev up0 nodad"
    ));
    outside
}

#[test]
fn mtu_auto_is_the_mtu_of_the_default_route() {
    requires!();
    if skip_for_go("it does not support \"auto\"") {
        return;
    }
    let node = Node::new("node");
    let _outside = uplink(&node, 8900);
    assert_eq!(mtus(&node, "none0"), [1500, 1500], "no default route");
    node.run("ip -6 route add default via fd18::9");
    assert_eq!(mtus(&node, "six0"), [8900, 8900], "only IPv6");
    let other = Node::new("other");
    connect(&node, "up1", &other, "up1");
    node.run_all("ip addr add 172.19.0.5/24 dev up1\nip link set up1 mtu 1400");
    node.run("ip route add default via 172.19.0.9 metric 200");
    assert_eq!(mtus(&node, "four0"), [1400, 1400], "IPv4 is preferred");
    node.run("ip route add default via 172.18.0.9 metric 100");
    assert_eq!(mtus(&node, "metric0"), [8900, 8900], "the lower metric");
    node.run("ip route replace default via 172.18.0.9 metric 100 mtu 1300");
    assert_eq!(
        mtus(&node, "route0"),
        [1300, 1300],
        "the MTU of the route itself"
    );
    node.run("ip route del default metric 100");
    node.run("ip route replace default metric 50 nexthop via 172.18.0.9 nexthop via 172.19.0.9");
    assert_eq!(mtus(&node, "both0"), [1400, 1400], "the smaller of two");
}

#[test]
fn mtu_auto_without_a_default_route_is_the_mtu_of_the_bridge() {
    requires!();
    if skip_for_go("it does not support \"auto\"") {
        return;
    }
    let node = Node::new("node");
    node.run_all("ip link add br0 type bridge\nip link set br0 mtu 1337");
    node.run("ip route add blackhole default");
    assert_eq!(mtus(&node, "br0"), [1337, 1337]);
}
