//! Finds and removes rules of iptables-nft over netlink: iptables may have been uninstalled since the ADD, or its
//! default variant may have changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::names::NetworkName;
use crate::kernel::nftables::{
    Batch, CompatRule, Field, Nftables, NftablesError, RuleEntry, Table, TableFamily, Target,
    comment,
};
use crate::net::Family;
use crate::netfilter::masquerade::rules::{self, StaleChains};
use crate::netfilter::owned_chain::OwnedChain;

/// The number of chains that one transaction removes, so that it fits into the default send buffer of a socket.
const MAX_CHAINS: usize = 1000;

/// The nat table of iptables-nft.
pub fn nat(family: Family) -> Table {
    Table {
        family: TableFamily::Ip(family),
        name: "nat",
    }
}

/// Where to look for jump rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// In POSTROUTING, where both plugins add them.
    Postrouting,
    /// In all chains: an administrator may have added others, and the kernel does not delete a chain that is in use.
    WholeTable,
}

/// Whether all these rules, in the format of iptables-save, are recognised in the kernel. `false` is not certain:
/// versions of iptables encode the same rule differently.
///
/// # Errors
/// When the kernel refuses a request.
pub fn is_seen_to_hold(
    nftables: &Nftables,
    family: Family,
    rules: &[String],
) -> Result<bool, NftablesError> {
    let mut listed: Vec<RuleEntry> = Vec::new();
    let mut chains: BTreeSet<&str> = BTreeSet::new();
    for (chain, _) in rules.iter().filter_map(|rule| parse(rule)) {
        if chains.insert(chain) {
            listed.extend(nftables.rules(nat(family), Some(chain))?);
        }
    }
    Ok(are_among(&listed, rules))
}

/// Whether all these rules, in the format of iptables-save, are recognised among those of the kernel.
pub fn are_among(listed: &[RuleEntry], rules: &[String]) -> bool {
    rules.iter().all(|rule| {
        parse(rule).is_some_and(|(chain, rule)| {
            let in_chain = listed.iter().filter(|entry| entry.chain == chain);
            rule.is_among(in_chain)
        })
    })
}

/// A rule with one address, a comment and a target without options, as iptables-save(8) writes it, and its chain.
fn parse(rule: &str) -> Option<(&str, CompatRule)> {
    let (matching, rest) = rule.split_once(" -m comment --comment \"")?;
    let (comment, target) = rest.rsplit_once("\" -j ")?;
    let words: Vec<&str> = matching.split(' ').collect();
    let (chain, field, network) = match words[..] {
        ["-A", chain, "-s", network] => (chain, Field::Source, network),
        ["-A", chain, "-d", network] => (chain, Field::Destination, network),
        ["-A", chain, "!", "-d", network] => (chain, Field::NotDestination, network),
        _ => return None,
    };
    let target = match target {
        "ACCEPT" => Target::Accept,
        "MASQUERADE" => Target::Masquerade,
        name if name.starts_with("CNI-") && !name.contains(' ') => Target::Chain(name.to_owned()),
        _ => return None,
    };
    let rule = CompatRule {
        field,
        network: network.parse().ok()?,
        comment: comment.replace("\\\"", "\""),
        target,
    };
    Some((chain, rule))
}

/// The chains of containers: name, network and container ID, as far as the comments are not cut.
pub fn containers(listed: &[RuleEntry]) -> BTreeSet<(String, String, String)> {
    let chains = listed.iter().filter_map(|rule| {
        let comment = comment(rule);
        let (network, rest) = comment.strip_prefix("name: \"")?.split_once("\" id: \"")?;
        let container = rest.split('"').next()?;
        let mut names = [Some(&*rule.chain), rule.target()].into_iter().flatten();
        let chain = names.find(|name| rules::is_chain_name(name))?;
        Some((chain.to_owned(), network.to_owned(), container.to_owned()))
    });
    chains.collect()
}

/// Plans the removal of the jump rules to a container's chain for these addresses, or of all if they are unknown, and
/// of the chain if no jump rule is left.
///
/// # Errors
/// When the kernel does not list them.
pub fn plan_removal(
    nftables: &Nftables,
    batch: &mut Batch,
    (family, chain): (Family, &str),
    (addresses, search): (Option<&[IpAddr]>, Search),
) -> Result<(), NftablesError> {
    let chain = OwnedChain {
        table: nat(family),
        name: chain,
        from: (search == Search::Postrouting).then_some("POSTROUTING"),
    };
    chain.plan_removal(nftables, batch, |jump| {
        addresses.is_none_or(|addresses| {
            let source = jump.source(family);
            source.is_some_and(|source| addresses.iter().any(|it| source.contains(*it)))
        })
    })
}

/// Removes the stale chains of a network with their jump rules. Comments name the network; the `known` chains are
/// removed even without rules.
///
/// # Errors
/// When the kernel refuses.
pub fn gc(
    nftables: &Nftables,
    family: Family,
    network: &NetworkName,
    stale: StaleChains,
) -> Result<(), NftablesError> {
    let table = nat(family);
    let is_of_network = |rule: &&RuleEntry| comment(rule).starts_with(&rules::comment_of(network));
    let plan = || {
        let mut batch = Batch::default();
        let present = nftables.rules(table, None)?;
        let of_network = present.iter().filter(is_of_network);
        let names = of_network.flat_map(|rule| [Some(&*rule.chain), rule.target()]);
        let names: BTreeSet<&str> = names
            .flatten()
            .filter(|name| rules::is_chain_name(name) && (stale.is_stale)(name))
            .collect();
        let mut names: BTreeSet<&str> = names.into_iter().take(MAX_CHAINS).collect();
        for name in stale.known {
            if names.len() < MAX_CHAINS && nftables.chain(table, name)?.is_some() {
                names.insert(name);
            }
        }
        for rule in &present {
            if rule.target().is_some_and(|target| names.contains(target)) {
                batch.delete_rule(table, &rule.chain, rule.handle);
            }
        }
        for name in &names {
            batch.delete_chain(table, name);
        }
        Ok(batch)
    };
    while nftables.change(&plan)? {}
    Ok(())
}
