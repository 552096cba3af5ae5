//! Mapped ports: for both backends, with and without br_netfilter, the source address that the pod sees.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ANSWER, BridgeFilter, NO_ANSWER, node_and_outside_host};
use crate::support::implementation::for_each_case;
use crate::support::{
    Chain, EchoServer, Namespace, Node, Pod, Protocol, go_is_recent, note, requires, skip_for_go,
    small_chain, testing_go,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    OutsideHost,
    /// A pod on another bridge of the node.
    OtherBridge,
    /// The node, to the address that the clients outside use.
    Node,
    /// The node, to 127.0.0.1 or ::1.
    Loopback,
    /// The pod with the mapped port.
    Itself,
    /// A pod on the same bridge.
    Neighbour,
}

use Client::{Itself, Loopback, Neighbour, OtherBridge, OutsideHost};

const CLIENTS: [Client; 6] = [
    OutsideHost,
    OtherBridge,
    Client::Node,
    Loopback,
    Itself,
    Neighbour,
];

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The pod sees the client's address.
    Direct,
    /// The pod sees the address of its gateway.
    Masqueraded,
    NoAnswer,
}

use Outcome::{Direct, Masqueraded, NoAnswer};

/// The outcomes in the order of [`CLIENTS`].
type Row = [Outcome; 6];

const SNAT: Row = [
    Direct,
    Direct,
    Direct,
    Masqueraded,
    Masqueraded,
    Masqueraded,
];
const NO_SNAT: Row = [Direct, Direct, Direct, NoAnswer, NoAnswer, NoAnswer];
/// With br_netfilter, the packet to itself would leave the bridge port through which it came.
const SNAT_FILTERED: Row = [Direct, Direct, Direct, Masqueraded, NoAnswer, Masqueraded];
const NO_SNAT_FILTERED: Row = [Direct, Direct, Direct, NoAnswer, NoAnswer, Direct];
const MASQ_ALL: Row = [Masqueraded; 6];

/// A node with a pod whose ports are mapped, and its clients.
struct Site {
    node: Node,
    outside: Node,
    pod: Pod,
    neighbour: Pod,
    other: Pod,
    result: Value,
    _server: EchoServer,
}

/// Host ports 8080 (TCP) and 5353 (UDP), both to port 9000 of the pod.
fn mappings() -> Value {
    json!([
        { "hostPort": 8080, "containerPort": 9000, "protocol": "tcp" },
        { "hostPort": 5353, "containerPort": 9000, "protocol": "udp" },
    ])
}

fn host_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 8080,
        Protocol::Udp => 5353,
    }
}

/// The chain with a backend and keys of portmap.
fn portmap_chain<'n>(node: &'n Node, backend: &str, keys: &Value) -> Chain<'n> {
    let mut chain = node
        .chain(&small_chain())
        .with("portmap", "backend", backend);
    for (key, value) in keys.as_object().unwrap() {
        chain = chain.with("portmap", key, value.clone());
    }
    chain
}

/// The same chain without mappings, on another bridge: `10.88.0.0/24`.
fn other_bridge<'n>(chain: &Chain<'n>) -> Chain<'n> {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]],
    });
    chain
        .named("other")
        .with("bridge", "bridge", "br1")
        .with("bridge", "ipam", ipam)
        .with_ports(json!([]))
}

impl Site {
    /// The ports of [`mappings`] are mapped.
    fn new(chain: impl Fn(&Node) -> Chain) -> Site {
        let (node, outside) = node_and_outside_host();
        let pods = ["pod", "neighbour", "other"].map(|name| node.pod(name));
        let chain = chain(&node);
        let result = chain.with_ports(mappings()).add(&pods[0]);
        chain.add(&pods[1]);
        other_bridge(&chain).add(&pods[2]);
        for namespace in pods.iter().map(|pod| &**pod).chain([&*node, &*outside]) {
            namespace.wait_for_dad();
        }
        let [pod, neighbour, other] = pods;
        Site {
            _server: pod.serve(9000),
            node,
            outside,
            pod,
            neighbour,
            other,
            result,
        }
    }

    fn client(&self, client: Client) -> &Namespace {
        match client {
            OutsideHost => &self.outside,
            OtherBridge => &self.other,
            Client::Node | Loopback => &self.node,
            Itself => &self.pod,
            Neighbour => &self.neighbour,
        }
    }

