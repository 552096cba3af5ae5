//! A node with a network and two pods, and its state as text.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::support::{Answer, Call, Chain, Node, Pod, small_chain, small_network};

/// The backend of the masquerade rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// No masquerading.
    Without,
    /// iptables-nft.
    Iptables,
    /// iptables-legacy.
    Legacy,
    /// nftables.
    Nftables,
}

/// The network into whose calls faults are injected.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub plugin: &'static str,
    pub rules: Rules,
    pub dual: bool,
    /// Whether the network was used before, so that bridge and lease directory exist.
    pub used: bool,
    /// Whether there are so many other leases that the lease index exists.
    pub many_leases: bool,
    /// The backend of portmap and firewall, if the network is a chain of all plugins.
    pub chain: Option<&'static str>,
}

/// A gateway with addresses of one family, on a node that was used before.
pub const PLAIN: Kind = Kind {
    plugin: "bridge",
    rules: Rules::Without,
    dual: false,
    used: true,
    many_leases: false,
    chain: None,
};

pub struct Fixture {
    pub node: Node,
    pub kind: Kind,
    pub pod: Pod,
    pub other: Pod,
    /// The state without attached pods.
    pub empty: Vec<String>,
    /// The state with `pod` attached.
    pub full: Vec<String>,
    /// The states after none, one and more plugins of the chain were executed for `pod`.
    pub partial: Vec<Vec<String>>,
    /// The results of ADD, as a runtime stores them.
    results: Mutex<BTreeMap<String, Value>>,
}

/// Shell commands that print the state of the node.
const STATE_COMMANDS: &str = "ip -o link; ip -o addr; \
    grep . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";

impl Fixture {
    pub fn new(kind: Kind) -> Fixture {
        if kind.used {
            return Fixture::used(kind);
        }
        // The expected states are taken from another node, on which the network was used.
        let like = Fixture::used(kind);
        Fixture::bare_like(&like)
    }

    /// An unused node with the expected states of another one.
    pub fn bare_like(like: &Fixture) -> Fixture {
        Fixture {
            empty: like.empty.clone(),
            full: like.full.clone(),
            partial: like.partial.clone(),
            ..Fixture::bare(like.kind)
        }
    }

    fn used(kind: Kind) -> Fixture {
        let mut fixture = Fixture::bare(kind);
        fixture.run("ADD", &fixture.pod).ok();
        if kind.many_leases {
            // The first ADD recorded the boot ID; these leases are as written by the Go plugin.
            fixture.run("DEL", &fixture.pod).ok();
            for n in 101..181 {
                let path = format!("/var/lib/cni/networks/small/10.77.0.{n}");
                fixture.node.write(&path, &format!("c{n}\r\neth0"));
            }
            fixture.run("ADD", &fixture.pod).ok();
        }
        fixture.run("DEL", &fixture.pod).ok();
        fixture.empty = fixture.state();
        let mut partial = Vec::new();
        let before = |partial: &mut Vec<_>| partial.push(fixture.state());
        let added = fixture.run_with("ADD", &fixture.pod, |_, call| {
            before(&mut partial);
            call.run()
        });
        added.ok();
        before(&mut partial);
        fixture.run("DEL", &fixture.pod).ok();
        fixture.full = partial.last().expect("a state").clone();
        fixture.partial = partial;
        fixture
    }

    fn bare(kind: Kind) -> Fixture {
        let node = Node::new("node");
        if kind.rules == Rules::Legacy {
            node.use_iptables_variant("xtables-legacy-multi");
        }
        let rules = match kind.rules {
            _ if kind.chain.is_some() => "iptables-save; ip6tables-save; nft list ruleset",
            Rules::Without | Rules::Nftables => "nft list ruleset",
            Rules::Iptables | Rules::Legacy => "iptables-save -t nat; ip6tables-save -t nat",
        };
        node.write("/run/state", &format!("{STATE_COMMANDS}; {rules}"));
        let (pod, other) = (node.pod("victim"), node.pod("another"));
        Fixture {
            node,
            kind,
            pod,
            other,
            empty: Vec::new(),
            full: Vec::new(),
            partial: Vec::new(),
            results: Mutex::default(),
        }
    }

