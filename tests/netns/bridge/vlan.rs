//! VLANs where the kernel knows none: refused before anything is touched. Where it does, `tests/vm/run` looks.

use crate::support::{Node, NodeState, leases, requires, say, skip_for_go, small_network};
use serde_json::json;

/// Whether this kernel's bridges can keep VLANs apart.
fn knows_vlans(node: &Node) -> bool {
    let made = node.try_run("ip link add probe type bridge vlan_filtering 1");
    let _ = node.try_run("ip link del probe");
    if made.status.success() {
        say("cannot run: this kernel knows VLANs, and tests/vm/run tests them");
    }
    made.status.success()
}

#[test]
fn without_802_1q_a_vlan_is_refused_by_name_before_anything_is_touched() {
    requires!();
    if skip_for_go("it says that the operation is not supported") {
        return;
    }
    let node = Node::new("node");
    if knows_vlans(&node) {
        return;
    }
    let pod = node.pod("a");
    for (key, value, asked) in [
        ("vlan", json!(100), "vlan is 100"),
        (
            "vlanTrunk",
            json!([{ "minID": 5, "maxID": 9 }]),
            "vlanTrunk is 5-9",
        ),
        ("vlanTrunk", json!([]), "vlanTrunk is []"),
    ] {
        let network = node.network(small_network()).with(key, value);
        for bridge in ["missing", "present"] {
            if bridge == "present" {
                node.run("ip link add br0 type bridge");
            }
            let before = NodeState::of(&node);
            let error = network.call("ADD", &pod).run().error();
            let why = "but this kernel has no 802.1Q VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING)";
            assert_eq!(error.code, 2, "{error:?}");
            assert_eq!(error.msg, format!("configuration: {asked}, {why}"));
            assert_eq!(NodeState::of(&node), before, "bridge br0 {bridge}");
            assert!(pod.link("eth0").is_none());
        }
        assert_eq!(leases(&node, "small"), [] as [std::net::IpAddr; 0]);
        assert_eq!(node.link("br0").unwrap()["operstate"], "DOWN");
        node.run("ip link del br0");
    }
}

#[test]
fn a_vlan_that_was_asked_for_in_vain_does_not_keep_del_from_its_work() {
    requires!();
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("a");
    network.add(&pod);
    network.with("vlan", 100).del(&pod);
    assert!(pod.link("eth0").is_none());
    assert_eq!(leases(&node, "small"), [] as [std::net::IpAddr; 0]);
}
