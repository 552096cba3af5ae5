//! The iptables rules of an attachment in the filter table, in the format of iptables-save(8), and the transactions that
//! add and remove them. Except for the chain of the attachment, they are those of the Go plugin:
//!
//! ```text
//! -A FORWARD -m comment --comment "…" -j CNI-ISOLATION-STAGE-1                at the top, with an ingress policy
//! -A FORWARD -m comment --comment "…" -j CNI-FORWARD
//! -A CNI-FORWARD -m comment --comment "…" -j CNI-ADMIN
//! -A CNI-FORWARD -d 10.1.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! -A CNI-FORWARD -s 10.1.0.2/32 -j ACCEPT
//! -A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -m comment --comment "…" -j DROP    isolated
//! -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -m comment --comment "…" -j CNI-ISOLATION-STAGE-2
//! -A CNI-ISOLATION-STAGE-2 -o cni0 -m comment --comment "…" -j DROP
//! -A GANGPLANK-FW-HASH -s 10.1.0.2/32 -i cni0 -m comment --comment "name: … id: … if: …"
//! ```
//! No rule jumps to the last chain, whose rules have no target: it records the addresses and the bridge of the
//! attachment. DEL needs it, because the rules of the Go plugin do not name their owner.

use std::fmt;
use std::net::IpAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::net::Cidr;
use crate::netfilter::firewall::Ingress;
use crate::netfilter::iptables_save::{Listing, deletion, transaction};
use crate::netfilter::masquerade::comment::short_hash;

pub const FORWARD: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
pub(super) const RECORD: &str = "GANGPLANK-FW-";

const RULES: &str = "CNI firewall plugin rules";
const ADMIN: &str = "CNI firewall plugin admin overrides";

/// The comment of isolation rules. The Go plugin writes the policy in force into some of them.
fn isolation(policy: &str) -> String {
    format!("{} (ingressPolicy: {policy})", RULES)
}

const ANY_POLICY: &str = "same-bridge|isolated";

fn commented(chain: &str, matches: &str, comment: &str, target: &str) -> String {
    format!("-A {chain} {matches}-m comment --comment \"{comment}\" -j {target}")
}

/// The rules of an attachment in one family.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub addresses: &'a [IpAddr],
    /// `iptablesAdminChainName`
    pub admin_chain: &'a str,
    pub ingress: &'a Ingress,
}

/// The chain that records the addresses of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    name: String,
    comment: String,
}

impl Record {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Record {
        let Attachment {
            container,
            interface,
        } = attachment;
        let hash = short_hash(&format!("{network}/{container}/{interface}"));
        let mut comment = format!("{}{container}\" if: \"{interface}\"", comment_of(network));
        // XT_MAX_COMMENT_LEN (linux/netfilter/xt_comment.h)
        comment.truncate(comment.floor_char_boundary(255));
        Record {
            name: format!("{RECORD}{hash:.14}"),
            comment: comment.replace('"', "\\\""),
        }
    }

    fn rules(&self, wanted: &Wanted) -> Vec<String> {
        let bridge = wanted.ingress.bridge();
        let bridge = bridge.map_or(String::new(), |bridge| format!("-i {bridge} "));
        let rule = |address: &IpAddr| {
            let (name, comment) = (&self.name, &self.comment);
            let address = Cidr::host(*address);
            format!("-A {name} -s {address} {bridge}-m comment --comment \"{comment}\"")
        };
        wanted.addresses.iter().map(rule).collect()
    }

    /// Adds the rules that a listing lacks, and removes those of other addresses of the attachment and of another policy
    /// of the bridge. `None` if nothing differs.
    pub fn install(&self, wanted: &Wanted, listing: &Listing) -> Option<String> {
        let mut lines = Vec::new();
        let mut chains = vec![FORWARD, wanted.admin_chain];
        if wanted.ingress.bridge().is_some() {
            chains.extend([STAGE_1, STAGE_2]);
        }
        let new = |chain: &&&str| !listing.has_chain(chain);
        lines.extend(chains.iter().filter(new).map(|chain| format!("-N {chain}")));
        let (record, recorded) = (self.rules(wanted), recorded(listing));
        let present = rules_of(&self.name, listing);
        if !present.eq(record.iter()) {
            let (own, others): (Vec<_>, Vec<_>) =
                recorded.iter().partition(|it| it.chain == self.name);
            let is_kept = |address: IpAddr| {
                wanted.addresses.contains(&address) || others.iter().any(|it| it.address == address)
            };
            let old = own.iter().map(|it| it.address).filter(|it| !is_kept(*it));
            lines.extend(old.flat_map(|address| unaccepting(address, listing)));
            lines.push(match listing.has_chain(&self.name) {
                true => format!("-F {}", self.name),
                false => format!("-N {}", self.name),
            });
            lines.extend(record);
        }
        lines.extend(jumps(wanted, listing));
        let admin = commented(FORWARD, "", ADMIN, wanted.admin_chain);
        if !listing.has(&admin) {
            lines.push(admin.replacen(&format!("-A {FORWARD}"), &format!("-I {FORWARD} 1"), 1));
        }
        let accepts = wanted
            .addresses
            .iter()
            .flat_map(|address| accepts(*address));
        lines.extend(accepts.filter(|rule| !listing.has(rule)));
        lines.extend(isolate(wanted.ingress, listing));
        transaction("filter", &lines)
    }

