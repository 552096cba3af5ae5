//! The plugin ptp: packets between pods, host and outside, and configurations of unusual shape.

use serde_json::{Value, json};

use crate::support::{Network, Node, NodeState, Pod, connect, requires, testing_go};

fn ptp() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    })
}

fn of_static(addresses: &Value) -> Value {
    let mut config = ptp();
    config["ipam"] = json!({ "type": "static", "addresses": addresses });
    config
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    let address = |ip: &Value| ip["address"].as_str().unwrap().to_owned();
    ips.map(|ip| address(ip).split('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn pods_and_host_reach_each_other_at_once() {
    requires!();
    let node = Node::new("node");
    let network = node.network(ptp());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let (of_a, of_b) = (network.add(&a), network.add(&b));
    for (from, to) in [(&a, &of_b), (&b, &of_a)] {
        for address in addresses(to) {
            // Through the host, also within the subnet.
            assert_eq!(from.reaches(&address), 63);
            node.reaches(&address);
        }
        for gateway in ["10.77.0.1", "fd00:77::1"] {
            from.reaches(gateway);
        }
    }
    network.check(&a, &of_a).ok();
    network.del(&a);
    b.reaches("10.77.0.1");
    network.del(&b);
    assert_eq!(
        node.run("ip -4 route") + &node.run("ip -o link show type veth"),
        ""
    );
}

#[test]
fn packets_to_the_outside_are_masqueraded_with_both_backends() {
    requires!("iptables", "ip6tables", "nft");
    for backend in ["iptables", "nftables"] {
        let (node, outside) = (Node::new("node"), Node::new("outside"));
        connect(&node, "up0", &outside, "up0");
        node.run_all("ip addr add 192.0.2.1/24 dev up0\nip addr add 2001:db8::1/64 dev up0 nodad");
        outside
            .run_all("ip addr add 192.0.2.2/24 dev up0\nip addr add 2001:db8::2/64 dev up0 nodad");
        let mut config = ptp();
        config["ipMasq"] = true.into();
        config["ipMasqBackend"] = backend.into();
        let network = node.network(config);
        let before = NodeState::of_pods(&node);
        let (pod, peer) = (node.pod("a"), node.pod("b"));
        let (result, of_peer) = (network.add(&pod), network.add(&peer));
        for (to, seen) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            assert_eq!(pod.seen_as(&outside, to), seen, "{backend}");
        }
        for (from, to) in addresses(&result).iter().zip(addresses(&of_peer)) {
            assert_eq!(pod.seen_as(&peer, &to), *from, "{backend}");
        }
        network.check(&pod, &result).ok();
        network.del(&pod);
        network.del(&peer);
        assert_eq!(NodeState::of_pods(&node).rules, before.rules, "{backend}");
    }
}

#[test]
fn a_result_lists_the_host_end_first_and_the_mac_address_follows_the_address() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let mut config = ptp();
    config["mtu"] = 1400.into();
    config["dns"] = json!({ "nameservers": ["10.0.0.53"] });
    let result = node.network(config).add(&pod);
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 2, "{result}");
    assert_eq!(interfaces[0].get("sandbox"), None);
    assert_eq!(
        (&interfaces[1]["name"], &interfaces[1]["sandbox"]),
        (&json!("eth0"), &json!(pod.path))
    );
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["dns"], json!({ "nameservers": ["10.0.0.53"] }));
    if !testing_go() {
        assert_eq!(interfaces[1]["mac"], "0a:58:0a:4d:00:02");
    }
    let host = interfaces[0]["name"].as_str().unwrap();
    assert_eq!(
        (
            &node.link(host).unwrap()["mtu"],
            &pod.link("eth0").unwrap()["mtu"]
        ),
        (&json!(1400), &json!(1400))
    );
}

