//! Masquerade with nftables: the exact ruleset, and its effect on packets.

use serde_json::{Value, json};

use super::{assert_masqueraded, outside_host};
use crate::support::{Network, Node, NodeState, Pod, requires, skip_for_go, small_network};

fn masquerade_network() -> Value {
    let mut config = small_network();
    config["name"] = "masq".into();
    config["ipMasq"] = true.into();
    config["ipMasqBackend"] = "nftables".into();
    config["isDefaultGateway"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

fn ruleset(node: &Node) -> String {
    let text = node.run("nft list ruleset");
    text.lines()
        .map(|line| line.trim_start().to_owned() + "\n")
        .collect()
}

/// `nft list ruleset` with the attached pods `a` and `b`.
const TWO_PODS: &str = r#"table inet gangplank {
map pods4 {
type ipv4_addr : verdict
elements = { 10.77.0.2 comment "75e0883ab0b31b1f-a193fd394fc69048, net: masq, if: eth0, id: a" : goto net-masq,
10.77.0.3 comment "75e0883ab0b31b1f-705ab526e1b0362f, net: masq, if: eth0, id: b" : goto net-masq }
}

map pods6 {
type ipv6_addr : verdict
elements = { fd00:77::2 comment "75e0883ab0b31b1f-a193fd394fc69048, net: masq, if: eth0, id: a" : goto net-masq,
fd00:77::3 comment "75e0883ab0b31b1f-705ab526e1b0362f, net: masq, if: eth0, id: b" : goto net-masq }
}

chain postrouting {
type nat hook postrouting priority srcnat; policy accept;
ip saddr vmap @pods4
ip6 saddr vmap @pods6
}

chain net-masq {
ip daddr 10.77.0.0/24 return
ip6 daddr fd00:77::/64 return
ip daddr 224.0.0.0/4 return
ip6 daddr ff00::/8 return
masquerade
}
}
"#;

/// A node without the programs of iptables.
fn node_without_iptables() -> Node {
    let node = Node::new("node");
    node.run("mkdir /run/nothing");
    for family in ["iptables", "ip6tables"] {
        for part in ["restore", "save"] {
            hide(&node, &format!("{family}-{part}"));
        }
    }
    node
}

/// Removes a program from the node's /usr/sbin.
fn hide(node: &Node, program: &str) {
    // Its file is shared with other programs, so the link is removed in a copy of the directory.
    let hidden = "/run/sbin";
    if !node.inside(|| std::path::Path::new(hidden).exists()) {
        node.run(&format!("cp -a /usr/sbin/. {hidden}"));
        node.bind(hidden, "/usr/sbin");
    }
    node.run(&format!("rm -f /usr/sbin/{program}"));
}

#[test]
fn the_ruleset_has_one_map_per_family_and_one_chain_per_network() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&ruleset(&node)), words(TWO_PODS));
    network.del(&a);
    let left = ruleset(&node);
    assert!(
        !left.contains("id: a") && left.contains("masquerade"),
        "{left}"
    );
    network.del(&b);
    assert_eq!(ruleset(&node), "");
    assert_eq!(node.nat("iptables"), [""; 0]);
}

#[test]
fn packets_of_both_families_have_the_source_address_of_the_node_with_nftables() {
    requires!("nft", "ping");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let outside = outside_host(&node);
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    assert_masqueraded(&a, &outside);
    assert_masqueraded(&b, &outside);
    assert_eq!(a.seen_as(&b, "10.77.0.3"), "10.77.0.2");
    assert_eq!(a.seen_as(&b, "fd00:77::3"), "fd00:77::2");
    network.del(&a);
    assert_masqueraded(&b, &outside);
}

#[test]
fn each_subnet_of_a_network_is_excluded_once() {
    requires!("nft", "ping");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let mut config = masquerade_network();
    config["ipam"] = json!({ "type": "host-local", "ranges": [[
        { "subnet": "10.77.0.0/24", "rangeStart": "10.77.0.2", "rangeEnd": "10.77.0.2" },
        { "subnet": "10.78.1.128/25", "rangeEnd": "10.78.1.140" },
    ]] });
    // A configuration cannot make a bridge the gateway of two subnets, so a command does.
    config["isDefaultGateway"] = false.into();
    config["isGateway"] = false.into();
    let network = node.network(config);
    let pods = ["a", "b", "c"].map(|name| node.pod(name));
    for pod in &pods {
        network.add(pod);
    }
    let text = ruleset(&node);
    for (rule, times) in [
        ("ip daddr 10.77.0.0/24 return", 1),
        ("ip daddr 10.78.1.128/25 return", 1),
        ("ip daddr 224.0.0.0/4 return", 1),
        ("\nmasquerade", 1),
        ("vmap", 2),
    ] {
        assert_eq!(text.matches(rule).count(), times, "{rule} in {text}");
    }
    let masquerade = text.find("\nmasquerade").unwrap();
    assert!(
        text.find("10.78.1.128/25 return").unwrap() < masquerade,
        "{text}"
    );
    node.run_all("ip addr add 10.77.0.1/24 dev br0\nip addr add 10.78.1.129/25 dev br0");
    node.run("sysctl -qw net.ipv4.ip_forward=1");
    pods[0].run("ip route add default via 10.77.0.1");
    pods[1].run("ip route add default via 10.78.1.129");
    let target = pods[1].addresses("eth0")[0].clone();
    let target = target.split('/').next().unwrap();
    assert_eq!(pods[0].seen_as(&pods[1], target), "10.77.0.2");
}

