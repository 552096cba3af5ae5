//! The iptables rules of an attachment in the filter table, in the format of iptables-save(8), and the transactions that
//! add and remove them. Except for new connections, they are those of the Go plugin:
//!
//! ```text
//! -A FORWARD -m comment --comment "…" -j CNI-ISOLATION-STAGE-1                at the top, with an ingress policy
//! -A FORWARD -m comment --comment "…" -j CNI-FORWARD
//! -A CNI-FORWARD -m comment --comment "…" -j CNI-ADMIN
//! -A CNI-FORWARD -d 10.1.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! -A CNI-FORWARD -s 10.1.0.2/32 -j ACCEPT
//! -A CNI-FORWARD -d 10.1.0.2/32 -j ACCEPT                                     if FORWARD drops new connections
//! -A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -m comment --comment "…" -j DROP    isolated
//! -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -m comment --comment "…" -j CNI-ISOLATION-STAGE-2
//! -A CNI-ISOLATION-STAGE-2 -o cni0 -m comment --comment "…" -j DROP
//! ```
//! The rules do not name their owner: see [`records`](super::records).

use std::net::IpAddr;

use crate::net::Cidr;
use crate::netfilter::firewall::records::Recorded;
use crate::netfilter::firewall::{ACCEPT, COMMENT, ISOLATION_COMMENT, Ingress, LeadsTo, Wanted};
use crate::netfilter::iptables_save::{Listing, deletion, emptying, transaction};

pub const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
pub const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

const ADMIN: &str = "CNI firewall plugin admin overrides";

/// The comment of rules that only this policy has.
fn isolation(policy: &str) -> String {
    format!("{COMMENT} (ingressPolicy: {policy})")
}

fn commented(chain: &str, matches: &str, comment: &str, target: &str) -> String {
    format!("-A {chain} {matches}-m comment --comment \"{comment}\" -j {target}")
}

/// The rule with the jump from FORWARD to [`ACCEPT`].
pub fn forward_jump() -> String {
    commented("FORWARD", "", COMMENT, ACCEPT)
}

/// The rule with the jump from FORWARD to [`STAGE_1`].
pub fn isolation_jump() -> String {
    commented("FORWARD", "", ISOLATION_COMMENT, STAGE_1)
}

/// The rule with the jump from [`ACCEPT`] to the chain of the administrator.
pub fn admin_jump(chain: &str) -> String {
    commented(ACCEPT, "", ADMIN, chain)
}

/// The last rule of an isolation chain.
pub fn return_rule(chain: &str) -> String {
    commented(chain, "", ISOLATION_COMMENT, "RETURN")
}

/// Adds the rules that a listing lacks, and removes those of `old` addresses and of another policy of the bridge. `None` if
/// nothing differs.
pub fn install(wanted: &Wanted, old: &[IpAddr], listing: &Listing) -> Option<String> {
    let inbound = wanted.addresses.iter().filter(|_| drops(listing));
    let inbound = inbound.map(|address| inbound_rule(*address, &wanted.settings.ingress));
    let accepts = wanted.addresses.iter().flat_map(|it| accepts(*it));
    let mut lines: Vec<String> = old
        .iter()
        .flat_map(|it| unaccepting(*it, listing))
        .collect();
    lines.extend(missing(wanted, accepts.chain(inbound), listing));
    transaction("filter", &lines)
}

/// The first rule of those that the Go plugin adds, too, which a listing lacks.
pub fn difference(wanted: &Wanted, listing: &Listing) -> Option<String> {
    let accepts = wanted.addresses.iter().flat_map(|it| accepts(*it));
    missing(wanted, accepts, listing).into_iter().next()
}

fn missing(
    wanted: &Wanted,
    accepts: impl Iterator<Item = String>,
    listing: &Listing,
) -> Vec<String> {
    let (ingress, admin_chain) = (&wanted.settings.ingress, &wanted.settings.admin_chain);
    let mut chains = vec![ACCEPT, admin_chain];
    if ingress.bridge().is_some() {
        chains.extend([STAGE_1, STAGE_2]);
    }
    let new = chains.iter().filter(|chain| !listing.has_chain(chain));
    let mut lines: Vec<String> = new.map(|chain| format!("-N {chain}")).collect();
    lines.extend(jumps(ingress, listing));
    let admin = admin_jump(admin_chain);
    if !listing.has(&admin) {
        lines.push(admin.replacen(&format!("-A {ACCEPT}"), &format!("-I {ACCEPT} 1"), 1));
    }
    lines.extend(accepts.filter(|rule| !listing.has(rule)));
    lines.extend(isolate(ingress, listing));
    lines
}

