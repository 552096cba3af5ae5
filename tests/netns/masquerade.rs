//! Masquerade with iptables: the exact rules, and their effect on packets.

use std::time::Duration;

use serde_json::{Value, json};

mod nftables;
mod policy;

use crate::support::{
    Network, Node, NodeState, Pod, chain_of, connect, requires, skip_for_go, small_network,
    testing_go,
};

fn masquerade_network() -> Value {
    let mut config = small_network();
    config["name"] = "masq".into();
    config["ipMasq"] = true.into();
    config["isDefaultGateway"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

/// The rules that the Go plugin writes for dual-stack pods.
fn expected(program: &str, pods: &[&str]) -> Vec<String> {
    let v6 = program == "ip6tables";
    let mut chains: Vec<String> = pods.iter().map(|pod| chain_of("masq", pod)).collect();
    chains.sort();
    let mut rules: Vec<String> = chains.iter().map(|chain| format!("-N {chain}")).collect();
    let comment = |pod: &str| format!(r#"-m comment --comment "name: \"masq\" id: \"{pod}\"""#);
    for (index, pod) in pods.iter().enumerate() {
        let n = index + 2;
        let source = if v6 {
            format!("fd00:77::{n}/128")
        } else {
            format!("10.77.0.{n}/32")
        };
        let (chain, comment) = (chain_of("masq", pod), comment(pod));
        rules.push(format!("-A POSTROUTING -s {source} {comment} -j {chain}"));
    }
    let (own, multicast) = if v6 {
        ("fd00:77::/64", "ff00::/8")
    } else {
        ("10.77.0.0/24", "224.0.0.0/4")
    };
    let mut pods = pods.to_vec();
    pods.sort_by_key(|pod| chain_of("masq", pod));
    for pod in pods {
        let (chain, comment) = (chain_of("masq", pod), comment(pod));
        rules.push(format!("-A {chain} -d {own} {comment} -j ACCEPT"));
        rules.push(format!(
            "-A {chain} ! -d {multicast} {comment} -j MASQUERADE"
        ));
    }
    rules
}

fn outside_host(node: &Node) -> Node {
    let outside = Node::new("outside");
    connect(node, "eth0", &outside, "eth0");
    node.run_all("ip addr add 172.18.0.5/24 dev eth0\nip addr add fd18::5/64 dev eth0 nodad");
    outside.run_all("ip addr add 172.18.0.9/24 dev eth0\nip addr add fd18::9/64 dev eth0 nodad");
    outside
}

/// Waits until the gateway address is usable: with the Go plugin it is tentative for a second or two.
fn wait_for_gateway(node: &Node) {
    while testing_go() && !node.run("ip -6 addr show dev br0 tentative").is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn assert_masqueraded(pod: &Pod, outside: &Node) {
    assert_eq!(pod.seen_as(outside, "172.18.0.9"), "172.18.0.5");
    assert_eq!(pod.seen_as(outside, "fd18::9"), "fd18::5");
}

#[test]
fn the_rules_of_both_families_equal_those_of_the_go_plugin() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pods = ["spec-ctr-0001", "spec-ctr-0002", "other"];
    for (index, name) in pods.iter().enumerate() {
        network.add(&node.pod(name));
        for program in ["iptables", "ip6tables"] {
            assert_eq!(node.nat(program), expected(program, &pods[..=index]));
        }
    }
    assert_eq!(
        chain_of("spec-masq", "spec-ctr-0001"),
        "CNI-9144d59fbceca2a02b5592f2",
        "the chain name of the Go plugin"
    );
}

#[test]
fn packets_of_both_families_have_the_source_address_of_the_node() {
    requires!("ping", "iptables", "ip6tables");
    let node = Node::new("node");
    let outside = outside_host(&node);
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    wait_for_gateway(&node);
    assert_masqueraded(&a, &outside);
    assert_masqueraded(&b, &outside);
    assert_eq!(a.seen_as(&b, "10.77.0.3"), "10.77.0.2");
    assert_eq!(a.seen_as(&b, "fd00:77::3"), "fd00:77::2");
    assert_eq!(a.reaches("fd18::9"), 63);
    network.del(&a);
    assert_masqueraded(&b, &outside);
}

#[test]
fn iptables_legacy_is_used_if_it_is_the_default() {
    requires!(
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy"
    );
    let node = Node::new("node");
    node.use_iptables_variant("xtables-legacy-multi");
    let version = node.run("iptables --version");
    assert!(version.contains("legacy"), "{version}");
    let outside = outside_host(&node);
    let before = NodeState::of_pods(&node);
    let network = node.network(masquerade_network());
    let a = node.pod("a");
    network.add(&a);
    for program in ["iptables", "ip6tables"] {
        assert_eq!(node.nat(program), expected(program, &["a"]));
    }
    let ruleset = node.run("nft list ruleset");
    assert!(!ruleset.contains("CNI-"), "{ruleset}");
    wait_for_gateway(&node);
    assert_masqueraded(&a, &outside);
    network.del(&a);
    assert_eq!(NodeState::of_pods(&node).rules, before.rules);
}

#[test]
fn foreign_rules_are_kept() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    node.run("iptables -t nat -N CNI-aaaaaaaaaaaaaaaaaaaaaaaa");
    node.run("iptables -t nat -A POSTROUTING -s 10.77.0.0/16 -o eth7 -j MASQUERADE");
    node.run("iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080");
    let before = node.nat("iptables");
    let network = node.network(masquerade_network());
    let a = node.pod("a");
    network.add(&a);
    let during = node.nat("iptables");
    assert_eq!(during.len(), before.len() + 4);
    let position = |rule: &str| during.iter().position(|line| line.contains(rule)).unwrap();
    assert!(
        position("-o eth7") < position("--comment"),
        "the new rule comes last: {during:?}"
    );
    network.del(&a);
    assert_eq!(node.nat("iptables"), before);
}

#[test]
fn a_single_stack_network_has_rules_of_its_family_only() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = masquerade_network();
    config["ipam"] = json!({ "type": "host-local", "subnet": "fd00:77::/64" });
    let network = node.network(config);
    let a = node.pod("a");
    network.add(&a);
    assert_eq!(node.nat("iptables"), [""; 0]);
    assert_eq!(node.nat("ip6tables"), expected("ip6tables", &["a"]));
    network.del(&a);
    assert_eq!(node.nat("ip6tables"), [""; 0]);
}

#[test]
fn forty_concurrent_adds_and_dels_leave_the_expected_rules() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pods: Vec<Pod> = (0..20).map(|n| node.pod(&format!("c{n}"))).collect();
    let at_once = |work: &(dyn Fn(&Pod) + Sync)| {
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(move || work(pod));
            }
        });
    };
    at_once(&|pod| drop(network.add(pod)));
    for program in ["iptables", "ip6tables"] {
        assert_eq!(node.nat(program).len(), 20 * 4, "{program}");
    }
    at_once(&|pod| network.del(pod));
    for program in ["iptables", "ip6tables"] {
        assert_eq!(node.nat(program), [""; 0]);
    }
}

