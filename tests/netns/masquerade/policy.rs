//! `nonMasqueradeCIDRs`, `snatAddresses` and `ipMasqRandomFully`, with both backends and packets of both families.

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, chain_of, connect, requires, skip_for_go, small_network};

const WHY: &str = "it has no such keys";

/// A node, and a host outside with addresses in two networks. `198.51.100.7` and `fd51::7` are further addresses of the
/// node.
fn node_and_outside_host() -> (Node, Node) {
    let (node, outside) = (Node::new("node"), Node::new("outside"));
    connect(&node, "eth0", &outside, "eth0");
    node.run_all(
        "ip addr add 172.18.0.5/24 dev eth0\nip addr add fd18::5/64 dev eth0 nodad\n\
         ip addr add 198.51.100.7/32 dev lo\nip addr add fd51::7/128 dev lo nodad\n\
         ip route add 192.168.9.0/24 via 172.18.0.9\nip route add fd99::/64 via fd18::9",
    );
    outside.run_all(
        "ip addr add 172.18.0.9/24 dev eth0\nip addr add fd18::9/64 dev eth0 nodad\n\
         ip addr add 192.168.9.1/24 dev lo\nip addr add fd99::1/64 dev lo nodad\n\
         ip route add 10.77.0.0/24 via 172.18.0.5\nip route add fd00:77::/64 via fd18::5\n\
         ip route add 198.51.100.7 via 172.18.0.5\nip route add fd51::7 via fd18::5",
    );
    node.wait_for_dad();
    outside.wait_for_dad();
    (node, outside)
}

fn network<'n>(node: &'n Node, backend: &str, keys: Value) -> Network<'n> {
    let mut config = small_network();
    config["name"] = "masq".into();
    config["ipMasq"] = true.into();
    config["ipMasqBackend"] = backend.into();
    config["isDefaultGateway"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    node.network(config)
}

/// The source addresses of a pod's packets as seen at the four addresses outside.
fn source_addresses(pod: &Pod, outside: &Node) -> [String; 4] {
    ["172.18.0.9", "192.168.9.1", "fd18::9", "fd99::1"].map(|to| pod.seen_as(outside, to))
}

/// All rules of a node, of iptables and of nftables.
fn rules(node: &Node) -> String {
    let nat = [node.nat("iptables"), node.nat("ip6tables")].concat();
    let gangplank = node.try_run("nft list table inet gangplank");
    nat.join("\n") + &String::from_utf8_lossy(&gangplank.stdout)
}

#[test]
fn source_addresses_follow_the_keys_with_both_backends_and_families() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go(WHY) {
        return;
    }
    let kept = json!({ "nonMasqueradeCIDRs": ["192.168.0.0/16", "fd99::/64"] });
    let one_family = json!({ "nonMasqueradeCIDRs": ["::/0"] });
    let sources =
        json!({ "snatAddresses": ["198.51.100.7", "fd51::7"], "ipMasqRandomFully": true });
    let one_source = json!({ "snatAddresses": ["198.51.100.7"] });
    let both = json!({ "snatAddresses": ["fd51::7"], "nonMasqueradeCIDRs": ["192.168.9.1/32"] });
    let random = json!({ "ipMasqRandomFully": true });
    let cells = [
        (
            json!({}),
            ["172.18.0.5", "172.18.0.5", "fd18::5", "fd18::5"],
        ),
        (kept, ["172.18.0.5", "10.77.0.2", "fd18::5", "fd00:77::2"]),
        (
            one_family,
            ["172.18.0.5", "172.18.0.5", "fd00:77::2", "fd00:77::2"],
        ),
        (
            sources,
            ["198.51.100.7", "198.51.100.7", "fd51::7", "fd51::7"],
        ),
        (
            one_source,
            ["198.51.100.7", "198.51.100.7", "fd18::5", "fd18::5"],
        ),
        (both, ["172.18.0.5", "10.77.0.2", "fd51::7", "fd51::7"]),
        (random, ["172.18.0.5", "172.18.0.5", "fd18::5", "fd18::5"]),
    ];
    let work = |backend: &str, keys: &Value, expected: &[&str; 4]| {
        let (node, outside) = node_and_outside_host();
        let network = network(&node, backend, keys.clone());
        let pod = node.pod("a");
        let result = network.add(&pod);
        assert_eq!(
            source_addresses(&pod, &outside),
            *expected,
            "{backend} {keys}"
        );
        network.check(&pod, &result).ok();
        network.del(&pod);
        assert_eq!(rules(&node), "", "{backend} {keys}");
    };
    std::thread::scope(|scope| {
        for (keys, expected) in &cells {
            for backend in ["iptables", "nftables"] {
                scope.spawn(move || work(backend, keys, expected));
            }
        }
    });
}

