//! The keys of a bridge network.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod chained;
mod interface_options;
mod neighbour_caches;
mod uplink;
mod vlan;

use crate::support::{Network, Node, connect, requires, skip_for_go, small_network, testing_go};

fn dual_stack() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "dual",
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]],
        },
    })
}

#[test]
fn a_network_without_ipam_connects_the_pod_without_an_address() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network(json!({
        "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0",
    }));
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = network.add(&a);
    network.add(&b);
    assert_eq!(result.get("ips"), None, "{result}");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    for (pod, address) in [(&a, "10.9.9.1"), (&b, "10.9.9.2")] {
        let link = pod.link("eth0").unwrap();
        assert_eq!(link["operstate"], "UP", "{link}");
        assert_eq!(pod.addresses("eth0"), [""; 0]);
        pod.run(&format!("ip addr add {address}/24 dev eth0"));
    }
    a.reaches("10.9.9.2");
    network.del(&a);
    assert!(a.link("eth0").is_none());
}

#[test]
fn the_first_pod_on_a_new_bridge_is_reachable_over_ipv6_immediately() {
    requires!();
    if skip_for_go(
        "the bridge sends no neighbour solicitations until its own address passes duplicate address detection",
    ) {
        return;
    }
    let (node, world) = (Node::new("node"), Node::new("world"));
    connect(&node, "up0", &world, "up0");
    node.run("ip addr add fd00:5::1/64 dev up0");
    world.run_all("ip addr add fd00:5::2/64 dev up0\nip route add fd00:77::/64 via fd00:5::1");
    node.wait_for_dad();
    world.wait_for_dad();
    let pod = node.pod("a");
    let before = Instant::now();
    let result = node.network(dual_stack()).add(&pod);
    let address = result["ips"][1]["address"].as_str().unwrap();
    let address = address.split('/').next().unwrap().parse().unwrap();
    world.exchange(&pod, address).unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
}

#[test]
fn the_default_bridge_is_cni0_and_an_existing_bridge_is_used() {
    requires!();
    let node = Node::new("node");
    let mut config = small_network();
    config.as_object_mut().unwrap().remove("bridge");
    node.run("ip link add cni0 address 02:00:00:00:00:77 type bridge");
    let a = node.pod("a");
    let result = node.network(config).add(&a);
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:77");
    assert_eq!(
        node.link("cni0").unwrap()["operstate"],
        "UP",
        "the plugin sets the bridge up"
    );
    assert_eq!(
        node.link(&Network::host_link(&result)).unwrap()["master"],
        "cni0"
    );
}

#[test]
fn add_fails_if_the_name_of_the_bridge_belongs_to_another_link_type() {
    requires!();
    let node = Node::new("node");
    node.run("ip link add br0 type veth peer name other");
    let pod = node.pod("a");
    let error = node
        .network(small_network())
        .call("ADD", &pod)
        .run()
        .error();
    assert!(error.text().contains("br0"), "{error:?}");
    assert!(pod.link("eth0").is_none());
}