#[test]
fn two_interfaces_of_a_container_on_one_network_keep_each_others_rules() {
    requires!("iptables", "ip6tables");
    if skip_for_go("D2: DEL of the first flushes the chain of both and fails") {
        return;
    }
    let node = Node::new("node");
    let outside = outside_host(&node);
    let network = node.network(masquerade_network());
    let pod = node.pod("a");
    network.add(&pod);
    let second = network.call("ADD", &pod).ifname("net1");
    let result = second.run().ok();
    network.del(&pod);
    let left = node.nat("iptables");
    let source = format!("-s {}/32", Network::address(&result));
    assert!(left.iter().any(|rule| rule.contains(&source)), "{left:?}");
    pod.run("ip route replace default via 10.77.0.1 dev net1");
    assert_eq!(pod.seen_as(&outside, "172.18.0.9"), "172.18.0.5");
    second.verb("DEL").run().ok();
    assert_eq!(node.nat("iptables"), [""; 0]);
    assert_eq!(node.nat("ip6tables"), [""; 0]);
}

#[test]
fn one_process_per_family_adds_the_rules_and_none_removes_them() {
    requires!("iptables", "ip6tables", "nft");
    if skip_for_go("it runs twelve for ADD and ten for DEL") {
        return;
    }
    let node = Node::new("node");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let network = node.network(config);
    let a = node.pod("a");
    node.run_before_iptables("/usr/sbin/xtables-nft-multi", "echo $0 $* >> /run/log");
    node.replace_program("/usr/sbin/nft", "echo $0 $* >> /run/log\nexit 1");
    for (verb, programs) in [("ADD", 1), ("DEL", 0)] {
        node.write("/run/log", "");
        network.call(verb, &a).run().ok();
        let log = node.read("/run/log");
        assert_eq!(log.lines().count(), programs, "{verb}:\n{log}");
    }
    node.unbind("/usr/sbin/iptables");
    assert_eq!(node.nat("iptables"), [""; 0]);
}
