//! `forwardAccept`: packets are forwarded although the policy of FORWARD is DROP.

use serde_json::{Value, json};

use crate::support::{
    Namespace, Network, Node, Pod, binary, connect, requires, skip_for_go, small_network,
};

const WHY: &str = "it has no such key; the firewall plugin does this";

/// Two networks with both families, on bridges `br0` and `br1`.
fn networks(node: &Node) -> [Network<'_>; 2] {
    [0, 1].map(|n| {
        let mut config = small_network();
        config["name"] = format!("net{n}").into();
        config["bridge"] = format!("br{n}").into();
        config["isDefaultGateway"] = true.into();
        config["forwardAccept"] = true.into();
        config["ipam"] = json!({ "type": "host-local", "ranges": [
            [{ "subnet": format!("10.7{n}.0.0/24") }], [{ "subnet": format!("fd00:7{n}::/64") }],
        ]});
        node.network(config)
    })
}

/// A node whose FORWARD policy is DROP, and a host outside with routes to the pods.
fn node_and_outside_host(variant: &str) -> (Node, Node) {
    let (node, outside) = (Node::new("node"), Node::new("outside"));
    node.use_iptables_variant(variant);
    connect(&node, "up0", &outside, "up0");
    node.run_all("ip addr add 172.18.0.5/24 dev up0\nip addr add fd18::5/64 dev up0 nodad");
    outside.run_all(
        "ip addr add 172.18.0.9/24 dev up0\nip addr add fd18::9/64 dev up0 nodad\n\
         ip route add 10.70.0.0/15 via 172.18.0.5\nip route add fd00::/16 via fd18::5",
    );
    node.run_all("iptables -P FORWARD DROP\nip6tables -P FORWARD DROP");
    (node, outside)
}

/// Whether packets are forwarded between pods on two bridges, and between a pod and the host outside.
fn are_forwarded(node: &Node, pods: &[Pod; 2], outside: &Node) -> bool {
    node.wait_for_dad();
    outside.wait_for_dad();
    let paths = [
        (&*pods[0], "10.71.0.2"),
        (&*pods[0], "fd00:71::2"),
        (&*pods[0], "172.18.0.9"),
        (&*pods[0], "fd18::9"),
        (&**outside, "10.70.0.2"),
        (&**outside, "fd00:70::2"),
    ];
    let ping = |(from, to): &(&Namespace, &str)| from.ping(to).is_some();
    let passed: Vec<bool> = std::thread::scope(|scope| {
        let pings = paths.iter().map(|path| scope.spawn(move || ping(path)));
        let pings: Vec<_> = pings.collect();
        pings.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let (first, all) = (passed[0], passed.iter().all(|it| *it == passed[0]));
    assert!(all, "only some packets are forwarded: {passed:?}");
    first
}

/// The rules of the filter tables, without policies.
fn filters(node: &Node) -> String {
    let list = |program: &str| {
        let text = node.run(&format!("{program} -t filter -S"));
        let rules = text.lines().filter(|line| !line.starts_with("-P "));
        rules.map(|line| format!("{line}\n")).collect::<String>()
    };
    list("iptables") + &list("ip6tables")
}

fn chain_rules(bridge: &str) -> String {
    format!(
        "-N GANGPLANK-{bridge}\n-A FORWARD -j GANGPLANK-{bridge}\n\
         -A GANGPLANK-{bridge} -i {bridge} -j ACCEPT\n-A GANGPLANK-{bridge} -o {bridge} -j ACCEPT\n"
    )
}

fn test_forwarding(variant: &str) {
    let (node, outside) = node_and_outside_host(variant);
    let networks = networks(&node);
    let pods = ["a", "b"].map(|name| node.pod(name));
    for (network, pod) in networks.iter().zip(&pods) {
        network.with("forwardAccept", false).add(pod);
    }
    assert!(!are_forwarded(&node, &pods, &outside), "the policy drops");
    assert_eq!(filters(&node), "");
    for (network, pod) in networks.iter().zip(&pods) {
        network.with("forwardAccept", false).del(pod);
    }
    // Without the lease directory, allocation starts again with the same addresses.
    node.run("rm -r /var/lib/cni/networks");
    for (network, pod) in networks.iter().zip(&pods) {
        network.add(pod);
    }
    let first = &networks[0];
    assert!(are_forwarded(&node, &pods, &outside), "{}", filters(&node));
    // A second pod of the bridge adds nothing, and keeps the rules when the first is deleted.
    let before = filters(&node);
    let other = node.pod("other");
    let result = first.add(&other);
    assert_eq!(filters(&node), before);
    first.check(&other, &result).ok();
    first.del(&pods[0]);
    assert_eq!(filters(&node), before);
    first.del(&other);
    assert_eq!(
        filters(&node),
        [chain_rules("br1"), chain_rules("br1")].concat()
    );
    networks[1].del(&pods[1]);
    assert_eq!(filters(&node), "");
}

#[test]
fn packets_are_forwarded_despite_a_drop_policy_of_iptables_nft() {
    requires!("iptables", "ip6tables", "ping");
    if skip_for_go(WHY) {
        return;
    }
    test_forwarding("xtables-nft-multi");
}

#[test]
fn packets_are_forwarded_despite_a_drop_policy_of_iptables_legacy() {
    requires!(
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy",
        "ping"
    );
    if skip_for_go(WHY) {
        return;
    }
    test_forwarding("xtables-legacy-multi");
}

#[test]
fn packets_are_accepted_before_later_drop_rules_without_running_a_program() {
    requires!("iptables", "ip6tables", "ping");
    if skip_for_go(WHY) {
        return;
    }
    let (node, outside) = node_and_outside_host("xtables-nft-multi");
    node.run_all("iptables -A FORWARD -j REJECT\nip6tables -A FORWARD -j REJECT");
    for program in ["iptables-restore", "iptables-save", "nft"] {
        let program = format!("/usr/sbin/{program}");
        node.replace_program(&program, "echo $0 $* >> /run/called; exit 1");
    }
    let networks = networks(&node);
    let pods = ["a", "b"].map(|name| node.pod(name));
    for (network, pod) in networks.iter().zip(&pods) {
        network.add(pod);
    }
    assert!(are_forwarded(&node, &pods, &outside));
    for (network, pod) in networks.iter().zip(&pods) {
        network.del(pod);
    }
    let called = node.inside(|| std::fs::read_to_string("/run/called").unwrap_or_default());
    assert_eq!(called, "");
}

#[test]
fn rules_are_added_without_a_filter_table_and_apply_to_a_later_policy() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let [network, _] = networks(&node);
    let pod = node.pod("a");
    network.add(&pod);
    // As Docker sets it when it is started later.
    node.run("iptables -P FORWARD DROP");
    assert_eq!(filters(&node), chain_rules("br0").repeat(2));
    network.del(&pod);
    assert_eq!(filters(&node), "");
}

#[test]
fn del_and_gc_remove_the_rules_after_the_key_was_removed() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let [network, _] = networks(&node);
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.with("forwardAccept", Value::Null).del(&a);
    assert_eq!(filters(&node), "");
    network.add(&b);
    let mut gc = network
        .with("cniVersion", "1.1.0")
        .with("forwardAccept", Value::Null);
    gc.config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    gc.call_for("GC", "").run().ok();
    assert_eq!(
        filters(&node),
        chain_rules("br0").repeat(2),
        "of a running pod"
    );
    gc.config["cni.dev/valid-attachments"] = json!([]);
    gc.call_for("GC", "").run().ok();
    assert_eq!(filters(&node), "");
}