#[test]
fn is_gateway_enables_forwarding_and_adds_the_gateway_address() {
    requires!("ping");
    let node = Node::new("node");
    let a = node.pod("a");
    assert_eq!(node.read("/proc/sys/net/ipv4/ip_forward"), "0\n");
    let result = node.network(small_network()).add(&a);
    assert_eq!(
        result["ips"],
        json!([{ "address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 2 }])
    );
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24"]);
    assert_eq!(node.read("/proc/sys/net/ipv4/ip_forward"), "1\n");
    assert_eq!(result.get("routes"), None, "no route was requested");
    assert_eq!(a.run("ip route").lines().count(), 1);
    a.reaches("10.77.0.1");
}

#[test]
fn is_default_gateway_adds_a_default_route_per_family() {
    requires!();
    let node = Node::new("node");
    let a = node.pod("a");
    let result = node.network(dual_stack()).add(&a);
    assert_eq!(
        result["routes"],
        json!([
            { "dst": "0.0.0.0/0", "gw": "10.77.0.1" },
            { "dst": "::/0", "gw": "fd00:77::1" },
        ])
    );
    assert!(a.run("ip route").contains("default via 10.77.0.1 dev eth0"));
    let v6 = a.run("ip -6 route");
    assert!(v6.contains("default via fd00:77::1 dev eth0"), "{v6}");
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24", "fd00:77::1/64"]);
    assert_eq!(node.read("/proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
}

#[test]
fn a_default_route_from_ipam_is_not_added_twice() {
    requires!();
    let node = Node::new("node");
    let mut config = dual_stack();
    config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0", "gw": "10.77.0.200" }]);
    let a = node.pod("a");
    let result = node.network(config.clone()).add(&a);
    assert_eq!(
        result["routes"],
        json!([
            { "dst": "0.0.0.0/0", "gw": "10.77.0.200" },
            { "dst": "::/0", "gw": "fd00:77::1" },
        ])
    );
    if skip_for_go("D7: it fails for a default route without a next hop") {
        return;
    }
    config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
    let b = node.pod("b");
    node.network(config).add(&b);
    let routes = b.run("ip route");
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    assert!(routes.contains("default via 10.77.0.1 dev eth0"));
}

#[test]
fn dual_stack_pods_ping_each_other_as_soon_as_add_returns() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network(dual_stack());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    // Until the kernel has added this route, packets to the address are dropped, even if it is not tentative.
    let local = b.run("ip -6 route show table local");
    assert!(local.contains("local fd00:77::3 dev eth0"), "{local}");
    let once = |place: &crate::support::Namespace, to: &str| {
        place.run(&format!("ping -n -c 1 -W 1 {to}"));
    };
    once(&b, "fd00:77::2");
    once(&a, "10.77.0.3");
    for address in ["10.77.0.2/24", "fd00:77::2/64"] {
        assert!(a.addresses("eth0").contains(&address.to_owned()));
    }
    let tentative = a.run("ip -6 addr show dev eth0 scope global tentative");
    assert_eq!(tentative, "", "no duplicate address detection");
    if skip_for_go("D20: the gateway on the bridge is tentative for a second") {
        return;
    }
    let c = node.pod("c");
    network.add(&c);
    once(&c, "fd00:77::1");
    once(&node, "fd00:77::4");
    assert_eq!(
        node.run("ip -6 addr show dev br0 scope global tentative"),
        ""
    );
}

#[test]
fn another_gateway_address_on_the_bridge_is_an_error_without_force_address() {
    requires!();
    let node = Node::new("node");
    node.run("ip link add br0 type bridge");
    node.run("ip addr add 10.99.0.1/16 dev br0");
    let network = node.network(small_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let error = network.call("ADD", &a).run().error();
    for word in ["br0", "10.99.0.1/16"] {
        assert!(
            error.text().contains(word) || testing_go(),
            "{word}: {error:?}"
        );
    }
    assert_eq!(node.addresses("br0"), ["10.99.0.1/16"]);
    network.with("forceAddress", true).add(&b);
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24"]);
}

#[test]
fn the_mtu_applies_to_the_pod_the_bridge_and_the_port() {
    requires!();
    let node = Node::new("node");
    let a = node.pod("a");
    let result = node.network(small_network()).with("mtu", 1400).add(&a);
    let port = Network::host_link(&result);
    for (link, at) in [
        (a.link("eth0"), "eth0"),
        (node.link("br0"), "br0"),
        (node.link(&port), &port),
    ] {
        assert_eq!(link.unwrap()["mtu"], 1400, "{at}");
    }
    let b = node.pod("b");
    node.network(small_network()).with("mtu", 0).add(&b);
    assert_eq!(b.link("eth0").unwrap()["mtu"], 1500, "0 means unset");
}

#[test]
fn hairpin_mode_sets_a_flag_of_the_port() {
    requires!();
    let node = Node::new("node");
    for (name, on) in [("a", true), ("b", false)] {
        let pod = node.pod(name);
        let result = node
            .network(small_network())
            .with("hairpinMode", on)
            .add(&pod);
        let port = node.run(&format!(
            "bridge -d link show dev {}",
            Network::host_link(&result)
        ));
        let expected = if on { "hairpin on" } else { "hairpin off" };
        assert!(port.contains(expected), "{port}");
    }
}

#[test]
fn frames_return_to_their_own_port_only_in_hairpin_mode() {
    requires!("ping");
    let node = Node::new("node");
    for (name, on) in [("a", true), ("b", false)] {
        let pod = node.pod(name);
        node.network(small_network())
            .with("hairpinMode", on)
            .add(&pod);
        // An address with the pod's own MAC address: packets to it return only if the bridge sends them back.
        let mac = pod.link("eth0").unwrap()["address"].clone();
        let mac = mac.as_str().unwrap();
        pod.run(&format!(
            "ip neigh add 10.77.0.222 lladdr {mac} dev eth0 nud permanent"
        ));
        let received = || {
            let text = pod.run("ip -s -j link show dev eth0");
            let links: Value = serde_json::from_str(&text).unwrap();
            links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        };
        let before = received();
        let _ = pod.try_run("ping -n -c 50 -i 0.002 -W 0.1 10.77.0.222");
        let returned = received() - before;
        assert_eq!(returned >= 50, on, "{returned} of 50 frames returned");
    }
}

#[test]
fn promisc_mode_sets_a_flag_of_the_bridge() {
    requires!();
    let node = Node::new("node");
    let a = node.pod("a");
    node.network(small_network()).add(&a);
    let promiscuous = || node.run("ip link show dev br0").contains("PROMISC");
    assert!(!promiscuous());
    let b = node.pod("b");
    node.network(small_network())
        .with("promiscMode", true)
        .add(&b);
    assert!(promiscuous());
}

#[test]
fn the_mac_address_of_the_bridge_does_not_change_with_its_ports() {
    requires!();
    let node = Node::new("node");
    let network = node.network(small_network());
    let a = node.pod("a");
    network.add(&a);
    let mac = node.link("br0").unwrap()["address"].clone();
    let low = node.pod("low");
    let call = network.call("ADD", &low);
    let _ = call.args("MAC=02:00:00:00:00:01").run();
    assert_eq!(node.link("br0").unwrap()["address"], mac);
    network.del(&a);
    network.del(&low);
    assert_eq!(node.link("br0").unwrap()["address"], mac);
    if skip_for_go("D6: without a gateway the MAC follows the lowest port") {
        return;
    }
    let network = network
        .with("bridge", "br1")
        .with("name", "other")
        .with("isGateway", false);
    let (b, c) = (node.pod("b"), node.pod("c"));
    network.add(&b);
    let mac = node.link("br1").unwrap()["address"].clone();
    network.add(&c);
    network.del(&b);
    network.del(&c);
    assert_eq!(node.link("br1").unwrap()["address"], mac);
}

#[test]
fn a_gateway_is_added_to_a_bridge_that_had_none() {
    requires!("ping");
    if skip_for_go("D5: it sets an all-zero MAC address and fails") {
        return;
    }
    let node = Node::new("node");
    node.run("ip link add br0 type bridge");
    let network = node.network(small_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.with("isGateway", false).add(&a);
    network.with("isGateway", false).del(&a);
    let result = network.add(&b);
    node.reaches(&Network::address(&result));
}

#[test]
fn two_interfaces_of_one_container_are_independent() {
    requires!("ping");
    let node = Node::new("node");
    let (pod, peer) = (node.pod("a"), node.pod("b"));
    let network = node.network(small_network());
    let second = network.with("name", "second").with("bridge", "br1");
    let mut second_config = second.config.clone();
    second_config["ipam"]["subnet"] = "10.78.0.0/24".into();
    let second = node.network(second_config);
    network.add(&pod);
    second.call("ADD", &pod).ifname("net1").run().ok();
    // A second interface on the first network.
    network.call("ADD", &pod).ifname("net2").run().ok();
    assert_eq!(pod.addresses("eth0"), ["10.77.0.2/24"]);
    assert_eq!(pod.addresses("net1"), ["10.78.0.2/24"]);
    assert_eq!(pod.addresses("net2"), ["10.77.0.3/24"]);

    network.call("DEL", &pod).ifname("net2").run().ok();
    assert!(pod.link("net2").is_none());
    assert_eq!(node.lease("small", "10.77.0.3"), None);
    assert!(node.lease("small", "10.77.0.2").is_some());
    network.add(&peer);
    pod.reaches("10.77.0.4");
    pod.reaches("10.78.0.1");
}

#[test]
fn a_repeated_add_fails_and_changes_nothing() {
    requires!("ping");
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(small_network());
    let result = network.add(&pod);
    let before = crate::support::NodeState::of_pods(&node);
    let error = network.call("ADD", &pod).run().error();
    assert!(
        error.text().contains("eth0") || error.text().contains('a'),
        "{error:?}"
    );
    assert_eq!(crate::support::NodeState::of_pods(&node), before);
    node.reaches(&Network::address(&result));
    network.check(&pod, &result).ok();
}