#[test]
fn addresses_of_unusual_shape_are_reachable() {
    requires!();
    let shapes = [
        json!([{ "address": "10.77.0.5/24", "gateway": "169.254.1.1" }]),
        json!([{ "address": "10.77.0.4/31", "gateway": "10.77.0.5" }]),
        json!([{ "address": "10.77.0.5/32", "gateway": "10.77.0.1" }]),
        json!([{ "address": "fd00:77::5/128", "gateway": "fe80::1" }]),
        json!([
            { "address": "10.77.0.5/24", "gateway": "10.77.0.1" },
            { "address": "10.77.0.6/24", "gateway": "10.77.0.1" },
            { "address": "10.78.0.5/24", "gateway": "10.78.0.1" },
        ]),
    ];
    for shape in shapes {
        let node = Node::new("node");
        let network = node.network(of_static(&shape));
        let pod = node.pod("a");
        let result = network.add(&pod);
        for address in addresses(&result) {
            node.reaches(&address);
        }
        network.check(&pod, &result).ok();
        network.del(&pod);
        assert_eq!(node.run("ip -o link show type veth"), "", "{shape}");
    }
}

#[test]
fn check_names_what_the_pod_lost() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(ptp());
    let result = network.add(&pod);
    let host = Network::host_link(&result);
    let lost = |on: &str, change: &str, names: &str| {
        match on {
            "host" => node.run(change),
            _ => pod.run(change),
        };
        let error = network.check(&pod, &result).error();
        assert!(error.msg.contains(names), "{change}: {error:?}");
    };
    let repaired = |commands: &str| node.run_all(commands);
    lost("host", "ip route del 10.77.0.2", "route 10.77.0.2/32");
    repaired(&format!("ip route add 10.77.0.2 dev {host} scope host"));
    network.check(&pod, &result).ok();
    lost(
        "host",
        &format!("ip -6 addr del fd00:77::1/128 dev {host}"),
        "the gateway address fd00:77::1/128",
    );
    repaired(&format!("ip addr add fd00:77::1/128 dev {host} nodad"));
    network.check(&pod, &result).ok();
    lost(
        "pod",
        "ip route del 10.77.0.0/24",
        "route 10.77.0.0/24 via 10.77.0.1",
    );
}

#[test]
fn gc_removes_what_belongs_to_no_valid_attachment() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = ptp();
    config["cniVersion"] = "1.1.0".into();
    config["ipMasq"] = true.into();
    let network = node.network(config.clone());
    let kept = node.pod("kept");
    let result = network.add(&kept);
    let before = NodeState::of_pods(&node);
    network.add(&node.pod("stale"));
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    let gc = || node.cni("ptp").verb("GC").config(&config).run();
    gc().ok();
    let after = NodeState::of_pods(&node);
    assert_eq!((&after.links, &after.rules), (&before.links, &before.rules));
    assert_eq!(crate::support::leases(&node, "small").len(), 2);
    network.check(&kept, &result).ok();
    node.reaches(&addresses(&result)[0]);
}

/// Whether a call fails with this text and changes nothing.
fn assert_rejected(node: &Node, pod: &Pod, config: &Value, says: &str) {
    let before = NodeState::of_pods(node);
    let error = node.network(config.clone()).call("ADD", pod).run().error();
    assert!(error.text().contains(says), "{error:?}");
    let after = NodeState::of_pods(node);
    assert_eq!(
        (after.links, after.rules, after.files),
        (before.links, before.rules, before.files)
    );
    assert!(pod.link("eth0").is_none());
}

#[test]
fn a_failed_add_leaves_nothing() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let pod = node.pod("a");
    node.network(ptp()).add(&node.pod("other"));
    let mut no_ipam = ptp();
    no_ipam["ipam"] = json!({});
    assert_rejected(&node, &pod, &no_ipam, "ipam.type is missing");
    let without_gateway = of_static(&json!([{ "address": "10.78.0.5/24" }]));
    assert_rejected(&node, &pod, &without_gateway, "gateway of 10.78.0.5/24");
    let mut backend = ptp();
    backend["ipMasq"] = true.into();
    backend["ipMasqBackend"] = "ipvs".into();
    assert_rejected(&node, &pod, &backend, "ipMasqBackend");
    let mut route = of_static(&json!([{ "address": "10.78.0.5/24", "gateway": "10.78.0.1" }]));
    route["ipMasq"] = true.into();
    route["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.77" }]);
    assert_rejected(&node, &pod, &route, "add route 10.9.0.0/16 via 192.0.2.77");
    node.network(ptp()).add(&pod);
}