    /// What a client gets at an address of the node, `v4` or `v6`.
    fn outcome(&self, client: Client, protocol: Protocol, to: &str, expected: Outcome) -> Outcome {
        let limit = if expected == NoAnswer {
            NO_ANSWER
        } else {
            ANSWER
        };
        let host = if to.contains(':') {
            format!("[{to}]")
        } else {
            to.to_owned()
        };
        let to = format!("{host}:{}", host_port(protocol));
        match self.client(client).asks(protocol, &to, limit) {
            None => NoAnswer,
            Some(seen) if is_gateway(seen) => Masqueraded,
            Some(seen) => {
                let name = if client == Client::Node {
                    host.trim_matches(['[', ']']).to_owned()
                } else {
                    own_address(client, seen.is_ipv6()).to_owned()
                };
                assert_eq!(seen.to_string(), name, "{client:?} {protocol:?} {to}");
                Direct
            }
        }
    }

    /// The differences of all clients, protocols and families from the expected outcomes.
    fn differences(&self, expected: impl Fn(Client, bool) -> Outcome + Sync) -> Vec<String> {
        let differences = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for client in CLIENTS {
                for to in addresses(client) {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        let (differences, expected) = (&differences, &expected);
                        scope.spawn(move || {
                            let expected = expected(client, to.contains(':'));
                            let seen = self.outcome(client, protocol, to, expected);
                            if seen != expected {
                                differences.lock().unwrap().push(format!(
                                    "{client:?} to {to}, {protocol:?}: {seen:?} instead of {expected:?}"
                                ));
                            }
                        });
                    }
                }
            }
        });
        let mut differences = differences.into_inner().unwrap();
        differences.sort();
        differences
    }
}

fn addresses(client: Client) -> [&'static str; 2] {
    match client {
        Loopback => ["127.0.0.1", "::1"],
        _ => ["172.18.0.5", "fd18::5"],
    }
}

fn is_gateway(address: IpAddr) -> bool {
    ["10.77.0.1", "fd00:77::1"].contains(&address.to_string().as_str())
}

fn own_address(client: Client, is_v6: bool) -> &'static str {
    let [v4, v6] = match client {
        OutsideHost => ["172.18.0.9", "fd18::9"],
        OtherBridge => ["10.88.0.2", "fd00:88::2"],
        Client::Node => ["172.18.0.5", "fd18::5"],
        Loopback => ["127.0.0.1", "::1"],
        Itself => ["10.77.0.2", "fd00:77::2"],
        Neighbour => ["10.77.0.3", "fd00:77::3"],
    };
    if is_v6 { v6 } else { v4 }
}

/// Keys of portmap, and what the clients get.
struct Table {
    name: &'static str,
    keys: Value,
    filter: BridgeFilter,
    /// The bridge ports are in hairpin mode.
    hairpin: bool,
    row: Row,
    /// With nftables and the Go plugins 1.9.1.
    go_nftables: Row,
}

fn tables() -> [Table; 8] {
    let table = |name, keys, row| Table {
        name,
        keys,
        filter: BridgeFilter::Off,
        hairpin: false,
        row,
        go_nftables: row,
    };
    let snat = || json!({});
    let no_snat = || json!({ "snat": false });
    let filtered = |it: Table| Table {
        filter: BridgeFilter::On,
        ..it
    };
    // PD8: not masqueraded; without br_netfilter, the neighbour gets the answer from the wrong address.
    let pd8 = |row: Row, neighbour: Outcome| [row[0], row[1], row[2], row[3], row[4], neighbour];
    [
        Table {
            go_nftables: pd8(SNAT, NoAnswer),
            ..table("snat", snat(), SNAT)
        },
        Table {
            // PD7: masqAll is ignored.
            go_nftables: pd8(SNAT, NoAnswer),
            ..table("masqAll", json!({ "masqAll": true }), MASQ_ALL)
        },
        table("no snat", no_snat(), NO_SNAT),
        table(
            "masqAll without snat",
            json!({ "masqAll": true, "snat": false }),
            NO_SNAT,
        ),
        Table {
            hairpin: true,
            go_nftables: pd8(SNAT, Direct),
            ..filtered(table("snat, br_netfilter, hairpin", snat(), SNAT))
        },
        Table {
            go_nftables: pd8(SNAT_FILTERED, Direct),
            ..filtered(table("snat, br_netfilter", snat(), SNAT_FILTERED))
        },
        filtered(table("no snat, br_netfilter", no_snat(), NO_SNAT_FILTERED)),
        Table {
            hairpin: true,
            ..filtered(table(
                "no snat, br_netfilter, hairpin",
                no_snat(),
                NO_SNAT_FILTERED,
            ))
        },
    ]
}

