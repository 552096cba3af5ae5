//! The nftables backend: over netlink, one map element for each port, so that the cost of a connection does not depend on
//! the number of mapped ports.
//!
//! ```text
//! table inet gangplank_portmap {
//!     map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }                  ports6
//!     map addresses4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }  addresses6, with hostIP
//!     map conditional_ports4 { type inet_proto . inet_service : verdict; }                       and so on, as above
//!     map snat4 { type ipv4_addr . inet_proto . inet_service : verdict; }                        snat6
//!     chain prerouting {                                                                         output
//!         type nat hook prerouting priority dstnat + 1; policy accept;
//!         fib daddr type local jump hostports
//!     }
//!     chain hostports {
//!         meta nfproto ipv4 ip daddr . meta l4proto . th dport vmap @conditional_addresses4
//!         meta nfproto ipv4 meta l4proto . th dport vmap @conditional_ports4
//!         jump translate
//!     }
//!     chain network-HASH { meta nfproto ipv4 CONDITIONS goto translate }
//!     chain translate {
//!         meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @addresses4
//!         meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
//!     }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat - 1; policy accept;
//!         meta nfproto ipv4 ct status dnat ip daddr . meta l4proto . ct original proto-dst vmap @snat4
//!     }
//!     chain pod-HASH { meta nfproto ipv4 ip saddr 10.1.0.0/24 masquerade; … }
//! }
//! ```
//! Only packets to an address of the host are translated (CVE-2025-67499). The priority is one behind that of the Go
//! plugin: its rules win over elements that its DEL does not remove.

mod base;
mod conditions;
mod elements;
mod removal;

use std::cell::RefCell;

use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::Error;
use crate::kernel::nat::PortAllocation;
use crate::kernel::nftables::{
    Action, Batch, Element, Match, Nftables, NftablesError, Rule, Value, address_key, concatenation,
};
use crate::net::{Cidr, Family};
use crate::netfilter::Feature;
use crate::netfilter::portmap::{
    Forwarded, IsAlive, Mapped, PortMapping, SourceNat, TABLE, stale_among,
};
use crate::netfilter::rule_comment::RuleComment;

pub use removal::{gc, remove_stale};

use base::{HOST_PORTS, Maps, has_only};
pub use base::{complete as plan_base, delete as plan_base_removal};
use elements::{chain_of, key_of, parse, with_address, without_address};
use removal::{delete_elements, delete_stale};

const FEATURE: Feature = Feature {
    name: "portmap",
    remedy: "the backend nftables needs Linux 5.6; set backend to iptables",
};

/// The mapped ports of an attachment.
#[derive(Clone, Debug)]
pub struct MapEntries {
    container: ContainerId,
    comment: RuleComment,
    /// The chain with rules of source NAT.
    chain: String,
    /// The chain with the conditions of the network.
    conditions: String,
}

impl MapEntries {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> MapEntries {
        let comment = RuleComment::of(network, attachment);
        MapEntries {
            container: attachment.container.clone(),
            chain: chain_of(comment.comment()),
            conditions: conditions::chain_of(network),
            comment,
        }
    }

    /// Forwards the ports, in place of those that the attachment has, in one transaction.
    ///
    /// # Errors
    /// Before anything is changed: when another container has one of the ports, or the kernel refuses. When nft rejects
    /// the conditions.
    pub fn install(&self, forwarded: &[Forwarded], is_alive: IsAlive) -> Result<(), Error> {
        let rejected = RefCell::new(None);
        FEATURE.with_nftables("install rules", |nftables| {
            nftables.change(&|| {
                let mut batch = Batch::default();
                base::complete(nftables, &mut batch)?;
                if nftables.chain(TABLE, &self.chain)?.is_some() {
                    delete_elements(nftables, &mut batch, &|it| self.comment.matches(it))?;
                }
                let mut elements = Vec::new();
                for forwarded in forwarded {
                    let present = overlapping(nftables, forwarded)?;
                    match stale_among(forwarded, &self.container, &present, is_alive) {
                        Ok(stale) => delete_stale(&stale, nftables, &mut batch)?,
                        Err(error) => {
                            rejected.replace(Some(error));
                            return Ok(Batch::default());
                        }
                    }
                    elements.extend(self.elements(forwarded, &present));
                }
                self.add(forwarded, &elements, &mut batch);
                Ok(batch)
            })
        })?;
        if let Some(error) = rejected.into_inner() {
            return Err(error);
        }
        match forwarded.iter().find(|it| it.has_conditions()) {
            Some(forwarded) => self.install_conditions(forwarded),
            None => Ok(()),
        }
    }

