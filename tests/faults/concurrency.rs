//! Concurrent ADDs on an unused node, and ADD with many leases.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{Fixture, PLAIN};
use crate::support::{Network, Node, Pod, leases, note, requires, skip_for_go};
use crate::trace::{Step, steps_of_call};

const PODS: usize = 200;
const AT_ONCE: usize = 20;

fn config(backend: &str) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "concurrent",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": true,
        "ipMasq": true,
        "ipMasqBackend": backend,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.77.0.0/22" }], [{ "subnet": "fd00:77::/64" }]] },
    })
}

/// Runs `work` for each item on [`AT_ONCE`] threads.
pub fn at_once<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let rest = Mutex::new(items.iter());
    let next = || rest.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}

/// Runs twenty CHECKs, GCs, and ADDs and DELs of the Go plugin host-local during the ADDs.
fn concurrent_calls(
    network: &Network,
    node: &Node,
    (attached, result): (&Pod, &Value),
    valid: &Value,
) {
    thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|_| drop(network.check(attached, result).ok())));
        scope.spawn(|| {
            let mut config = network.config.clone();
            config["cni.dev/valid-attachments"] = valid.clone();
            let gc = node.cni("bridge").verb("GC").config(&config);
            (0..20).for_each(|_| drop(gc.run().ok()));
        });
        scope.spawn(|| {
            let mut config = network.config.clone();
            config["cniVersion"] = "1.0.0".into();
            config["type"] = "host-local".into();
            for n in 0..20 {
                let call = node.cni("go-host-local").config(&config).ifname("eth0");
                let call = call.container(&format!("go-{n}")).netns("/nowhere");
                call.clone().verb("ADD").run().ok();
                call.verb("DEL").run().ok();
            }
        });
    });
}

#[test]
fn two_hundred_pods_are_added_and_deleted_twenty_at_a_time() {
    requires!("cni:host-local", "nft", "iptables", "ip6tables");
    if skip_for_go("concurrent first ADDs fail to create the bridge") {
        return;
    }
    for backend in ["iptables", "nftables"] {
        add_and_delete_all(config(backend));
    }
}

fn add_and_delete_all(config: Value) {
    let node = Node::new("node");
    node.install_go_plugin("host-local");
    let network = node.network(config);
    let pods: Vec<Pod> = (0..PODS).map(|n| node.pod(&format!("c{n}"))).collect();
    let attachment = |id: String| json!({ "containerID": id, "ifname": "eth0" });
    let known = pods.iter().map(|pod| pod.id().to_owned());
    let known = known.chain((0..20).map(|n| format!("go-{n}")));
    let valid: Value = known.map(attachment).collect();
    let assigned = Mutex::new(Vec::new());
    let add = |pod: &Pod| {
        let result = network.add(pod);
        assigned.lock().unwrap().push(Network::address(&result));
        result
    };
    let began = std::time::Instant::now();
    // The first ADDs race to create the bridge; the concurrent calls require an existing one.
    let (first, others) = pods.split_at(AT_ONCE);
    at_once(first, |pod| drop(add(pod)));
    let attached = node.pod("attached");
    let mut valid = valid;
    valid
        .as_array_mut()
        .unwrap()
        .push(attachment("attached".to_owned()));
    let result = add(&attached);
    thread::scope(|scope| {
        scope.spawn(|| concurrent_calls(&network, &node, (&attached, &result), &valid));
        at_once(others, |pod| drop(add(pod)));
    });
    note(&format!("{PODS} ADDs in {:?}", began.elapsed()));
    let assigned = assigned.into_inner().unwrap();
    assert_eq!(BTreeSet::from_iter(&assigned).len(), PODS + 1);
    assert_eq!(leases(&node, "concurrent").len(), 2 * (PODS + 1));
    assert_eq!(node.addresses("br0"), ["10.77.0.1/22", "fd00:77::1/64"]);
    let ports = node.run("ip -o link show master br0 up");
    assert_eq!(ports.lines().count(), PODS + 1);
    network.check(&attached, &result).ok();
    at_once(&pods, |pod| network.del(pod));
    network.del(&attached);
    assert_eq!(leases(&node, "concurrent").len(), 0);
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert_eq!(node.addresses("br0"), ["10.77.0.1/22", "fd00:77::1/64"]);
    assert_eq!(
        [node.nat("iptables"), node.nat("ip6tables")].concat(),
        [""; 0]
    );
    assert_eq!(node.run("nft list tables inet"), "");
}

/// The system calls of an ADD and of the DEL after it.
fn system_calls(fixture: &Fixture, network: &Network) -> [Vec<Step>; 2] {
    ["ADD", "DEL"].map(|verb| steps_of_call(fixture, &network.call(verb, &fixture.pod)))
}

#[test]
fn ten_thousand_leases_add_at_most_twenty_system_calls_to_add_and_del() {
    requires!("strace", "nft");
    if skip_for_go("it opens each lease file") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let mut config = fixture.config();
    config["name"] = "large".into();
    config["bridge"] = "br1".into();
    config["ipam"]["subnet"] = "10.78.0.0/16".into();
    let network = fixture.node.network(config);
    system_calls(&fixture, &network);
    let without_leases = system_calls(&fixture, &network).map(|steps| steps.len());
    for n in 0..10_000 {
        let address = format!("10.78.{}.{}", 100 + n / 250, n % 250);
        let path = format!("/var/lib/cni/networks/large/{address}");
        fixture.node.write(&path, &format!("{n:064x}\r\neth0"));
    }
    // The first call reads all leases and creates the index.
    system_calls(&fixture, &network);
    let with_leases = system_calls(&fixture, &network);
    for (many, none) in with_leases.iter().zip(without_leases) {
        assert!(
            many.len() <= none + 20,
            "{} and {none}: {many:#?}",
            many.len()
        );
        let others = |step: &&Step| step.line.contains("/large/10.78.1");
        assert_eq!(many.iter().filter(others).count(), 0);
    }
    assert_eq!(leases(&fixture.node, "large").len(), 10_000);
}
