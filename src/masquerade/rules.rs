//! Masquerade rules as data: which rules an attachment has, and how the nat table comes to hold them or to lose them.
//!
//! Chain names, rule text and order within POSTROUTING are the reference's, so that either plugin takes down what the
//! other set up. Everything here is text in the language of iptables-save(8); nothing is run.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::cni::ValidAttachments;
use crate::cni::request::Id;
use crate::net::{Cidr, Family};

/// The longest comment of a rule in bytes, without its terminator (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h).
const MAX_COMMENT: usize = 255;

/// The chain of a container on a network, shared by all its interfaces there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    comment: String,
}

impl Chain {
    /// The chain of that container on that network.
    pub fn of(network: &Id, container: &Id) -> Chain {
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

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules that masquerade these addresses, which are of one family: first what stays unmasqueraded, then the
    /// masquerading, then the ways into the chain.
    fn rules(&self, addresses: &[Cidr]) -> Vec<String> {
        let Some(family) = addresses.first().map(|address| address.family()) else {
            return Vec::new();
        };
        let mut rules: Vec<String> = Vec::new();
        for address in addresses {
            let accept = self.rule(&self.name, &format!("-d {}", address.network()), "ACCEPT");
            if !rules.contains(&accept) {
                rules.push(accept);
            }
        }
        rules.push(self.masquerading(family));
        rules.extend(addresses.iter().map(|address| self.jump(address.address())));
        rules
    }

    /// The first of these addresses, which are of one family, that a listing does not masquerade in full.
    ///
    /// The way into the chain may be that of the whole subnet, as old versions of the reference wrote it.
    pub fn lacking(&self, addresses: &[Cidr], listing: &Listing) -> Option<Cidr> {
        let target = format!("-j {}", self.name);
        let leads_in = |rule: &&String| rule.ends_with(&target);
        let ways_in: Vec<&String> = listing.rules.iter().filter(leads_in).collect();
        let is_served = |address: &Cidr| {
            let rules = self.rules(&[*address]);
            // The last one is the way in.
            let mut in_chain = rules.iter().rev().skip(1);
            let comes_in = |rule: &&String| comes_from(rule, &[address.address()]);
            in_chain.all(|rule| listing.has(rule)) && ways_in.iter().any(comes_in)
        };
        addresses
            .iter()
            .copied()
            .find(|address| !is_served(address))
    }

    fn masquerading(&self, family: Family) -> String {
        let multicast = match family {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        };
        self.rule(&self.name, &format!("! -d {multicast}"), "MASQUERADE")
    }

    fn jump(&self, address: IpAddr) -> String {
        self.rule(
            "POSTROUTING",
            &format!("-s {}", Cidr::host(address)),
            &self.name,
        )
    }

    fn rule(&self, chain: &str, matching: &str, target: &str) -> String {
        let comment = self.comment.replace('"', "\\\"");
        format!("-A {chain} {matching} -m comment --comment \"{comment}\" -j {target}")
    }

    /// Makes the chain with its rules; the kernel refuses it when there is such a chain already.
    pub fn create(&self, addresses: &[Cidr]) -> String {
        transaction(
            [format!("-N {}", self.name)]
                .into_iter()
                .chain(self.rules(addresses)),
        )
    }

    /// Adds what a listing lacks for these addresses, each rule at its place; `None` when it lacks nothing.
    ///
    /// The chain is there because another interface of the container uses it, or was left by an ADD that died.
    pub fn complete(&self, addresses: &[Cidr], listing: &Listing) -> Option<String> {
        let new_chain = (!listing.has_chain(&self.name)).then(|| format!("-N {}", self.name));
        let missing = self
            .rules(addresses)
            .into_iter()
            .filter(|rule| !listing.has(rule));
        let first_in_chain = format!("-A {} -d ", self.name);
        // What is accepted must come before the masquerading that is there already.
        let placed = missing.map(|rule| match rule.strip_prefix(&first_in_chain) {
            Some(rest) if new_chain.is_none() => format!("-I {} 1 -d {rest}", self.name),
            _ => rule,
        });
        let lines: Vec<String> = new_chain.clone().into_iter().chain(placed).collect();
        (!lines.is_empty()).then(|| transaction(lines))
    }

    /// Takes down the chain of an attachment whose addresses are known; the kernel refuses it when anything of it is
    /// missing, or when another interface of the container uses the chain.
    pub fn destroy(&self, addresses: &[IpAddr]) -> String {
        let jumps = addresses
            .iter()
            .map(|address| deletion(&self.jump(*address)));
        transaction(jumps.chain(self.emptying()))
    }

    /// Takes down whatever a listing holds of an attachment: the ways into the chain from these addresses (all of them
    /// when they are not known), and the chain itself when no other way leads into it. `None` when there is nothing.
    pub fn clear(&self, addresses: Option<&[IpAddr]>, listing: &Listing) -> Option<String> {
        let lines = self.clearing(addresses, listing);
        (!lines.is_empty()).then(|| transaction(lines))
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
            lines.extend(self.emptying());
        }
        lines
    }

