//! Host ports that are forwarded to a container.

pub mod flows;
pub mod go_nftables;
pub mod inventory;
pub mod iptables;
pub mod localnet;
pub mod nftables;
mod observed;
pub mod ports;
pub mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Deserialize;

use crate::cni::names::ContainerId;
use crate::error::Error;
use crate::kernel::nftables::{Table, TableFamily};
use crate::net::{Cidr, Family};

/// Our table in nf_tables.
const TABLE: Table = Table {
    family: TableFamily::Inet,
    name: "gangplank_portmap",
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Sctp,
    Tcp,
    Udp,
}

impl Protocol {
    /// In alphabetical order, as the Go plugin adds the rules.
    pub const ALL: [Protocol; 3] = [Protocol::Sctp, Protocol::Tcp, Protocol::Udp];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Sctp => "sctp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl Protocol {
    /// IPPROTO_* (linux/in.h)
    fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An item of `portMappings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub host_port: NonZeroU16,
    pub container_port: NonZeroU16,
    /// `hostIP`. An unspecified address stands for all addresses of its family, `None` for all addresses.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    pub fn applies_to(&self, family: Family) -> bool {
        self.host_ip
            .is_none_or(|address| Family::of(address) == family)
    }

    /// Whether packets to 127.0.0.1 are forwarded.
    pub fn applies_to_loopback(&self) -> bool {
        let addresses = self.host_address();
        self.applies_to(Family::V4) && addresses.is_none_or(|address| address.is_loopback())
    }

    /// The host address that packets must have; `None` for any.
    pub fn host_address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|address| !address.is_unspecified())
    }

    /// Whether packets to one host address and port can be meant for both.
    pub fn overlaps(&self, other: &PortMapping) -> bool {
        let families = Family::BOTH.into_iter();
        let mut both = families.filter(|it| self.applies_to(*it) && other.applies_to(*it));
        let is_same_address = match (self.host_address(), other.host_address()) {
            (Some(address), Some(other)) => address == other,
            _ => both.next().is_some(),
        };
        self.protocol == other.protocol && self.host_port == other.host_port && is_same_address
    }
}

/// `HOSTIP:PORT/PROTOCOL`, as container runtimes write it.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address() {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// Which forwarded connections get the address of the host as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNat {
    /// `snat` is false.
    None,
    /// From the host's loopback address and the container's subnet, whose replies would bypass the host.
    Local,
    /// All of them (`masqAll`).
    All,
}

/// The chain that marks connections for [`SourceNat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkChain {
    /// Ours, which sets this bit (`markMasqBit`).
    Own { bit: u8 },
    /// An existing one (`externalSetMarkChain`).
    External(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Iptables,
    Nftables,
}

/// The settings of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub source_nat: SourceNat,
    pub mark: MarkChain,
    /// Additional matches, as words in the syntax of the backend.
    pub conditions_v4: Vec<String>,
    pub conditions_v6: Vec<String>,
}

impl Settings {
    pub fn conditions(&self, family: Family) -> &[String] {
        match family {
            Family::V4 => &self.conditions_v4,
            Family::V6 => &self.conditions_v6,
        }
    }
}

/// A mapped port of a container on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub mapping: PortMapping,
    /// The address of the container.
    pub address: IpAddr,
    /// Empty if unknown.
    pub network: String,
    /// As far as the comment that names it is not cut.
    pub container: String,
    /// The chain, or the comment of the element or rule.
    pub object: String,
}

/// Mapped ports of an attachment that are removed.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The addresses of the container to which they forward.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether no container has mapped ports there afterwards.
    pub is_last: bool,
}

/// Whether an address belongs to a container that exists. Looked up only for ports that are mapped already.
pub type IsAlive<'a> = &'a (dyn Fn(IpAddr) -> Result<bool, Error> + Sync);

/// The mapped ports of containers that no longer exist, among those that overlap with ports of a container.
///
/// # Errors
/// When another container that exists has one of the ports. A container may map a port on several networks.
pub fn stale_among<'m>(
    forwarded: &Forwarded,
    container: &ContainerId,
    mapped: &'m [Mapped],
    is_alive: IsAlive,
) -> Result<Vec<&'m Mapped>, Error> {
    let own = || {
        forwarded
            .mappings
            .iter()
            .filter(|it| it.applies_to(forwarded.address.family()))
    };
    let mut stale = Vec::new();
    for other in mapped {
        let is_own = !other.container.is_empty() && container.as_str() == other.container;
        let overlapping = own().find(|it| it.overlaps(&other.mapping));
        let Some(own) = overlapping.filter(|_| !is_own) else {
            continue;
        };
        match is_alive(other.address)? {
            true => return Err(other.conflict(own)),
            false => stale.push(other),
        }
    }
    Ok(stale)
}

impl Mapped {
    fn conflict(&self, own: &PortMapping) -> Error {
        let Mapped {
            network,
            container,
            mapping,
            ..
        } = self;
        let network = match network.as_str() {
            "" => String::new(),
            network => format!(" on network {network}"),
        };
        let what = format!(
            "portmap: host port {own} is mapped already: container {container}{network} has {mapping}"
        );
        Error::failed(what).details("choose another hostPort or hostIP, or remove that container")
    }
}

/// The ports to forward to one address of a container.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// With the prefix length of the container's subnet.
    pub address: Cidr,
    /// Those of other families are skipped.
    pub mappings: &'a [PortMapping],
    pub settings: &'a Settings,
}

impl Forwarded<'_> {
    /// Whether packets of the family must meet conditions.
    pub fn has_conditions(&self) -> bool {
        !self.settings.conditions(self.address.family()).is_empty()
    }
}
