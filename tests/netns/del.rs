//! DEL: it always succeeds, and afterwards nothing of the attachment is left.

use serde_json::{Value, json};

use crate::support::{Network, Node, NodeState, Pod, requires, skip_for_go, small_network};

fn dual_masqueraded() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["ipMasq"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

/// A node with a neighbour whose attachment must outlive everything, and a pod that is attached.
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
        let network = node.network(dual_masqueraded());
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
        self.node.network(dual_masqueraded())
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        // A veth whose peer's namespace ended goes a moment later.
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
fn del_takes_everything_and_doing_it_again_is_no_error() {
    requires!("ping", "iptables", "ip6tables");
    let fixture = Fixture::new();
    fixture.network().del(&fixture.pod);
    assert!(fixture.pod.link("eth0").is_none());
    fixture.nothing_is_left();
    fixture.network().del(&fixture.pod);
    fixture.nothing_is_left();
    // And the pod can come back.
    fixture.network().add(&fixture.pod);
}

#[test]
fn del_without_an_add_is_no_error() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let pod = node.pod("a");
    let before = NodeState::of_pods(&node);
    node.network(dual_masqueraded()).del(&pod);
    assert_eq!(NodeState::of_pods(&node), before);
    node.network(json!({ "cniVersion": "0.3.1", "name": "flat", "type": "bridge" }))
        .del(&pod);
    assert!(node.link("br0").is_none());
}

#[test]
fn del_with_an_empty_netns_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules stay for ever") {
        return;
    }
    let fixture = Fixture::new();
    let call = fixture.network().call("DEL", &fixture.pod).netns("");
    call.run().ok();
    fixture.nothing_is_left();
    call.run().ok();
    fixture.nothing_is_left();
}

#[test]
fn del_without_a_netns_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules stay for ever") {
        return;
    }
    let fixture = Fixture::new();
    fixture.network().call_for("DEL", "victim").run().ok();
    fixture.nothing_is_left();
}

#[test]
fn del_after_the_namespace_has_gone_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules stay for ever") {
        return;
    }
    let Fixture {
        node,
        before,
        neighbour,
        pod,
        result,
    } = Fixture::new();
    let call = node.network(dual_masqueraded()).call("DEL", &pod);
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
    fixture.nothing_is_left();
}

#[test]
fn del_with_a_path_that_is_no_namespace_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D4c: it is an error for ever, and the address is never freed") {
        return;
    }
    for path in ["/run/netns/plain", "/run"] {
        let fixture = Fixture::new();
        fixture.node.write("/run/netns/plain", "");
        let call = fixture.network().call("DEL", &fixture.pod);
        call.netns(path).run().ok();
        fixture.nothing_is_left();
    }
}

#[test]
fn del_after_the_interface_has_gone_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D1: the rules stay for ever") {
        return;
    }
    let fixture = Fixture::new();
    fixture.pod.run("ip link del eth0");
    fixture.network().del(&fixture.pod);
    fixture.nothing_is_left();
    let fixture = Fixture::new();
    let host = Network::host_link(&fixture.result);
    fixture.node.run(&format!("ip link del {host}"));
    fixture.network().del(&fixture.pod);
    fixture.nothing_is_left();
}

#[test]
fn del_after_the_pod_changed_its_address_takes_everything() {
    requires!("ping", "iptables", "ip6tables");
    if skip_for_go("D4: it deletes the rules of the wrong address, and fails") {
        return;
    }
    let fixture = Fixture::new();
    fixture.pod.run("ip addr flush dev eth0");
    fixture.pod.run("ip addr add 10.77.0.99/24 dev eth0");
    fixture.network().del(&fixture.pod);
    fixture.nothing_is_left();
}

#[test]
fn del_does_not_depend_on_a_previous_result() {
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
        fixture.nothing_is_left();
    }
    let fixture = Fixture::new();
    let network = fixture.network().with("prevResult", fixture.result.clone());
    network.del(&fixture.pod);
    fixture.nothing_is_left();
}

#[test]
fn without_a_namespace_only_a_port_of_the_networks_bridge_is_taken_for_the_references_link() {
    requires!("cni:bridge", "cni:host-local");
    if skip_for_go("it removes nothing without a namespace") {
        return;
    }
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    node.install_go_plugin("host-local");
    let (pod, network) = (node.pod("a"), node.network(small_network()));
    let mut result = network.with("type", "go-bridge").add(&pod);
    // What another plugin of the chain has made, and one that is a port of somebody's bridge.
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
    assert!(node.link(&host).is_none(), "the reference's link");
    assert!(node.link("ptp0").is_some() && node.link("port0").is_some());
}

#[test]
fn del_of_one_containers_interface_leaves_the_pods_others() {
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
fn the_bridge_and_its_address_stay() {
    requires!();
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("a");
    network.add(&pod);
    network.del(&pod);
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24"]);
}