/// Removes the rules of addresses, and with the last ones the shared chains. A bridge is isolated as long as it has another
/// attachment, recorded or accepted. `None` if nothing differs.
pub fn remove(
    (addresses, others): (&[IpAddr], &[Recorded]),
    leads_to: LeadsTo,
    listing: &Listing,
) -> Option<String> {
    let own = addresses.iter();
    let mut lines: Vec<String> = own.flat_map(|it| unaccepting(*it, listing)).collect();
    let rest: Vec<IpAddr> = accepted(listing)
        .filter(|address| !addresses.contains(address))
        .collect();
    let mut bridges: Vec<&str> = isolated(listing).collect();
    bridges.retain(|bridge| {
        let is_bridge = |it: &Recorded| it.bridge.as_ref().is_some_and(|it| it.as_str() == *bridge);
        let leads_there = |it: &IpAddr| leads_to(*it).as_deref() == Some(bridge);
        !others.iter().any(is_bridge) && !rest.iter().any(leads_there)
    });
    lines.extend(unisolate(&bridges, listing));
    // The Go plugin leaves its chains.
    if rest.is_empty() && listing.has_chain(ACCEPT) {
        lines.extend(listing.jumps_to(ACCEPT).map(|rule| deletion(rule)));
        lines.extend(emptying(ACCEPT));
    }
    transaction("filter", &lines)
}

/// The rules that accept the packets of an address.
pub fn accepts(address: IpAddr) -> [String; 2] {
    let address = Cidr::host(address);
    [
        format!("-A {ACCEPT} -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-A {ACCEPT} -s {address} -j ACCEPT"),
    ]
}

/// The rule that accepts new connections to an address.
fn inbound_rule(address: IpAddr, ingress: &Ingress) -> String {
    let address = Cidr::host(address);
    match ingress {
        Ingress::Open => format!("-A {ACCEPT} -d {address} -j ACCEPT"),
        _ => format!("-A {ACCEPT} -d {address} -m conntrack --ctstate DNAT -j ACCEPT"),
    }
}

/// Whether FORWARD drops packets that no rule accepts.
fn drops(listing: &Listing) -> bool {
    let is_drop = |rule: &String| is_final(rule) && !rule.ends_with(" -j ACCEPT");
    let by_policy = listing.drop_policies.iter().any(|chain| chain == "FORWARD");
    by_policy || listing.rules_of("FORWARD").any(is_drop)
}

/// The deletions of all rules that accept packets of an address.
fn unaccepting(address: IpAddr, listing: &Listing) -> Vec<String> {
    let address = Cidr::host(address);
    let prefixes = ["-s", "-d"].map(|option| format!("-A {ACCEPT} {option} {address} "));
    let is_own = |rule: &&String| {
        let starts = prefixes.iter().any(|prefix| rule.starts_with(prefix));
        starts && rule.ends_with(" -j ACCEPT")
    };
    let present = listing.rules().filter(is_own);
    present.map(|rule| deletion(rule)).collect()
}

/// The addresses whose packets are accepted.
pub fn accepted(listing: &Listing) -> impl Iterator<Item = IpAddr> {
    let prefix = format!("-A {ACCEPT} -s ");
    listing.rules().filter_map(move |rule| {
        let address = rule.strip_prefix(&prefix)?.strip_suffix(" -j ACCEPT")?;
        address.parse().ok().map(Cidr::address)
    })
}

/// Whether no packet reaches the rules of a chain behind this one.
fn is_final(rule: &str) -> bool {
    let rest = rule.strip_prefix("-A FORWARD -j ").unwrap_or_default();
    ["DROP", "REJECT", "ACCEPT"]
        .iter()
        .any(|target| rest.split(' ').next() == Some(target))
}

