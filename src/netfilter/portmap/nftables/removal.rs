//! The removal of mapped ports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::kernel::nftables::{Batch, Nftables, NftablesError};
use crate::net::Family;
use crate::netfilter::portmap::nftables::base::{self, HOST_PORTS, Maps};
use crate::netfilter::portmap::nftables::elements::{chain_of, key_of, parse};
use crate::netfilter::portmap::nftables::{FEATURE, MapEntries};
use crate::netfilter::portmap::{Mapped, Removal, TABLE};
use crate::netfilter::rule_comment::RuleComment;

impl MapEntries {
    /// Plans the removal of the mapped ports, without what containers share.
    pub fn plan_removal(
        &self,
        nftables: &Nftables,
        batch: &mut Batch,
    ) -> Result<Removal, NftablesError> {
        if !self.exist_in(nftables)? {
            let is_last = nftables.chain(TABLE, HOST_PORTS)?.is_none();
            let addresses = BTreeSet::new();
            return Ok(Removal { addresses, is_last });
        }
        plan_removal_of(nftables, batch, &|comment| self.comment.matches(comment))
    }
}

/// Removes the mapped ports of containers that no longer exist.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_stale(stale: &[&Mapped]) -> Result<(), Error> {
    let is_stale = |comment: &str| stale.iter().any(|it| it.object == comment);
    remove_matching(&is_stale)
}

/// Removes the mapped ports of a network that belong to no valid attachment.
///
/// # Errors
/// When the kernel refuses.
pub fn gc(network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let valid: Vec<RuleComment> = valid
        .all()
        .map(|it| RuleComment::of(network, &it))
        .collect();
    let is_stale = |comment: &str| {
        RuleComment::is_of_network(network, comment) && !valid.iter().any(|it| it.matches(comment))
    };
    remove_matching(&is_stale)
}

/// Removes the mapped ports whose comments match.
fn remove_matching(matches: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    let removed = FEATURE.with_existing("remove rules", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            if nftables.chain(TABLE, HOST_PORTS)?.is_some() {
                let removal = plan_removal_of(nftables, &mut batch, matches)?;
                if removal.is_last {
                    base::delete(nftables, &mut batch)?;
                }
            }
            Ok(batch)
        })
    });
    removed.map(drop)
}

fn plan_removal_of(
    nftables: &Nftables,
    batch: &mut Batch,
    matches: &dyn Fn(&str) -> bool,
) -> Result<Removal, NftablesError> {
    let elements = delete_elements(nftables, batch, matches)?;
    for chain in &elements.chains {
        if nftables.chain(TABLE, chain)?.is_some() {
            batch.delete_chain(TABLE, chain);
        }
    }
    Ok(Removal {
        addresses: elements.addresses,
        is_last: elements.were_all,
    })
}

/// Elements that are removed.
pub struct Removed {
    /// The chains that belong to them and are not used by others.
    chains: Vec<String>,
    /// The addresses to which they forward.
    addresses: BTreeSet<IpAddr>,
    /// Whether no other elements exist.
    were_all: bool,
}

/// Plans the removal of the elements whose comments match.
pub fn delete_elements(
    nftables: &Nftables,
    batch: &mut Batch,
    matches: &dyn Fn(&str) -> bool,
) -> Result<Removed, NftablesError> {
    let (mut chains, mut used) = (BTreeSet::new(), BTreeSet::new());
    let (mut addresses, mut were_all) = (BTreeSet::new(), true);
    for maps in Maps::BOTH {
        for map in maps.names() {
            let elements = nftables.elements(TABLE, map)?;
            let (own, others): (Vec<_>, Vec<_>) =
                elements.iter().partition(|it| matches(&it.comment));
            were_all &= others.is_empty();
            used.extend(others.iter().filter_map(|it| it.chain().map(str::to_owned)));
            for element in &own {
                chains.insert(chain_of(&element.comment));
                chains.extend(element.chain().map(str::to_owned));
                addresses.extend(parse(element, maps.family).map(|it| it.address));
            }
            batch.delete_elements(TABLE, map, own.into_iter());
        }
    }
    Ok(Removed {
        chains: chains.difference(&used).cloned().collect(),
        addresses,
        were_all,
    })
}

/// Plans the removal of elements of containers that no longer exist.
pub fn delete_stale(
    stale: &[&Mapped],
    nftables: &Nftables,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    for stale in stale {
        let maps = Maps::of(Family::of(stale.address));
        let (map, key) = key_of(&stale.mapping, maps);
        let guard = maps.conditions[usize::from(map == maps.addresses)];
        for map in [map, guard] {
            if let Some(element) = nftables.element(TABLE, map, &key)? {
                batch.delete_elements(TABLE, map, [element].iter());
            }
        }
    }
    Ok(())
}