impl Table {
    fn expected(&self, backend: &str, client: Client, is_v6: bool) -> Outcome {
        // IPv6 has no counterpart of route_localnet.
        if client == Loopback && is_v6 {
            return NoAnswer;
        }
        let row = match (testing_go(), backend) {
            (true, "nftables") => &self.go_nftables,
            _ => &self.row,
        };
        let index = CLIENTS.iter().position(|it| *it == client);
        row[index.expect("a client")]
    }

    fn chain<'n>(&self, node: &'n Node, backend: &str) -> Chain<'n> {
        portmap_chain(node, backend, &self.keys).with("bridge", "hairpinMode", self.hairpin)
    }

    fn run(&self, backend: &str) {
        let site = Site::new(|node| {
            self.filter.set(node);
            self.chain(node, backend)
        });
        let mut differences =
            site.differences(|client, is_v6| self.expected(backend, client, is_v6));
        let chain = self.chain(&site.node, backend).with_ports(mappings());
        chain.check(&site.pod, &site.result).ok();
        chain.del(&site.pod, &site.result);
        let after = site.differences(|_, _| NoAnswer);
        differences.extend(
            after
                .iter()
                .map(|difference| format!("after DEL, {difference}")),
        );
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}

/// The backends of the plugin under test.
fn backends() -> &'static [&'static str] {
    if testing_go() && !go_is_recent() {
        note("the backend nftables is not tested: these Go plugins do not have it");
        return &["iptables"];
    }
    &["iptables", "nftables"]
}

#[test]
fn clients_reach_a_mapped_port_with_the_source_address_that_snat_specifies() {
    requires!("iptables", "ip6tables", "nft", "cni:portmap");
    let tables = tables();
    let of_table = |table| backends().iter().map(move |backend| (table, *backend));
    let cases: Vec<(&Table, &str)> = tables.iter().flat_map(of_table).collect();
    for_each_case(
        &cases,
        |(table, backend)| format!("{backend}, {}", table.name),
        |(table, backend)| table.run(backend),
    );
}

/// Mappings with different host addresses, one host port each, and the node's addresses at which they are reached.
const HOST_ADDRESSES: [(&str, &[&str]); 7] = [
    ("", &NODE_ADDRESSES),
    ("172.18.0.6", &["172.18.0.6"]),
    ("fd18::6", &["fd18::6"]),
    ("0.0.0.0", &["127.0.0.1", "172.18.0.5", "172.18.0.6"]),
    ("::", &["fd18::5", "fd18::6"]),
    ("127.0.0.1", &["127.0.0.1"]),
    // No address of the node.
    ("172.18.0.99", &[]),
];

const NODE_ADDRESSES: [&str; 5] = [
    "127.0.0.1",
    "172.18.0.5",
    "172.18.0.6",
    "fd18::5",
    "fd18::6",
];

