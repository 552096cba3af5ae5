//! Hot swap of each plugin in the chain bridge, portmap and firewall: pods that one combination of implementations added
//! are checked and deleted by the opposite one. On each node the Go plugins alone go first, to prove that the case is
//! valid.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Implementation, for_each_case, node_with, ready_for_chains};
use crate::support::{Chain, Node, Pod, Protocol, small_chain};

const LIMIT: Duration = Duration::from_secs(3);

/// Who executes bridge, portmap and firewall.
type Combination = [Implementation; 3];

const PLUGINS: [&str; 3] = ["bridge", "portmap", "firewall"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Dual,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    version: &'static str,
    backend: Backend,
    policy: &'static str,
    family: Family,
}

/// A pod, and who adds it and who checks and deletes it.
struct Turn {
    add: Combination,
    rest: Combination,
    pod: Pod,
    result: Value,
    /// Its first host port.
    port: u16,
}

/// All combinations.
fn combinations() -> Vec<Combination> {
    let of_bit = |bits: usize, n: usize| if bits >> n & 1 == 1 { Go } else { Gangplank };
    let combination = |bits: usize| [of_bit(bits, 0), of_bit(bits, 1), of_bit(bits, 2)];
    (0..8).map(combination).collect()
}

fn opposite(combination: Combination) -> Combination {
    combination.map(|by| if by == Go { Gangplank } else { Go })
}

