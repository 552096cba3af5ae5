//! Tests that run gangplank and the Go plugins on the same nodes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::{
    Answer, Call, Node, Pod, go_plugins, leases, note, plugins_of_go, recent_go_plugins, require,
    testing_go,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    Gangplank,
    Go,
}

use Implementation::{Gangplank, Go};

pub const BOTH: [Implementation; 2] = [Gangplank, Go];

/// Whether a test can run that needs both implementations and these programs.
pub fn ready(programs: &[&str]) -> bool {
    if testing_go() {
        note("skipped: this test runs both implementations; unset GANGPLANK_TEST_PLUGINS");
        return false;
    }
    let go_plugins: Vec<String> = plugins_of_go()
        .map(|plugin| format!("cni:{plugin}"))
        .collect();
    let go_plugins: Vec<&str> = go_plugins.iter().map(String::as_str).collect();
    require(&[&go_plugins, programs].concat())
}

/// The programs of both iptables variants.
pub const IPTABLES: &[&str] = &[
    "iptables",
    "ip6tables",
    "iptables-legacy",
    "ip6tables-legacy",
];

/// A node with the plugins of both implementations.
pub fn node() -> Node {
    node_with(&go_plugins())
}

/// A node with gangplank and the Go plugins of a directory.
pub fn node_with(plugins: &Path) -> Node {
    let node = Node::new("node");
    for plugin in plugins_of_go() {
        node.install_go_plugin_of(plugins, plugin);
    }
    node
}

/// Like [`ready`], for tests with chained plugins: returns the directory of recent Go plugins.
pub fn ready_for_chains(programs: &[&str]) -> Option<PathBuf> {
    let chained = ["iptables", "ip6tables", "nft"];
    ready(&[&chained, programs].concat()).then(recent_go_plugins)?
}

impl Implementation {
    /// A call of a plugin of this implementation, with CNI_PATH set to the same implementation.
    pub fn call<'n>(self, node: &'n Node, plugin: &str) -> Call<'n> {
        match self {
            Gangplank => node.cni(plugin),
            Go => {
                let call = node.cni(&format!("go-{plugin}"));
                call.env("CNI_PATH", &node.go_plugin_directory(plugin))
            }
        }
    }

    /// A call of the plugin that a configuration names.
    pub fn call_for<'n>(self, node: &'n Node, config: &Value) -> Call<'n> {
        let plugin = config["type"].as_str().expect("a plugin's name");
        self.call(node, plugin).config(config)
    }
}

/// An attachment, as its runtime tracks it.
pub struct Attachment<'n> {
    node: &'n Node,
    pub pod: &'n Pod,
    pub ifname: &'static str,
    pub config: Value,
    /// The result of ADD, which since 0.4.0 is passed to CHECK and DEL.
    pub result: Value,
}

impl<'n> Attachment<'n> {
    pub fn new(node: &'n Node, pod: &'n Pod, config: &Value) -> Attachment<'n> {
        Attachment {
            node,
            pod,
            ifname: "eth0",
            config: config.clone(),
            result: Value::Null,
        }
    }

    pub fn named(mut self, ifname: &'static str) -> Self {
        self.ifname = ifname;
        self
    }

    pub fn call(&self, by: Implementation, verb: &str) -> Call<'n> {
        let mut config = self.config.clone();
        let version = config["cniVersion"].as_str().unwrap_or("0.1.0");
        if verb != "ADD" && version >= "0.4.0" && !self.result.is_null() {
            config["prevResult"] = self.result.clone();
        }
        let call = by.call_for(self.node, &config).verb(verb);
        call.pod(self.pod).ifname(self.ifname)
    }

    pub fn try_add(&mut self, by: Implementation) -> Answer {
        let answer = self.call(by, "ADD").run();
        if answer.code == Some(0) {
            self.result = answer.ok();
        }
        answer
    }

    pub fn check(&self, by: Implementation) -> Answer {
        self.call(by, "CHECK").run()
    }

    pub fn del(&self, by: Implementation) -> Answer {
        self.call(by, "DEL").run()
    }
}

/// The iptables nat rules of both families.
pub fn nat_rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables", "ip6tables"] {
        let table = node.run(&format!("{program} -t nat -S"));
        let lines = table.lines().filter(|line| !line.starts_with("-P "));
        rules.extend(lines.map(|line| format!("{program} {line}")));
    }
    rules
}

/// The nftables tables, without those of iptables-nft.
pub fn nft_tables(node: &Node) -> Vec<String> {
    let tables = node.run("nft list tables");
    let of_iptables = |line: &&str| line.starts_with("table ip ") || line.starts_with("table ip6 ");
    let tables = tables.lines().filter(|line| !of_iptables(line));
    tables.map(str::to_owned).collect()
}

/// The remaining links, nat rules and leases of attachments to `network` on `bridge`.
pub fn remains(node: &Node, network: &str, bridge: &str) -> Vec<String> {
    let mut remains: Vec<String> = Vec::new();
    for line in node.run("ip -o link").lines() {
        let name = line.split_whitespace().nth(1).unwrap_or_default();
        let name = name.trim_end_matches(':').split('@').next().unwrap();
        if name != "lo" && name != bridge {
            remains.push(format!("link {name}"));
        }
    }
    remains.extend(nat_rules(node));
    remains.extend(nft_tables(node));
    remains.extend(leases(node, network).iter().map(|ip| format!("lease {ip}")));
    remains
}

/// Runs `work` for all cases, several at a time. Panics with the failures and the names of their cases.
pub fn for_each_case<C: Sync>(
    cases: &[C],
    name: impl Fn(&C) -> String + Sync,
    work: impl Fn(&C) + Sync,
) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let worker = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(case))) {
                let why = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
                let why = why.unwrap_or_else(|| "panic".to_owned());
                failures
                    .lock()
                    .unwrap()
                    .push(format!("{}: {why}", name(case)));
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..workers.min(8) {
            scope.spawn(worker);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} cases failed; the first ones:\n{}",
        failures.len(),
        cases.len(),
        failures[..failures.len().min(12)].join("\n")
    );
}
