//! The iptables backend: one `iptables-restore` transaction per address family, whatever the number of ports. Rules in
//! nf_tables, including those of iptables-nft, are removed over netlink.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Batch, Nftables, NftablesError, Table, TableFamily, comment};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::iptables::{Iptables, Outcome, TableUse, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::lock::serialized;
use crate::netfilter::owned_chain::OwnedChain;
use crate::netfilter::portmap::rules::{
    self, Chain, DNAT, HOOKS, MASQUERADE, Mapped, OLD_SNAT, SET_MARK, mapped,
};
use crate::netfilter::portmap::{Forwarded, MarkChain, PortMapping};
use crate::netfilter::tables;

pub(super) const NAT: TableUse = TableUse {
    table: "nat",
    name: "portmap",
};

const FEATURE: Feature = Feature {
    name: NAT.name,
    remedy: "it needs nf_tables, or the legacy iptables in use",
};

fn nat(family: Family) -> Table {
    Table {
        family: TableFamily::Ip(family),
        name: NAT.table,
    }
}

/// Whether an address belongs to a container that exists. Looked up only for ports that are mapped already.
pub type IsAlive<'a> = &'a (dyn Fn(IpAddr) -> Result<bool, Error> + Sync);

/// The mapped ports of an attachment.
#[derive(Clone, Debug)]
pub struct HostPorts {
    pub(super) chain: Chain,
}

impl HostPorts {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> HostPorts {
        HostPorts {
            chain: Chain::of(network, &attachment.container),
        }
    }

    /// Forwards the ports, in place of those that the container has. Rules of containers that no longer exist are
    /// removed if they forward the same port.
    ///
    /// # Errors
    /// Before anything is changed: when iptables is not installed, another container has one of the ports, or the
    /// external chain does not exist. When iptables fails; one family may have its rules.
    pub fn install(&self, forwarded: &[Forwarded], is_alive: IsAlive) -> Result<(), Error> {
        let find = |forwarded: &Forwarded| {
            let family = forwarded.address.family();
            Iptables::default_for(family, NAT).ok_or_else(|| not_installed(family))
        };
        let programs: Vec<Iptables> = forwarded.iter().map(find).collect::<Result<_, _>>()?;
        serialized(NAT.name, || {
            self.install_with(programs, forwarded, is_alive)
        })
    }

    fn install_with(
        &self,
        programs: Vec<Iptables>,
        forwarded: &[Forwarded],
        is_alive: IsAlive,
    ) -> Result<(), Error> {
        let listings = concurrently(&programs, Iptables::list).into_iter();
        let listings: Vec<Listing> = listings.collect::<Result<_, _>>()?;
        let mut changes = Vec::new();
        for ((forwarded, iptables), listing) in forwarded.iter().zip(programs).zip(&listings) {
            let script = self.plan(forwarded, listing, is_alive)?;
            changes.push((forwarded, iptables, script));
        }
        let mut failures = Failures::default();
        for installed in concurrently(&changes, |(forwarded, iptables, script)| {
            match iptables.commit(script)? {
                Outcome::Committed => Ok(()),
                Outcome::Refused(_) => self.install_again(forwarded, iptables, is_alive),
            }
        }) {
            failures.note(installed);
        }
        failures.into_result()
    }

    /// Installs rules in a table that is changed concurrently.
    fn install_again(
        &self,
        forwarded: &Forwarded,
        iptables: &Iptables,
        is_alive: IsAlive,
    ) -> Result<(), Error> {
        let rejected = RefCell::new(None);
        iptables.apply_with_retry(&|listing| {
            let plan = self.plan(forwarded, listing, is_alive);
            plan.map_err(|error| rejected.replace(Some(error))).ok()
        })?;
        rejected.into_inner().map_or(Ok(()), Err)
    }

    fn plan(
        &self,
        forwarded: &Forwarded,
        listing: &Listing,
        is_alive: IsAlive,
    ) -> Result<String, Error> {
        if let MarkChain::External(chain) = &forwarded.settings.mark
            && !listing.has_chain(chain)
        {
            let family = forwarded.address.family();
            let wanted = format!("the nat table of {family} has no such chain");
            return Err(Error::config(
                "externalSetMarkChain",
                format!("{chain:?}"),
                wanted,
            ));
        }
        let family = forwarded.address.family();
        let mut stale = BTreeSet::new();
        for other in mapped(listing) {
            let mut own = forwarded.mappings.iter();
            let overlapping = own.find(|it| it.applies_to(family) && it.overlaps(&other.mapping));
            let Some(own) = overlapping.filter(|_| other.chain != self.chain.name()) else {
                continue;
            };
            if is_alive(other.address)? {
                return Err(conflict(own, &other));
            }
            stale.insert(other.chain);
        }
        Ok(self.chain.install(forwarded, listing, &stale))
    }

