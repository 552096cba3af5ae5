//! Networks on one node whose chained plugins are of different implementations.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Implementation, node_with, ready_for_chains};
use crate::support::{Chain, Network, Node, Pod, Protocol, small_chain};

const LIMIT: Duration = Duration::from_millis(500);

const BOTH_ORDERS: [[Implementation; 2]; 2] = [[Gangplank, Go], [Go, Gangplank]];

fn node(go: &Path) -> Node {
    node_with(go)
}

/// The chain of one of two networks, `10.70.0.0/24` on `br0` and `10.71.0.0/24` on `br1`.
fn chain(node: &Node, index: usize, by: Implementation) -> Chain<'_> {
    let ipam = json!({ "type": "host-local", "subnet": format!("10.{}.0.0/24", 70 + index) });
    node.chain(&small_chain())
        .named(&format!("net{index}"))
        .by(&[Gangplank, by, by])
        .with("bridge", "bridge", format!("br{index}"))
        .with("bridge", "ipam", ipam)
}

fn tcp(port: u16) -> Value {
    json!([{ "hostPort": port, "containerPort": 9000, "protocol": "tcp" }])
}

fn reaches(from: &Pod, result: &Value) -> bool {
    let to = format!("{}:9000", Network::address(result));
    from.asks(Protocol::Tcp, &to, LIMIT).is_some()
}

#[test]
fn networks_of_both_implementations_are_isolated_from_each_other() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    // The Go plugins alone prove the expectations.
    for by in [[Go; 2], BOTH_ORDERS[0], BOTH_ORDERS[1]] {
        for policies in [["same-bridge", "isolated"], ["isolated", "same-bridge"]] {
            let node = node(&go);
            let pods = ["a", "b", "c", "d"].map(|name| node.pod(name));
            let chain_of = |index: usize| {
                let policy = policies[index % 2];
                chain(&node, index % 2, by[index % 2]).with("firewall", "ingressPolicy", policy)
            };
            let results = [0, 1, 2, 3].map(|index| chain_of(index).add(&pods[index]));
            let _servers = pods.each_ref().map(|pod| pod.serve(9000));
            let between = |from: usize, to: usize| reaches(&pods[from], &results[to]);
            assert_eq!(
                [between(0, 1), between(1, 0)],
                [false; 2],
                "{by:?} {policies:?}"
            );
            // Pods 1 and 2 are deleted; the policies still apply to the others.
            for index in [1, 2] {
                chain_of(index).del(&pods[index], &results[index]);
            }
            assert_eq!(
                [between(0, 3), between(3, 0)],
                [false; 2],
                "{by:?} {policies:?}"
            );
        }
    }
}

#[test]
fn a_host_port_of_the_go_plugin_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backends in [
        ["iptables"; 2],
        ["nftables"; 2],
        ["iptables", "nftables"],
        ["nftables", "iptables"],
    ] {
        let node = node(&go);
        let [theirs, ours] = [(0, Go), (1, Gangplank)]
            .map(|(index, by)| chain(&node, index, by).with("portmap", "backend", backends[index]));
        let pods = ["holder", "other"].map(|name| node.pod(name));
        let result = theirs.with_ports(tcp(8080)).add(&pods[0]);
        let answer = ours.with_ports(tcp(8080)).try_add(&pods[1]);
        let error = answer.error();
        assert!(error.text().contains("holder"), "{backends:?}: {error:?}");
        theirs.with_ports(tcp(8080)).del(&pods[0], &result);
        ours.del(&pods[1], &Value::Null);
        ours.with_ports(tcp(8080)).add(&pods[1]);
        let _server = pods[1].serve(9000);
        assert!(node.asks(Protocol::Tcp, "10.71.0.1:8080", LIMIT).is_some());
    }
}

#[test]
fn a_host_port_of_a_pod_that_the_go_plugin_deleted_is_free() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in ["iptables", "nftables"] {
        let node = node(&go);
        let by = |by: Implementation| {
            let chain = chain(&node, 0, by).with("portmap", "backend", backend);
            chain.with_ports(tcp(8080))
        };
        let pods = ["first", "second", "third"].map(|name| node.pod(name));
        let result = by(Gangplank).add(&pods[0]);
        by(Go).del(&pods[0], &result);
        for (pod, implementation) in [(&pods[1], Go), (&pods[2], Gangplank)] {
            let result = by(implementation).add(pod);
            let server = pod.serve(9000);
            let is_reached = node.asks(Protocol::Tcp, "10.70.0.1:8080", LIMIT).is_some();
            assert!(is_reached, "{backend}, {}", pod.id());
            drop(server);
            by(Go).del(pod, &result);
        }
    }
}
