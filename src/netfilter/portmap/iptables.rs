//! The iptables backend: one `iptables-restore` transaction per address family, whatever the number of ports. Rules in
//! nf_tables, including those of iptables-nft, are removed over netlink.

mod removal;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Nftables, NftablesError, RuleEntry, Table, TableFamily, multiport};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::iptables::{Iptables, Outcome, TableUse, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::lock::serialized;
use crate::netfilter::portmap::observed;
use crate::netfilter::portmap::rules::{Chain, DNAT, mapped};
use crate::netfilter::portmap::{Forwarded, IsAlive, Mapped, MarkChain, stale_among};
use crate::netfilter::tables;

pub use removal::{gc, remove_stale};

pub const NAT: TableUse = TableUse {
    table: "nat",
    name: "portmap",
};

pub(super) const FEATURE: Feature = Feature {
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

    /// Whether a chain has a name of the attachment's chains.
    pub fn may_have(&self, chain: &str) -> bool {
        self.chains.iter().any(|it| it.name() == chain)
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

/// Whether any container has mapped ports in nf_tables.
pub fn is_used(nftables: &Nftables) -> Result<bool, NftablesError> {
    Ok(nftables.chain(nat(Family::V4), DNAT)?.is_some())
}

pub fn is_installed(family: Family) -> bool {
    Iptables::default_for(family, NAT).is_some()
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