impl Case {
    fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for backend in [
            Backend::IptablesNft,
            Backend::IptablesLegacy,
            Backend::Nftables,
        ] {
            for (p, policy) in ["open", "same-bridge", "isolated"].into_iter().enumerate() {
                for (f, family) in [Family::V4, Family::V6, Family::Dual]
                    .into_iter()
                    .enumerate()
                {
                    cases.push(Case {
                        version: ["0.4.0", "1.0.0", "1.1.0"][(p + f) % 3],
                        backend,
                        policy,
                        family,
                    });
                }
            }
        }
        cases
    }

    fn name(&self) -> String {
        let Case {
            version,
            backend,
            policy,
            family,
        } = self;
        format!("{version}, {backend:?}, {policy}, {family:?}")
    }

    fn chain<'n>(&self, node: &'n Node, port: u16) -> Chain<'n> {
        let ranges = match self.family {
            Family::V4 => json!([[{ "subnet": "10.77.0.0/24" }]]),
            Family::V6 => json!([[{ "subnet": "fd00:77::/64" }]]),
            Family::Dual => json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]]),
        };
        let backend = match self.backend {
            Backend::Nftables => "nftables",
            _ => "iptables",
        };
        let mapping = |n: u16, protocol: &str, host: &str| json!({ "hostPort": port + n, "containerPort": 9000, "protocol": protocol, "hostIP": host });
        node.chain(&small_chain())
            .version(self.version)
            .with(
                "bridge",
                "ipam",
                json!({ "type": "host-local", "ranges": ranges }),
            )
            .with("portmap", "backend", backend)
            .with("firewall", "ingressPolicy", self.policy)
            .with_ports(json!([
                mapping(0, "tcp", ""),
                mapping(0, "udp", ""),
                mapping(1, "sctp", ""),
                mapping(2, "tcp", "10.77.0.1"),
                mapping(3, "tcp", "fd00:77::1"),
            ]))
    }

    /// Which verbs of portmap the Go plugin does not pass for pods that gangplank added: with nftables, gangplank's
    /// entries are in a table of its own.
    fn is_unknown_to_go(&self, turn: &Turn, plugin: usize) -> bool {
        self.backend == Backend::Nftables
            && PLUGINS[plugin] == "portmap"
            && (turn.add[plugin], turn.rest[plugin]) == (Gangplank, Go)
    }

    fn run(&self, go: &Path) {
        let node = node_with(go);
        node.use_iptables_variant(match self.backend {
            Backend::IptablesLegacy => "xtables-legacy-multi",
            _ => "xtables-nft-multi",
        });
        self.run_turns(&node, vec![([Go; 3], [Go; 3])]);
        let swaps = combinations().into_iter();
        self.run_turns(&node, swaps.map(|add| (add, opposite(add))).collect());
    }

    fn run_turns(&self, node: &Node, turns: Vec<(Combination, Combination)>) {
        // The namespaces of earlier pods may still exist.
        let name = |n: usize| format!("swapped-{}-{n}", turns.len());
        let mut turns: Vec<Turn> = turns
            .iter()
            .copied()
            .enumerate()
            .map(|(n, (add, rest))| Turn {
                add,
                rest,
                pod: node.pod(&name(n)),
                result: Value::Null,
                port: 8000 + 10 * n as u16,
            })
            .collect();
        for turn in &mut turns {
            let chain = self.chain(node, turn.port).by(&turn.add);
            let answer = chain.try_add(&turn.pod);
            assert_eq!(answer.code, Some(0), "ADD by {:?}: {answer:?}", turn.add);
            turn.result = answer.ok();
        }
        node.wait_for_dad();
        for turn in &turns {
            turn.pod.wait_for_dad();
            assert!(self.is_reached(node, turn), "a pod added by {:?}", turn.add);
            self.check(node, turn);
        }
        for turn in &turns {
            self.del(node, turn);
        }
        // gangplank's DEL removes what remains of the Go plugins.
        for turn in &turns {
            self.chain(node, turn.port).del(&turn.pod, &turn.result);
        }
        assert_eq!(leftovers(node), [""; 0], "after DEL of gangplank");
    }

    /// Whether the node reaches the pod at its mapped ports.
    fn is_reached(&self, node: &Node, turn: &Turn) -> bool {
        let _server = turn.pod.serve(9000);
        let port = turn.port;
        let v4 = [
            format!("10.77.0.1:{port}"),
            format!("10.77.0.1:{}", port + 2),
        ];
        let v6 = [
            format!("[fd00:77::1]:{port}"),
            format!("[fd00:77::1]:{}", port + 3),
        ];
        let addresses = match self.family {
            Family::V4 => v4.to_vec(),
            Family::V6 => v6.to_vec(),
            Family::Dual => [v4, v6].concat(),
        };
        let reached = |to: &String| node.asks(Protocol::Tcp, to, LIMIT).is_some();
        addresses.iter().all(reached)
    }

    fn check(&self, node: &Node, turn: &Turn) {
        let chain = self.chain(node, turn.port).by(&turn.rest);
        for plugin in 0..PLUGINS.len() {
            let call = chain.call(plugin, "CHECK", &turn.result);
            let answer = call.pod(&turn.pod).run();
            let expected = Some(i32::from(self.is_unknown_to_go(turn, plugin)));
            assert_eq!(
                answer.code,
                expected,
                "CHECK of {}: {answer:?}",
                turn.what(plugin)
            );
        }
    }

    fn del(&self, node: &Node, turn: &Turn) {
        let chain = self.chain(node, turn.port).by(&turn.rest);
        for plugin in (0..PLUGINS.len()).rev() {
            let call = chain.call(plugin, "DEL", &turn.result);
            let answer = call.pod(&turn.pod).run();
            assert_eq!(
                answer.code,
                Some(0),
                "DEL of {}: {answer:?}",
                turn.what(plugin)
            );
        }
        let addresses = turn.result["ips"].as_array().unwrap().iter();
        let mut names: Vec<String> = addresses
            .map(|ip| {
                ip["address"]
                    .as_str()
                    .unwrap()
                    .split('/')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        names.push(turn.pod.id().to_owned());
        let is_left = |line: &String| names.iter().any(|name| contains_word(line, name));
        let mut left = leftovers(node);
        left.retain(is_left);
        // The Go plugin does not know gangplank's record of the owner.
        if (turn.add[2], turn.rest[2]) == (Gangplank, Go) {
            left.retain(|line| !line.contains("gangplank_firewall"));
        }
        let is_known = self.is_unknown_to_go(turn, 1);
        assert_eq!(
            left.is_empty(),
            !is_known,
            "after DEL by {:?}: {left:?}",
            turn.rest
        );
    }
}

impl Turn {
    fn what(&self, plugin: usize) -> String {
        format!(
            "{}, added by {:?}, by {:?}",
            PLUGINS[plugin], self.add[plugin], self.rest[plugin]
        )
    }
}

/// Whether a line has this text, not as a part of a longer number or name.
fn contains_word(line: &str, word: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric());
    line.match_indices(word)
        .any(|(at, _)| ends(&line[at + word.len()..]))
}

/// The rules and chains of all plugins.
fn leftovers(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = node.run(program);
        // The chain of the administrator is kept.
        let of_plugins = saved
            .lines()
            .filter(|line| line.contains("CNI") && !line.starts_with(":CNI-ADMIN "));
        left.extend(of_plugins.map(|line| format!("{program} {line}")));
    }
    let mut table = "";
    let listed = node.run("nft -s list ruleset");
    for line in listed.lines() {
        if line.starts_with("table ") {
            table = line;
        }
        if table.contains("cni_") || table.contains("gangplank") {
            left.push(format!("{table} {line}"));
        }
    }
    left
}

#[test]
fn each_plugin_of_a_chain_can_be_swapped() {
    let Some(go) = ready_for_chains(&["iptables-legacy", "ip6tables-legacy"]) else {
        return;
    };
    for_each_case(&Case::all(), Case::name, |case| case.run(&go));
}
