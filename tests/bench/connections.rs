//! How many connections a second a masqueraded pod can make: the first packet of each goes through all rules.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use crate::Side;
use crate::cases::Case;
use crate::support::{Node, wire};

pub const HEADER: &str = "\
| backend | pods | new connections per second: median (least, most) |
|---|---|---|";

/// How many connections are made one after the other, and how often.
const CONNECTIONS: usize = 1000;
const ROUNDS: usize = 9;

/// A pod on a node, masqueraded, and a listener beyond the node.
struct ConnectionTest {
    case: &'static str,
    pods: usize,
    side: Side,
    outside: Node,
    rates: Vec<f64>,
}

/// The rates of both backends, alone on the node and in a crowd; the rounds of all four in turn.
pub fn measure(cases: &[Case]) -> Vec<impl fmt::Display + use<>> {
    let backends = ["masquerade-iptables-nft", "masquerade-nftables"];
    let of_backend = |case: &&Case| backends.contains(&case.name);
    let mut scenes: Vec<ConnectionTest> = Vec::new();
    for case in cases.iter().filter(of_backend) {
        scenes.extend([1, 4000].map(|pods| ConnectionTest::new(case, pods)));
    }
    for _ in 0..ROUNDS {
        for scene in &mut scenes {
            let rate = scene.rate();
            scene.rates.push(rate);
        }
    }
    scenes
}

impl ConnectionTest {
    fn new(case: &Case, pods: usize) -> ConnectionTest {
        let mut side = Side::new(case, None, pods - 1, 1);
        side.call("ADD", 0, crate::timed::call);
        let outside = Node::new("outside");
        wire(&side.node, "eth0", &outside, "eth0");
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

    /// Makes connections, each to its end before the next one; how many in a second.
    fn rate(&self) -> f64 {
        let listener = self.outside.inside(|| TcpListener::bind("172.18.0.9:0"));
        let listener = listener.expect("a listener");
        let address = listener.local_addr().expect("it has an address");
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| (0..CONNECTIONS).try_for_each(|_| accept(&listener)));
            let took = self.side.pods[0].inside(|| {
                let start = Instant::now();
                for _ in 0..CONNECTIONS {
                    TcpStream::connect(address).expect("a connection");
                }
                start.elapsed()
            });
            let accepted = accepting.join().expect("the other end lives");
            accepted.expect("all were accepted");
            CONNECTIONS as f64 / took.as_secs_f64()
        })
    }
}

fn accept(listener: &TcpListener) -> io::Result<()> {
    listener.accept().map(drop)
}

impl fmt::Display for ConnectionTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        write!(
            f,
            "| {} | {} | {:.0} ({:.0}, {:.0}) |",
            self.case,
            self.pods,
            rates[rates.len() / 2],
            rates[0],
            rates[rates.len() - 1]
        )
    }
}