#[test]
fn iptables_and_nft_list_the_rules_in_their_own_syntax() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let keys = json!({
        "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd99::/64"], "snatAddresses": ["198.51.100.7"], "ipMasqRandomFully": true,
    });
    let pods = ["a", "b"].map(|name| node.pod(name));
    let networks = ["iptables", "nftables"].map(|backend| network(&node, backend, keys.clone()));
    networks[0].add(&pods[0]);
    networks[1].add(&pods[1]);
    let chain = chain_of("masq", "a");
    let comment = r#"-m comment --comment "name: \"masq\" id: \"a\"""#;
    let v4 = node.nat("iptables");
    for rule in [
        format!("-A {chain} -d 10.0.0.0/8 {comment} -j ACCEPT"),
        format!(
            "-A {chain} ! -d 224.0.0.0/4 {comment} -j SNAT --to-source 198.51.100.7 --random-fully"
        ),
    ] {
        assert!(v4.contains(&rule), "{rule}: {v4:?}");
    }
    let v6 = node.nat("ip6tables");
    let rule = format!("-A {chain} ! -d ff00::/8 {comment} -j MASQUERADE --random-fully");
    assert!(v6.contains(&rule), "{rule}: {v6:?}");
    let text = node.run("nft list chain inet gangplank net-masq");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let expected = [
        "ip daddr 10.77.0.0/24 return",
        "ip6 daddr fd00:77::/64 return",
        "ip daddr 224.0.0.0/4 return",
        "ip6 daddr ff00::/8 return",
        "ip daddr 10.0.0.0/8 return comment \"nonMasqueradeCIDRs\"",
        "ip6 daddr fd99::/64 return comment \"nonMasqueradeCIDRs\"",
        "meta nfproto ipv4 snat ip to 198.51.100.7 fully-random comment \"snatAddresses\"",
        "masquerade fully-random comment \"ipMasqRandomFully\"",
        "}",
        "}",
    ];
    assert_eq!(lines[2..], expected, "{text}");
}

#[test]
fn with_nftables_the_last_configuration_applies_to_all_pods() {
    requires!("nft");
    if skip_for_go(WHY) {
        return;
    }
    let (node, outside) = node_and_outside_host();
    let pods = ["a", "b", "c"].map(|name| node.pod(name));
    let configurations = [
        json!({ "nonMasqueradeCIDRs": ["192.168.0.0/16"], "snatAddresses": ["198.51.100.7"] }),
        json!({ "nonMasqueradeCIDRs": ["fd99::/64"], "snatAddresses": ["fd51::7"], "ipMasqRandomFully": true }),
        json!({}),
    ];
    let expected = [
        ["198.51.100.7", "10.77.0.2", "fd18::5", "fd18::5"],
        ["172.18.0.5", "172.18.0.5", "fd51::7", "fd00:77::2"],
        ["172.18.0.5", "172.18.0.5", "fd18::5", "fd18::5"],
    ];
    for ((pod, keys), expected) in pods.iter().zip(&configurations).zip(expected) {
        network(&node, "nftables", keys.clone()).add(pod);
        // The last configuration applies to the first pod too.
        assert_eq!(source_addresses(&pods[0], &outside), expected, "{keys}");
    }
    let text = node.run("nft list chain inet gangplank net-masq");
    let plain = ["return", "comment"].map(|word| text.matches(word).count());
    assert_eq!(plain, [4, 0], "{text}");
    // DEL does not depend on the configuration of ADD.
    for pod in &pods {
        network(&node, "iptables", configurations[1].clone()).del(pod);
    }
    assert_eq!(rules(&node), "");
}

#[test]
fn the_add_of_a_second_interface_updates_the_chain_of_the_container() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let (node, outside) = node_and_outside_host();
    let pod = node.pod("a");
    network(
        &node,
        "iptables",
        json!({ "snatAddresses": ["198.51.100.7"] }),
    )
    .add(&pod);
    let newer = network(
        &node,
        "iptables",
        json!({ "nonMasqueradeCIDRs": ["192.168.0.0/16"] }),
    );
    let second = newer.call("ADD", &pod).ifname("net1");
    second.run().ok();
    let [near, far, ..] = source_addresses(&pod, &outside);
    assert_eq!(near, "172.18.0.5");
    assert!(far.starts_with("10.77.0."), "{far}");
    newer.del(&pod);
    second.verb("DEL").run().ok();
    assert_eq!(rules(&node), "");
}

#[test]
fn check_reports_missing_rules_of_each_key() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go(WHY) {
        return;
    }
    let keys =
        json!({ "nonMasqueradeCIDRs": ["192.168.0.0/16"], "snatAddresses": ["198.51.100.7"] });
    for backend in ["iptables", "nftables"] {
        let node = Node::new("node");
        let network = network(&node, backend, keys.clone());
        let pod = node.pod("a");
        let result = network.add(&pod);
        network.check(&pod, &result).ok();
        // The same attachment without one of the keys.
        for (key, value) in [
            ("nonMasqueradeCIDRs", json!(["192.0.2.0/24"])),
            ("snatAddresses", json!(["198.51.100.8"])),
        ] {
            let error = network.with(key, value).check(&pod, &result).error();
            assert!(
                error.msg.contains("masquerad"),
                "{backend} {key}: {error:?}"
            );
        }
        // Removed rules.
        match backend {
            "iptables" => node.run_all(&format!("iptables -t nat -F {}", chain_of("masq", "a"))),
            _ => node.run_all("nft flush chain inet gangplank net-masq"),
        }
        assert!(
            network
                .check(&pod, &result)
                .error()
                .msg
                .contains("masquerad")
        );
        network.del(&pod);
        assert_eq!(rules(&node), "");
    }
}

#[test]
fn gc_removes_the_rules_of_earlier_configurations() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go("it has no GC") {
        return;
    }
    let keys = json!({ "nonMasqueradeCIDRs": ["::/0"], "snatAddresses": ["198.51.100.7"] });
    for backend in ["iptables", "nftables"] {
        let node = Node::new("node");
        let made = network(&node, backend, keys.clone());
        made.add(&node.pod("a"));
        let now = network(
            &node,
            backend,
            json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] }),
        );
        now.call_for("GC", "").run().ok();
        assert_eq!(rules(&node), "", "{backend}");
    }
}