    fn install_conditions(&self, forwarded: &Forwarded) -> Result<(), Error> {
        let present = FEATURE.with_nftables("list rules", |nftables| {
            nftables.rules(TABLE, Some(&self.conditions))
        })?;
        match conditions::are_current(forwarded.settings, &present) {
            true => Ok(()),
            false => conditions::install(&self.conditions, forwarded.settings),
        }
    }

    fn add(
        &self,
        forwarded: &[Forwarded],
        elements: &[(&'static str, Element)],
        batch: &mut Batch,
    ) {
        batch.create_chain(TABLE, &self.chain);
        batch.flush(TABLE, &self.chain);
        for rule in forwarded.iter().flat_map(source_nat) {
            batch.append(TABLE, &self.chain, &rule);
        }
        if forwarded.iter().any(Forwarded::has_conditions) {
            batch.create_chain(TABLE, &self.conditions);
        }
        for (map, element) in elements {
            batch.add_element(TABLE, map, element);
        }
    }

    /// The elements of the mapped ports, except those that the container has on another network, among the `present`
    /// ones.
    fn elements(&self, forwarded: &Forwarded, present: &[Mapped]) -> Vec<(&'static str, Element)> {
        let (address, mut elements) = (forwarded.address.address(), Vec::new());
        let maps = Maps::of(Family::of(address));
        let element = |key, value| Element {
            key,
            value,
            comment: self.comment.comment().to_owned(),
        };
        let others = present.iter().filter(|it| {
            it.container == self.container.as_str() && !self.comment.matches(&it.object)
        });
        let is_wanted = |mapping: &&PortMapping| {
            let is_taken = others.clone().any(|it| it.mapping.overlaps(mapping));
            mapping.applies_to(maps.family) && !is_taken
        };
        for mapping in forwarded.mappings.iter().filter(is_wanted) {
            let container_port = mapping.container_port.get().to_be_bytes();
            let value = concatenation(&[&address_key(address), &container_port]);
            let (map, key) = key_of(mapping, maps);
            if forwarded.has_conditions() {
                let guard = maps.conditions[usize::from(map == maps.addresses)];
                let chain = Value::Chain(self.conditions.clone());
                elements.push((guard, element(key.clone(), chain)));
            }
            elements.push((map, element(key, Value::Fields(value))));
            let snat_key = with_address(address, mapping);
            let is_new = elements
                .iter()
                .all(|(map, it)| *map != maps.snat || it.key != snat_key);
            if forwarded.settings.source_nat != SourceNat::None && is_new {
                let chain = Value::Chain(self.chain.clone());
                elements.push((maps.snat, element(snat_key, chain)));
            }
        }
        elements
    }

    /// Whether the attachment has mapped ports.
    ///
    /// # Errors
    /// When the kernel refuses the query.
    pub fn exist(&self) -> Result<bool, Error> {
        let found = FEATURE.with_existing("look for rules", |nftables| self.exist_in(nftables))?;
        Ok(found.unwrap_or_default())
    }

    pub fn exist_in(&self, nftables: &Nftables) -> Result<bool, NftablesError> {
        Ok(nftables.chain(TABLE, &self.chain)?.is_some())
    }

    /// # Errors
    /// The first difference from what [`MapEntries::install`] adds.
    pub fn check(&self, forwarded: &[Forwarded]) -> Result<(), Error> {
        let found = FEATURE.with_nftables("list rules", |nftables| {
            self.difference(nftables, forwarded)
        })?;
        match found {
            None => Ok(()),
            Some(difference) => {
                let what = "check: host ports are not forwarded as configured".to_owned();
                Err(Error::failed(what).details(format!("table inet {}: {difference}", TABLE.name)))
            }
        }
    }

    fn difference(
        &self,
        nftables: &Nftables,
        forwarded: &[Forwarded],
    ) -> Result<Option<String>, NftablesError> {
        let rules = nftables.rules(TABLE, None)?;
        let differs = |chain: &str| Ok(Some(format!("the rules of chain {chain} differ")));
        if let Some((chain, _)) = base::rules()
            .into_iter()
            .find(|(chain, wanted)| !has_only(&rules, chain, wanted))
        {
            return differs(chain);
        }
        let wanted: Vec<Rule> = forwarded.iter().flat_map(source_nat).collect();
        if !has_only(&rules, &self.chain, &wanted) {
            return differs(&self.chain);
        }
        if let Some(forwarded) = forwarded.iter().find(|it| it.has_conditions()) {
            let own = nftables.rules(TABLE, Some(&self.conditions))?;
            if !conditions::are_current(forwarded.settings, &own) {
                return differs(&self.conditions);
            }
        }
        for forwarded in forwarded {
            let present = overlapping(nftables, forwarded)?;
            for (map, wanted) in self.elements(forwarded, &present) {
                let is_same =
                    |it: Element| it.value == wanted.value && self.comment.matches(&it.comment);
                let found = nftables.element(TABLE, map, &wanted.key)?;
                if !found.is_some_and(is_same) {
                    let what = format!("an element of map {map} is missing or differs");
                    return Ok(Some(what));
                }
            }
        }
        Ok(None)
    }
}

/// Whether any container has mapped ports.
pub fn is_used(nftables: &Nftables) -> Result<bool, NftablesError> {
    Ok(nftables.chain(TABLE, HOST_PORTS)?.is_some())
}

/// The mapped ports that may overlap with those of a container.
///
/// # Errors
/// When the kernel refuses the query.
pub fn mapped_like(forwarded: &Forwarded) -> Result<Vec<Mapped>, Error> {
    let found = FEATURE.with_existing("list mapped ports", |nftables| {
        match nftables.chain(TABLE, HOST_PORTS)? {
            Some(_) => overlapping(nftables, forwarded),
            None => Ok(Vec::new()),
        }
    })?;
    Ok(found.unwrap_or_default())
}

/// All mapped ports.
///
/// # Errors
/// When the kernel refuses the query.
pub fn mapped() -> Result<Vec<Mapped>, Error> {
    let found = FEATURE.with_existing("list mapped ports", |nftables| {
        let mut found = Vec::new();
        for maps in Maps::BOTH {
            for map in [maps.ports, maps.addresses] {
                let elements = nftables.elements(TABLE, map)?;
                found.extend(elements.iter().filter_map(|it| parse(it, maps.family)));
            }
        }
        Ok(found)
    })?;
    Ok(found.unwrap_or_default())
}

fn overlapping(nftables: &Nftables, forwarded: &Forwarded) -> Result<Vec<Mapped>, NftablesError> {
    let maps = Maps::of(forwarded.address.family());
    let mut found = nftables.elements(TABLE, maps.addresses)?;
    let own = forwarded.mappings.iter();
    for mapping in own.filter(|it| it.applies_to(maps.family)) {
        found.extend(nftables.element(TABLE, maps.ports, &without_address(mapping))?);
    }
    let found = found.iter().filter_map(|it| parse(it, maps.family));
    Ok(found.collect())
}

/// The rules of an attachment's chain: whose connections get the address of the host.
fn source_nat(forwarded: &Forwarded) -> Vec<Rule> {
    let family = forwarded.address.family();
    let masquerade = |source: Option<Cidr>| {
        let mut matches = vec![Match::Family(family)];
        matches.extend(source.map(Match::Source));
        Rule::new(matches, Action::Masquerade(PortAllocation::Preserve))
    };
    match (forwarded.settings.source_nat, family) {
        (SourceNat::None, _) => Vec::new(),
        (SourceNat::All, _) => vec![masquerade(None)],
        (SourceNat::Local, Family::V4) => {
            let loopback = "127.0.0.0/8".parse().expect("it is a network");
            vec![
                masquerade(Some(forwarded.address.network())),
                masquerade(Some(loopback)),
            ]
        }
        (SourceNat::Local, Family::V6) => vec![masquerade(Some(forwarded.address.network()))],
    }
}
