//! The plugin flannel: the subnet of flanneld, the delegate, and the saved configuration.

use serde_json::{Value, json};

use crate::support::{Network, Node, NodeState, leases, requires, skip_for_go};

const SAVED: &str = "/var/lib/cni/flannel/a";
const ENV: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\n";

fn flannel() -> Value {
    json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    })
}

/// A node on which flanneld has a subnet.
fn node(env: &str) -> Node {
    let node = Node::new("node");
    node.run("mkdir -p /run/flannel");
    node.write("/run/flannel/subnet.env", env);
    node
}

fn exists(node: &Node, file: &str) -> bool {
    node.try_run(&format!("test -e {file}")).status.success()
}

fn ours() -> bool {
    !skip_for_go("the Go project has no flannel any more")
}

#[test]
fn pods_get_the_subnet_mtu_and_route_of_flanneld() {
    requires!("iptables", "ip6tables");
    if !ours() {
        return;
    }
    let node = node(&format!("{ENV}FLANNEL_IPMASQ=false\n"));
    let network = node.network(flannel());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let (result, of_b) = (network.add(&a), network.add(&b));
    assert_eq!(result["ips"][0]["address"], "10.42.1.2/24");
    assert_eq!(a.link("eth0").unwrap()["mtu"], 1450);
    let routes = a.run("ip -4 route");
    assert!(routes.contains("10.42.0.0/16 via 10.42.1.1"), "{routes}");
    assert!(routes.contains("default via 10.42.1.1"), "{routes}");
    assert_eq!(a.reaches(&Network::address(&of_b)), 64);
    a.reaches("10.42.1.1");
    // flanneld does not masquerade.
    assert_eq!(node.nat("iptables").len(), 8);
    assert_eq!(
        node.run(&format!("stat -c %a {SAVED} /var/lib/cni/flannel")),
        "600\n700\n"
    );
    let network = network.with("cniVersion", "0.4.0");
    network.check(&a, &result).ok();
    network.del(&a);
    network.del(&a);
    assert!(!exists(&node, SAVED));
    b.reaches("10.42.1.1");
    network.del(&b);
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert!(leases(&node, "cbr0").is_empty());
}

#[test]
fn del_needs_neither_the_subnet_file_nor_the_saved_configuration() {
    requires!("iptables", "ip6tables");
    if !ours() {
        return;
    }
    for lost in [
        "rm /run/flannel/subnet.env",
        "rm /var/lib/cni/flannel/a",
        "truncate -s 9 /var/lib/cni/flannel/a",
    ] {
        let node = node(&format!("{ENV}FLANNEL_IPMASQ=false\n"));
        let before = NodeState::of_pods(&node);
        let network = node.network(flannel());
        let pod = node.pod("a");
        network.add(&pod);
        node.run(lost);
        network.call("DEL", &pod).unset("CNI_NETNS").run().ok();
        assert!(pod.link("eth0").is_none(), "{lost}");
        assert_eq!(NodeState::of_pods(&node).rules, before.rules, "{lost}");
        assert!(
            leases(&node, "cbr0").is_empty() && !exists(&node, SAVED),
            "{lost}"
        );
    }
}

#[test]
fn two_interfaces_of_a_container_are_deleted_one_by_one() {
    requires!("iptables", "ip6tables");
    if !ours() {
        return;
    }
    let node = node(&format!("{ENV}FLANNEL_IPMASQ=true\n"));
    let pod = node.pod("a");
    let network = node.network(flannel());
    let mut other = flannel();
    other["name"] = "other".into();
    other["delegate"] = json!({ "bridge": "br1" });
    other["subnetFile"] = "/run/flannel/other.env".into();
    node.write("/run/flannel/other.env", "FLANNEL_NETWORK=10.43.0.0/16\nFLANNEL_SUBNET=10.43.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n");
    let other = node.network(other);
    network.add(&pod);
    network.call("ADD", &pod).ifname("eth1").run().ok();
    other.call("ADD", &pod).ifname("eth2").run().ok();
    network.del(&pod);
    assert!(pod.link("eth1").is_some() && pod.link("eth2").is_some());
    other.call("DEL", &pod).ifname("eth2").run().ok();
    network.call("DEL", &pod).ifname("eth1").run().ok();
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert!(leases(&node, "cbr0").is_empty() && leases(&node, "other").is_empty());
    assert!(!exists(&node, SAVED));
}

