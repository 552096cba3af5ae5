//! Many at once, on a node that was never used.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{Fixture, PLAIN};
use crate::support::{Network, Node, Pod, leases, requires, say, skip_for_go};
use crate::trace::{Step, steps};

const PODS: usize = 200;
const AT_ONCE: usize = 20;

fn config(backend: &str) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "crowd",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": true,
        "ipMasq": true,
        "ipMasqBackend": backend,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.77.0.0/22" }], [{ "subnet": "fd00:77::/64" }]] },
    })
}

/// Has so many workers do something for each of the things.
fn at_once<T: Sync>(things: &[T], work: impl Fn(&T) + Sync) {
    let rest = Mutex::new(things.iter());
    let next = || rest.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(thing) = next() {
                    work(thing);
                }
            });
        }
    });
}

/// Twenty times each, while the pods come: the reference takes an address and gives it back, CHECK and GC look on.
fn bystanders(network: &Network, node: &Node, (settled, result): (&Pod, &Value), valid: &Value) {
    thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|_| drop(network.check(settled, result).ok())));
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
fn two_hundred_pods_twenty_at_a_time_on_a_bare_node() {
    requires!("cni:host-local", "nft", "iptables", "ip6tables");
    if skip_for_go("the first pods race for the bridge") {
        return;
    }
    for backend in ["iptables", "nftables"] {
        come_and_go(config(backend));
    }
}

fn come_and_go(config: Value) {
    let node = Node::new("node");
    node.install_go_plugin("host-local");
    let network = node.network(config);
    let pods: Vec<Pod> = (0..PODS).map(|n| node.pod(&format!("c{n}"))).collect();
    let attachment = |id: String| json!({ "containerID": id, "ifname": "eth0" });
    let known = pods.iter().map(|pod| pod.id().to_owned());
    let known = known.chain((0..20).map(|n| format!("go-{n}")));
    let valid: Value = known.map(attachment).collect();
    let given = Mutex::new(Vec::new());
    let add = |pod: &Pod| {
        let result = network.add(pod);
        given.lock().unwrap().push(Network::address(&result));
        result
    };
    let began = std::time::Instant::now();
    // The very first ones race for the bridge; the bystanders need one that is there.
    let (first, others) = pods.split_at(AT_ONCE);
    at_once(first, |pod| drop(add(pod)));
    let settled = node.pod("settled");
    let mut valid = valid;
    valid
        .as_array_mut()
        .unwrap()
        .push(attachment("settled".to_owned()));
    let result = add(&settled);
    thread::scope(|scope| {
        scope.spawn(|| bystanders(&network, &node, (&settled, &result), &valid));
        at_once(others, |pod| drop(add(pod)));
    });
    say(&format!("{PODS} ADDs in {:?}", began.elapsed()));
    let given = given.into_inner().unwrap();
    assert_eq!(BTreeSet::from_iter(&given).len(), PODS + 1);
    assert_eq!(leases(&node, "crowd").len(), 2 * (PODS + 1));
    assert_eq!(node.addresses("br0"), ["10.77.0.1/22", "fd00:77::1/64"]);
    let ports = node.run("ip -o link show master br0 up");
    assert_eq!(ports.lines().count(), PODS + 1);
    network.check(&settled, &result).ok();
    at_once(&pods, |pod| network.del(pod));
    network.del(&settled);
    assert_eq!(leases(&node, "crowd").len(), 0);
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert_eq!(node.addresses("br0"), ["10.77.0.1/22", "fd00:77::1/64"]);
    assert_eq!(
        [node.nat("iptables"), node.nat("ip6tables")].concat(),
        [""; 0]
    );
    assert_eq!(node.run("nft list tables inet"), "");
}

/// The system calls of an ADD and of the DEL after it.
fn counted(fixture: &Fixture, network: &Network) -> [Vec<Step>; 2] {
    ["ADD", "DEL"].map(|verb| steps(fixture, &network.call(verb, &fixture.pod)))
}

#[test]
fn ten_thousand_leases_cost_an_add_and_a_del_hardly_a_system_call() {
    requires!("strace", "nft");
    if skip_for_go("it opens each of them") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let mut config = fixture.config();
    config["name"] = "large".into();
    config["bridge"] = "br1".into();
    config["ipam"]["subnet"] = "10.78.0.0/16".into();
    let network = fixture.node.network(config);
    counted(&fixture, &network);
    let among_none = counted(&fixture, &network).map(|steps| steps.len());
    for n in 0..10_000 {
        let address = format!("10.78.{}.{}", 100 + n / 250, n % 250);
        let path = format!("/var/lib/cni/networks/large/{address}");
        fixture.node.write(&path, &format!("{n:064x}\r\neth0"));
    }
    // The first one has to read them, as nobody else has.
    counted(&fixture, &network);
    let among_many = counted(&fixture, &network);
    for (many, none) in among_many.iter().zip(among_none) {
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
