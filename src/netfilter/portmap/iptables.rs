//! The iptables backend: one `iptables-restore` transaction per address family, whatever the number of ports. Rules in
//! nf_tables, including those of iptables-nft, are removed over netlink.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{
    Batch, Nftables, NftablesError, RuleEntry, Table, TableFamily, comment, dnat_address, multiport,
};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::iptables::{Iptables, Outcome, TableUse, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::lock::serialized;
use crate::netfilter::owned_chain::OwnedChain;
use crate::netfilter::portmap::observed;
use crate::netfilter::portmap::rules::{
    self, Chain, DNAT, HOOKS, MASQUERADE, OLD_SNAT, SET_MARK, mapped,
};
use crate::netfilter::portmap::{Forwarded, IsAlive, Mapped, MarkChain, stale_among};
use crate::netfilter::tables;

const NAT: TableUse = TableUse {
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

/// The mapped ports of an attachment.
#[derive(Clone, Debug)]
pub struct HostPorts {
    container: ContainerId,
    /// In this order: the chain of the Go plugin, unless it has another owner.
    chains: [Chain; 2],
}

impl HostPorts {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> HostPorts {
        HostPorts {
            container: attachment.container.clone(),
            chains: [
                Chain::of(network, &attachment.container),
                Chain::separate(network, attachment),
            ],
        }
    }

    /// Forwards the ports, in place of those that the attachment has. Rules of containers that no longer exist are
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
        let families: Vec<_> = forwarded.iter().zip(&programs).collect();
        let observe = |(forwarded, iptables): &(&Forwarded, &Iptables)| {
            let observed = self.observe(forwarded, iptables)?;
            observed.map_or_else(|| iptables.list(), Ok)
        };
        let listings = concurrently(&families, observe).into_iter();
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

    fn observe(
        &self,
        forwarded: &Forwarded,
        iptables: &Iptables,
    ) -> Result<Option<Listing>, Error> {
        if !iptables.is_nft() {
            return Ok(None);
        }
        let table = nat(forwarded.address.family());
        let observed = FEATURE.with_existing("look for rules", |nftables| {
            observed::listing(nftables, table, &self.chains, forwarded)
        });
        observed.map(Option::flatten)
    }

    /// Installs rules in a table that is changed concurrently, or is not as observed.
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
        let mapped = mapped(listing);
        let stale = stale_among(forwarded, &self.container, &mapped, is_alive)?;
        let mut stale: BTreeSet<String> = stale.iter().map(|it| it.object.clone()).collect();
        let chain = self.chain(forwarded.address.address(), listing, is_alive)?;
        // A chain of the attachment that it does not use any more.
        stale.remove(chain.name());
        Ok(chain.install(forwarded, listing, &stale))
    }

    /// The chain for an address. That of the Go plugin is shared by all interfaces of a container on a network, and by
    /// containers whose names do not differ without a separator.
    fn chain(
        &self,
        address: IpAddr,
        listing: &Listing,
        is_alive: IsAlive,
    ) -> Result<&Chain, Error> {
        let [shared, separate] = &self.chains;
        if listing.has_chain(separate.name()) || shared.has_other_owner(listing) {
            return Ok(separate);
        }
        for other in shared.addresses(listing) {
            if other != address && is_alive(other)? {
                return Ok(separate);
            }
        }
        Ok(shared)
    }

    /// Removes the rules of the attachment, also those of the Go plugin, from both families and variants, and with the
    /// last container the shared chains. `known` are the addresses of prevResult. Returns the addresses to which the rules
    /// forwarded.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self, known: &[IpAddr], is_alive: IsAlive) -> Result<BTreeSet<IpAddr>, Error> {
        let (mut failures, mut addresses) = (Failures::default(), BTreeSet::new());
        for family in Family::BOTH {
            addresses.extend(
                failures
                    .note(self.remove_from_nf_tables(family, known, is_alive))
                    .unwrap_or_default(),
            );
            let has_table = failures.note(tables::exists(Variant::Legacy, family, NAT.table));
            if has_table == Some(true)
                && let Some(iptables) = Iptables::of(Variant::Legacy, family, NAT)
            {
                let removed = serialized(NAT.name, || {
                    let removed = RefCell::new(BTreeSet::new());
                    iptables.apply_with_retry(&|listing| {
                        let chain = self.owned(listing, known, is_alive)?;
                        removed.replace(chain.addresses(listing));
                        chain.remove(listing)
                    })?;
                    Ok(removed.into_inner())
                });
                addresses.extend(failures.note(removed).unwrap_or_default());
            }
        }
        failures.into_result().map(|()| addresses)
    }

    /// Whether nf_tables has chains of the attachment.
    pub fn exist_in(&self, nftables: &Nftables) -> Result<bool, NftablesError> {
        for family in Family::BOTH {
            let [shared, separate] = &self.chains;
            for name in [shared.name(), separate.name(), &shared.old_snat()] {
                if nftables.chain(nat(family), name)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
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

    fn remove_from_nf_tables(
        &self,
        family: Family,
        known: &[IpAddr],
        is_alive: IsAlive,
    ) -> Result<BTreeSet<IpAddr>, Error> {
        let removed = RefCell::new(BTreeSet::new());
        FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| {
                let table = nat(family);
                let [shared, separate] = &self.chains;
                let chain = match nftables.chain(table, separate.name())? {
                    Some(_) => separate,
                    None => shared,
                };
                let addresses: BTreeSet<IpAddr> = nftables
                    .rules(table, Some(chain.name()))?
                    .iter()
                    .filter_map(|rule| dnat_address(rule, family))
                    .collect();
                if chain == shared && !is_of(&addresses, known, is_alive) {
                    return Ok(Batch::default());
                }
                removed.replace(addresses);
                chain.plan_removal(nftables, table)
            })
        })?;
        Ok(removed.into_inner())
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
            let listing = iptables.list()?;
            let [shared, separate] = &self.chains;
            let chain = match listing.has_chain(separate.name()) {
                true => separate,
                false => shared,
            };
            match chain.difference(forwarded, &listing) {
                None => return Ok(()),
                Some(found) => difference = found,
            }
        }
        let what = format!("check: host ports of {family} are not forwarded as configured");
        Err(Error::failed(what).details(difference))
    }
}

