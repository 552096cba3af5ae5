//! The iptables rules of mapped ports as data, in the format of iptables-save(8), and the transactions that add and
//! remove them. Chains, rules, their positions and comments are those of the Go plugin:
//!
//! ```text
//! -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT              also in OUTPUT
//! -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: …" -m multiport --dports 8080,8443 -j CNI-DN-HASH
//! -A CNI-DN-HASH -s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-HASH -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-HASH -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80
//! -A CNI-HOSTPORT-SETMARK -m comment --comment "…" -j MARK --set-xmark 0x2000/0x2000
//! -A POSTROUTING -m comment --comment "…" -j CNI-HOSTPORT-MASQ                 at the top
//! -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::net::{Cidr, Family};
use crate::netfilter::iptables_save::{Listing, deletion, emptying, transaction};
use crate::netfilter::portmap::listed::{DNAT, argument, mapped};
use crate::netfilter::portmap::{Forwarded, MarkChain, PortMapping, Protocol, SourceNat};

pub const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
pub const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";

/// The chain with the entry rules of `CNI-SN-…` chains, which the Go plugin had before 0.8.
pub const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";

/// The beginning of the names of containers' chains.
const PREFIX: &str = "CNI-DN-";

/// The largest number of ports of a multiport match (XT_MULTI_PORTS, linux/netfilter/xt_multiport.h).
const MAX_PORTS: usize = 15;

/// The longest comment in bytes, without its terminator (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h).
const MAX_COMMENT: usize = 255;

/// The base chains with a jump to [`DNAT`].
pub const HOOKS: [&str; 2] = ["PREROUTING", "OUTPUT"];

/// Targets after which a packet does not reach the following rules of a base chain.
const TERMINAL: [&str; 5] = ["ACCEPT", "RETURN", "MASQUERADE", "SNAT", "NETMAP"];

/// The chain of a container on a network, shared by all its interfaces there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    name: String,
    comment: String,
}

impl Chain {
    /// The chain of the Go plugin for a container.
    pub fn of(network: &NetworkName, container: &ContainerId) -> Chain {
        Chain::hashed(network, container, &[network.as_str(), container.as_str()])
    }

    /// The chain of one attachment, for use where that of the Go plugin has another owner: one interface of the container
    /// on the same network, or another container, because its name has no separator.
    pub fn separate(network: &NetworkName, attachment: &Attachment) -> Chain {
        let Attachment {
            container,
            interface,
        } = attachment;
        let parts = [network.as_str(), container.as_str(), interface.as_str()];
        Chain::hashed(network, container, &[&parts.join("/")])
    }

    fn hashed(network: &NetworkName, container: &ContainerId, parts: &[&str]) -> Chain {
        let digest = parts.iter().fold(Sha512::new(), Sha512::chain_update);
        let hex: String = digest.finalize()[..11]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut comment = format!("{}{container}\"", comment_of(network));
        if comment.len() > MAX_COMMENT {
            comment.truncate(MAX_COMMENT - 2);
            comment.push_str("...");
            comment.truncate(MAX_COMMENT);
        }
        Chain {
            name: format!("{PREFIX}{hex:.21}"),
            comment,
        }
    }

    /// The chain of an entry rule, if its comment names the network.
    pub fn named(network: &NetworkName, comment: &str, target: &str) -> Option<Chain> {
        let is_own = target.starts_with(PREFIX) && comment.starts_with(&comment_of(network));
        is_own.then(|| Chain {
            name: target.to_owned(),
            comment: comment.to_owned(),
        })
    }

    /// A chain whose owner does not matter.
    pub fn with_name(name: &str) -> Chain {
        Chain {
            name: name.to_owned(),
            comment: String::new(),
        }
    }