/// Both jump rules of FORWARD, at its top, unless each is there once, isolation first, before a rule for all packets.
fn jumps(ingress: &Ingress, listing: &Listing) -> Vec<String> {
    let (forward, isolate) = (forward_jump(), isolation_jump());
    let needs_isolation = ingress.bridge().is_some() || listing.has(&isolate);
    let expected: Vec<&String> = match needs_isolation {
        true => vec![&isolate, &forward],
        false => vec![&forward],
    };
    let mut before = listing
        .rules_of("FORWARD")
        .take_while(|rule| !is_final(rule));
    let is_jump = |rule: &&String| **rule == forward || **rule == isolate;
    let copies: Vec<&String> = listing.rules_of("FORWARD").filter(is_jump).collect();
    let found: Vec<&String> = before.by_ref().filter(is_jump).collect();
    if found == expected && copies.len() == expected.len() {
        return Vec::new();
    }
    let mut lines: Vec<String> = copies.into_iter().map(|rule| deletion(rule)).collect();
    let insert = |rule: &&String| rule.replacen("-A FORWARD", "-I FORWARD 1", 1);
    lines.extend(expected.iter().rev().map(insert));
    lines
}

/// The isolation rules of a bridge, in the order of the chains.
pub fn isolation_rules(ingress: &Ingress) -> [Vec<String>; 2] {
    let Some(bridge) = ingress.bridge() else {
        return [Vec::new(), Vec::new()];
    };
    let policy = match ingress {
        Ingress::Isolated(_) => "isolated",
        _ => "same-bridge",
    };
    let other = format!("-i {bridge} ! -o {bridge} ");
    let mut first = vec![commented(STAGE_1, &other, &isolation(policy), STAGE_2)];
    if let Ingress::Isolated(_) = ingress {
        let same = format!("-i {bridge} -o {bridge} ");
        first.insert(0, commented(STAGE_1, &same, &isolation(policy), "DROP"));
    }
    let out = format!("-o {bridge} ");
    let second = commented(STAGE_2, &out, ISOLATION_COMMENT, "DROP");
    [first, vec![second]]
}

/// The bridges with isolation rules.
pub fn isolated(listing: &Listing) -> impl Iterator<Item = &str> {
    let prefixes = [format!("-A {STAGE_1} -i "), format!("-A {STAGE_2} -o ")];
    listing.rules().filter_map(move |rule| {
        let rest = prefixes
            .iter()
            .find_map(|prefix| rule.strip_prefix(prefix))?;
        rest.split(' ').next()
    })
}

/// Whether a rule of the isolation chains is about a bridge.
fn is_about(rule: &str, bridge: &str) -> bool {
    let matches = [
        format!("-A {STAGE_1} -i {bridge} "),
        format!("-A {STAGE_2} -o {bridge} "),
    ];
    matches.iter().any(|prefix| rule.starts_with(prefix))
}

fn isolate(ingress: &Ingress, listing: &Listing) -> Vec<String> {
    let Some(bridge) = ingress.bridge() else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for (chain, wanted) in [STAGE_1, STAGE_2].into_iter().zip(isolation_rules(ingress)) {
        let own: Vec<&String> = listing
            .rules_of(chain)
            .filter(|rule| is_about(rule, bridge.as_str()))
            .collect();
        if !own.iter().copied().eq(wanted.iter()) {
            lines.extend(own.into_iter().map(|rule| deletion(rule)));
            let insert =
                |rule: &String| rule.replacen(&format!("-A {chain}"), &format!("-I {chain} 1"), 1);
            lines.extend(wanted.iter().rev().map(insert));
        }
        let last = return_rule(chain);
        if !listing.has(&last) {
            lines.push(last);
        }
    }
    lines
}

/// Removes the isolation rules of bridges, and the chains with the last ones.
pub fn unisolate(bridges: &[&str], listing: &Listing) -> Vec<String> {
    let is_going = |rule: &&String| bridges.iter().any(|bridge| is_about(rule, bridge));
    let mut lines: Vec<String> = listing
        .rules()
        .filter(is_going)
        .map(|rule| deletion(rule))
        .collect();
    if lines.is_empty() {
        return lines;
    }
    let is_other = |rule: &String| !rule.ends_with(" -j RETURN") && !is_going(&rule);
    let mut others = [STAGE_1, STAGE_2]
        .into_iter()
        .flat_map(|chain| listing.rules_of(chain));
    if !others.any(is_other) {
        let jumps = listing.jumps_to(STAGE_1);
        lines.extend(jumps.map(|rule| deletion(rule)));
        lines.extend(emptying(STAGE_1));
        lines.extend(emptying(STAGE_2));
    }
    lines
}

#[cfg(test)]
mod tests;
