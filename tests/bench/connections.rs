//! The connection rate of a masqueraded pod: the first packet of each connection traverses all rules.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use crate::Side;
use crate::cases::Case;
use crate::support::{Namespace, Node, connect};

pub const HEADER: &str = "\
| backend | pods | new connections per second: median (least, most) |
|---|---|---|";

/// Sequential connections per round, and rounds.
const CONNECTIONS: usize = 1000;
pub const ROUNDS: usize = 9;

/// A masqueraded pod, and a listener outside the node.
struct ConnectionTest {
    case: &'static str,
    pods: usize,
    side: Side,
    outside: Node,
    rates: Vec<f64>,
}

/// Measures both backends with 1 and with 4,000 pods, in alternating rounds.
pub fn measure(cases: &[Case]) -> Vec<impl fmt::Display + use<>> {
    let backends = ["masquerade-iptables-nft", "masquerade-nftables"];
    let of_backend = |case: &&Case| backends.contains(&case.name);
    let mut tests: Vec<ConnectionTest> = Vec::new();
    for case in cases.iter().filter(of_backend) {
        tests.extend([1, 4000].map(|pods| ConnectionTest::new(case, pods)));
    }
    for _ in 0..ROUNDS {
        for test in &mut tests {
            let rate = test.rate();
            test.rates.push(rate);
        }
    }
    tests
}

impl ConnectionTest {
    fn new(case: &Case, pods: usize) -> ConnectionTest {
        let mut side = Side::new(case, None, pods - 1, 1);
        side.call("ADD", 0, crate::timed::call);
        let outside = Node::new("outside");
        connect(&side.node, "eth0", &outside, "eth0");
        side.node.run("ip addr add 172.18.0.5/24 dev eth0");
        outside.run("ip addr add 172.18.0.9/24 dev eth0");
        assert_eq!(side.pods[0].seen_as(&outside, "172.18.0.9"), "172.18.0.5");
        ConnectionTest {
            case: case.name,
            pods,
            side,
            outside,
            rates: Vec::new(),
        }
    }

    /// Connections per second.
    fn rate(&self) -> f64 {
        rate(&self.side.pods[0], (&self.outside, "172.18.0.9:0"), None)
    }
}

/// New connections per second from a client to a listener at an address, or to the address `to` that is translated to
/// it.
pub fn rate(client: &Namespace, (listener, at): (&Namespace, &str), to: Option<&str>) -> f64 {
    let listener = listener
        .inside(|| TcpListener::bind(at))
        .expect("a listener");
    let own = listener.local_addr().expect("it has an address");
    let to: SocketAddr = to.map_or(own, |to| to.parse().expect("ADDRESS:PORT"));
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| (0..CONNECTIONS).try_for_each(|_| accept(&listener)));
        let took = client.inside(|| {
            let start = Instant::now();
            for _ in 0..CONNECTIONS {
                TcpStream::connect(to).expect("a connection");
            }
            start.elapsed()
        });
        let accepted = accepting.join().expect("the listener thread");
        accepted.expect("accept");
        CONNECTIONS as f64 / took.as_secs_f64()
    })
}

/// Median, least and most.
pub fn spread(rates: &[f64]) -> String {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    format!("{:.0} ({least:.0}, {most:.0})", rates[rates.len() / 2])
}

fn accept(listener: &TcpListener) -> io::Result<()> {
    listener.accept().map(drop)
}

impl fmt::Display for ConnectionTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = spread(&self.rates);
        write!(f, "| {} | {} | {rates} |", self.case, self.pods)
    }
}
