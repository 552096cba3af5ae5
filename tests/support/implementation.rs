//! Who does a deed, ours or the reference, and what a runtime keeps of an attachment between its calls.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::{Answer, Call, Node, Pod, go_plugins, leases, require, say, testing_go};

/// Whose plugin does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    Gangplank,
    Go,
}

use Implementation::{Gangplank, Go};

/// Both, ours first.
pub const BOTH: [Implementation; 2] = [Gangplank, Go];

/// Whether the suite can run: it needs the reference beside ours, and these programs.
pub fn ready(programs: &[&str]) -> bool {
    if testing_go() {
        say(
            "passed by: this suite has both plugins at hand, GANGPLANK_TEST_PLUGINS would hide ours",
        );
        return false;
    }
    let always = ["cni:bridge", "cni:host-local", "cni:loopback"];
    require(&[always.as_slice(), programs].concat())
}

/// What the suite's tests of iptables need.
pub const IPTABLES: &[&str] = &[
    "iptables",
    "ip6tables",
    "iptables-legacy",
    "ip6tables-legacy",
];

/// A fresh node with both parties' plugins.
pub fn node() -> Node {
    let node = Node::new("node");
    for plugin in ["bridge", "host-local", "loopback"] {
        node.install_go_plugin(plugin);
    }
    node
}

impl Implementation {
    /// A call of this party's plugin, which finds its delegates among its own.
    pub fn call<'n>(self, node: &'n Node, plugin: &str) -> Call<'n> {
        match self {
            Gangplank => node.cni(plugin),
            Go => node
                .cni(&format!("go-{plugin}"))
                .env("CNI_PATH", &go_plugins().to_string_lossy()),
        }
    }

    /// The same for the plugin that a configuration names.
    pub fn call_for<'n>(self, node: &'n Node, config: &Value) -> Call<'n> {
        let plugin = config["type"].as_str().expect("a plugin's name");
        self.call(node, plugin).config(config)
    }
}

/// One interface of a pod, as its runtime knows it.
pub struct Attachment<'n> {
    node: &'n Node,
    pub pod: &'n Pod,
    pub ifname: &'static str,
    pub config: Value,
    /// The result of its ADD, which since 0.4.0 is passed on to CHECK and DEL.
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

    /// The call as a runtime makes it.
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

/// The rules of both families in the nat table.
pub fn nat_rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables", "ip6tables"] {
        let table = node.run(&format!("{program} -t nat -S"));
        let lines = table.lines().filter(|line| !line.starts_with("-P "));
        rules.extend(lines.map(|line| format!("{program} {line}")));
    }
    rules
}

/// What nftables has beside the translation of iptables' tables, which [`nat_rules`] tells.
pub fn nft_tables(node: &Node) -> Vec<String> {
    let tables = node.run("nft list tables");
    let of_iptables = |line: &&str| line.starts_with("table ip ") || line.starts_with("table ip6 ");
    let tables = tables.lines().filter(|line| !of_iptables(line));
    tables.map(str::to_owned).collect()
}

/// What is left of attachments to `network` on `bridge`: links, nat rules of either kind, leases.
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

/// Does the work for every cell, a few at a time, and fails with their troubles, each under its cell's name.
pub fn for_each_case<C: Sync>(
    cells: &[C],
    name: impl Fn(&C) -> String + Sync,
    work: impl Fn(&C) + Sync,
) {
    let next = AtomicUsize::new(0);
    let troubles = Mutex::new(Vec::new());
    let worker = || {
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(cell))) {
                let why = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
                let why = why.unwrap_or_else(|| "it panicked".to_owned());
                troubles
                    .lock()
                    .unwrap()
                    .push(format!("{}: {why}", name(cell)));
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..workers.min(8) {
            scope.spawn(worker);
        }
    });
    let troubles = troubles.into_inner().unwrap();
    assert!(
        troubles.is_empty(),
        "{} of {} cells failed; the first of them:\n{}",
        troubles.len(),
        cells.len(),
        troubles[..troubles.len().min(12)].join("\n")
    );
}
