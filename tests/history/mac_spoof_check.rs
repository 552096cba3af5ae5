//! `macspoofchk` with conflicting chain names: the names contain only the container ID and the interface name.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, BOTH, node, ready};
use crate::support::{Network, Node, Pod, small_network};

fn config(network: &str, bridge: &str, subnet: &str) -> Value {
    let mut config = small_network();
    config["name"] = network.into();
    config["bridge"] = bridge.into();
    config["ipam"]["subnet"] = subnet.into();
    config["macspoofchk"] = true.into();
    config
}

fn first() -> Value {
    config("first", "br1", "10.71.0.0/24")
}

fn second() -> Value {
    config("second", "br2", "10.72.0.0/24")
}

/// Asserts that the gateway answers a pod, but not frames with another source MAC address.
#[track_caller]
fn assert_checked(pod: &Pod, interface: &str, gateway: &str) {
    let link = pod.link(interface).unwrap();
    let own = link["address"].as_str().unwrap();
    pod.reaches(gateway);
    pod.run(&format!(
        "ip link set {interface} address 02:00:00:00:00:99"
    ));
    pod.run(&format!("ip neigh flush dev {interface}"));
    pod.does_not_reach(gateway);
    pod.run(&format!("ip link set {interface} address {own}"));
    pod.reaches(gateway);
}

fn ruleset(node: &Node) -> String {
    node.run("nft list ruleset bridge")
}

#[test]
fn del_after_a_failed_add_keeps_the_check_of_another_network_with_the_same_names() {
    if !ready(&["nft", "ping"]) {
        return;
    }
    for by in BOTH {
        let node = node();
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &first());
        attachment.try_add(by).ok();
        let before = ruleset(&node);
        let mut failing = Attachment::new(&node, &pod, &second());
        let error = failing.try_add(Gangplank).error();
        assert!(error.text().contains("exist"), "{error:?}");
        assert_eq!(ruleset(&node), before, "{by:?}");
        assert_checked(&pod, "eth0", "10.71.0.1");
        // Without a netns path, DEL can find resources only by name.
        failing.call(Gangplank, "DEL").netns("").run().ok();
        assert_eq!(ruleset(&node), before, "{by:?}");
        assert_checked(&pod, "eth0", "10.71.0.1");
        attachment.del(Gangplank).ok();
        assert!(!ruleset(&node).contains("-a-eth0"));
    }
}

/// Container ID, interface and configuration of two attachments with the same chain name.
type SameNames = [(&'static str, &'static str, fn() -> Value); 2];

const SAME_NAMES: [SameNames; 3] = [
    [("a", "eth0", first), ("a", "eth0", second)],
    [("web", "1-eth0", first), ("web-1", "eth0", first)],
    // The second chain of the first attachment has the name of the first chain of the other.
    [("c", "eth0", first), ("c", "eth0-mac", second)],
];

#[test]
fn attachments_with_the_same_names_are_checked_and_removed_separately() {
    if !ready(&["nft", "ping"]) {
        return;
    }
    for same in SAME_NAMES {
        for by in BOTH {
            for removed in [0, 1] {
                check_and_remove_separately(same, by, removed);
            }
        }
    }
}

fn check_and_remove_separately(
    same: SameNames,
    by: crate::implementation::Implementation,
    removed: usize,
) {
    let node = node();
    let pods = [node.pod("one"), node.pod("two")];
    let gateway = |result: &Value| result["ips"][0]["gateway"].as_str().unwrap().to_owned();
    let mut attached = Vec::new();
    for (index, (container, interface, config)) in same.into_iter().enumerate() {
        let mut attachment = Attachment::new(&node, &pods[index], &config()).named(interface);
        let by = if index == 0 { by } else { Gangplank };
        let add = attachment.call(by, "ADD").container(container);
        attachment.result = add.run().ok();
        attached.push((attachment, container));
    }
    let verify = |index: usize| {
        let (attachment, container) = &attached[index];
        assert_checked(
            attachment.pod,
            attachment.ifname,
            &gateway(&attachment.result),
        );
        attachment
            .call(Gangplank, "CHECK")
            .container(container)
            .run()
            .ok();
    };
    verify(0);
    verify(1);
    let del = |index: usize| {
        let (attachment, container) = &attached[index];
        attachment
            .call(Gangplank, "DEL")
            .container(container)
            .run()
            .ok();
    };
    let gone = Network::host_link(&attached[removed].0.result);
    del(removed);
    assert!(
        !ruleset(&node).contains(&gone),
        "{same:?}: {}",
        ruleset(&node)
    );
    verify(1 - removed);
    del(removed);
    verify(1 - removed);
    del(1 - removed);
    assert!(
        !ruleset(&node).contains("jump"),
        "{same:?}: {}",
        ruleset(&node)
    );
}

#[test]
fn gc_keeps_the_check_of_another_network_with_the_same_names() {
    if !ready(&["nft", "ping"]) {
        return;
    }
    let node = node();
    let pods = [node.pod("a"), node.pod("b")];
    let mut configs = [first(), second()];
    for (pod, config) in pods.iter().zip(&configs) {
        let attachment = Attachment::new(&node, pod, config);
        attachment.call(Gangplank, "ADD").container("a").run().ok();
    }
    configs[0]["cniVersion"] = "1.1.0".into();
    configs[0]["cni.dev/valid-attachments"] = json!([]);
    node.cni("bridge").verb("GC").config(&configs[0]).run().ok();
    assert_checked(&pods[1], "eth0", "10.72.0.1");
    let left = ruleset(&node);
    assert_eq!(left.matches("iifname").count(), 1, "{left}");
}

#[test]
fn del_removes_the_check_of_a_go_attachment_with_netns_or_prev_result_alone() {
    if !ready(&["nft"]) {
        return;
    }
    for known in ["netns", "result"] {
        let node = node();
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &first());
        attachment.try_add(Go).ok();
        assert!(ruleset(&node).contains("-a-eth0"));
        if known == "netns" {
            attachment.result = Value::Null;
            attachment.del(Gangplank).ok();
        } else {
            attachment.call(Gangplank, "DEL").netns("").run().ok();
        }
        assert!(!ruleset(&node).contains("-a-eth0"), "{known}");
        let any: Option<IpAddr> = node.leases("first").first().copied();
        assert_eq!(any, None);
    }
}