    /// Removes the rules of the attachment, and with the last ones the shared chains. `known` are addresses that the Go
    /// plugin may have accepted; `leads_to` is the bridge by which the host reaches an address. `None` if nothing differs.
    pub fn remove(
        &self,
        known: &[IpAddr],
        leads_to: &dyn Fn(IpAddr) -> Option<String>,
        listing: &Listing,
    ) -> Option<String> {
        let recorded = recorded(listing);
        let (own, others): (Vec<_>, Vec<_>) = recorded.iter().partition(|it| it.chain == self.name);
        let mut addresses: Vec<IpAddr> = own.iter().map(|it| it.address).collect();
        if own.is_empty() {
            addresses = known.to_vec();
        }
        addresses.retain(|address| others.iter().all(|it| it.address != *address));
        let mut lines: Vec<String> = addresses
            .iter()
            .flat_map(|address| unaccepting(*address, listing))
            .collect();
        if listing.has_chain(&self.name) {
            lines.extend(emptying(&self.name));
        }
        let rest: Vec<IpAddr> = accepted(listing)
            .filter(|address| !addresses.contains(address))
            .collect();
        // Also those that the Go plugin has isolated.
        let mut bridges: Vec<&str> = isolated(listing).collect();
        bridges.retain(|bridge| {
            let is_recorded = others.iter().any(|it| it.bridge.as_deref() == Some(bridge));
            !is_recorded
                && !rest
                    .iter()
                    .any(|it| leads_to(*it).as_deref() == Some(bridge))
        });
        lines.extend(unisolate(&bridges, listing));
        // The Go plugin leaves its chains.
        if rest.is_empty() && listing.has_chain(FORWARD) {
            lines.extend(jumps_to(FORWARD, listing).map(|rule| deletion(rule)));
            lines.extend(emptying(FORWARD));
        }
        transaction("filter", &lines)
    }

