//! Packets through the chain bridge, portmap and firewall: which clients are answered, and the source address that the
//! pod sees. The expectations are those of the Go plugins 1.9.1, except where a defect is named.

use std::time::Duration;

use crate::support::{Node, connect};

mod firewall;
mod firewalld;
mod portmap;

/// Time limits for answers that are expected, and for those that are not.
const ANSWER: Duration = Duration::from_secs(3);
const NO_ANSWER: Duration = Duration::from_millis(400);

/// A node with two addresses of each family, and a host outside with routes to the pods.
fn node_and_outside_host() -> (Node, Node) {
    let (node, outside) = (Node::new("node"), Node::new("outside"));
    connect(&node, "eth0", &outside, "eth0");
    node.run_all(
        "ip addr add 172.18.0.5/24 dev eth0\nip addr add 172.18.0.6/24 dev eth0\n\
         ip addr add fd18::5/64 dev eth0 nodad\nip addr add fd18::6/64 dev eth0 nodad",
    );
    outside.run_all(
        "ip addr add 172.18.0.9/24 dev eth0\nip addr add fd18::9/64 dev eth0 nodad\n\
         ip route add 10.64.0.0/10 via 172.18.0.5\nip route add fd00::/16 via fd18::5",
    );
    (node, outside)
}

/// Whether packets between ports of a bridge traverse the IP tables (br_netfilter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BridgeFilter {
    Off,
    On,
}

impl BridgeFilter {
    fn set(self, node: &Node) {
        let value = if self == BridgeFilter::On { "1" } else { "0" };
        for family in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            // Without the module br_netfilter there is no such file.
            if self == BridgeFilter::On || node.inside(|| std::fs::exists(&path).unwrap()) {
                node.write(&path, value);
            }
        }
    }
}
