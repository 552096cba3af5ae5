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
    output.lines().filter_map(fact).collect()
}

/// A line without values that differ between runs; `None` for irrelevant lines.
fn fact(line: &str) -> Option<String> {
    // Dates in iptables-save, and link-local addresses and routes, which depend on the carrier.
    if line.starts_with('#') || ["fe80:", "ff00:", "fe80::"].iter().any(|it| line.contains(it)) {
        return None;
    }
    let varies = |word: &&str| *word == "linkdown" || word.starts_with('[');
    let words: Vec<&str> = line.split_whitespace().filter(|word| !varies(word)).collect();
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
        let file = fact.strip_prefix('/').and_then(|path| path.rsplit('/').next());
        let is_lease = file.is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok());
        is_lease || fact.contains("veth") || fact.contains("ifb") || fact.contains("victim-") || has_hash(fact)
    };
    state.iter().filter(belongs_to_a_pod).cloned().collect()
}

/// Whether a chain is named after a pod: `CNI-HASH` of masquerading, `CNI-DN-HASH` of host ports.
fn has_hash(fact: &str) -> bool {
    fact.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| {
        let hash = word.strip_prefix("CNI-").map(|rest| rest.trim_start_matches("DN-").trim_start_matches("SN-"));
        hash.is_some_and(|hash| hash.len() > 16 && hash.chars().all(|c| c.is_ascii_hexdigit()))
    })
}
