//! The connection rate through a mapped port: the first packet of each connection looks up the port.

use std::fmt;
use std::path::PathBuf;

use crate::Side;
use crate::cases::Case;
use crate::connections::{ROUNDS, rate, spread};
use crate::support::{Node, connect};

pub const HEADER: &str = "\
| case | plugins | other mapped ports | new connections per second: median (least, most) |
|---|---|---|---|";

/// A pod with a mapped port, and a client outside the node.
struct MappedPort {
    case: &'static str,
    plugins: &'static str,
    others: usize,
    side: Side,
    outside: Node,
    rates: Vec<f64>,
}

/// Measures both backends of both sets of plugins, alone and next to 1,000 other ports, in alternating rounds.
pub fn measure(cases: &[Case], against: &PathBuf) -> Vec<impl fmt::Display + use<>> {
    let mut tests: Vec<MappedPort> = Vec::new();
    for case in cases
        .iter()
        .filter(|case| case.name.starts_with("portmap-1-"))
    {
        for others in [0, 1000] {
            tests.push(MappedPort::new(case, ("ours", None), others));
            tests.push(MappedPort::new(case, ("theirs", Some(against)), others));
        }
    }
    for _ in 0..ROUNDS {
        for test in &mut tests {
            let rate = test.rate();
            test.rates.push(rate);
        }
    }
    tests
}

impl MappedPort {
    fn new(
        case: &Case,
        (plugins, directory): (&'static str, Option<&PathBuf>),
        others: usize,
    ) -> MappedPort {
        let mut side = Side::new(case, directory, others, 1);
        side.call("ADD", 0, crate::timed::call);
        let (outside, node) = (Node::new("outside"), &side.node);
        connect(node, "eth0", &outside, "eth0");
        node.run("ip addr add 172.18.0.5/24 dev eth0");
        outside.run("ip addr add 172.18.0.9/24 dev eth0");
        // The address of the pod in the result.
        let pod = &side.pods[0];
        node.run(&format!(
            "ip link add veth0 type veth peer name eth0 netns {}",
            pod.id()
        ));
        node.run("ip link set veth0 master bench0 up");
        pod.run_all(
            "ip addr add 10.64.1.1/16 dev eth0\nip link set eth0 up\nip route add default via 10.64.0.1",
        );
        MappedPort {
            case: case.name,
            plugins,
            others,
            side,
            outside,
            rates: Vec::new(),
        }
    }

    fn rate(&self) -> f64 {
        let listener = (&*self.side.pods[0], "10.64.1.1:80");
        rate(&self.outside, listener, Some("172.18.0.5:10000"))
    }
}

impl fmt::Display for MappedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MappedPort {
            case,
            plugins,
            others,
            rates,
            ..
        } = self;
        write!(f, "| {case} | {plugins} | {others} | {} |", spread(rates))
    }
}