    /// Removes the rules of the container, also those of the Go plugin, from both families and variants, and with the
    /// last container the shared chains.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        for family in Family::BOTH {
            failures.note(FEATURE.with_existing("remove rules", |nftables| {
                nftables.change(&|| self.plan_removal(nftables, nat(family)))
            }));
            let has_table = failures.note(tables::exists(Variant::Legacy, family, NAT.table));
            if has_table == Some(true)
                && let Some(iptables) = Iptables::of(Variant::Legacy, family, NAT)
            {
                failures.note(serialized(NAT.name, || {
                    iptables.apply_with_retry(&|listing| self.chain.remove(listing))
                }));
            }
        }
        failures.into_result()
    }

    fn plan_removal(&self, nftables: &Nftables, table: Table) -> Result<Batch, NftablesError> {
        let mut batch = Batch::default();
        let old = self.chain.old_snat();
        for (name, from) in [(self.chain.name(), DNAT), (&old, OLD_SNAT)] {
            let chain = OwnedChain {
                table,
                name,
                from: Some(from),
            };
            chain.plan_removal(nftables, &mut batch, |_| true)?;
        }
        // The Go plugin leaves the shared chains: without entries, only the jumps of the base chains use this one.
        let uses = nftables.chain(table, DNAT)?;
        if batch.is_empty() && uses.is_none_or(|uses| uses as usize > HOOKS.len()) {
            return Ok(batch);
        }
        let entries = nftables.rules(table, Some(DNAT))?;
        if entries
            .iter()
            .any(|rule| rule.target() != Some(self.chain.name()))
        {
            return Ok(batch);
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
            let own = nftables.rules(table, Some(self.chain.name()))?;
            let jumps = own.iter().filter(|rule| rule.target() == Some(SET_MARK));
            let rules = nftables.rules(table, Some(SET_MARK))?;
            if uses as usize == rules.len() + jumps.count() {
                batch.delete_chain(table, SET_MARK);
            }
        }
        Ok(batch)
    }

    /// The first difference between the rules and those that [`HostPorts::install`] adds, in the variant of iptables
    /// that has them.
    ///
    /// # Errors
    /// When the rules differ or cannot be listed.
    pub fn check(&self, forwarded: &Forwarded) -> Result<(), Error> {
        let family = forwarded.address.family();
        let mut difference = format!("the nat table of {family} does not exist");
        for variant in [Variant::Nft, Variant::Legacy] {
            let exists = tables::exists(variant, family, NAT.table)?;
            let iptables = Iptables::of(variant, family, NAT).filter(|_| exists);
            let Some(iptables) = iptables else { continue };
            match self.chain.difference(forwarded, &iptables.list()?) {
                None => return Ok(()),
                Some(found) => difference = found,
            }
        }
        let what = format!("check: host ports of {family} are not forwarded as configured");
        Err(Error::failed(what).details(difference))
    }
}

pub fn is_installed(family: Family) -> bool {
    Iptables::default_for(family, NAT).is_some()
}

/// Whether any container has mapped ports of a family.
///
/// # Errors
/// When the tables cannot be listed.
pub fn is_used(family: Family) -> Result<bool, Error> {
    let in_nf_tables = FEATURE.with_existing("look for rules", |nftables| {
        Ok(nftables.chain(nat(family), DNAT)?.is_some())
    })?;
    if in_nf_tables == Some(true) {
        return Ok(true);
    }
    let has_table = tables::exists(Variant::Legacy, family, NAT.table)?;
    let legacy = Iptables::of(Variant::Legacy, family, NAT).filter(|_| has_table);
    legacy.map_or(Ok(false), |it| Ok(it.list()?.has_chain(DNAT)))
}

/// Removes the rules of a network that belong to no valid attachment.
///
/// # Errors
/// When something could not be listed or removed, after everything else was tried.
pub fn gc(network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let kept: BTreeSet<Chain> = valid
        .containers()
        .map(|container| Chain::of(network, container))
        .collect();
    let (mut failures, mut stale) = (Failures::default(), BTreeSet::new());
    for family in Family::BOTH {
        stale.extend(
            failures
                .note(chains_of(network, family))
                .unwrap_or_default(),
        );
    }
    for chain in stale.difference(&kept) {
        let stale = HostPorts {
            chain: chain.clone(),
        };
        failures.note(stale.remove());
    }
    failures.into_result()
}

/// The chains whose entry rules name a network.
fn chains_of(network: &NetworkName, family: Family) -> Result<Vec<Chain>, Error> {
    let entries = FEATURE.with_existing("list rules", |nftables| {
        nftables.rules(nat(family), Some(DNAT))
    })?;
    let named = entries
        .iter()
        .flatten()
        .filter_map(|rule| Chain::named(network, &comment(rule), rule.target()?));
    let mut chains: Vec<Chain> = named.collect();
    if tables::exists(Variant::Legacy, family, NAT.table)?
        && let Some(iptables) = Iptables::of(Variant::Legacy, family, NAT)
    {
        chains.extend(rules::chains_of(network, &iptables.list()?));
    }
    Ok(chains)
}

fn conflict(own: &PortMapping, other: &Mapped) -> Error {
    let Mapped {
        network, container, ..
    } = other;
    let what = format!(
        "portmap: host port {own} is mapped already: container {container} on network {network} has {}",
        other.mapping
    );
    Error::failed(what).details("choose another hostPort or hostIP, or remove that container")
}

fn not_installed(family: Family) -> Error {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    Error::failed(format!(
        "portmap: {program} is not installed, and {family} ports are mapped"
    ))
    .details("looked in PATH and in the system's directories; install the package iptables")
}
