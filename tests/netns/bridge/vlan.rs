//! VLANs on a kernel without VLAN support: rejected before any change. `tests/vm/run` tests them on a kernel with
//! support.

use crate::support::{Node, NodeState, leases, note, requires, skip_for_go, small_network};
use serde_json::json;

/// Whether the kernel supports VLAN filtering on bridges.
fn supports_vlans(node: &Node) -> bool {
    let made = node.try_run("ip link add probe type bridge vlan_filtering 1");
    let _ = node.try_run("ip link del probe");
    if made.status.success() {
        note("cannot run: this kernel supports VLANs; tests/vm/run tests them");
    }
    made.status.success()
}

#[test]
fn vlan_keys_are_rejected_before_any_change_on_a_kernel_without_vlan_filtering() {
    requires!();
    if skip_for_go("its error is only \"operation not supported\"") {
        return;
    }
    let node = Node::new("node");
    if supports_vlans(&node) {
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
fn del_works_with_a_vlan_that_the_kernel_does_not_support() {
    requires!();
    let node = Node::new("node");
    let network = node.network(small_network());
    let pod = node.pod("a");
    network.add(&pod);
    network.with("vlan", 100).del(&pod);
    assert!(pod.link("eth0").is_none());
    assert_eq!(leases(&node, "small"), [] as [std::net::IpAddr; 0]);
}