    /// The network's configuration.
    pub fn config(&self) -> Value {
        let mut config = small_network();
        config["type"] = self.kind.plugin.into();
        config["ipMasq"] = (self.kind.rules != Rules::Without).into();
        if self.kind.rules == Rules::Nftables {
            config["ipMasqBackend"] = "nftables".into();
        }
        if self.kind.dual {
            config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
        }
        config
    }

    /// See [`Node::run_before_iptables`].
    pub fn before_iptables(&self, script: &str) {
        self.node.run_before_iptables(self.iptables(), script);
    }

    /// The file of all programs of the variant that has the rules. For legacy rules DEL runs the programs with `legacy`
    /// in their name.
    pub fn iptables(&self) -> &'static str {
        match self.kind.rules {
            Rules::Legacy => "/usr/sbin/xtables-legacy-multi",
            _ => "/usr/sbin/xtables-nft-multi",
        }
    }

    /// Delays the first and the second call of iptables-restore by this many seconds.
    pub fn slow_iptables(&self, first: &str, second: &str) {
        self.before_iptables(&format!(
            "if [ ${{name%-legacy-restore}} = iptables ] || [ $name = iptables-restore ]; then\n\
             if mkdir /run/once 2>/dev/null; then sleep {first}\n\
             elif mkdir /run/twice 2>/dev/null; then sleep {second}; fi; fi"
        ));
    }

    /// The network as a chain: of one plugin, or with portmap, firewall, tuning and bandwidth.
    fn chain(&self, pod: &Pod) -> Chain<'_> {
        let bridge = self.config();
        let mut list = json!({
            "cniVersion": bridge["cniVersion"],
            "name": bridge["name"],
            "plugins": [bridge],
        });
        let Some(backend) = self.kind.chain else {
            return self.node.chain(&list);
        };
        let mut chained = small_chain()["plugins"].as_array().expect("plugins")[1..].to_vec();
        let sysctl = json!({ "net.core.somaxconn": "500" });
        chained.push(json!({ "type": "tuning", "sysctl": sysctl, "mtu": 1400, "allmulti": true }));
        let limits = [1_000_000_000, 8_000_000];
        chained.push(json!({
            "type": "bandwidth",
            "ingressRate": limits[0], "ingressBurst": limits[1],
            "egressRate": limits[0], "egressBurst": limits[1],
        }));
        list["plugins"]
            .as_array_mut()
            .expect("plugins")
            .extend(chained);
        let first = if pod.id() == self.pod.id() {
            8000
        } else {
            8100
        };
        let mapping = |port: u16, protocol: &str| json!({ "hostPort": first + port, "containerPort": 80, "protocol": protocol });
        self.node
            .chain(&list)
            .with("portmap", "backend", backend)
            .with("firewall", "backend", backend)
            .with("firewall", "ingressPolicy", "same-bridge")
            .with_ports(json!([mapping(80, "tcp"), mapping(53, "udp")]))
    }

    /// Runs a verb of each plugin, up to the first failure.
    pub fn run(&self, verb: &str, pod: &Pod) -> Answer {
        self.run_with(verb, pod, |_, call| call.run())
    }

    /// Like [`Fixture::run`]. `execute` gets the index of the plugin and its call.
    pub fn run_with(
        &self,
        verb: &str,
        pod: &Pod,
        execute: impl FnMut(usize, &Call) -> Answer,
    ) -> Answer {
        let mut results = self.results.lock().unwrap();
        let prev = match (verb, self.kind.chain) {
            ("ADD", _) => {
                results.remove(pod.id());
                None
            }
            (_, Some(_)) => results.get(pod.id()).cloned(),
            // bridge does not need it.
            (_, None) => None,
        };
        drop(results);
        let prev = prev.unwrap_or_default();
        let answer = self.chain(pod).run(verb, (pod, &prev), execute);
        if verb == "ADD" && answer.code == Some(0) {
            let result = answer.ok();
            self.results
                .lock()
                .unwrap()
                .insert(pod.id().to_owned(), result);
        }
        answer
    }

    /// A call for a pod on the network, which is no chain.
    pub fn call(&self, verb: &str, pod: &Pod) -> Call<'_> {
        self.node.network(self.config()).call(verb, pod)
    }

    /// A CHECK against the result of an ADD.
    pub fn check(&self, pod: &Pod, result: &Value) -> Answer {
        self.chain(pod).check(pod, result)
    }

    /// The state of the node and its pods, without values that differ between ADDs: indices, MAC addresses, addresses
    /// of pods.
    pub fn state(&self) -> Vec<String> {
        let output = self.node.run("sh /run/state");
        let mut facts: Vec<String> = output.lines().filter_map(fact).collect();
        for pod in [&self.pod, &self.other] {
            let links = pod.run("ip -o link");
            let names = links
                .lines()
                .filter_map(fact)
                .filter(|fact| !fact.starts_with("lo:"));
            facts.extend(names.map(|name| format!("in {}: {name}", pod.id())));
        }
        let mut files = self.node.files("/var/lib/cni");
        // The lease index is created and removed as needed.
        files.retain(|path, _| !path.ends_with(".gangplank.index"));
        facts.extend(files.into_iter().map(|(path, content)| {
            let is_lease = path.rsplit('/').next().is_some_and(is_address);
            match is_lease {
                true => format!("a lease of {}", String::from_utf8_lossy(&content).trim()),
                false => path,
            }
        }));
        let facts = facts.into_iter().map(|fact| without_addresses(&fact));
        facts.collect()
    }
}

