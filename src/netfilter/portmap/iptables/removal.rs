//! The removal of rules of iptables: those in nf_tables over netlink, those of iptables-legacy with its programs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::NetworkName;
use crate::error::{Error, Failures};
use crate::kernel::nftables::{
    Batch, Nftables, NftablesError, RuleEntry, Table, comment, dnat_address,
};
use crate::net::Family;
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::{Listing, emptying};
use crate::netfilter::lock::serialized;
use crate::netfilter::owned_chain::OwnedChain;
use crate::netfilter::portmap::iptables::{FEATURE, HostPorts, NAT, nat};
use crate::netfilter::portmap::listed::{DNAT, argument};
use crate::netfilter::portmap::rules::{Chain, HOOKS, MASQUERADE, OLD_SNAT, SET_MARK};
use crate::netfilter::portmap::{IsAlive, Mapped, Removal};
use crate::netfilter::tables;

impl HostPorts {
    /// Whether nf_tables has chains of the attachment, or shared chains that no container uses: the Go plugin leaves them.
    pub fn exist_in(&self, nftables: &Nftables) -> Result<bool, NftablesError> {
        for family in Family::BOTH {
            let Some(uses) = nftables.chain(nat(family), DNAT)? else {
                continue;
            };
            if uses as usize <= HOOKS.len() {
                return Ok(true);
            }
            let [shared, separate] = &self.chains;
            for name in [shared.name(), separate.name()] {
                if nftables.chain(nat(family), name)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Plans the removal of the rules of the attachment in nf_tables, also those of the Go plugin, and with the last
    /// container that of the shared chains. `known` are the addresses of prevResult.
    pub fn plan_removal(
        &self,
        nftables: &Nftables,
        (known, is_alive): (&[IpAddr], IsAlive),
        batch: &mut Batch,
    ) -> Result<Removal, NftablesError> {
        let mut all = Removal {
            addresses: BTreeSet::new(),
            is_last: true,
        };
        for family in Family::BOTH {
            let table = nat(family);
            let [shared, separate] = &self.chains;
            let chain = match nftables.chain(table, separate.name())? {
                Some(_) => separate,
                None => shared,
            };
            let rules = nftables.rules(table, Some(chain.name()))?;
            let addresses = rules.iter().filter_map(|rule| dnat_address(rule, family));
            let addresses: BTreeSet<IpAddr> = addresses.collect();
            let is_own = chain == separate || is_of(&addresses, known, is_alive);
            let mut removal = Batch::default();
            all.is_last &= is_own && chain.plan_removal(nftables, table, &mut removal)?;
            if !removal.is_empty() {
                all.addresses.extend(addresses);
            }
            batch.append_batch(removal);
        }
        Ok(all)
    }

    /// Removes the rules of the attachment from the tables of iptables-legacy.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove_from_legacy(
        &self,
        known: &[IpAddr],
        is_alive: IsAlive,
    ) -> Result<Removal, Error> {
        let (mut failures, mut addresses, mut is_last) =
            (Failures::default(), BTreeSet::new(), true);
        for family in Family::BOTH {
            let removed = with_legacy(family, &|listing| {
                let is_unused = !listing.has_chain(DNAT);
                let Some(chain) = self.owned(listing, known, is_alive) else {
                    return (None, (BTreeSet::new(), is_unused));
                };
                let script = chain.remove(listing);
                let [_, deletion] = emptying(DNAT);
                let mut lines = script.iter().flat_map(|script| script.lines());
                let is_last = is_unused || lines.any(|line| line == deletion);
                (script, (chain.addresses(listing), is_last))
            });
            if let Some(Some((of_family, is_last_of_family))) = failures.note(removed) {
                addresses.extend(of_family);
                is_last &= is_last_of_family;
            }
        }
        failures
            .into_result()
            .map(|()| Removal { addresses, is_last })
    }

    /// The chain of the attachment in a listing; that of the Go plugin if it has none, for its leftovers.
    fn owned(&self, listing: &Listing, known: &[IpAddr], is_alive: IsAlive) -> Option<&Chain> {
        let [shared, separate] = &self.chains;
        if listing.has_chain(separate.name()) {
            return Some(separate);
        }
        let addresses = shared.addresses(listing);
        let is_own = !shared.has_other_owner(listing) && is_of(&addresses, known, is_alive);
        is_own.then_some(shared)
    }
}

/// Applies a change to the table of iptables-legacy, if it exists and the program is installed. Returns what `plan`
/// returned for the applied change.
fn with_legacy<T>(
    family: Family,
    plan: &dyn Fn(&Listing) -> (Option<String>, T),
) -> Result<Option<T>, Error> {
    let exists = tables::exists(Variant::Legacy, family, NAT.table)?;
    let Some(iptables) = Iptables::of(Variant::Legacy, family, NAT).filter(|_| exists) else {
        return Ok(None);
    };
    serialized(NAT.name, || {
        let outcome = RefCell::new(None);
        iptables.apply_with_retry(&|listing| {
            let (script, planned) = plan(listing);
            outcome.replace(Some(planned));
            script
        })?;
        Ok(outcome.into_inner())
    })
}

impl Chain {
    /// Plans the removal of the chain in nf_tables, unless another container has it. Returns whether no container has rules
    /// afterwards.
    fn plan_removal(
        &self,
        nftables: &Nftables,
        table: Table,
        batch: &mut Batch,
    ) -> Result<bool, NftablesError> {
        let entries = match nftables.chain(table, self.name())? {
            Some(_) => nftables.rules(table, Some(DNAT))?,
            None => Vec::new(),
        };
        let own = entries
            .iter()
            .filter(|rule| rule.target() == Some(self.name()));
        if own.clone().any(|rule| self.is_of_other(&comment(rule))) {
            return Ok(false);
        }
        let old = self.old_snat();
        for (name, from) in [(self.name(), DNAT), (&old, OLD_SNAT)] {
            let chain = OwnedChain {
                table,
                name,
                from: Some(from),
            };
            chain.plan_removal(nftables, batch, |_| true)?;
        }
        // The Go plugin leaves the shared chains: without entries, only the jumps of the base chains use this one.
        let Some(uses) = nftables.chain(table, DNAT)? else {
            return Ok(true);
        };
        let is_other = |rule: &RuleEntry| rule.target() != Some(self.name());
        let has_own = entries.iter().any(|rule| !is_other(rule));
        if !has_own && uses as usize > HOOKS.len() || entries.iter().any(is_other) {
            return Ok(false);
        }
        for (name, base_chains) in [(DNAT, &HOOKS[..]), (MASQUERADE, &["POSTROUTING"])] {
            for base_chain in base_chains {
                for rule in nftables.rules(table, Some(base_chain))? {
                    if rule.target() == Some(name) {
                        batch.delete_rule(table, base_chain, rule.handle);
                    }
                }
            }
            if nftables.chain(table, name)?.is_some() {
                batch.delete_chain(table, name);
            }
        }
        // Other programs may use the chain that sets the mark.
        if let Some(uses) = nftables.chain(table, SET_MARK)? {
            let own = nftables.rules(table, Some(self.name()))?;
            let jumps = own.iter().filter(|rule| rule.target() == Some(SET_MARK));
            let rules = nftables.rules(table, Some(SET_MARK))?;
            if uses as usize == rules.len() + jumps.count() {
                batch.delete_chain(table, SET_MARK);
            }
        }
        Ok(true)
    }
}

/// Whether a chain that forwards to these addresses belongs to an attachment with known ones. Otherwise it belongs to
/// another interface of the container, or is left over from an earlier address.
fn is_of(addresses: &BTreeSet<IpAddr>, known: &[IpAddr], is_alive: IsAlive) -> bool {
    let mut others = addresses.iter().filter(|it| !known.contains(it));
    let has_known = addresses.iter().any(|it| known.contains(it));
    known.is_empty() || has_known || !others.any(|it| is_alive(*it).unwrap_or(true))
}

/// Removes the rules of a network that belong to no valid attachment.
///
/// # Errors
/// When something could not be listed or removed, after everything else was tried.
pub fn gc(network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let kept: BTreeSet<Chain> = valid
        .all()
        .flat_map(|attachment| HostPorts::of(network, &attachment).chains)
        .collect();
    let (mut failures, mut stale) = (Failures::default(), BTreeSet::new());
    for family in Family::BOTH {
        let listed = failures.note(of_network(network, family));
        stale.extend(listed.into_iter().flatten());
    }
    for chain in stale.difference(&kept) {
        failures.note(remove_chain(chain));
    }
    failures.into_result()
}

/// The chains whose entry rules name a network.
fn of_network(network: &NetworkName, family: Family) -> Result<Vec<Chain>, Error> {
    let entries = FEATURE.with_existing("list rules", |nftables| {
        nftables.rules(nat(family), Some(DNAT))
    })?;
    let named = |rule: &RuleEntry| Chain::named(network, &comment(rule), rule.target()?);
    let mut chains: Vec<Chain> = entries.iter().flatten().filter_map(named).collect();
    let in_legacy = with_legacy(family, &|listing| (None, chains_of(network, listing)))?;
    chains.extend(in_legacy.into_iter().flatten());
    Ok(chains)
}

/// The chains of containers whose entry rules name a network.
fn chains_of(network: &NetworkName, listing: &Listing) -> Vec<Chain> {
    let prefix = format!("-A {DNAT} ");
    let entries = listing.rules().filter(|rule| rule.starts_with(&prefix));
    let chains = entries.filter_map(|entry| {
        let comment = argument(entry, "--comment ")?.replace("\\\"", "\"");
        Chain::named(network, &comment, entry.rsplit_once(" -j ")?.1)
    });
    chains.collect()
}

/// Removes the chains of containers that no longer exist.
///
/// # Errors
/// When something could not be removed, after everything else was tried.
pub fn remove_stale(stale: &[&Mapped]) -> Result<(), Error> {
    let mut failures = Failures::default();
    let chains: BTreeSet<&str> = stale.iter().map(|it| it.object.as_str()).collect();
    for chain in chains {
        failures.note(remove_chain(&Chain::with_name(chain)));
    }
    failures.into_result()
}

fn remove_chain(chain: &Chain) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(FEATURE.with_existing("remove rules", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            for family in Family::BOTH {
                chain.plan_removal(nftables, nat(family), &mut batch)?;
            }
            Ok(batch)
        })
    }));
    for family in Family::BOTH {
        failures.note(with_legacy(family, &|listing| (chain.remove(listing), ())));
    }
    failures.into_result()
}
