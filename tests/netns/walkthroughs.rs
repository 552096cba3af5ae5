//! Examples of the documentation, with the configurations under `examples/`.

use crate::support::{Network, Node, NodeState, Pod, chain_of, connect, example, requires};

/// An attached pod and its address.
fn attached(node: &Node, network: &Network, name: &str) -> (Pod, String) {
    let pod = node.pod(name);
    let result = network.add(&pod);
    let address = Network::address(&result);
    (pod, address)
}

/// A node with an address on a link other than the bridge.
fn node_with_nic(name: &str) -> (Node, Node) {
    let (node, outside) = (Node::new(name), Node::new("outside"));
    connect(&node, "eth0", &outside, "eth0");
    node.run("ip addr add 172.18.0.5/24 dev eth0");
    outside.run("ip addr add 172.18.0.9/24 dev eth0");
    (node, outside)
}

#[test]
fn pods_without_a_gateway_reach_each_other_but_not_the_host() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network_from(&example("1-one-node/1-bare.conf"));
    let (a, address_a) = attached(&node, &network, "a");
    let (b, address_b) = attached(&node, &network, "b");
    assert_eq!(
        [address_a.as_str(), address_b.as_str()],
        ["10.12.1.2", "10.12.1.3"]
    );
    assert_eq!(a.reaches(&address_b), 64, "no router between them");
    assert_eq!(b.reaches(&address_a), 64);
    assert_eq!(node.addresses("mink8s0"), [""; 0]);
    node.does_not_reach(&address_a);
    a.does_not_reach("10.12.1.1");
}

#[test]
fn with_a_gateway_the_host_reaches_the_pod() {
    requires!("ping");
    let (node, _outside) = node_with_nic("node");
    let network = node.network_from(&example("1-one-node/2-gateway.conf"));
    let (a, address_a) = attached(&node, &network, "a");
    assert_eq!(node.addresses("mink8s0"), ["10.12.1.1/24"]);
    node.reaches(&address_a);
    a.reaches("10.12.1.1");
    assert!(
        !a.try_run("ping -n -c 1 -W 1 172.18.0.5").status.success(),
        "the pod has only the route to its subnet"
    );
}

#[test]
fn with_a_default_route_the_pod_reaches_other_addresses_of_the_host() {
    requires!("ping");
    let (node, _outside) = node_with_nic("node");
    let network = node.network_from(&example("1-one-node/3-route.conf"));
    let (a, address_a) = attached(&node, &network, "a");
    a.reaches("172.18.0.5");
    let routes = a.run("ip route");
    let routes: Vec<&str> = routes.lines().map(str::trim).collect();
    assert_eq!(
        routes,
        [
            "default via 10.12.1.1 dev eth0",
            &format!("10.12.1.0/24 dev eth0 proto kernel scope link src {address_a}"),
        ]
    );
}