#[test]
fn twenty_concurrent_first_adds_create_one_chain_and_their_dels_leave_nothing() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let other = network.with("name", "other").with("bridge", "br1");
    let mut other = other;
    other.config["ipam"] = json!({ "type": "host-local", "subnet": "10.79.0.0/24" });
    let pods: Vec<Pod> = (0..20).map(|n| node.pod(&format!("c{n}"))).collect();
    let at_once = |work: &(dyn Fn(usize, &Pod) + Sync)| {
        std::thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                scope.spawn(move || work(index, pod));
            }
        });
    };
    let network_of = |index: usize| {
        if index.is_multiple_of(4) {
            &other
        } else {
            &network
        }
    };
    for _ in 0..3 {
        at_once(&|index, pod| drop(network_of(index).add(pod)));
        let text = ruleset(&node);
        assert_eq!(text.matches("goto net-masq").count(), 30, "{text}");
        assert_eq!(text.matches("goto net-other").count(), 5, "{text}");
        assert_eq!(text.matches("\nmasquerade").count(), 2, "{text}");
        assert_eq!(text.matches(" return").count(), 4 + 3, "{text}");
        assert_eq!(text.matches(" vmap ").count(), 2, "{text}");
        at_once(&|index, pod| network_of(index).del(pod));
        assert_eq!(ruleset(&node), "");
    }
}

#[test]
fn concurrent_adds_and_dels_never_remove_a_chain_in_use() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pods: Vec<Pod> = (0..8).map(|n| node.pod(&format!("c{n}"))).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            let network = &network;
            scope.spawn(move || {
                for _ in 0..5 {
                    network.add(pod);
                    network.del(pod);
                }
                network.add(pod);
            });
        }
    });
    let text = ruleset(&node);
    assert_eq!(text.matches("goto net-masq").count(), 16, "{text}");
    assert_eq!(text.matches(" return").count(), 4, "{text}");
}

#[test]
fn del_without_netns_and_lease_removes_the_elements() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    network.call_for("DEL", "a").run().ok();
    assert!(!ruleset(&node).contains("id: a"));
    node.run("rm -r /var/lib/cni/networks");
    b.end();
    network
        .with("ipMasq", false)
        .call_for("DEL", "b")
        .run()
        .ok();
    assert_eq!(ruleset(&node), "");
    network.call_for("DEL", "b").run().ok();
}

#[test]
fn del_removes_the_rules_of_the_other_backend() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pods = ["a", "b"].map(|name| node.pod(name));
    let backends = ["nftables", "iptables"];
    for (pod, backend) in pods.iter().zip(backends) {
        network.with("ipMasqBackend", backend).add(pod);
    }
    assert!(ruleset(&node).contains("id: a") && !node.nat("ip6tables").is_empty());
    for (pod, backend) in pods.iter().zip(backends.iter().rev()) {
        network.with("ipMasqBackend", *backend).del(pod);
    }
    assert_eq!(node.nat("iptables"), [""; 0]);
    assert_eq!(node.nat("ip6tables"), [""; 0]);
    assert!(!ruleset(&node).contains("gangplank"));
}

#[test]
fn two_interfaces_of_a_container_have_separate_elements() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let outside = outside_host(&node);
    let network = node.network(masquerade_network());
    let pod = node.pod("a");
    network.add(&pod);
    let second = network.call("ADD", &pod).ifname("net1");
    let result = second.run().ok();
    node.run("rm -r /var/lib/cni/networks");
    network.del(&pod);
    let left = ruleset(&node);
    assert!(left.contains(&Network::address(&result)), "{left}");
    pod.run("ip route replace default via 10.77.0.1 dev net1");
    assert_eq!(pod.seen_as(&outside, "172.18.0.9"), "172.18.0.5");
    second.verb("DEL").run().ok();
    assert_eq!(ruleset(&node), "");
}

#[test]
fn a_stale_element_is_replaced_when_its_address_is_reassigned() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = network.add(&a);
    node.run("rm -r /var/lib/cni/networks");
    assert_eq!(
        Network::address(&network.add(&b)),
        Network::address(&result)
    );
    let text = ruleset(&node);
    assert!(
        !text.contains("id: a") && text.matches("id: b").count() == 2,
        "{text}"
    );
    network.del(&a);
    assert_eq!(ruleset(&node), text);
}

