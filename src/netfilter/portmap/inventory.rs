//! The mapped ports of all containers of the node, listed once: of this plugin and of the Go plugin, in both backends.

use std::fmt;
use std::net::SocketAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::nftables::Batch;
use crate::net::Family;
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::{Listing, transaction};
use crate::netfilter::lock::serialized;
use crate::netfilter::masquerade::Backend;
use crate::netfilter::portmap::iptables::{self, FEATURE, HostPorts, NAT};
use crate::netfilter::portmap::rules::{self, HOOKS};
use crate::netfilter::portmap::{Mapped, go_nftables, nftables};
use crate::netfilter::rule_comment::RuleComment;

/// A mapped port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPort {
    pub mapped: Mapped,
    entry: Entry,
}

/// The object that has the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// A chain of the nat table.
    Chain,
    /// The element of a map.
    Element,
    /// A rule of the Go plugin in nftables.
    GoRule,
}

impl MappedPort {
    /// Whether the port is mapped to an attachment. Compared by the name of the chain or the key of the element, because
    /// comments may have been cut.
    pub fn is_of(&self, network: &NetworkName, attachment: &Attachment) -> bool {
        let container = self.mapped.container.trim_end_matches('.');
        if !attachment.container.as_str().starts_with(container) {
            return false;
        }
        let object = &self.mapped.object;
        match self.entry {
            Entry::Chain => HostPorts::of(network, attachment).may_have(object),
            Entry::Element => RuleComment::of(network, attachment).matches(object),
            Entry::GoRule => attachment.container.as_str() == object,
        }
    }

    /// Removes all ports that are mapped to the container by the same object.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        let stale = [&self.mapped];
        match self.entry {
            Entry::Chain => iptables::remove_stale(&stale),
            Entry::Element => nftables::remove_stale(&stale),
            Entry::GoRule => go_nftables::remove_stale(&stale),
        }
    }

    /// Whether the entry does not name the network.
    pub fn is_go_rule(&self) -> bool {
        self.entry == Entry::GoRule
    }

    pub fn backend(&self) -> Backend {
        match self.entry {
            Entry::Chain => Backend::Iptables,
            Entry::Element | Entry::GoRule => Backend::Nftables,
        }
    }
}

/// `HOSTIP:PORT/PROTOCOL to ADDRESS:PORT`
impl fmt::Display for MappedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapped {
            address, mapping, ..
        } = &self.mapped;
        let to = SocketAddr::new(*address, mapping.container_port.get());
        write!(f, "{mapping} to {to}")
    }
}

/// The mapped ports in tables of iptables.
pub fn in_iptables(listing: &Listing) -> impl Iterator<Item = MappedPort> {
    ports_of(Entry::Chain, rules::mapped(listing))
}

/// The mapped ports in the maps of this plugin and in the rules of the Go plugin.
///
/// # Errors
/// When the kernel does not list them.
pub fn in_nftables() -> Result<Vec<MappedPort>, Error> {
    let mut ports: Vec<MappedPort> = ports_of(Entry::Element, nftables::mapped()?).collect();
    for family in Family::BOTH {
        ports.extend(ports_of(Entry::GoRule, go_nftables::mapped(family)?));
    }
    Ok(ports)
}

fn ports_of(entry: Entry, mapped: Vec<Mapped>) -> impl Iterator<Item = MappedPort> {
    let mapped = mapped.into_iter();
    mapped.map(move |mapped| MappedPort { mapped, entry })
}

/// The jumps to the mapped ports that the base chains of a nat table lack, although it has mapped ports.
fn missing_jumps(listing: &Listing) -> Vec<String> {
    let is_used = in_iptables(listing).next().is_some();
    let jumps = HOOKS.map(rules::jump_from).into_iter();
    jumps.filter(|jump| is_used && !listing.has(jump)).collect()
}

/// What mapped ports share and can be restored although their configuration is unknown.
#[derive(Clone, Copy, Debug)]
pub enum SharedRepair {
    /// The jumps of a nat table to the mapped ports.
    Jumps(Variant, Family),
    /// The shared chains, maps and rules of the table in nf_tables.
    Base,
}

impl fmt::Display for SharedRepair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SharedRepair::Jumps(_, family) => {
                write!(
                    f,
                    "the jumps of the {family} nat table to the port mappings"
                )
            }
            SharedRepair::Base => f.write_str("the shared rules of the port mappings in nftables"),
        }
    }
}

impl SharedRepair {
    /// The repairs that the mapped ports of the node need.
    pub fn plan<'l>(
        nat_tables: impl Iterator<Item = (Variant, Family, &'l Listing)>,
        ports: &[MappedPort],
    ) -> Vec<SharedRepair> {
        let damaged = nat_tables.filter(|(.., listing)| !missing_jumps(listing).is_empty());
        let mut repairs: Vec<SharedRepair> = damaged
            .map(|(variant, family, _)| SharedRepair::Jumps(variant, family))
            .collect();
        if ports.iter().any(|it| it.entry == Entry::Element) {
            let complete = FEATURE.with_nftables("list rules", |nftables| {
                let mut batch = Batch::default();
                nftables::plan_base(nftables, &mut batch)?;
                Ok(batch)
            });
            // If the kernel does not answer, the elements could not be listed either.
            repairs.extend(
                complete
                    .ok()
                    .filter(|it| !it.is_empty())
                    .map(|_| SharedRepair::Base),
            );
        }
        repairs
    }

    /// # Errors
    /// When iptables or the kernel refuses.
    pub fn apply(self) -> Result<(), Error> {
        match self {
            SharedRepair::Jumps(variant, family) => {
                let Some(iptables) = Iptables::of(variant, family, NAT) else {
                    return Ok(());
                };
                let plan = |listing: &Listing| transaction(NAT.table, &missing_jumps(listing));
                serialized(NAT.name, || iptables.apply_with_retry(&plan))
            }
            SharedRepair::Base => {
                let changed = FEATURE.with_nftables("restore the shared rules", |nftables| {
                    nftables.change(&|| {
                        let mut batch = Batch::default();
                        nftables::plan_base(nftables, &mut batch)?;
                        Ok(batch)
                    })
                });
                changed.map(drop)
            }
        }
    }
}

/// The chain of a container that has lost its rules.
pub fn emptied_chain(
    network: &NetworkName,
    attachment: &Attachment,
    listing: &Listing,
) -> Option<String> {
    let ports = HostPorts::of(network, attachment);
    let is_empty = |chain: &&String| {
        let prefix = format!("-A {chain} ");
        !listing.rules().any(|rule| rule.starts_with(&prefix))
    };
    let mut own = listing.chains.iter().filter(|chain| ports.may_have(chain));
    own.find(is_empty).cloned()
}
