//! What the tests of portmap and firewall share. Only the plugin whose defect is shown differs between the runs.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::node_with;
use crate::support::{Chain, Node, Pod, Protocol, connect, small_chain};

/// A node whose chained plugins are of one implementation.
pub struct ChainFixture {
    pub node: Node,
    pub implementation: Implementation,
}

impl ChainFixture {
    /// `go` is the directory of the Go plugins.
    pub fn new(implementation: Implementation, go: &Path) -> ChainFixture {
        ChainFixture {
            node: node_with(go),
            implementation,
        }
    }

    /// The chain of gangplank's bridge, portmap with a backend, and firewall.
    pub fn chain(&self, backend: &str) -> Chain<'_> {
        let chain = self.node.chain(&small_chain());
        chain
            .by(&[Gangplank, self.implementation, self.implementation])
            .with("portmap", "backend", backend)
    }

    /// All rules of both backends and families.
    pub fn ruleset(&self) -> Vec<String> {
        let print = |command: &str| self.node.run(command);
        let text = ["iptables-save", "ip6tables-save", "nft -s list ruleset"].map(print);
        let lines = text.iter().flat_map(|text| text.lines());
        // iptables-save prints comments with dates, and counters.
        let lines = lines.filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.split(" [").next().unwrap().trim().to_owned())
            .collect()
    }

    /// The rules that contain a text.
    pub fn rules_with(&self, text: &str) -> Vec<String> {
        let mut rules = self.ruleset();
        rules.retain(|rule| rule.contains(text));
        rules
    }

    /// Whether rules contain a pod's ID or one of these addresses.
    pub fn has_rules_of(&self, pod: &Pod, result: &Value) -> bool {
        let addresses = result["ips"].as_array().expect("addresses").iter();
        let addresses = addresses.map(|ip| ip["address"].as_str().expect("an address"));
        let mut names = addresses.map(|address| address.split('/').next().unwrap());
        !self.rules_with(pod.id()).is_empty() || names.any(|it| !self.rules_with(it).is_empty())
    }
}

/// The time limit for an answer.
pub const LIMIT: Duration = Duration::from_millis(700);

/// A node and a host outside.
pub struct Site {
    pub fixture: ChainFixture,
    pub outside: Node,
}

impl Site {
    pub fn new(implementation: Implementation, go: &Path) -> Site {
        let fixture = ChainFixture::new(implementation, go);
        let outside = Node::new("outside");
        connect(&fixture.node, "eth0", &outside, "eth0");
        fixture
            .node
            .run_all("ip addr add 172.18.0.5/24 dev eth0\nip addr add 172.18.0.6/24 dev eth0");
        outside.run("ip addr add 172.18.0.9/24 dev eth0");
        Site { fixture, outside }
    }

    pub fn pod(&self, name: &str) -> Pod {
        self.fixture.node.pod(name)
    }

    /// Whether the host outside reaches a TCP port of the node.
    pub fn reaches(&self, port: u16) -> bool {
        let to = format!("172.18.0.5:{port}");
        self.outside.asks(Protocol::Tcp, &to, LIMIT).is_some()
    }
}

/// Runs a scenario with both implementations. The outcome of the Go plugin proves that the scenario shows the defect.
#[track_caller]
pub fn compare<T: Debug + PartialEq>(scenario: impl Fn(Implementation) -> T, gangplank: T, go: T) {
    assert_eq!(scenario(Go), go, "the Go plugin");
    assert_eq!(scenario(Gangplank), gangplank, "gangplank");
}

/// One mapping of TCP port `host` of the node to port 9000 of the pod.
pub fn tcp(host: u16) -> Value {
    json!([{ "hostPort": host, "containerPort": 9000, "protocol": "tcp" }])
}
