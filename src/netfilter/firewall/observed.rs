//! What a plan needs of the filter table of iptables-nft, over netlink. iptables-save would list the rules of all
//! containers.

use crate::kernel::nftables::{Nftables, NftablesError, RuleEntry, comment, is_final};
use crate::net::Family;
use crate::netfilter::firewall::isolation::{Isolation, is_about};
use crate::netfilter::firewall::nftables::accepting;
use crate::netfilter::firewall::rules::{
    STAGE_1, STAGE_2, admin_jump, forward_jump, isolation_jump, isolation_rules, return_rule,
};
use crate::netfilter::firewall::{ACCEPT, Wanted};
use crate::netfilter::iptables_save::Listing;

/// The shared chains and rules. `None` if the plan needs the whole listing: the addresses are accepted already, or the
/// bridge has rules of another policy.
///
/// # Errors
/// When the kernel refuses the query.
pub fn listing(
    nftables: &Nftables,
    family: Family,
    wanted: &Wanted,
) -> Result<Option<Listing>, NftablesError> {
    let table = Isolation::of_iptables(family).table;
    if !accepting(nftables, family, wanted.addresses)?.is_empty() {
        return Ok(None);
    }
    let mut listing = Listing::default();
    let admin_chain = &wanted.settings.admin_chain;
    for chain in [ACCEPT, admin_chain, STAGE_1, STAGE_2] {
        if nftables.chain(table, chain)?.is_some() {
            listing.chains.push(chain.to_owned());
        }
    }
    if nftables.drops_by_policy(table, "FORWARD")? == Some(true) {
        listing.drop_policies.push("FORWARD".to_owned());
    }
    for rule in nftables.rules(table, Some("FORWARD"))? {
        listing.rules.push(match rule.target() {
            Some(ACCEPT) => forward_jump(),
            Some(STAGE_1) if isolation_jump().contains(&*comment(&rule)) => isolation_jump(),
            Some(STAGE_1) => return Ok(None),
            _ if is_final(&rule) && rule.accepts() => "-A FORWARD -j ACCEPT".to_owned(),
            _ if is_final(&rule) => "-A FORWARD -j DROP".to_owned(),
            _ => "-A FORWARD …".to_owned(),
        });
    }
    if listing.has_chain(ACCEPT) {
        let rules = nftables.rules(table, Some(ACCEPT))?;
        if rules.iter().any(|rule| rule.target() == Some(admin_chain)) {
            listing.rules.push(admin_jump(admin_chain));
        }
    }
    let ingress = &wanted.settings.ingress;
    for (chain, wanted) in [STAGE_1, STAGE_2].into_iter().zip(isolation_rules(ingress)) {
        let Some(bridge) = ingress.bridge().filter(|_| listing.has_chain(chain)) else {
            continue;
        };
        let rules = nftables.rules(table, Some(chain))?;
        let own = rules.iter().filter(|rule| is_about(rule, bridge));
        let own: Vec<&RuleEntry> = own.collect();
        if !own.is_empty() && !own.iter().zip(&wanted).all(|(it, rule)| is_same(it, rule))
            || own.len() > wanted.len()
        {
            return Ok(None);
        }
        listing.rules.extend(wanted.into_iter().take(own.len()));
        if rules.iter().any(RuleEntry::returns) {
            listing.rules.push(return_rule(chain));
        }
    }
    Ok(Some(listing))
}

/// Whether a rule has the comment and target of a listed one.
fn is_same(rule: &RuleEntry, listed: &str) -> bool {
    let ends = match rule.target() {
        Some(chain) => listed.ends_with(&format!(" -j {chain}")),
        None => rule.drops() && listed.ends_with(" -j DROP"),
    };
    ends && listed.contains(&format!("\"{}\"", comment(rule)))
}
