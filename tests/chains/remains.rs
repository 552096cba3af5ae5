//! The state of a node, in which nothing of a deleted pod may remain.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::Node;

/// The kernel updates links and addresses asynchronously, for example after duplicate address detection.
const SETTLED: Duration = Duration::from_secs(3);

/// Links, addresses, routes, queueing disciplines, rules and files.
const STATE: &str = "ip -o link | cut -d' ' -f2 | cut -d@ -f1; ip -o addr | cut -d' ' -f2-7; \
    ip route show table all; ip -6 route; tc qdisc show; iptables-save; ip6tables-save; nft -s list ruleset; \
    find /run /var/lib ! -type d ! -path '/run/netns/*' ! -path '/run/cni/bin/*' ! -path '/run/lock/*' \
    ! -name xtables.lock ! -name state ! -name trace ! -path '/run/replaced-*'";

pub fn install(node: &Node) {
    node.write("/run/state", STATE);
}

pub fn state(node: &Node) -> BTreeSet<String> {
    let output = node.run("sh /run/state");
    let mut table = "";
    let mut facts = BTreeSet::new();
    for line in output.lines() {
        // Of `nft list ruleset`; iptables-save lists the tables of iptables.
        if line.starts_with("table ") {
            table = line;
        }
        let is_of_iptables = table.starts_with("table ip ") || table.starts_with("table ip6 ");
        let is_in_table = line.starts_with(['\t', ' ', '}', 't']) && !table.is_empty();
        match is_in_table {
            true if is_of_iptables => (),
            true => drop(facts.insert(format!("{table} {}", line.trim()))),
            false => facts.extend(fact(line)),
        }
    }
    facts
}

/// A line without values that differ between runs; `None` for irrelevant lines.
fn fact(line: &str) -> Option<String> {
    // Dates and counters of iptables-save, link-local addresses and routes, which depend on the carrier, and local routes
    // of a bridge, which exist after duplicate address detection.
    let is_link_local = ["fe80:", "ff00:"].iter().any(|it| line.contains(it));
    let is_local_v6 =
        line.starts_with("anycast ") || line.starts_with("local ") && line.contains("::");
    if line.starts_with('#') || is_link_local || (is_local_v6 && !line.contains("veth")) {
        return None;
    }
    let varies = |word: &&str| *word == "linkdown" || word.starts_with('[');
    let words: Vec<&str> = line
        .split_whitespace()
        .filter(|word| !varies(word))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// What is there in addition to `before`, once the state has settled.
pub fn added_to(before: &BTreeSet<String>, node: &Node) -> Vec<String> {
    let deadline = Instant::now() + SETTLED;
    loop {
        let now = state(node);
        let added: Vec<String> = now.difference(before).cloned().collect();
        if added.is_empty() || Instant::now() > deadline {
            return added;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The facts that belong to a pod, by the form of their names.
pub fn of_pods(state: &BTreeSet<String>) -> Vec<String> {
    let belongs_to_a_pod = |fact: &&String| {
        let file = fact
            .strip_prefix('/')
            .and_then(|path| path.rsplit('/').next());
        let is_lease = file.is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok());
        is_lease
            || fact.contains("veth")
            || fact.contains("ifb")
            || fact.contains("victim-")
            || has_hash(fact)
    };
    state.iter().filter(belongs_to_a_pod).cloned().collect()
}

/// Whether a chain is named after a pod: `CNI-HASH` of masquerading, `CNI-DN-HASH` of host ports.
fn has_hash(fact: &str) -> bool {
    fact.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .any(|word| {
            let hash = word
                .strip_prefix("CNI-")
                .map(|rest| rest.trim_start_matches("DN-").trim_start_matches("SN-"));
            hash.is_some_and(|hash| hash.len() > 16 && hash.chars().all(|c| c.is_ascii_hexdigit()))
        })
}

/// What a Go plugin is known to leave behind after its own DEL: the plugin, a part of the line, and the defect in
/// `tests/go_plugins/defects`.
const KNOWN: &[(&str, &[&str], &str)] = &[
    (
        "bridge",
        &["MASQUERADE", "-j ACCEPT", "-A POSTROUTING", ":CNI-"],
        "D1",
    ),
    (
        "bridge",
        &["cni-br-iface-", "macspoofchk-"],
        "D1, of the MAC spoof check",
    ),
    ("tuning", &["/run/cni/tuning/"], "TD5"),
    ("firewall", &["CNI-ISOLATION-STAGE-"], "FD4"),
    ("firewall", &["-A CNI-FORWARD"], "FD2"),
];

/// Removes from `left` what the Go plugin is known to leave.
pub fn without_known(left: &[String], go: Option<&str>) -> Vec<String> {
    let is_known = |line: &&String| {
        let mut known = KNOWN.iter().filter(|(plugin, ..)| Some(*plugin) == go);
        known.any(|(_, parts, defect)| {
            let is_named = parts.iter().any(|part| line.contains(part));
            is_named && (*defect != "D1" || has_hash(line))
        })
    };
    left.iter()
        .filter(|line| !is_known(line))
        .cloned()
        .collect()
}
