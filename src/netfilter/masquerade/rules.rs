//! The iptables rules of an attachment as data, and the transactions that add and remove them.
//! Chain names, rules and their order in POSTROUTING are those of the Go plugin, so that either plugin can remove the
//! other's rules. All text is in the format of iptables-save(8).

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::cni::ValidAttachments;
use crate::cni::names::{ContainerId, NetworkName};
use crate::kernel::nat::PortAllocation;
use crate::net::{Cidr, Family};
use crate::netfilter::iptables_save::{Listing, deletion, emptying, transaction};
use crate::netfilter::masquerade::Policy;

/// The longest comment in bytes, without its terminator (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h).
const MAX_COMMENT: usize = 255;

/// The chain of a container on a network, shared by all its interfaces there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    comment: String,
}

impl Chain {
    pub fn of(network: &NetworkName, container: &ContainerId) -> Chain {
        let digest = Sha512::new()
            .chain_update(network.as_str())
            .chain_update(container.as_str());
        let hex: String = digest.finalize()[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut comment = format!("{}{container}\"", comment_of(network));
        comment.truncate(MAX_COMMENT);
        Chain {
            name: format!("CNI-{hex}"),
            comment,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules for addresses of one family: excluded destinations, masquerading, then the jump rules in POSTROUTING.
    pub fn rules(&self, addresses: &[Cidr], policy: &Policy) -> Vec<String> {
        let Some(family) = addresses.first().map(|address| address.family()) else {
            return Vec::new();
        };
        let mut rules: Vec<String> = Vec::new();
        let subnets = addresses.iter().map(|address| address.network());
        for network in subnets.chain(policy.non_masquerade_cidrs_of(family)) {
            // iptables-save omits a match of all addresses.
            let matching = match network.is_default() {
                true => String::new(),
                false => format!("-d {network} "),
            };
            let accept = self.rule(&self.name, &matching, "ACCEPT");
            if !rules.contains(&accept) {
                rules.push(accept);
            }
        }
        rules.push(self.masquerading(family, policy));
        rules.extend(addresses.iter().map(|address| self.jump(address.address())));
        rules
    }

    /// The first of these addresses of one family for which a listing lacks a rule.
    /// The jump rule may match the whole subnet, as in old versions of the Go plugin.
    pub fn lacking(&self, addresses: &[Cidr], policy: &Policy, listing: &Listing) -> Option<Cidr> {
        let target = format!("-j {}", self.name);
        let is_jump = |rule: &&String| rule.ends_with(&target) && !rule.contains(" ! -s ");
        let jumps: Vec<&String> = listing.rules.iter().filter(is_jump).collect();
        let is_served = |address: &Cidr| {
            let rules = self.rules(&[*address], policy);
            // The last one is the jump rule.
            let mut in_chain = rules.iter().rev().skip(1);
            let matches = |rule: &&String| comes_from(rule, &[address.address()]);
            in_chain.all(|rule| listing.has(rule)) && jumps.iter().any(matches)
        };
        addresses
            .iter()
            .copied()
            .find(|address| !is_served(address))
    }

    fn masquerading(&self, family: Family, policy: &Policy) -> String {
        let multicast = match family {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        };
        let mut target = match policy.source_of(family) {
            Some(source) => format!("SNAT --to-source {source}"),
            None => "MASQUERADE".to_owned(),
        };
        if policy.ports == PortAllocation::Random {
            target.push_str(" --random-fully");
        }
        self.rule(&self.name, &format!("! -d {multicast} "), &target)
    }

    fn jump(&self, address: IpAddr) -> String {
        self.rule(
            "POSTROUTING",
            &format!("-s {} ", Cidr::host(address)),
            &self.name,
        )
    }

    fn rule(&self, chain: &str, matching: &str, target: &str) -> String {
        let comment = self.comment.replace('"', "\\\"");
        format!("-A {chain} {matching}-m comment --comment \"{comment}\" -j {target}")
    }

    /// Creates the chain with its rules; refused by the kernel if the chain exists.
    pub fn create(&self, addresses: &[Cidr], policy: &Policy) -> String {
        let mut lines = vec![format!("-N {}", self.name)];
        lines.extend(self.rules(addresses, policy));
        nat(lines)
    }

    /// Adds the rules that a listing lacks, each at its place, and removes those of another policy; `None` if nothing
    /// differs.
    /// The chain exists because another interface of the container uses it, an ADD was interrupted, or rules are
    /// restored.
    pub fn complete(
        &self,
        addresses: &[Cidr],
        policy: &Policy,
        listing: &Listing,
    ) -> Option<String> {
        let is_new = !listing.has_chain(&self.name);
        let wanted = self.rules(addresses, policy);
        let mut lines = self.outdated(&wanted, listing);
        if is_new {
            lines.push(format!("-N {}", self.name));
        }
        let in_chain = format!("-A {} ", self.name);
        for rule in wanted {
            if listing.has(&rule) {
                continue;
            }
            // Accept rules must precede the existing masquerade rule.
            lines.push(match rule.strip_prefix(&in_chain) {
                Some(rest) if !is_new && is_accepting(&rule) => {
                    format!("-I {} 1 {rest}", self.name)
                }
                _ => rule,
            });
        }
        transaction("nat", &lines)
    }

    /// Deletes rules of another policy. An accept rule for a subnet with a jump rule belongs to another interface of
    /// the container.
    fn outdated(&self, wanted: &[String], listing: &Listing) -> Vec<String> {
        let in_chain = format!("-A {} ", self.name);
        let target = format!("-j {}", self.name);
        let present = listing.rules.iter();
        let snat_addresses: Vec<Cidr> = present
            .clone()
            .filter(|rule| rule.ends_with(&target))
            .filter_map(|rule| argument(rule, "-s"))
            .collect();
        let is_needed = |rule: &String| {
            let subnet = argument(rule, "-d").filter(|_| is_accepting(rule));
            subnet.is_some_and(|subnet| {
                snat_addresses
                    .iter()
                    .any(|it| subnet.contains(it.address()))
            })
        };
        let others = present.filter(|rule| rule.starts_with(&in_chain) && !wanted.contains(rule));
        let outdated = others.filter(|rule| !is_needed(rule));
        outdated.map(|rule| deletion(rule)).collect()
    }

    /// Removes the chain of an attachment with known addresses; refused by the kernel if a rule is missing or another
    /// interface of the container uses the chain.
    pub fn destroy(&self, addresses: &[IpAddr]) -> String {
        let jumps = addresses.iter();
        let jumps = jumps.map(|address| deletion(&self.jump(*address)));
        let mut lines: Vec<String> = jumps.collect();
        lines.extend(emptying(&self.name));
        nat(lines)
    }

    /// Removes what a listing has of an attachment: the jump rules for these addresses, or all if they are unknown, and
    /// the chain if no jump rule is left. `None` if there is nothing.
    pub fn clear(&self, addresses: Option<&[IpAddr]>, listing: &Listing) -> Option<String> {
        transaction("nat", &self.clearing(addresses, listing))
    }

    fn clearing(&self, addresses: Option<&[IpAddr]>, listing: &Listing) -> Vec<String> {
        let target = format!("-j {}", self.name);
        let (mut lines, mut still_used) = (Vec::new(), false);
        for rule in listing.rules.iter().filter(|rule| rule.ends_with(&target)) {
            if addresses.is_none_or(|addresses| comes_from(rule, addresses)) {
                lines.push(deletion(rule));
            } else {
                still_used = true;
            }
        }
        if listing.has_chain(&self.name) && !still_used {
            lines.extend(emptying(&self.name));
        }
        lines
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}", self.name)
    }
}

/// The beginning of the comments of a network's rules.
pub(in crate::netfilter) fn comment_of(network: &NetworkName) -> String {
    format!("name: \"{network}\" id: \"")
}

/// The names of the chains of these containers.
pub fn names_of(network: &NetworkName, valid: &ValidAttachments) -> HashSet<String> {
    let containers = valid.containers();
    containers
        .map(|container| Chain::of(network, container).name)
        .collect()
}

/// Which chains of a network are stale.
#[derive(Clone, Copy)]
pub struct StaleChains<'a> {
    /// Decides by name, for chains whose rules name the network.
    pub is_stale: &'a dyn Fn(&str) -> bool,
    /// Names of chains that are stale even without rules.
    pub known: &'a BTreeSet<String>,
}

/// Removes the stale chains of a network in one transaction; `None` if there are none.
/// Comments name the network; the name of a chain identifies its container, because comments may have been cut.
pub fn gc(network: &NetworkName, stale: StaleChains, listing: &Listing) -> Option<String> {
    let prefix = format!("--comment \"{}", comment_of(network).replace('"', "\\\""));
    let of_network = listing.rules.iter().filter(|rule| rule.contains(&prefix));
    let mut names: BTreeSet<&str> = of_network
        .flat_map(|rule| {
            let mut words = rule.split_whitespace();
            [words.nth(1), words.next_back()]
        })
        .flatten()
        .filter(|name| is_chain_name(name) && (stale.is_stale)(name))
        .collect();
    let present = stale.known.iter().filter(|name| listing.has_chain(name));
    names.extend(present.map(String::as_str));
    let mut lines = Vec::new();
    for name in names {
        let chain = Chain {
            name: name.to_owned(),
            comment: String::new(),
        };
        lines.extend(chain.clearing(None, listing));
    }
    transaction("nat", &lines)
}

/// Whether a name has the form of [`Chain::of`].
pub(in crate::netfilter) fn is_chain_name(name: &str) -> bool {
    let digits = name.strip_prefix("CNI-").unwrap_or_default();
    digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the source of a rule is one of the addresses, or a subnet with one of them, as in old versions of the Go
/// plugin.
fn comes_from(rule: &str, addresses: &[IpAddr]) -> bool {
    let source = argument(rule, "-s");
    source.is_some_and(|source| addresses.iter().any(|address| source.contains(*address)))
}

/// The network that an option of a rule names.
fn argument(rule: &str, option: &str) -> Option<Cidr> {
    let words = rule.split_whitespace();
    let mut words = words.skip_while(|word| *word != option).skip(1);
    words.next()?.parse().ok()
}

fn is_accepting(rule: &str) -> bool {
    rule.ends_with("-j ACCEPT")
}

/// A change of the nat table that is not empty.
fn nat(lines: Vec<String>) -> String {
    transaction("nat", &lines).unwrap_or_default()
}

impl Listing {
    /// The chains of containers: name, network and container ID, as far as the comments are not cut.
    pub fn containers(&self) -> BTreeSet<(String, String, String)> {
        let chains = self.rules.iter().filter_map(|rule| {
            let (_, comment) = rule.split_once("--comment \"name: \\\"")?;
            let (network, rest) = comment.split_once("\\\" id: \\\"")?;
            let container = rest.split(['\\', '"']).next()?;
            let names = [
                rule.split_whitespace().nth(1),
                rule.split_whitespace().next_back(),
            ];
            let chain = names
                .into_iter()
                .flatten()
                .find(|name| is_chain_name(name))?;
            Some((chain.to_owned(), network.to_owned(), container.to_owned()))
        });
        chains.collect()
    }
}

#[cfg(test)]
mod tests;