#[test]
fn a_failed_add_leaves_no_element() {
    requires!("nft");
    if skip_for_go("D3: nothing is undone") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pod = node.pod("a");
    pod.run("ip link add eth0 type veth peer name other");
    let before = NodeState::of_pods(&node);
    let error = network.call("ADD", &pod).run().error();
    assert!(error.text().contains("eth0"), "{error:?}");
    assert_eq!(ruleset(&node), "");
    assert_eq!(NodeState::of_pods(&node).files, before.files);
}

#[test]
fn del_removes_only_its_rules_from_the_table_of_the_go_plugin() {
    requires!("nft");
    if skip_for_go("Debian's version does not use this table") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    let text = ruleset(&node);
    let comment = |id: &str| {
        let mut quoted = text.split('"');
        quoted
            .find(|it| it.ends_with(&format!("id: {id}")))
            .unwrap()
    };
    let table = format!(
        "table inet cni_plugins_masquerade {{\nchain masq_checks {{\n\
         ip saddr 10.77.0.2 ip daddr != 10.77.0.0/24 masquerade comment \"{}\"\n\
         ip6 saddr fd00:77::2 ip6 daddr != fd00:77::/64 masquerade comment \"{}\"\n\
         ip saddr 10.77.0.3 ip daddr != 10.77.0.0/24 masquerade comment \"{}\"\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
         goto masq_checks\n}}\n}}\n",
        comment("a"),
        comment("a"),
        comment("b"),
    );
    node.write("/run/reference.nft", &table);
    node.run("nft -f /run/reference.nft");
    network.call_for("DEL", "a").run().ok();
    let left = node.run("nft list table inet cni_plugins_masquerade");
    assert!(!left.contains("id: a") && left.contains("id: b"), "{left}");
}

#[test]
fn nftables_is_the_default_if_iptables_is_not_installed() {
    requires!("nft");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = node_without_iptables();
    let outside = outside_host(&node);
    let mut config = masquerade_network();
    config.as_object_mut().unwrap().remove("ipMasqBackend");
    let network = node.network(config);
    let pod = node.pod("a");
    network.add(&pod);
    assert!(ruleset(&node).contains("goto net-masq"));
    assert_masqueraded(&pod, &outside);
    network.del(&pod);
    assert_eq!(ruleset(&node), "");
    let asked = network.with("ipMasqBackend", "iptables");
    let error = asked.call("ADD", &pod).run().error();
    assert!(error.text().contains("iptables-restore"), "{error:?}");
}

#[test]
fn no_process_is_started_for_nftables() {
    requires!("nft");
    if skip_for_go("it runs nft and iptables") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pod = node.pod("a");
    node.replace_program(
        "/usr/sbin/iptables-restore",
        "echo $0 $* >> /run/called; exit 1",
    );
    node.replace_program(
        "/usr/sbin/iptables-save",
        "echo $0 $* >> /run/called; exit 1",
    );
    network.add(&pod);
    network.del(&pod);
    network.del(&pod);
    let called = node.inside(|| std::fs::read_to_string("/run/called").unwrap_or_default());
    assert_eq!(called, "");
}

#[test]
fn check_succeeds_and_names_missing_elements() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(masquerade_network());
    let pod = node.pod("a");
    let changes = [
        ("nft flush map inet gangplank pods6", "fd00:77::2"),
        ("nft flush chain inet gangplank net-masq", "chain net-masq"),
        (
            "nft flush chain inet gangplank postrouting",
            "chain postrouting",
        ),
        ("nft delete table inet gangplank", "map pods4"),
    ];
    network.assert_check_names(&pod, &changes);
    // Rules of the other backend, from an earlier configuration, are accepted.
    let result = network.with("ipMasqBackend", "iptables").add(&pod);
    network.check(&pod, &result).ok();
    network.del(&pod);
    let result = network.add(&pod);
    network
        .with("ipMasqBackend", "iptables")
        .check(&pod, &result)
        .ok();
}

#[test]
fn gc_removes_the_elements_of_invalid_attachments() {
    requires!("nft");
    if skip_for_go("it has no GC") {
        return;
    }
    let node = Node::new("node");
    let network = node
        .network(masquerade_network())
        .with("cniVersion", "1.1.0");
    let other = network.with("name", "other");
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    network.call("ADD", &b).ifname("net1").run().ok();
    other.call("ADD", &a).ifname("net2").run().ok();
    let gc = |valid: Value| {
        let network = network.with("cni.dev/valid-attachments", valid);
        network
            .call_for("GC", "-")
            .unset("CNI_CONTAINERID")
            .run()
            .ok();
        ruleset(&node)
    };
    let text = gc(json!([{ "containerID": "b", "ifname": "net1" }]));
    for (mark, times) in [
        ("if: eth0", 0),
        ("if: net1, id: b", 2),
        ("if: net2, id: a", 2),
    ] {
        assert_eq!(text.matches(mark).count(), times, "{mark}: {text}");
    }
    let text = gc(json!([]));
    assert!(
        !text.contains("net-masq") && text.contains("net-other"),
        "{text}"
    );
}