#[test]
fn with_masquerade_outside_hosts_see_the_address_of_the_node() {
    requires!("ping", "iptables", "ip6tables");
    let (node, outside) = node_with_nic("node");
    let before = NodeState::of_pods(&node);
    let network = node.network_from(&example("1-one-node/4-masquerade.conf"));
    let (a, address_a) = attached(&node, &network, "a");
    let (b, address_b) = attached(&node, &network, "b");

    assert_eq!(outside.run("ip route").lines().count(), 1);
    assert_eq!(a.reaches("172.18.0.9"), 63, "the host is the only router");
    assert_eq!(a.seen_as(&outside, "172.18.0.9"), "172.18.0.5");
    assert_eq!(b.seen_as(&outside, "172.18.0.9"), "172.18.0.5");
    assert_eq!(
        a.seen_as(&b, &address_b),
        address_a,
        "no translation between pods"
    );
    assert_eq!(a.seen_as(&node, "10.12.1.1"), address_a);

    let table = node.run("iptables -t nat -L -n");
    for (pod, address) in [(&a, &address_a), (&b, &address_b)] {
        let chain = chain_of("mink8s", pod.id());
        let comment = format!("/* name: \"mink8s\" id: \"{}\" */", pod.id());
        let line = |words: &[&str]| {
            table
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        assert!(line(&["Chain", &chain, "(1 references)"]), "{table}");
        assert!(line(&[&chain, address, "0.0.0.0/0", &comment]), "{table}");
        let rules: Vec<&str> = table
            .lines()
            .skip_while(|line| !line.starts_with(&format!("Chain {chain}")))
            .skip(2)
            .take_while(|line| !line.is_empty())
            .collect();
        assert_eq!(rules.len(), 2, "{table}");
        assert!(rules[0].starts_with("ACCEPT ") && rules[0].contains("10.12.1.0/24"));
        assert!(rules[1].starts_with("MASQUERADE ") && rules[1].contains("!224.0.0.0/4"));
        assert!(rules.iter().all(|rule| rule.contains(&comment)), "{table}");
    }

    network.del(&a);
    network.del(&b);
    node.run("ip link del mink8s0");
    let forwarding = "1\n".to_owned();
    assert_eq!(
        NodeState::of_pods(&node),
        NodeState {
            forwarding,
            ..before
        }
    );
}

#[test]
fn two_nodes_route_between_their_pod_subnets() {
    requires!("ping");
    let (one, two) = (Node::new("node1"), Node::new("node2"));
    connect(&one, "eth0", &two, "eth0");
    one.run_all("ip addr add 172.18.0.5/24 dev eth0\nip route add 10.12.2.0/24 via 172.18.0.6");
    two.run_all("ip addr add 172.18.0.6/24 dev eth0\nip route add 10.12.1.0/24 via 172.18.0.5");
    let network = one.network_from(&example("2-two-nodes/node1.conf"));
    let (a, address_a) = attached(&one, &network, "a");
    let network = two.network_from(&example("2-two-nodes/node2.conf"));
    let (b, address_b) = attached(&two, &network, "b");

    assert_eq!(address_b, "10.12.2.2");
    assert_eq!(a.reaches(&address_b), 62, "two routers between them");
    assert_eq!(b.reaches(&address_a), 62);
    assert_eq!(
        a.seen_as(&b, &address_b),
        address_a,
        "nothing is masqueraded"
    );
    one.reaches(&address_b);
    for (place, link) in [(&*a, "eth0"), (&*b, "eth0"), (&*one, "mink8s0")] {
        assert_eq!(place.link(link).unwrap()["mtu"], 1450);
    }
    let too_big = a.try_run(&format!("ping -n -c 1 -W 1 -M do -s 1423 {address_b}"));
    assert!(!too_big.status.success());
    a.run(&format!("ping -n -c 1 -W 1 -M do -s 1422 {address_b}"));
}

#[test]
fn on_a_flat_layer_2_network_pods_of_two_nodes_share_a_segment_with_an_outside_host() {
    requires!("ping");
    let names = ["node1", "node2", "outside"];
    let [one, two, outside] = names.map(Node::new);
    let switch = Node::new("switch");
    switch.run_all("ip link add lan type bridge\nip link set lan up");
    for (machine, port) in [(&one, "p1"), (&two, "p2"), (&outside, "p3")] {
        connect(machine, "eth0", &switch, port);
        switch.run(&format!("ip link set {port} master lan"));
    }
    outside.run("ip addr add 10.10.250.1/16 dev eth0");

    // On one node the operator creates the bridge, on the other the plugin.
    one.run_all("ip link add cni0 type bridge\nip link set cni0 up");
    let attach_nic = |node: &Node, address: &str| {
        node.run("ip link set eth0 master cni0");
        node.run(&format!("ip addr add {address} dev cni0"));
    };
    attach_nic(&one, "10.10.1.0/16");
    let network = one.network_from(&example("3-flat-layer-2/node1.conf"));
    let (a, address_a) = attached(&one, &network, "a");
    let network = two.network_from(&example("3-flat-layer-2/node2.conf"));
    let (b, address_b) = attached(&two, &network, "b");
    attach_nic(&two, "10.10.2.0/16");

    assert_eq!(
        [address_a.as_str(), address_b.as_str()],
        ["10.10.1.1", "10.10.2.1"]
    );
    for node in [&one, &two] {
        let bridge = node.link("cni0").unwrap();
        let flags = bridge["flags"].as_array().unwrap();
        assert!(flags.contains(&"PROMISC".into()), "{bridge}");
    }
    assert_eq!(a.reaches(&address_b), 64, "no router between them");
    assert_eq!(outside.reaches(&address_a), 64);
    assert_eq!(outside.reaches(&address_b), 64);
    assert_eq!(b.reaches("10.10.250.1"), 64);
    for (node, pod) in [(&one, &a), (&two, &b)] {
        for address in ["10.10.1.0", "10.10.2.0"] {
            node.reaches(address);
            pod.reaches(address);
        }
    }
    assert!(a.run("ip route").contains("default via 10.10.1.0 dev eth0"));
}

#[test]
fn with_the_kubenet_example_all_pods_and_hosts_reach_all_pods() {
    requires!("ping");
    let nodes = ["node1", "node2", "node3"].map(Node::new);
    let switch = Node::new("switch");
    switch.run_all("ip link add lan type bridge\nip link set lan up");
    let mut pods = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let n = index + 1;
        connect(node, "eth0", &switch, &format!("p{n}"));
        switch.run(&format!("ip link set p{n} master lan"));
        node.run(&format!("ip addr add 172.18.0.{n}/24 dev eth0"));
        for other in (1..=3).filter(|other| *other != n) {
            node.run(&format!(
                "ip route add 10.200.{other}.0/24 via 172.18.0.{other}"
            ));
        }
        let network = node.network_from(&example(&format!("4-kubenet/node{n}.conf")));
        for name in ["a", "b"] {
            let (pod, address) = attached(node, &network, &format!("{name}{n}"));
            assert!(address.starts_with(&format!("10.200.{n}.")));
            pods.push((n, pod, address));
        }
        let ports = node.run("bridge -d link show master cbr0");
        assert_eq!(ports.matches("hairpin on").count(), 2, "{ports}");
        assert_eq!(node.nat("iptables"), [""; 0], "nothing is masqueraded");
    }
    for (to_node, _, to) in &pods {
        for (from_node, from, own) in &pods {
            if own == to {
                continue;
            }
            let expected = if from_node == to_node { 64 } else { 62 };
            assert_eq!(from.reaches(to), expected);
        }
        for node in &nodes {
            node.reaches(to);
        }
    }
    let (first, last) = (&pods[0], &pods[5]);
    assert_eq!(first.1.seen_as(&last.1, &last.2), first.2);
}

