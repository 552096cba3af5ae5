//! The mapped ports of all containers of the node, listed once: of this plugin and of the Go plugin, in both backends.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::nftables::{Batch, RuleEntry, Table, TableFamily};
use crate::net::Family;
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::{Listing, transaction};
use crate::netfilter::lock::serialized;
use crate::netfilter::masquerade::Backend;
use crate::netfilter::masquerade::comment::RuleComment;
use crate::netfilter::portmap::iptables::{HostPorts, NAT};
use crate::netfilter::portmap::nftables::{
    FEATURE, MapEntries, MappedElement, Maps, chain_of, complete_base, ip,
};
use crate::netfilter::portmap::rules::{self, Chain, HOOKS};
use crate::netfilter::portmap::{PortMapping, Protocol, TABLE};

/// The table of the Go plugin's nftables backend, and its chains with a rule for each port.
const GO_TABLE: &str = "cni_hostport";
const GO_CHAINS: [&str; 2] = ["hostports", "hostip_hostports"];

/// A mapped port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPort {
    pub mapping: PortMapping,
    /// The address of the container.
    pub address: IpAddr,
    /// Empty if unknown: rules of the Go plugin in nftables name only the container.
    pub network: String,
    /// The container ID, as far as the comment is not cut.
    pub container: String,
    pub backend: Backend,
    entry: Entry,
}

/// The object that has the port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// A chain of the nat table.
    Chain { name: String, comment: String },
    /// The element of a map, by its comment.
    Element(String),
    /// A rule of the Go plugin.
    GoRule,
}

impl MappedPort {
    /// Whether the port is mapped to an attachment. Compared by the name of the chain or the key of the element, because
    /// comments may have been cut.
    pub fn is_of(&self, network: &NetworkName, attachment: &Attachment) -> bool {
        let container = self.container.trim_end_matches('.');
        if !attachment.container.as_str().starts_with(container) {
            return false;
        }
        match &self.entry {
            Entry::Chain { name, .. } => Chain::of(network, &attachment.container).name() == name,
            Entry::Element(comment) => RuleComment::of(network, attachment).matches(comment),
            Entry::GoRule => attachment.container.as_str() == self.container,
        }
    }

    /// Removes all ports that are mapped to the container by the same chain, or the same elements.
    ///
    /// # Errors
    /// If they cannot be removed; those of the Go plugin in nftables are not.
    pub fn remove(&self) -> Result<(), Error> {
        match &self.entry {
            Entry::Chain { name, comment } => match self.network.parse() {
                Ok(network) => Chain::named(&network, comment, name)
                    .map_or(Ok(()), |chain| HostPorts { chain }.remove()),
                Err(_) => Ok(()),
            },
            Entry::Element(comment) => MapEntries::of_entry(comment).remove(),
            Entry::GoRule => Ok(()),
        }
    }

    /// Whether only the Go plugin's DEL removes it.
    pub fn is_go_rule(&self) -> bool {
        self.entry == Entry::GoRule
    }
}

/// `HOSTIP:PORT/PROTOCOL to ADDRESS:PORT`
impl fmt::Display for MappedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = SocketAddr::new(self.address, self.mapping.container_port.get());
        write!(f, "{} to {to}", self.mapping)
    }
}

/// The mapped ports in tables of iptables.
pub fn in_iptables(listing: &Listing) -> impl Iterator<Item = MappedPort> {
    let mapped = rules::mapped(listing).into_iter();
    mapped.map(|mapped| MappedPort {
        mapping: mapped.mapping,
        address: mapped.address,
        backend: Backend::Iptables,
        entry: Entry::Chain {
            comment: format!("dnat name: \"{}\" id: \"", mapped.network),
            name: mapped.chain,
        },
        network: mapped.network,
        container: mapped.container,
    })
}

/// The mapped ports in the maps of this plugin and in the rules of the Go plugin.
///
/// # Errors
/// When the kernel does not list them.
pub fn in_nftables() -> Result<Vec<MappedPort>, Error> {
    let found = FEATURE.with_existing("list mapped ports", |nftables| {
        let mut ports = Vec::new();
        for maps in Maps::BOTH {
            for map in [maps.ports, maps.addresses] {
                let elements = nftables.elements(TABLE, map)?;
                let parsed = elements
                    .iter()
                    .filter_map(|it| MappedElement::parse(it, maps.family));
                ports.extend(parsed.map(of_element));
            }
            let family = TableFamily::Ip(maps.family);
            let table = Table {
                family,
                name: GO_TABLE,
            };
            let rules = nftables.rules(table, None)?;
            ports.extend(rules.iter().filter_map(go_rule));
        }
        Ok(ports)
    })?;
    Ok(found.unwrap_or_default())
}

fn of_element(element: MappedElement) -> MappedPort {
    let (network, container) = RuleComment::parse(&element.comment);
    MappedPort {
        mapping: element.mapping,
        address: element.address,
        network: network.to_owned(),
        container: container.to_owned(),
        backend: Backend::Nftables,
        entry: Entry::Element(element.comment),
    }
}

/// `[ip daddr HOSTIP] tcp dport PORT dnat to ADDRESS:PORT comment "CONTAINER"`
fn go_rule(rule: &RuleEntry) -> Option<MappedPort> {
    if !GO_CHAINS.contains(&rule.chain.as_str()) || rule.comment.is_empty() {
        return None;
    }
    let values: Vec<&[u8]> = rule.values().collect();
    let (host_ip, rest) = match values[..] {
        [host_ip, ref rest @ ..] if rest.len() == 4 => (ip(host_ip), rest),
        ref rest => (None, rest),
    };
    let &[&[number], host_port, address, container_port] = rest else {
        return None;
    };
    let port = |bytes: &[u8]| NonZeroU16::new(u16::from_be_bytes(bytes.try_into().ok()?));
    Some(MappedPort {
        mapping: PortMapping {
            protocol: Protocol::ALL.into_iter().find(|it| it.number() == number)?,
            host_port: port(host_port)?,
            container_port: port(container_port)?,
            host_ip,
        },
        address: ip(address)?,
        network: String::new(),
        container: rule.comment.clone(),
        backend: Backend::Nftables,
        entry: Entry::GoRule,
    })
}

/// The jumps to the mapped ports that the base chains of a nat table lack, although it has mapped ports.
fn missing_jumps(listing: &Listing) -> Vec<String> {
    let is_used = in_iptables(listing).next().is_some();
    let jumps = HOOKS.map(rules::jump_of).into_iter();
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
        if ports.iter().any(|it| matches!(it.entry, Entry::Element(_))) {
            let complete = FEATURE.with_nftables("list rules", |nftables| {
                let mut batch = Batch::default();
                complete_base(nftables, &mut batch)?;
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
                        complete_base(nftables, &mut batch)?;
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
    let chain = Chain::of(network, &attachment.container).name().to_owned();
    let prefix = format!("-A {chain} ");
    let has_rules = listing.rules().any(|rule| rule.starts_with(&prefix));
    Some(chain).filter(|chain| listing.has_chain(chain) && !has_rules)
}

impl MapEntries {
    /// Those of an element's comment.
    fn of_entry(comment: &str) -> MapEntries {
        let comment = RuleComment::of_entry(comment);
        MapEntries {
            chain: chain_of(comment.comment()),
            comment,
        }
    }
}