    /// Whether the comment of an entry rule is that of another container, whose chain has the same name.
    pub fn is_of_other(&self, comment: &str) -> bool {
        !self.comment.is_empty() && comment.starts_with("dnat name: ") && comment != self.comment
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the chain of source NAT, which the Go plugin had before 0.8.
    pub fn old_snat(&self) -> String {
        self.name.replacen(PREFIX, "CNI-SN-", 1)
    }

    /// The rules that lead packets to the chain: for each protocol, one rule for each fifteen ports.
    fn entries(&self, forwarded: &Forwarded) -> Vec<String> {
        let conditions = forwarded.settings.conditions(forwarded.address.family());
        let conditions: String = conditions.iter().map(|word| format!(" {word}")).collect();
        let comment = self.comment.replace('"', "\\\"");
        let mut entries = Vec::new();
        for protocol in Protocol::ALL {
            let of_protocol = forwarded
                .mappings
                .iter()
                .filter(|it| it.protocol == protocol);
            let ports: Vec<String> = of_protocol.map(|it| it.host_port.to_string()).collect();
            entries.extend(ports.chunks(MAX_PORTS).map(|ports| {
                let ports = ports.join(",");
                format!(
                    "-A {DNAT} -p {protocol} -m comment --comment \"{comment}\" -m multiport --dports {ports}{conditions} -j {}",
                    self.name
                )
            }));
        }
        entries
    }

    /// The rules of the chain.
    fn rules(&self, forwarded: &Forwarded) -> Vec<String> {
        let family = forwarded.address.family();
        let of_family = forwarded.mappings.iter().filter(|it| it.applies_to(family));
        of_family
            .flat_map(|mapping| self.rules_of(mapping, forwarded))
            .collect()
    }

    fn rules_of(&self, mapping: &PortMapping, forwarded: &Forwarded) -> Vec<String> {
        let Forwarded {
            address, settings, ..
        } = forwarded;
        let family = address.family();
        let target = match &settings.mark {
            MarkChain::Own { .. } => SET_MARK,
            MarkChain::External(chain) => chain,
        };
        let sources = match (settings.source_nat, family) {
            (SourceNat::None, _) => Vec::new(),
            // iptables-save omits a match of all addresses.
            (SourceNat::All, _) => vec![String::new()],
            (SourceNat::Local, Family::V4) => {
                vec![
                    format!("-s {} ", address.network()),
                    "-s 127.0.0.1/32 ".to_owned(),
                ]
            }
            (SourceNat::Local, Family::V6) => vec![format!("-s {} ", address.network())],
        };
        let to = mapping.host_address().map(Cidr::host);
        let to = to.map_or(String::new(), |to| format!("-d {to} "));
        let (protocol, port) = (mapping.protocol, mapping.host_port);
        let rule = |source: &str, target: &str| {
            format!(
                "-A {} {source}{to}-p {protocol} -m {protocol} --dport {port} -j {target}",
                self.name
            )
        };
        let destination = match family {
            Family::V4 => address.address().to_string(),
            Family::V6 => format!("[{}]", address.address()),
        };
        let dnat = format!(
            "DNAT --to-destination {destination}:{}",
            mapping.container_port
        );
        let marks = sources.iter().map(|source| rule(source, target));
        marks.chain([rule("", &dnat)]).collect()
    }

    /// Forwards the ports, in place of those that the container has: the shared chains and rules that a listing lacks,
    /// then the container's own. `stale` chains are removed.
    pub fn install(
        &self,
        forwarded: &Forwarded,
        listing: &Listing,
        stale: &BTreeSet<String>,
    ) -> String {
        let mut lines = shared(forwarded, listing);
        for chain in stale {
            lines.extend(listing.jumps_to(chain).map(|rule| deletion(rule)));
            lines.extend(emptying(chain));
        }
        lines.extend(self.jumps(listing).map(|rule| deletion(rule)));
        lines.push(match listing.has_chain(&self.name) {
            true => format!("-F {}", self.name),
            false => format!("-N {}", self.name),
        });
        lines.extend(self.rules(forwarded));
        lines.extend(self.entries(forwarded));
        transaction("nat", &lines).unwrap_or_default()
    }

    /// Removes the chain, its jumps and the chain of old versions of the Go plugin, and with the last container the shared
    /// chains. `None` if a listing has neither chain.
    pub fn remove(&self, listing: &Listing) -> Option<String> {
        let snat = self.old_snat();
        let own = [self.name.as_str(), &snat];
        let mut lines = Vec::new();
        for chain in own.into_iter().filter(|chain| listing.has_chain(chain)) {
            lines.extend(listing.jumps_to(chain).map(|rule| deletion(rule)));
            lines.extend(emptying(chain));
        }
        let prefix = format!("-A {DNAT} ");
        let is_other = |rule: &&String| {
            rule.starts_with(&prefix) && !rule.ends_with(&format!(" -j {}", self.name))
        };
        if listing.rules().any(|rule| is_other(&rule)) {
            return transaction("nat", &lines);
        }
        let is_own = |rule: &&String| {
            own.iter()
                .any(|chain| rule.starts_with(&format!("-A {chain} ")))
        };
        for chain in [DNAT, MASQUERADE, SET_MARK] {
            // Other programs may use the chain that sets the mark.
            let mut others = listing.jumps_to(chain).filter(|rule| !is_own(rule));
            if listing.has_chain(chain) && (chain != SET_MARK || others.next().is_none()) {
                let jumps = listing.jumps_to(chain).filter(|rule| !is_own(rule));
                lines.extend(jumps.map(|rule| deletion(rule)));
                lines.extend(emptying(chain));
            }
        }
        transaction("nat", &lines)
    }

    /// What a listing lacks of the forwarding, or has in excess.
    pub fn difference(&self, forwarded: &Forwarded, listing: &Listing) -> Option<String> {
        let prefix = format!("-A {} ", self.name);
        let present = listing.rules().filter(|rule| rule.starts_with(&prefix));
        if !present.eq(self.rules(forwarded).iter()) {
            return Some(format!("the rules of {self} differ"));
        }
        // iptables may list conditions in another notation.
        let has_conditions = !forwarded
            .settings
            .conditions(forwarded.address.family())
            .is_empty();
        let entries = self.entries(forwarded);
        let mut present: Vec<&String> = self.jumps(listing).collect();
        for entry in &entries {
            let is_present = |rule: &&String| match has_conditions {
                true => ["-p ", "--comment ", "--dports "]
                    .iter()
                    .all(|option| argument(rule, option) == argument(entry, option)),
                false => **rule == *entry,
            };
            match present.iter().position(is_present) {
                Some(index) => drop(present.remove(index)),
                None => return Some(format!("{DNAT} lacks the rule {entry}")),
            }
        }
        if let Some(other) = present.first() {
            return Some(format!(
                "{DNAT} has another rule for the container: {other}"
            ));
        }
        shared(forwarded, listing)
            .first()
            .map(|line| format!("the nat table lacks: {line}"))
    }

    /// Whether another container has the chain of this name.
    pub fn has_other_owner(&self, listing: &Listing) -> bool {
        self.jumps(listing).any(|entry| {
            let comment = argument(entry, "--comment ").unwrap_or_default();
            self.is_of_other(&comment.replace("\\\"", "\""))
        })
    }

    /// The addresses to which the chain forwards.
    pub fn addresses(&self, listing: &Listing) -> BTreeSet<IpAddr> {
        let own = mapped(listing)
            .into_iter()
            .filter(|it| it.object == self.name);
        own.map(|it| it.address).collect()
    }

    /// The rules with a jump to the chain.
    fn jumps<'l>(&self, listing: &'l Listing) -> impl Iterator<Item = &'l String> {
        listing.jumps_to(&self.name)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}", self.name)
    }
}

