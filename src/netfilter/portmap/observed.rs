//! What a plan needs of the nat table of iptables-nft, over netlink. iptables-save would list the rules of all containers.

use crate::kernel::nftables::{Nftables, NftablesError, RuleEntry, Table, multiport};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::portmap::rules::{
    Chain, DNAT, HOOKS, MASQUERADE, SET_MARK, jump_from, masquerade_jump,
};
use crate::netfilter::portmap::{Forwarded, MarkChain};

/// The shared chains and rules. `None` if the plan needs the whole listing: one of the attachment's chains exists, an entry
/// rule has one of its ports, or a shared rule is not where it belongs.
///
/// # Errors
/// When the kernel refuses the query.
pub fn listing(
    nftables: &Nftables,
    table: Table,
    chains: &[Chain],
    forwarded: &Forwarded,
) -> Result<Option<Listing>, NftablesError> {
    for chain in chains {
        if nftables.chain(table, chain.name())?.is_some() {
            return Ok(None);
        }
    }
    let mut listing = Listing::default();
    let mut shared = vec![DNAT, SET_MARK, MASQUERADE];
    if let MarkChain::External(chain) = &forwarded.settings.mark {
        shared.push(chain);
    }
    for chain in shared {
        if nftables.chain(table, chain)?.is_some() {
            listing.chains.push(chain.to_owned());
        }
    }
    if listing.has_chain(DNAT) {
        let entries = nftables.rules(table, Some(DNAT))?;
        if entries.iter().any(|entry| may_overlap(entry, forwarded)) {
            return Ok(None);
        }
        for hook in HOOKS {
            let rules = nftables.rules(table, Some(hook))?;
            if rules.iter().any(|rule| rule.target() == Some(DNAT)) {
                listing.rules.push(jump_from(hook));
            }
        }
    }
    for chain in [SET_MARK, MASQUERADE] {
        if listing.has_chain(chain) && !nftables.rules(table, Some(chain))?.is_empty() {
            listing.rules.push(format!("-A {chain} -j …"));
        }
    }
    let rules = nftables.rules(table, Some("POSTROUTING"))?;
    let is_jump = |rule: &RuleEntry| rule.target() == Some(MASQUERADE);
    if let Some(position) = rules.iter().position(is_jump) {
        // Only rules that jump let packets pass.
        if rules[..position].iter().any(|rule| rule.target().is_none()) {
            return Ok(None);
        }
        listing.rules.push(masquerade_jump());
    }
    Ok(Some(listing))
}

fn may_overlap(entry: &RuleEntry, forwarded: &Forwarded) -> bool {
    let ports = multiport(entry);
    let mut own = forwarded.mappings.iter();
    ports.is_empty() || own.any(|it| ports.contains(&it.host_port.get()))
}