#[test]
fn every_example_is_tested() {
    let read: &[&str] = &[
        "1-one-node/1-bare.conf",
        "1-one-node/2-gateway.conf",
        "1-one-node/3-route.conf",
        "1-one-node/4-masquerade.conf",
        "2-two-nodes/node1.conf",
        "2-two-nodes/node2.conf",
        "3-flat-layer-2/node1.conf",
        "3-flat-layer-2/node2.conf",
        "4-kubenet/node1.conf",
        "4-kubenet/node2.conf",
        "4-kubenet/node3.conf",
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |dir: std::path::PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path())
    };
    // Used by the tests with real runtimes.
    let scripts: String = files(root.join("tests/e2e"))
        .map(|script| std::fs::read_to_string(script).unwrap())
        .collect();
    let mut unread = Vec::new();
    // Those have tests of their own: tests/newcomer.rs and tests/chains.
    let is_tested_elsewhere =
        |dir: &std::path::PathBuf| dir.ends_with("demo") || dir.ends_with("chains");
    for dir in files(root.join("examples")).filter(|dir| !is_tested_elsewhere(dir)) {
        for file in files(dir) {
            let path = file.strip_prefix(root).unwrap().to_str().unwrap();
            let here = read.iter().any(|read| path == format!("examples/{read}"));
            if !here && !scripts.contains(path) {
                unread.push(path.to_owned());
            }
        }
    }
    assert_eq!(unread, [""; 0]);
}