/// The chains and rules that containers share, as far as a listing lacks them.
fn shared(forwarded: &Forwarded, listing: &Listing) -> Vec<String> {
    let mut lines = Vec::new();
    let new = |chain: &str| (!listing.has_chain(chain)).then(|| format!("-N {chain}"));
    let has_rules = |chain: &str| {
        let prefix = format!("-A {chain} ");
        listing.rules().any(|rule| rule.starts_with(&prefix))
    };
    if let (SourceNat::Local | SourceNat::All, MarkChain::Own { bit }) =
        (forwarded.settings.source_nat, &forwarded.settings.mark)
    {
        let mark = format!("{:#x}/{:#x}", 1_u32 << bit, 1_u32 << bit);
        lines.extend([SET_MARK, MASQUERADE].into_iter().filter_map(new));
        // If another network has set another bit, it serves all networks.
        if !has_rules(SET_MARK) {
            lines.push(format!(
                "-A {SET_MARK} -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark}"
            ));
        }
        if !has_rules(MASQUERADE) {
            lines.push(format!(
                "-A {MASQUERADE} -m mark --mark {mark} -j MASQUERADE"
            ));
        }
        lines.extend(move_to_top(listing));
    }
    lines.extend(new(DNAT));
    for hook in HOOKS {
        let jump = jump_from(hook);
        if !listing.has(&jump) {
            lines.push(jump);
        }
    }
    lines
}

/// The rule with the jump from a base chain to [`DNAT`].
pub fn jump_from(hook: &str) -> String {
    format!("-A {hook} -m addrtype --dst-type LOCAL -j {DNAT}")
}

/// The rule with the jump to [`MASQUERADE`].
pub fn masquerade_jump() -> String {
    format!(
        "-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j {MASQUERADE}"
    )
}

/// Inserts the jump to [`MASQUERADE`] at the top of POSTROUTING, unless it precedes all rules that end the evaluation.
fn move_to_top(listing: &Listing) -> Vec<String> {
    let jump = masquerade_jump();
    let rules = listing.rules();
    let mut before = rules.filter(|rule| rule.starts_with("-A POSTROUTING "));
    let ends = |rule: &String| {
        let target = rule.split(" -j ").nth(1).unwrap_or_default();
        TERMINAL.contains(&target.split(' ').next().unwrap_or_default())
    };
    if before.find(|rule| **rule == jump || ends(rule)) == Some(&jump) {
        return Vec::new();
    }
    let copies = listing.rules().filter(|rule| **rule == jump);
    let mut lines: Vec<String> = copies.map(|rule| deletion(rule)).collect();
    lines.push(jump.replacen("-A POSTROUTING", "-I POSTROUTING 1", 1));
    lines
}

/// The beginning of the comments of a network's entry rules.
fn comment_of(network: &NetworkName) -> String {
    format!("dnat name: \"{network}\" id: \"")
}

#[cfg(test)]
mod tests;