    fn emptying(&self) -> [String; 2] {
        [format!("-F {}", self.name), format!("-X {}", self.name)]
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}", self.name)
    }
}

/// What the comments of all rules of a network begin with.
fn comment_of(network: &Id) -> String {
    format!("name: \"{network}\" id: \"")
}

/// The names of the chains of these containers.
pub fn names_of(network: &Id, valid: &ValidAttachments) -> HashSet<String> {
    let containers = valid.containers();
    containers
        .map(|container| Chain::of(network, container).name)
        .collect()
}

/// Takes down the chains of a network whose names are stale, in one transaction; `None` when there are none.
///
/// The comments tell the network, the names of chains whose they are: comments may have been cut.
pub fn sweep(network: &Id, is_stale: &dyn Fn(&str) -> bool, listing: &Listing) -> Option<String> {
    let mark = format!("--comment \"{}", comment_of(network).replace('"', "\\\""));
    let of_network = listing.rules.iter().filter(|rule| rule.contains(&mark));
    let names: BTreeSet<&str> = of_network
        .flat_map(|rule| {
            let mut words = rule.split_whitespace();
            [words.nth(1), words.next_back()]
        })
        .flatten()
        .filter(|name| is_chain_name(name) && is_stale(name))
        .collect();
    let lines: Vec<String> = names
        .into_iter()
        .flat_map(|name| {
            let chain = Chain {
                name: name.to_owned(),
                comment: String::new(),
            };
            chain.clearing(None, listing)
        })
        .collect();
    (!lines.is_empty()).then(|| transaction(lines))
}

fn is_chain_name(name: &str) -> bool {
    let digits = name.strip_prefix("CNI-").unwrap_or_default();
    digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the source of a rule is one of the addresses, or a subnet with one of them, as old versions of the
/// reference wrote it.
fn comes_from(rule: &str, addresses: &[IpAddr]) -> bool {
    let mut words = rule
        .split_whitespace()
        .skip_while(|word| *word != "-s")
        .skip(1);
    let source: Option<Cidr> = words.next().and_then(|word| word.parse().ok());
    source.is_some_and(|source| addresses.iter().any(|address| source.contains(*address)))
}

fn deletion(rule: &str) -> String {
    match rule.strip_prefix("-A ") {
        Some(rest) => format!("-D {rest}"),
        None => rule.to_owned(),
    }
}

fn transaction(lines: impl IntoIterator<Item = String>) -> String {
    let lines: Vec<String> = lines.into_iter().collect();
    format!("*nat\n{}\nCOMMIT\n", lines.join("\n"))
}

/// What the nat table holds, as iptables-save(8) prints it.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Listing {
    /// Reads the output of `iptables-save -t nat`.
    pub fn parse(text: &str) -> Listing {
        let mut listing = Listing::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                listing
                    .chains
                    .extend(chain.split_whitespace().next().map(str::to_owned));
            } else if line.starts_with("-A ") {
                listing.rules.push(line.trim_end().to_owned());
            }
        }
        listing
    }

    /// The chains of containers: name, network and container, as far as the comments that tell them are not cut.
    pub fn containers(&self) -> BTreeSet<(String, String, String)> {
        let told = self.rules.iter().filter_map(|rule| {
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
        told.collect()
    }

    fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain == name)
    }

    fn has(&self, rule: &str) -> bool {
        self.rules.iter().any(|present| present == rule)
    }
}

#[cfg(test)]
mod tests;
