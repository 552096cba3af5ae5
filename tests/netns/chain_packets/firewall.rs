//! The verdicts of `ingressPolicy`, for connections between all pairs of pods on three bridges, the node and a host
//! outside.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::{ANSWER, BridgeFilter, NO_ANSWER, node_and_outside_host};
use crate::support::implementation::for_each_case;
use crate::support::{
    Chain, EchoServer, Namespace, Node, Pod, Protocol, go_is_recent, requires, skip_for_go,
    small_chain, testing_go,
};

const POLICIES: [&str; 3] = ["same-bridge", "isolated", "open"];

const SERVER_PORT: u16 = 9000;

/// A client or server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    /// The pod with this number on the bridge with this policy.
    Pod(&'static str, usize),
    Node,
    OutsideHost,
}

use Party::OutsideHost;

/// The policy of the node's FORWARD chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    Accept,
    Drop,
}

struct Case {
    backend: &'static str,
    filter: BridgeFilter,
    forward: Forward,
}

/// Two pods on each of three bridges, one bridge for each policy.
struct Site {
    node: Node,
    outside: Node,
    pods: Vec<(Party, Pod, Value)>,
    _servers: Vec<EchoServer>,
}

impl Case {
    fn name(&self) -> String {
        let Case {
            backend,
            filter,
            forward,
        } = self;
        format!("{backend}, br_netfilter {filter:?}, FORWARD {forward:?}")
    }

    /// The chain of the bridge with this policy: `10.70.0.0/24` to `10.72.0.0/24`.
    fn chain<'n>(&self, node: &'n Node, policy: &str) -> Chain<'n> {
        let index = POLICIES.iter().position(|it| *it == policy).unwrap();
        let subnets = [
            format!("10.{}.0.0/24", 70 + index),
            format!("fd00:{}::/64", 70 + index),
        ];
        let ranges: Value = subnets
            .iter()
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect();
        node.chain(&small_chain())
            .named(policy)
            .with("bridge", "bridge", format!("br{index}"))
            .with(
                "bridge",
                "ipam",
                json!({ "type": "host-local", "ranges": ranges }),
            )
            .with("firewall", "backend", self.backend)
            .with("firewall", "ingressPolicy", policy)
    }

    /// Whether a connection is answered; `None` if that is not specified.
    fn verdict(&self, from: Party, to: Party) -> Option<bool> {
        let verdict = match (from, to) {
            (Party::Pod("isolated", one), Party::Pod("isolated", other)) => {
                // FD7: the Go plugin's rule is only effective with br_netfilter.
                one == other || testing_go() && self.filter == BridgeFilter::Off
            }
            (Party::Pod(one, _), Party::Pod(other, _)) => {
                one == other || one == "open" || other == "open"
            }
            (OutsideHost, Party::Pod(policy, _)) if self.forward == Forward::Drop => {
                match (testing_go(), policy) {
                    // FD8: it accepts no new connections.
                    (true, _) => false,
                    (false, "open") => true,
                    (false, _) => return None,
                }
            }
            _ => true,
        };
        Some(verdict)
    }

    fn run(&self) {
        let site = Site::new(self);
        let mut wrong = site.differences(&|from, to| self.verdict(from, to));
        for (party, pod, result) in &site.pods {
            self.chain_of(&site.node, *party).check(pod, result).ok();
        }
        // The policies remain while a pod of the bridge remains.
        let is_first = |party: &Party| matches!(party, Party::Pod(_, 1));
        for (party, pod, result) in site.pods.iter().filter(|it| is_first(&it.0)) {
            self.chain_of(&site.node, *party).del(pod, result);
        }
        let remaining = |from: Party, to: Party| match is_first(&from) || is_first(&to) {
            true => None,
            false => self.verdict(from, to),
        };
        let after = site.differences(&remaining);
        wrong.extend(
            after
                .into_iter()
                .map(|it| format!("after DEL of others, {it}")),
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    fn chain_of<'n>(&self, node: &'n Node, party: Party) -> Chain<'n> {
        match party {
            Party::Pod(policy, _) => self.chain(node, policy),
            other => unreachable!("{other:?} has no network"),
        }
    }
}