#[test]
fn check_reports_missing_rules_and_the_next_add_restores_them() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let [network, _] = networks(&node);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = network.add(&a);
    network.check(&a, &result).ok();
    let complete = filters(&node);
    for damage in [
        "iptables -F FORWARD",
        "ip6tables -F GANGPLANK-br0",
        "iptables -D GANGPLANK-br0 -o br0 -j ACCEPT",
    ] {
        node.run(damage);
        let error = network.check(&a, &result).error();
        assert!(error.text().contains("GANGPLANK-br0"), "{error:?}");
        network.add(&b);
        let repaired = filters(&node);
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&repaired), sorted(&complete), "after {damage}");
        network.check(&a, &result).ok();
        network.del(&b);
    }
    // Saved and restored, as when a firewall is restarted.
    node.run_all("iptables-save -t filter -f /run/saved\niptables-restore /run/saved");
    network.check(&a, &result).ok();
}

#[test]
fn reconcile_restores_forward_rules_and_masquerading() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go("it has no such command") {
        return;
    }
    let node = Node::new("node");
    let [network, _] = networks(&node);
    let network = network
        .with("ipMasq", true)
        .with("nonMasqueradeCIDRs", json!(["192.168.0.0/16"]))
        .with("snatAddresses", json!(["198.51.100.7"]));
    let pod = node.pod("a");
    let result = network.add(&pod);
    let mut list = json!({ "cniVersion": "1.0.0", "name": "net0", "plugins": [] });
    list["plugins"] = json!([network.config.clone()]);
    node.run("mkdir /run/net.d");
    node.write("/run/net.d/10-net0.conflist", &list.to_string());
    node.run_all(
        "iptables -F FORWARD\nip6tables -F GANGPLANK-br0\niptables -t nat -F\niptables -t nat -X",
    );
    let reconcile = format!("{} reconcile --conf-dir /run/net.d", binary().display());
    let output = node.run(&reconcile);
    assert!(
        output.contains("FORWARD") && output.contains("masquerading"),
        "{output}"
    );
    network.check(&pod, &result).ok();
    let nat = node.nat("iptables").join("\n");
    assert!(
        nat.contains("--to-source 198.51.100.7") && nat.contains("192.168.0.0/16"),
        "{nat}"
    );
    let (filter, nat) = (filters(&node), node.nat("iptables"));
    let again = node.run(&reconcile);
    assert!(!again.contains("FORWARD"), "{again}");
    assert_eq!((filters(&node), node.nat("iptables")), (filter, nat));
}

#[test]
fn a_failed_add_leaves_no_rules() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let [network, _] = networks(&node);
    let pod = node.pod("a");
    pod.run("ip link add eth0 type veth peer name other");
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("eth0"), "{error:?}");
    assert_eq!(filters(&node), "");
}

#[test]
fn concurrent_adds_and_dels_keep_the_rules_until_the_last_del() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    for variant in ["xtables-nft-multi", "xtables-legacy-multi"] {
        let (node, _outside) = node_and_outside_host(variant);
        let [network, _] = networks(&node);
        let pods: Vec<Pod> = (0..8).map(|n| node.pod(&format!("c{n}"))).collect();
        std::thread::scope(|scope| {
            for pod in &pods {
                let network = &network;
                scope.spawn(move || {
                    for _ in 0..4 {
                        let result = network.add(pod);
                        network.check(pod, &result).ok();
                        network.del(pod);
                    }
                    network.add(pod);
                });
            }
        });
        assert_eq!(filters(&node), chain_rules("br0").repeat(2), "{variant}");
        std::thread::scope(|scope| {
            for pod in &pods {
                let network = &network;
                scope.spawn(move || network.del(pod));
            }
        });
        assert_eq!(filters(&node), "", "{variant}");
    }
}