#[test]
fn a_mapping_is_reached_at_its_host_address_only() {
    requires!("iptables", "ip6tables", "nft", "cni:portmap");
    for backend in backends() {
        let (node, outside) = node_and_outside_host();
        let pod = node.pod("pod");
        let mapping = |(index, (host, _)): (usize, &(&str, _))| {
            let port = 8000 + index;
            json!({ "hostPort": port, "containerPort": 9000, "protocol": "tcp", "hostIP": host })
        };
        let mappings: Value = HOST_ADDRESSES.iter().enumerate().map(mapping).collect();
        let chain = portmap_chain(&node, backend, &json!({})).with_ports(mappings);
        let result = chain.add(&pod);
        chain.check(&pod, &result).ok();
        for namespace in [&*node, &*outside, &*pod] {
            namespace.wait_for_dad();
        }
        let _server = pod.serve(9000);
        std::thread::scope(|scope| {
            for (index, (host, reached)) in HOST_ADDRESSES.iter().enumerate() {
                for address in NODE_ADDRESSES {
                    let client = if address == "127.0.0.1" {
                        &node
                    } else {
                        &outside
                    };
                    scope.spawn(move || {
                        let expected = reached.contains(&address);
                        let limit = if expected { ANSWER } else { NO_ANSWER };
                        let to = std::net::SocketAddr::new(
                            address.parse().unwrap(),
                            8000 + index as u16,
                        );
                        let seen = client.asks(Protocol::Tcp, &to.to_string(), limit);
                        let what = format!("{backend}, hostIP {host:?}, to {address}");
                        assert_eq!(seen.is_some(), expected, "{what}: {seen:?}");
                    });
                }
            }
        });
        chain.del(&pod, &result);
    }
}

/// A site without a server behind the mapped ports.
fn site_without_server<'n>(node: &'n Node, backend: &str) -> (Chain<'n>, [Pod; 2]) {
    let pods = ["pod", "neighbour"].map(|name| node.pod(name));
    let chain = portmap_chain(node, backend, &json!({}));
    (chain, pods)
}

#[test]
fn packets_to_the_same_port_of_another_host_are_not_captured() {
    // CVE-2025-67499: the Go plugins 1.7.0 to 1.8.0 did not limit the rules of nftables to addresses of the node.
    requires!("iptables", "ip6tables", "nft", "cni:portmap");
    for backend in backends() {
        let (node, outside) = node_and_outside_host();
        let (chain, [pod, neighbour]) = site_without_server(&node, backend);
        let result = chain.with_ports(mappings()).add(&pod);
        chain.add(&neighbour);
        for namespace in [&*node, &*outside, &*neighbour] {
            namespace.wait_for_dad();
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let _server = outside.serve(host_port(protocol));
            for (address, source) in [("172.18.0.9", "10.77.0.3"), ("[fd18::9]", "fd00:77::3")] {
                let to = format!("{address}:{}", host_port(protocol));
                let seen = neighbour.asks(protocol, &to, ANSWER);
                let seen = seen.map(|seen| seen.to_string());
                assert_eq!(seen.as_deref(), Some(source), "{backend}: {to}");
                assert!(
                    node.asks(protocol, &to, ANSWER).is_some(),
                    "{backend}: {to}"
                );
            }
        }
        chain.with_ports(mappings()).del(&pod, &result);
    }
}

#[test]
fn rules_of_the_administrator_stay_ahead_of_mappings() {
    // CVE-2019-9946: the Go plugin before 0.7.5 inserted its rules at the top of PREROUTING and OUTPUT.
    requires!("iptables", "ip6tables", "nft", "cni:portmap");
    for backend in backends() {
        if *backend == "nftables"
            && skip_for_go("of hooks with equal priority, the newest runs first")
        {
            continue;
        }
        let (node, outside) = node_and_outside_host();
        let (chain, [pod, neighbour]) = site_without_server(&node, backend);
        chain.add(&neighbour);
        let administrators = "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.77.0.2:9000";
        for base_chain in ["PREROUTING", "OUTPUT"] {
            node.run(&format!("iptables -t nat -A {base_chain} {administrators}"));
        }
        let _server = neighbour.serve(9000);
        for _ in 0..2 {
            let result = chain.with_ports(mappings()).add(&pod);
            for (client, to) in [(&outside, "172.18.0.5:8080"), (&node, "172.18.0.5:8080")] {
                let seen = client.asks(Protocol::Tcp, to, ANSWER);
                assert!(seen.is_some(), "{backend}: {} to {to}", client.name);
            }
            let rules = node.nat("iptables");
            for base_chain in ["PREROUTING", "OUTPUT"] {
                let start = format!("-A {base_chain} ");
                let first = rules.iter().find(|rule| rule.starts_with(&start));
                assert!(
                    first.is_some_and(|rule| rule.contains("10.77.0.2")),
                    "{rules:?}"
                );
            }
            chain.with_ports(mappings()).del(&pod, &result);
        }
    }
}
