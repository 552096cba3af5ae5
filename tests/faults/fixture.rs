//! A node on which a network works, two pods to attach to it, and all that stands there as text to compare.

use serde_json::{Value, json};

use crate::support::{Answer, Call, Node, Pod, small_network};

/// What keeps the masquerade rules, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// No masquerading.
    Without,
    /// iptables over nf_tables.
    Iptables,
    /// iptables over the kernel's older tables.
    Legacy,
    /// nftables, without a program.
    Nftables,
}

/// What kind of network is disturbed.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its rules.
    pub rules: Rules,
    /// Whether it has addresses of both families.
    pub dual: bool,
    /// Whether the network was used before, and so has a bridge and a directory of leases.
    pub used: bool,
    /// Whether others hold so many leases that an index of them is kept.
    pub many_leases: bool,
}

/// A gateway with addresses of one family, on a node that was used before.
pub const PLAIN: Kind = Kind {
    rules: Rules::Without,
    dual: false,
    used: true,
    many_leases: false,
};

/// A node to disturb.
pub struct Fixture {
    pub node: Node,
    pub kind: Kind,
    pub pod: Pod,
    pub other: Pod,
    /// What stands when no pod is attached.
    pub empty: Vec<String>,
    /// What stands when `pod` is attached.
    pub full: Vec<String>,
}

/// Prints what stands in the words of programs that are not ours, one fact a line.
const SURVEY: &str = "ip -o link; ip -o addr; \
    grep . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";

impl Fixture {
    /// A node as it is before anything is disturbed there.
    pub fn new(kind: Kind) -> Fixture {
        if kind.used {
            return Fixture::used(kind);
        }
        // What a first ADD makes is seen on a node of its own.
        let like = Fixture::used(kind);
        Fixture::bare_like(&like)
    }

    /// A node that was never used, expected to become as another is.
    pub fn bare_like(like: &Fixture) -> Fixture {
        Fixture {
            empty: like.empty.clone(),
            full: like.full.clone(),
            ..Fixture::bare(like.kind)
        }
    }

    fn used(kind: Kind) -> Fixture {
        let mut fixture = Fixture::bare(kind);
        fixture.call("ADD", &fixture.pod).run().ok();
        if kind.many_leases {
            // The first ADD marked the directory with the boot; these are the reference's.
            fixture.call("DEL", &fixture.pod).run().ok();
            for n in 101..181 {
                let path = format!("/var/lib/cni/networks/small/10.77.0.{n}");
                fixture.node.write(&path, &format!("c{n}\r\neth0"));
            }
            fixture.call("ADD", &fixture.pod).run().ok();
        }
        fixture.full = fixture.state();
        fixture.call("DEL", &fixture.pod).run().ok();
        fixture.empty = fixture.state();
        fixture
    }

    fn bare(kind: Kind) -> Fixture {
        let node = Node::new("node");
        if kind.rules == Rules::Legacy {
            use_legacy(&node);
        }
        let rules = match kind.rules {
            Rules::Without | Rules::Nftables => "nft list ruleset",
            Rules::Iptables | Rules::Legacy => "iptables-save -t nat; ip6tables-save -t nat",
        };
        node.write("/run/inventory", &format!("{SURVEY}; {rules}"));
        let (pod, other) = (node.pod("victim"), node.pod("another"));
        Fixture {
            node,
            kind,
            pod,
            other,
            empty: Vec::new(),
            full: Vec::new(),
        }
    }

    /// The network's configuration.
    pub fn config(&self) -> Value {
        let mut config = small_network();
        config["ipMasq"] = (self.kind.rules != Rules::Without).into();
        if self.kind.rules == Rules::Nftables {
            config["ipMasqBackend"] = "nftables".into();
        }
        if self.kind.dual {
            config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
        }
        config
    }

    /// Has iptables do something before it does what it should. All its programs are one file, which tells by its name
    /// what to do.
    pub fn before_iptables(&self, script: &str) {
        let program = self.iptables();
        self.node.run(&format!("cp {program} /run/xtables"));
        let script = format!("name=${{0##*/}}\n{script}\nexec /run/xtables $name \"$@\"");
        self.node.replace_program(program, &script);
    }

    /// The file of all programs of the variant that holds the rules. With the legacy one, a DEL runs them by the names that
    /// only that variant has.
    pub fn iptables(&self) -> &'static str {
        match self.kind.rules {
            Rules::Legacy => "/usr/sbin/xtables-legacy-multi",
            _ => "/usr/sbin/xtables-nft-multi",
        }
    }

    /// Has iptables-restore take its time when it is called the first time, and the second.
    pub fn slow_iptables(&self, first: &str, second: &str) {
        self.before_iptables(&format!(
            "if [ ${{name%-legacy-restore}} = iptables ] || [ $name = iptables-restore ]; then\n\
             if mkdir /run/once 2>/dev/null; then sleep {first}\n\
             elif mkdir /run/twice 2>/dev/null; then sleep {second}; fi; fi"
        ));
    }

    /// A call for a pod on the network.
    pub fn call(&self, verb: &str, pod: &Pod) -> Call<'_> {
        self.node.network(self.config()).call(verb, pod)
    }

    /// A CHECK against the result of an ADD.
    pub fn check(&self, pod: &Pod, result: &Value) -> Answer {
        self.node.network(self.config()).check(pod, result)
    }

    /// Everything that stands on the node and in its pods, without what differs from ADD to ADD: indices, MAC
    /// addresses, the pod's own addresses.
    pub fn state(&self) -> Vec<String> {
        let inventory = self.node.run("sh /run/inventory");
        let mut facts: Vec<String> = inventory.lines().filter_map(fact).collect();
        for pod in [&self.pod, &self.other] {
            let links = pod.run("ip -o link");
            let names = links
                .lines()
                .filter_map(fact)
                .filter(|fact| !fact.starts_with("lo:"));
            facts.extend(names.map(|name| format!("in {}: {name}", pod.id())));
        }
        let mut files = self.node.files("/var/lib/cni");
        // A hint: it goes when it does not pay, and comes again.
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

/// The variants of iptables are told apart by argv[0] alone, so each file may be the one of all of them.
fn use_legacy(node: &Node) {
    for program in ["iptables", "ip6tables"] {
        for part in ["", "-restore", "-save"] {
            let legacy = format!("/usr/sbin/{program}-legacy{part}");
            node.bind(&legacy, &format!("/usr/sbin/{program}{part}"));
        }
    }
}

/// A line of a inventory without what is chance; `None` for what says nothing.
fn fact(line: &str) -> Option<String> {
    // The comments of iptables-save are dates.
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
            // The reference's have names by chance.
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
            // How many packets a rule has seen.
            if let Some(at) = words.iter().position(|word| *word == "packets") {
                words.drain(at..(at + 4).min(words.len()));
            }
            words.retain(|word| !word.starts_with('['));
            (!words.is_empty()).then(|| words.join(" "))
        }
    }
}

/// The same text with the pods' addresses, which go round, as words that do not.
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

/// What stands though it should not, and what does not though it should.
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