impl Site {
    fn new(case: &Case) -> Site {
        let (node, outside) = node_and_outside_host();
        case.filter.set(&node);
        if case.forward == Forward::Drop {
            node.run_all("iptables -P FORWARD DROP\nip6tables -P FORWARD DROP");
        }
        let mut pods = Vec::new();
        for policy in POLICIES {
            for number in [1, 2] {
                let pod = node.pod(&format!("{policy}-{number}"));
                let result = case.chain(&node, policy).add(&pod);
                pods.push((Party::Pod(policy, number), pod, result));
            }
        }
        let pod_namespaces = pods.iter().map(|(_, pod, _)| &**pod);
        let all: Vec<&Namespace> = pod_namespaces.chain([&*node, &*outside]).collect();
        all.iter().for_each(|namespace| namespace.wait_for_dad());
        let servers = all.iter().map(|namespace| namespace.serve(SERVER_PORT));
        Site {
            _servers: servers.collect(),
            node,
            outside,
            pods,
        }
    }

    fn parties(&self) -> Vec<(Party, &Namespace)> {
        let pods = self.pods.iter().map(|(party, pod, _)| (*party, &**pod));
        let others = [(Party::Node, &*self.node), (OutsideHost, &*self.outside)];
        pods.chain(others).collect()
    }

    /// The addresses of a server. The node's are those of the bridge `isolated`, a gateway of others than its pods.
    fn addresses(&self, party: Party) -> [String; 2] {
        let ips = match party {
            Party::Node => return ["10.71.0.1", "fd00:71::1"].map(str::to_owned),
            OutsideHost => return ["172.18.0.9", "fd18::9"].map(str::to_owned),
            Party::Pod(..) => {
                let of_party = self.pods.iter().find(|it| it.0 == party);
                &of_party.expect("a pod").2["ips"]
            }
        };
        [0, 1].map(|index| {
            let address = ips[index]["address"].as_str().expect("two addresses");
            address.split('/').next().unwrap().to_owned()
        })
    }

    /// The pairs whose connections are answered although they should not be, or the reverse.
    fn differences(&self, verdict: &(dyn Fn(Party, Party) -> Option<bool> + Sync)) -> Vec<String> {
        let wrong = Mutex::new(Vec::new());
        let parties = self.parties();
        std::thread::scope(|scope| {
            for (from, client) in &parties {
                let (wrong, parties) = (&wrong, &parties);
                scope.spawn(move || {
                    for (to, _) in parties.iter().filter(|(to, _)| to != from) {
                        let Some(expected) = verdict(*from, *to) else {
                            continue;
                        };
                        for address in self.addresses(*to) {
                            let limit = if expected { ANSWER } else { NO_ANSWER };
                            let server = std::net::SocketAddr::new(
                                address.parse().expect("an address"),
                                SERVER_PORT,
                            );
                            let seen = client.asks(Protocol::Tcp, &server.to_string(), limit);
                            if seen.is_some() != expected {
                                let difference =
                                    format!("{from:?} to {to:?} ({address}): {seen:?}");
                                wrong.lock().unwrap().push(difference);
                            }
                        }
                    }
                });
            }
        });
        wrong.into_inner().unwrap()
    }
}

#[test]
fn connections_are_answered_as_the_ingress_policy_specifies() {
    requires!("iptables", "ip6tables", "nft", "cni:firewall");
    if testing_go() && !go_is_recent() {
        skip_for_go("the policy isolated exists since 1.7.0");
        return;
    }
    let backends: &[&str] = if testing_go() {
        &["iptables"]
    } else {
        &["iptables", "nftables"]
    };
    let mut cases = Vec::new();
    for backend in backends {
        for filter in [BridgeFilter::Off, BridgeFilter::On] {
            for forward in [Forward::Accept, Forward::Drop] {
                cases.push(Case {
                    backend,
                    filter,
                    forward,
                });
            }
        }
    }
    for_each_case(&cases, Case::name, Case::run);
}
