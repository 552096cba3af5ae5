//! DEL: succeeds in any state, and leaves nothing of the attachment.

use serde_json::{Value, json};

use crate::support::{Network, Node, NodeState, Pod, requires, skip_for_go, small_network};

fn dual_stack_masquerade() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["ipMasq"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

/// A node with an attached pod, and with a second pod that must not be affected.
struct Fixture {
    node: Node,
    before: NodeState,
    neighbour: Pod,
    pod: Pod,
    result: Value,
}

impl Fixture {
    fn new() -> Fixture {
        let node = Node::new("node");
        let network = node.network(dual_stack_masquerade());
        let neighbour = node.pod("neighbour");
        let at = network.add(&neighbour);
        assert_eq!(Network::address(&at), "10.77.0.2");
        let before = NodeState::of_pods(&node);
        let pod = node.pod("victim");
        let result = network.add(&pod);
        let during = NodeState::of_pods(&node);
        assert_eq!(during.links.len(), before.links.len() + 1);
        assert_eq!(during.rules.len(), before.rules.len() + 8);
        assert_eq!(during.files.len(), before.files.len() + 2);
        Fixture {
            node,
            before,
            neighbour,
            pod,
            result,
        }
    }

    fn network(&self) -> Network<'_> {
        self.node.network(dual_stack_masquerade())
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        // The kernel deletes a veth asynchronously after its peer's namespace ended.
        for _ in 0..100 {
            if NodeState::of_pods(&self.node).links == self.before.links {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(NodeState::of_pods(&self.node), self.before);
        self.node.reaches("10.77.0.2");
        self.neighbour.reaches("10.77.0.1");
    }
}

#[test]
fn del_removes_everything_and_can_be_repeated() {
    requires!("ping", "iptables", "ip6tables");
    let fixture = Fixture::new();
    fixture.network().del(&fixture.pod);
    assert!(fixture.pod.link("eth0").is_none());
    fixture.assert_nothing_is_left();
    fixture.network().del(&fixture.pod);
    fixture.assert_nothing_is_left();
    // The pod can be added again.
    fixture.network().add(&fixture.pod);
}

#[test]
fn del_without_add_succeeds() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let pod = node.pod("a");
    let before = NodeState::of_pods(&node);
    node.network(dual_stack_masquerade()).del(&pod);
    assert_eq!(NodeState::of_pods(&node), before);
    node.network(json!({ "cniVersion": "0.3.1", "name": "flat", "type": "bridge" }))
        .del(&pod);
    assert!(node.link("br0").is_none());
}

#[test]
fn del_with_an_empty_netns_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules are never removed") {
        return;
    }
    let fixture = Fixture::new();
    let call = fixture.network().call("DEL", &fixture.pod).netns("");
    call.run().ok();
    fixture.assert_nothing_is_left();
    call.run().ok();
    fixture.assert_nothing_is_left();
}

#[test]
fn del_without_a_netns_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules are never removed") {
        return;
    }
    let fixture = Fixture::new();
    fixture.network().call_for("DEL", "victim").run().ok();
    fixture.assert_nothing_is_left();
}

#[test]
fn del_after_the_namespace_was_deleted_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules are never removed") {
        return;
    }
    let Fixture {
        node,
        before,
        neighbour,
        pod,
        result,
    } = Fixture::new();
    let call = node.network(dual_stack_masquerade()).call("DEL", &pod);
    pod.end();
    call.run().ok();
    let pod = node.pod("another");
    let fixture = Fixture {
        node,
        before,
        neighbour,
        pod,
        result,
    };
    fixture.assert_nothing_is_left();
}

#[test]
fn del_with_a_path_that_is_no_namespace_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D4c: it is always an error, and the address is never released") {
        return;
    }
    for path in ["/run/netns/plain", "/run"] {
        let fixture = Fixture::new();
        fixture.node.write("/run/netns/plain", "");
        let call = fixture.network().call("DEL", &fixture.pod);
        call.netns(path).run().ok();
        fixture.assert_nothing_is_left();
    }
}

#[test]
fn del_after_the_interface_was_deleted_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules are never removed") {
        return;
    }
    let fixture = Fixture::new();
    fixture.pod.run("ip link del eth0");
    fixture.network().del(&fixture.pod);
    fixture.assert_nothing_is_left();
    let fixture = Fixture::new();
    let host = Network::host_link(&fixture.result);
    fixture.node.run(&format!("ip link del {host}"));
    fixture.network().del(&fixture.pod);
    fixture.assert_nothing_is_left();
}

#[test]
fn del_after_the_pod_changed_its_address_removes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D4: it deletes the rules of the wrong address, and fails") {
        return;
    }
    let fixture = Fixture::new();
    fixture.pod.run("ip addr flush dev eth0");
    fixture.pod.run("ip addr add 10.77.0.99/24 dev eth0");
    fixture.network().del(&fixture.pod);
    fixture.assert_nothing_is_left();
}

#[test]
fn del_does_not_need_prev_result() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("a previous result of another type is an error; D1") {
        return;
    }
    let prevs = [
        json!("a string"),
        json!(5),
        json!([]),
        json!({}),
        json!({ "cniVersion": "9.9.9" }),
        json!({ "ips": [{ "address": "10.77.0.2/24" }], "interfaces": [{ "name": "br0" }] }),
        json!({ "ips": "none" }),
    ];
    for prev in prevs {
        let fixture = Fixture::new();
        let network = fixture.network().with("prevResult", prev.clone());
        let call = network.call("DEL", &fixture.pod);
        call.run().ok();
        call.netns("").run().ok();
        fixture.assert_nothing_is_left();
    }
    let fixture = Fixture::new();
    let network = fixture.network().with("prevResult", fixture.result.clone());
    network.del(&fixture.pod);
    fixture.assert_nothing_is_left();
}

#[test]
fn del_without_a_namespace_removes_a_go_link_only_if_it_is_a_port_of_the_bridge() {
    requires!("cni:bridge", "cni:host-local");
    if skip_for_go("it removes nothing without a namespace") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    node.install_go_plugin("host-local");
    let (pod, network) = (node.pod("a"), node.network(small_network()));
    let mut result = network.with("type", "go-bridge").add(&pod);
    // A link of another plugin in the chain, and a port of another bridge.
    node.run_all(
        "ip link add ptp0 type veth peer name far0\nip link add theirs type bridge\n\
         ip link add port0 type veth peer name far1\nip link set port0 master theirs",
    );
    for name in ["ptp0", "port0"] {
        let mac = node.link(name).unwrap()["address"].clone();
        let listed = result["interfaces"].as_array_mut().unwrap();
        listed.push(json!({ "name": name, "mac": mac }));
    }
    let host = Network::host_link(&result);
    let network = network.with("prevResult", result);
    network.call("DEL", &pod).netns("").run().ok();
    assert!(node.link(&host).is_none(), "the link of the Go plugin");
    assert!(node.link("ptp0").is_some() && node.link("port0").is_some());
}

#[test]
fn del_keeps_the_other_interfaces_of_the_container() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("a");
    network.add(&pod);
    network.call("ADD", &pod).ifname("net1").run().ok();
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
    assert!(pod.link("net1").is_some());
    assert_eq!(node.lease("small", "10.77.0.3").unwrap(), "a\r\nnet1");
}

#[test]
fn del_keeps_the_bridge_and_its_address() {
    requires!();
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("a");
    network.add(&pod);
    network.del(&pod);
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24"]);
}