impl Chain {
    fn plan_removal(&self, nftables: &Nftables, table: Table) -> Result<Batch, NftablesError> {
        let mut batch = Batch::default();
        let entries = match nftables.chain(table, self.name())? {
            Some(_) => nftables.rules(table, Some(DNAT))?,
            None => Vec::new(),
        };
        let own = entries
            .iter()
            .filter(|rule| rule.target() == Some(self.name()));
        if own.clone().any(|rule| self.is_of_other(&comment(rule))) {
            return Ok(batch);
        }
        let old = self.old_snat();
        for (name, from) in [(self.name(), DNAT), (&old, OLD_SNAT)] {
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
            .any(|rule| rule.target() != Some(self.name()))
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
            let own = nftables.rules(table, Some(self.name()))?;
            let jumps = own.iter().filter(|rule| rule.target() == Some(SET_MARK));
            let rules = nftables.rules(table, Some(SET_MARK))?;
            if uses as usize == rules.len() + jumps.count() {
                batch.delete_chain(table, SET_MARK);
            }
        }
        Ok(batch)
    }
}

/// Whether a chain that forwards to these addresses belongs to an attachment with known ones. Otherwise it belongs to
/// another interface of the container, or is left over from an earlier address.
fn is_of(addresses: &BTreeSet<IpAddr>, known: &[IpAddr], is_alive: IsAlive) -> bool {
    let mut others = addresses.iter().filter(|it| !known.contains(it));
    let has_known = addresses.iter().any(|it| known.contains(it));
    known.is_empty() || has_known || !others.any(|it| is_alive(*it).unwrap_or(true))
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
        .all()
        .flat_map(|attachment| HostPorts::of(network, &attachment).chains)
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
        failures.note(remove_chain(chain));
    }
    failures.into_result()
}

/// Removes the chain of a container that does not exist any more.
fn remove_chain(chain: &Chain) -> Result<(), Error> {
    let mut failures = Failures::default();
    for family in Family::BOTH {
        failures.note(FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| chain.plan_removal(nftables, nat(family)))
        }));
        if failures.note(tables::exists(Variant::Legacy, family, NAT.table)) == Some(true)
            && let Some(iptables) = Iptables::of(Variant::Legacy, family, NAT)
        {
            failures.note(serialized(NAT.name, || {
                iptables.apply_with_retry(&|listing| chain.remove(listing))
            }));
        }
    }
    failures.into_result()
}

/// The mapped ports in the tables of iptables that may overlap with those of a container. Programs run only if an entry rule
/// has one of the ports.
///
/// # Errors
/// When the tables cannot be listed.
pub fn mapped_like(forwarded: &Forwarded) -> Result<Vec<Mapped>, Error> {
    let family = forwarded.address.family();
    let has_port = |rule: &RuleEntry| {
        let ports = multiport(rule);
        let mut own = forwarded.mappings.iter();
        own.any(|it| ports.contains(&it.host_port.get()))
    };
    let entries = FEATURE.with_existing("look for rules", |nftables| {
        match nftables.chain(nat(family), DNAT)? {
            Some(_) => nftables.rules(nat(family), Some(DNAT)),
            None => Ok(Vec::new()),
        }
    })?;
    let in_nf_tables = entries.iter().flatten().any(has_port);
    let mut found = Vec::new();
    for (variant, may_have) in [
        (Variant::Nft, in_nf_tables),
        (
            Variant::Legacy,
            tables::exists(Variant::Legacy, family, NAT.table)?,
        ),
    ] {
        let iptables = Iptables::of(variant, family, NAT).filter(|_| may_have);
        if let Some(iptables) = iptables {
            found.extend(mapped(&iptables.list()?));
        }
    }
    Ok(found)
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