#[test]
fn a_failed_add_leaves_nothing() {
    requires!();
    if !ours() {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("a");
    let fails = |config: &Value, says: &str| {
        let before = NodeState::of_pods(&node);
        let error = node.network(config.clone()).call("ADD", &pod).run().error();
        assert!(error.text().contains(says), "{error:?}");
        let after = NodeState::of_pods(&node);
        assert_eq!((after.links, after.rules), (before.links, before.rules));
        assert!(!exists(&node, SAVED) && pod.link("eth0").is_none());
    };
    fails(&flannel(), "flanneld writes it");
    node.run("mkdir -p /run/flannel");
    node.write("/run/flannel/subnet.env", ENV);
    fails(&flannel(), "FLANNEL_IPMASQ");
    node.write(
        "/run/flannel/subnet.env",
        &format!("{ENV}FLANNEL_IPMASQ=true\n"),
    );
    let with = |delegate: Value| {
        let mut config = flannel();
        config["delegate"] = delegate;
        config
    };
    fails(&with(json!({ "name": "x" })), "delegate.name");
    fails(&with(json!({ "ipam": {} })), "delegate.ipam");
    fails(&with(json!({ "type": "flannel" })), "delegate.type");
    fails(
        &with(json!({ "type": "missing" })),
        "no directory of CNI_PATH has a plugin of that name",
    );
    fails(&with(json!({ "bridge": "lo" })), "lo");
}

#[test]
fn another_delegate_is_executed() {
    requires!();
    if !ours() {
        return;
    }
    let node = node(&format!("{ENV}FLANNEL_IPMASQ=true\n"));
    let mut config = flannel();
    config["delegate"] = json!({ "type": "ptp" });
    let network = node.network(config);
    let pod = node.pod("a");
    let result = network.add(&pod);
    assert_eq!(result["ips"][0]["address"], "10.42.1.2/24");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
    pod.reaches("10.42.1.1");
    network.del(&pod);
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert!(leases(&node, "cbr0").is_empty() && !exists(&node, SAVED));
}

#[test]
fn status_and_gc() {
    requires!();
    if !ours() {
        return;
    }
    let node = Node::new("node");
    let mut config = flannel();
    config["cniVersion"] = "1.1.0".into();
    let call = |verb: &str, config: &Value| node.cni("flannel").verb(verb).config(config).run();
    let error = call("STATUS", &config).error();
    assert_eq!(error.code, 50, "{error:?}");
    node.run("mkdir -p /run/flannel");
    node.write(
        "/run/flannel/subnet.env",
        &format!("{ENV}FLANNEL_IPMASQ=true\n"),
    );
    call("STATUS", &config).ok();
    let network = node.network(config.clone());
    let kept = node.pod("kept");
    let result = network.add(&kept);
    network.add(&node.pod("a"));
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    call("GC", &config).ok();
    assert_eq!(leases(&node, "cbr0").len(), 1);
    assert!(!exists(&node, SAVED) && exists(&node, "/var/lib/cni/flannel/kept"));
    network.check(&kept, &result).ok();
    node.reaches(&Network::address(&result));
}

#[test]
fn commands_of_gangplank_know_the_network() {
    requires!("iptables", "ip6tables");
    if !ours() {
        return;
    }
    let node = node(&format!("{ENV}FLANNEL_IPMASQ=false\n"));
    node.run("mkdir -p /etc/cni/net.d");
    let list = json!({ "cniVersion": "0.4.0", "name": "cbr0", "plugins": [flannel()] });
    node.write("/etc/cni/net.d/10-flannel.conflist", &list.to_string());
    let network = node.network(flannel());
    let pod = node.pod("a");
    network.add(&pod);
    let gangplank = crate::support::binary();
    let run = |arguments: &str| node.run(&format!("{} {arguments}", gangplank.display()));
    let status = run("status");
    assert!(
        status.contains("10.42.1.2") && status.contains("cbr0"),
        "{status}"
    );
    node.run("iptables -t nat -F");
    let restored = run("reconcile");
    assert!(restored.contains("restored masquerading"), "{restored}");
    assert_eq!(run("reconcile"), "nothing to restore\n");
}