    /// The first difference from the rules that [`Record::install`] adds.
    pub fn difference(&self, wanted: &Wanted, listing: &Listing) -> Option<String> {
        // The Go plugin has no record.
        let mut with_record = listing.clone();
        if !listing.has_chain(&self.name) {
            with_record.chains.push(self.name.clone());
            with_record.rules.extend(self.rules(wanted));
        }
        let change = self.install(wanted, &with_record)?;
        change.lines().nth(1).map(str::to_owned)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The beginning of the comments of a network's records.
fn comment_of(network: &NetworkName) -> String {
    format!("name: \"{network}\" id: \"")
}

/// The rules that accept the packets of an address.
pub(super) fn accepts(address: IpAddr) -> [String; 2] {
    let address = Cidr::host(address);
    [
        format!("-A {FORWARD} -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-A {FORWARD} -s {address} -j ACCEPT"),
    ]
}

/// The deletions of the accept rules of an address.
fn unaccepting(address: IpAddr, listing: &Listing) -> Vec<String> {
    let own = accepts(address);
    let present = listing.rules().filter(|rule| own.contains(rule));
    present.map(|rule| deletion(rule)).collect()
}

/// The addresses whose packets are accepted.
fn accepted(listing: &Listing) -> impl Iterator<Item = IpAddr> {
    let prefix = format!("-A {FORWARD} -s ");
    listing.rules().filter_map(move |rule| {
        let address = rule.strip_prefix(&prefix)?.strip_suffix(" -j ACCEPT")?;
        address.parse().ok().map(Cidr::address)
    })
}

/// An address of a record.
struct Recorded {
    chain: String,
    address: IpAddr,
    bridge: Option<String>,
}

fn recorded(listing: &Listing) -> Vec<Recorded> {
    let prefix = format!("-A {RECORD}");
    let records = listing.rules().filter(|rule| rule.starts_with(&prefix));
    let parse = |rule: &String| {
        let mut words = rule.split(' ').skip(1);
        let chain = words.next()?.to_owned();
        let address: Cidr = words.nth(1)?.parse().ok()?;
        let bridge = (words.next() == Some("-i")).then(|| words.next().map(str::to_owned));
        Some(Recorded {
            chain,
            address: address.address(),
            bridge: bridge.flatten(),
        })
    };
    records.filter_map(parse).collect()
}

/// The records of a network, with their chain as name.
pub fn records_of(network: &NetworkName, listing: &Listing) -> Vec<Record> {
    let comment = format!("--comment \"{}", comment_of(network).replace('"', "\\\""));
    let prefix = format!("-A {RECORD}");
    let of_network = listing
        .rules()
        .filter(|rule| rule.starts_with(&prefix) && rule.contains(&comment));
    let record = |rule: &String| Record {
        name: rule.split(' ').nth(1).unwrap_or_default().to_owned(),
        comment: String::new(),
    };
    let mut records: Vec<Record> = of_network.map(record).collect();
    records.dedup();
    records
}

impl Record {
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn rules_of<'l>(chain: &str, listing: &'l Listing) -> impl Iterator<Item = &'l String> + use<'l> {
    let prefix = format!("-A {chain} ");
    listing
        .rules()
        .filter(move |rule| rule.starts_with(&prefix))
}

pub(super) fn jumps_to<'l>(chain: &str, listing: &'l Listing) -> impl Iterator<Item = &'l String> + use<'l> {
    let target = format!(" -j {chain}");
    listing.rules().filter(move |rule| rule.ends_with(&target))
}

fn emptying(chain: &str) -> [String; 2] {
    [format!("-F {chain}"), format!("-X {chain}")]
}

/// Whether no packet reaches the rules of a chain behind this one.
fn is_final(rule: &str) -> bool {
    let rest = rule.strip_prefix("-A FORWARD -j ").unwrap_or_default();
    ["DROP", "REJECT", "ACCEPT"]
        .iter()
        .any(|target| rest.split(' ').next() == Some(target))
}

/// Both jump rules of FORWARD, at its top, unless each is there once, isolation first, before a rule for all packets.
fn jumps(wanted: &Wanted, listing: &Listing) -> Vec<String> {
    let forward = commented("FORWARD", "", RULES, FORWARD);
    let isolate = commented("FORWARD", "", &isolation(ANY_POLICY), STAGE_1);
    let needs_isolation = wanted.ingress.bridge().is_some() || listing.has(&isolate);
    let expected: Vec<&String> = match needs_isolation {
        true => vec![&isolate, &forward],
        false => vec![&forward],
    };
    let mut before = rules_of("FORWARD", listing).take_while(|rule| !is_final(rule));
    let is_jump = |rule: &&String| **rule == forward || **rule == isolate;
    let copies: Vec<&String> = rules_of("FORWARD", listing).filter(is_jump).collect();
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
fn isolation_rules(ingress: &Ingress) -> [Vec<String>; 2] {
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
    let second = commented(STAGE_2, &out, &isolation(ANY_POLICY), "DROP");
    [first, vec![second]]
}

/// The bridges with isolation rules.
pub(super) fn isolated(listing: &Listing) -> impl Iterator<Item = &str> {
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
        let own: Vec<&String> = rules_of(chain, listing)
            .filter(|rule| is_about(rule, bridge.as_str()))
            .collect();
        if !own.iter().copied().eq(wanted.iter()) {
            lines.extend(own.into_iter().map(|rule| deletion(rule)));
            let insert =
                |rule: &String| rule.replacen(&format!("-A {chain}"), &format!("-I {chain} 1"), 1);
            lines.extend(wanted.iter().rev().map(insert));
        }
        let last = commented(chain, "", &isolation(ANY_POLICY), "RETURN");
        if !listing.has(&last) {
            lines.push(last);
        }
    }
    lines
}

/// Removes the isolation rules of bridges, and the chains with the last ones.
pub(super) fn unisolate(bridges: &[&str], listing: &Listing) -> Vec<String> {
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
        .flat_map(|chain| rules_of(chain, listing));
    if !others.any(is_other) {
        let jumps = jumps_to(STAGE_1, listing);
        lines.extend(jumps.map(|rule| deletion(rule)));
        lines.extend(emptying(STAGE_1));
        lines.extend(emptying(STAGE_2));
    }
    lines
}

#[cfg(test)]
mod tests;