/// A line of the state without values that differ between runs; `None` for irrelevant lines.
fn fact(line: &str) -> Option<String> {
    // iptables-save prints comments with dates.
    if line.starts_with('#') || line.contains(" fe80:") {
        return None;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_index =
        |word: &str| word.ends_with(':') && word[..word.len() - 1].parse::<u32>().is_ok();
    match words.as_slice() {
        // `ip -o addr`: index, link, family, address
        [index, link, family @ ("inet" | "inet6"), address, ..] if is_index(index) => {
            Some(format!("{link} {family} {address}"))
        }
        // `ip -o link`: index, name@peer, flags, and key-value pairs up to the MAC address
        [index, name, rest @ ..] if is_index(index) => {
            let name = name.split('@').next().unwrap_or(name);
            let name = name.trim_end_matches(':');
            // The Go plugin chooses random names.
            let name = if name.starts_with("veth") {
                "veth…"
            } else {
                name
            };
            let master = rest.iter().skip_while(|word| **word != "master").nth(1);
            let flags = rest.first().unwrap_or(&"");
            let is_up = flags.contains("UP") && !flags.contains("DOWN");
            let alias = rest.iter().skip_while(|word| **word != "alias").nth(1);
            Some(format!(
                "{name}: up {is_up} master {master:?} alias {alias:?}"
            ))
        }
        words => {
            let mut words = words.to_vec();
            // Packet and byte counters.
            if let Some(at) = words.iter().position(|word| *word == "packets") {
                words.drain(at..(at + 4).min(words.len()));
            }
            words.retain(|word| !word.starts_with('['));
            // nft prints the address of a target of iptables only sometimes.
            if let Some(at) = words.iter().position(|word| *word == "dnat") {
                words.truncate(at + 1);
            }
            (!words.is_empty()).then(|| words.join(" "))
        }
    }
}

/// Replaces the addresses of pods, which differ between ADDs.
fn without_addresses(text: &str) -> String {
    let word = |word: &str| {
        let bare = word
            .trim_end_matches(['/', ','])
            .split('/')
            .next()
            .unwrap_or(word);
        let is_pods = bare.starts_with("10.77.0.") && !matches!(bare, "10.77.0.0" | "10.77.0.1")
            || bare.starts_with("fd00:77::") && !matches!(bare, "fd00:77::" | "fd00:77::1");
        if is_pods {
            "ADDRESS".to_owned()
        } else {
            word.to_owned()
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn is_address(name: &str) -> bool {
    name.parse::<std::net::IpAddr>().is_ok()
}

/// The differences between two states.
pub fn difference(expected: &[String], seen: &[String]) -> Vec<String> {
    let mut missing = expected.to_vec();
    let mut extra = Vec::new();
    for fact in seen {
        match missing.iter().position(|wanted| wanted == fact) {
            Some(at) => drop(missing.remove(at)),
            None => extra.push(format!("left: {fact}")),
        }
    }
    extra.extend(missing.into_iter().map(|fact| format!("missing: {fact}")));
    extra
}
