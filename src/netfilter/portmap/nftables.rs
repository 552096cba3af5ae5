//! The nftables backend: over netlink, one map element for each port, so that the cost of a connection does not depend on
//! the number of mapped ports.
//!
//! ```text
//! table inet gangplank_portmap {
//!     map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }                  ports6
//!     map addresses4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }  addresses6, with hostIP
//!     map snat4 { type ipv4_addr . inet_proto . inet_service : verdict; }                        snat6
//!     chain prerouting {                                                                         output
//!         type nat hook prerouting priority dstnat + 1; policy accept;
//!         fib daddr type local jump hostports
//!     }
//!     chain hostports {
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

use std::cell::RefCell;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::nat::PortAllocation;
use crate::kernel::nftables::{
    Action, BaseChain, Batch, Element, Hook, Load, MapField, MapType, Match, Nftables,
    NftablesError, Rule, RuleEntry, Value, address_key, concatenation,
};
use crate::net::{Cidr, Family};
use crate::netfilter::Feature;
use crate::netfilter::masquerade::comment::RuleComment;
use crate::netfilter::portmap::iptables::IsAlive;
use crate::netfilter::portmap::{Forwarded, PortMapping, Protocol, SourceNat, TABLE};

pub(super) const FEATURE: Feature = Feature {
    name: "portmap",
    remedy: "the backend nftables needs Linux 5.6; set backend to iptables",
};

/// NF_IP_PRI_NAT_DST + 1 and NF_IP_PRI_NAT_SRC - 1 (linux/netfilter_ipv4.h).
const BASE_CHAINS: [BaseChain; 3] = [
    base_chain("prerouting", Hook::Prerouting, -99),
    base_chain("output", Hook::Output, -99),
    base_chain("postrouting", Hook::Postrouting, 99),
];

const HOST_PORTS: &str = "hostports";

const fn base_chain(name: &'static str, hook: Hook, priority: i32) -> BaseChain {
    BaseChain {
        name,
        kind: "nat",
        hook,
        priority,
    }
}

/// The maps of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub family: Family,
    /// Ports of all host addresses.
    pub ports: &'static str,
    /// Ports of one host address.
    pub addresses: &'static str,
    snat: &'static str,
}

impl Maps {
    pub const BOTH: [Maps; 2] = [
        Maps {
            family: Family::V4,
            ports: "ports4",
            addresses: "addresses4",
            snat: "snat4",
        },
        Maps {
            family: Family::V6,
            ports: "ports6",
            addresses: "addresses6",
            snat: "snat6",
        },
    ];

    fn of(family: Family) -> Maps {
        match family {
            Family::V4 => Maps::BOTH[0],
            Family::V6 => Maps::BOTH[1],
        }
    }

    fn names(self) -> [&'static str; 3] {
        [self.ports, self.addresses, self.snat]
    }

    fn types(self) -> [(&'static str, MapType); 3] {
        use MapField::{Ipv4, Ipv6, Port, Protocol};
        let (with_address, value): (&[MapField], &[MapField]) = match self.family {
            Family::V4 => (&[Ipv4, Protocol, Port], &[Ipv4, Port]),
            Family::V6 => (&[Ipv6, Protocol, Port], &[Ipv6, Port]),
        };
        let map = |key, value| MapType { key, value };
        [
            (self.ports, map(&[Protocol, Port], value)),
            (self.addresses, map(with_address, value)),
            (self.snat, map(with_address, &[])),
        ]
    }

    /// The rules of the shared chains about this family, in order.
    fn rules(self) -> [(&'static str, Rule); 3] {
        let family = self.family;
        let dnat = |fields, map| {
            let action = Action::DestinationMap(family, fields, map);
            (HOST_PORTS, Rule::new(vec![Match::Family(family)], action))
        };
        let (protocol, port) = (Load::Protocol, Load::DestinationPort);
        let snat = vec![
            Load::Destination(family),
            protocol,
            Load::OriginalDestinationPort,
        ];
        let translated = vec![Match::Family(family), Match::DestinationTranslated];
        [
            dnat(
                vec![Load::Destination(family), protocol, port],
                self.addresses,
            ),
            dnat(vec![protocol, port], self.ports),
            (
                "postrouting",
                Rule::new(translated, Action::VerdictMap(snat, self.snat)),
            ),
        ]
    }
}

/// A mapped port of any container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MappedElement {
    pub mapping: PortMapping,
    /// The address of the container.
    pub address: IpAddr,
    pub comment: String,
}

/// The mapped ports of an attachment.
#[derive(Clone, Debug)]
pub struct MapEntries {
    pub(super) comment: RuleComment,
    pub(super) chain: String,
}

impl MapEntries {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> MapEntries {
        let comment = RuleComment::of(network, attachment);
        MapEntries {
            chain: chain_of(comment.comment()),
            comment,
        }
    }

    /// Forwards the ports, in place of those that the attachment has, in one transaction.
    ///
    /// # Errors
    /// Before anything is changed: when another container has one of the ports, or the kernel refuses.
    pub fn install(&self, forwarded: &[Forwarded], is_alive: IsAlive) -> Result<(), Error> {
        let rejected = RefCell::new(None);
        FEATURE.with_nftables("install rules", |nftables| {
            nftables.change(&|| {
                let mut batch = Batch::default();
                complete_base(nftables, &mut batch)?;
                if nftables.chain(TABLE, &self.chain)?.is_some() {
                    self.delete_elements(nftables, &mut batch)?;
                }
                for forwarded in forwarded {
                    match self.conflict(nftables, forwarded, is_alive)? {
                        Ok(stale) => stale.delete(&mut batch),
                        Err(error) => {
                            rejected.replace(Some(error));
                            return Ok(Batch::default());
                        }
                    }
                }
                self.add(forwarded, &mut batch);
                Ok(batch)
            })
        })?;
        rejected.into_inner().map_or(Ok(()), Err)
    }

    fn add(&self, forwarded: &[Forwarded], batch: &mut Batch) {
        batch.create_chain(TABLE, &self.chain);
        batch.flush(TABLE, &self.chain);
        for rule in forwarded.iter().flat_map(source_nat) {
            batch.append(TABLE, &self.chain, &rule);
        }
        for forwarded in forwarded {
            for (map, element) in self.elements(forwarded) {
                batch.add_element(TABLE, map, &element);
            }
        }
    }

    fn elements(&self, forwarded: &Forwarded) -> Vec<(&'static str, Element)> {
        let (address, mut elements) = (forwarded.address.address(), Vec::new());
        let maps = Maps::of(Family::of(address));
        let own = forwarded
            .mappings
            .iter()
            .filter(|it| it.applies_to(maps.family));
        for mapping in own {
            let container_port = mapping.container_port.get().to_be_bytes();
            let value = concatenation(&[&address_key(address), &container_port]);
            let (map, key) = key_of(mapping, maps);
            let element = |key, value| Element {
                key,
                value,
                comment: self.comment.comment().to_owned(),
            };
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

    /// The elements of containers that no longer exist, or the error about one that does.
    fn conflict(
        &self,
        nftables: &Nftables,
        forwarded: &Forwarded,
        is_alive: IsAlive,
    ) -> Result<Result<Stale, Error>, NftablesError> {
        let maps = Maps::of(forwarded.address.family());
        let own = forwarded
            .mappings
            .iter()
            .filter(|it| it.applies_to(maps.family));
        let own: Vec<&PortMapping> = own.collect();
        let mut others = nftables.elements(TABLE, maps.addresses)?;
        for mapping in &own {
            others.extend(nftables.element(TABLE, maps.ports, &without_address(mapping))?);
        }
        let mut stale = Stale::default();
        for other in others
            .iter()
            .filter_map(|it| MappedElement::parse(it, maps.family))
        {
            let overlapping = own.iter().find(|it| it.overlaps(&other.mapping));
            let Some(own) = overlapping.filter(|_| !self.comment.matches(&other.comment)) else {
                continue;
            };
            match is_alive(other.address) {
                Ok(true) => return Ok(Err(other.conflict(own))),
                Ok(false) => stale.0.push((maps, other)),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(stale))
    }

    fn delete_elements(
        &self,
        nftables: &Nftables,
        batch: &mut Batch,
    ) -> Result<bool, NftablesError> {
        delete_matching(nftables, batch, &|comment| self.comment.matches(comment))
    }

    /// Removes the mapped ports, and the table with the last ones. Sends two queries if there are none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<(), Error> {
        let removed = FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| {
                let mut batch = Batch::default();
                if nftables.chain(TABLE, &self.chain)?.is_none() {
                    return Ok(batch);
                }
                let is_last = self.delete_elements(nftables, &mut batch)?;
                batch.delete_chain(TABLE, &self.chain);
                if is_last {
                    delete_base(&mut batch);
                }
                Ok(batch)
            })
        });
        removed.map(drop)
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
        if let Some((chain, _)) = base_rules()
            .into_iter()
            .find(|(chain, wanted)| !hold(&rules, chain, wanted))
        {
            return Ok(Some(format!("the rules of chain {chain} differ")));
        }
        let wanted: Vec<Rule> = forwarded.iter().flat_map(source_nat).collect();
        if !hold(&rules, &self.chain, &wanted) {
            return Ok(Some(format!("the rules of chain {} differ", self.chain)));
        }
        for (map, wanted) in forwarded.iter().flat_map(|it| self.elements(it)) {
            let found = nftables.element(TABLE, map, &wanted.key)?;
            let is_same = found
                .is_some_and(|it| it.value == wanted.value && self.comment.matches(&it.comment));
            if !is_same {
                return Ok(Some(format!(
                    "an element of map {map} is missing or differs"
                )));
            }
        }
        Ok(None)
    }
}

/// Whether any container has mapped ports.
///
/// # Errors
/// When the kernel refuses the query.
pub fn is_used() -> Result<bool, Error> {
    let found = FEATURE.with_existing("look for rules", |nftables| {
        Ok(nftables.chain(TABLE, HOST_PORTS)?.is_some())
    })?;
    Ok(found.unwrap_or_default())
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
    let removed = FEATURE.with_existing("remove stale rules", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            let mut chains: Vec<String> = Vec::new();
            for maps in Maps::BOTH {
                for map in [maps.ports, maps.addresses] {
                    let elements = nftables.elements(TABLE, map)?;
                    let stale = elements.iter().filter(|it| is_stale(&it.comment));
                    chains.extend(stale.map(|it| chain_of(&it.comment)));
                }
            }
            chains.sort();
            chains.dedup();
            let is_last = delete_matching(nftables, &mut batch, &is_stale)?;
            for chain in &chains {
                if nftables.chain(TABLE, chain)?.is_some() {
                    batch.delete_chain(TABLE, chain);
                }
            }
            if is_last && !chains.is_empty() {
                delete_base(&mut batch);
            }
            Ok(batch)
        })
    });
    removed.map(drop)
}

/// Deletes the elements whose comments match. Returns whether no port is mapped afterwards.
fn delete_matching(
    nftables: &Nftables,
    batch: &mut Batch,
    matches: &dyn Fn(&str) -> bool,
) -> Result<bool, NftablesError> {
    let mut is_last = true;
    for map in Maps::BOTH.into_iter().flat_map(Maps::names) {
        let elements = nftables.elements(TABLE, map)?;
        let own = elements.iter().filter(|it| matches(&it.comment));
        is_last &= own.clone().count() == elements.len();
        batch.delete_elements(TABLE, map, own);
    }
    Ok(is_last)
}

/// Deletes all that containers share, so that the table is empty except for the chain of route_localnet.
fn delete_base(batch: &mut Batch) {
    for chain in BASE_CHAINS {
        batch.delete_chain(TABLE, chain.name);
    }
    batch.delete_chain(TABLE, HOST_PORTS);
    for map in Maps::BOTH.into_iter().flat_map(Maps::names) {
        batch.delete_map(TABLE, map);
    }
}

/// The rules that containers share, by chain.
fn base_rules() -> Vec<(&'static str, Vec<Rule>)> {
    let to_host_ports = || {
        let jump = Action::Jump(HOST_PORTS.to_owned());
        vec![Rule::new(vec![Match::LocalDestination], jump)]
    };
    let rules = Maps::BOTH.into_iter().flat_map(Maps::rules);
    let of = |chain: &str| {
        let own = rules.clone().filter(|(of, _)| *of == chain);
        own.map(|(_, rule)| rule).collect()
    };
    vec![
        ("prerouting", to_host_ports()),
        ("output", to_host_ports()),
        (HOST_PORTS, of(HOST_PORTS)),
        ("postrouting", of("postrouting")),
    ]
}

pub(super) fn complete_base(nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
    let present = nftables.rules(TABLE, None)?;
    let rules = base_rules();
    if rules
        .iter()
        .all(|(chain, wanted)| hold(&present, chain, wanted))
    {
        return Ok(());
    }
    batch.create_table(TABLE);
    for (map, map_type) in Maps::BOTH.into_iter().flat_map(Maps::types) {
        batch.create_map(TABLE, map, map_type);
    }
    batch.create_chain(TABLE, HOST_PORTS);
    for chain in BASE_CHAINS {
        batch.create_base_chain(TABLE, chain);
    }
    for (chain, rules) in &rules {
        batch.flush(TABLE, chain);
        for rule in rules {
            batch.append(TABLE, chain, rule);
        }
    }
    Ok(())
}

fn hold(present: &[RuleEntry], chain: &str, wanted: &[Rule]) -> bool {
    let of_chain: Vec<&RuleEntry> = present.iter().filter(|rule| rule.chain == chain).collect();
    of_chain.len() == wanted.len() && of_chain.iter().zip(wanted).all(|(it, rule)| it.is(rule))
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

/// The chain of the attachment that a comment names: it begins with two hashes.
pub(super) fn chain_of(comment: &str) -> String {
    let key = comment.split(',').next().unwrap_or_default();
    format!("pod-{key}")
}

fn key_of(mapping: &PortMapping, maps: Maps) -> (&'static str, Vec<u8>) {
    match mapping.host_address() {
        Some(address) => (maps.addresses, with_address(address, mapping)),
        None => (maps.ports, without_address(mapping)),
    }
}

fn without_address(mapping: &PortMapping) -> Vec<u8> {
    let port = mapping.host_port.get().to_be_bytes();
    concatenation(&[&[mapping.protocol.number()], &port])
}

fn with_address(address: IpAddr, mapping: &PortMapping) -> Vec<u8> {
    [address_key(address), without_address(mapping)].concat()
}

/// Elements of containers that no longer exist.
#[derive(Default)]
struct Stale(Vec<(Maps, MappedElement)>);

impl Stale {
    fn delete(&self, batch: &mut Batch) {
        for (maps, stale) in &self.0 {
            let (map, key) = key_of(&stale.mapping, *maps);
            let element = Element {
                key,
                value: Value::Fields(Vec::new()),
                comment: String::new(),
            };
            batch.delete_elements(TABLE, map, [element].iter());
        }
    }
}

impl MappedElement {
    /// An element of the maps `ports` or `addresses` of a family.
    pub fn parse(element: &Element, family: Family) -> Option<MappedElement> {
        let length = address_key(family.default_destination().address()).len();
        let (host_ip, rest) = match element.key.len() > 8 {
            true => element.key.split_at_checked(length)?,
            false => (&[][..], &element.key[..]),
        };
        let Value::Fields(value) = &element.value else {
            return None;
        };
        let port = |bytes: &[u8]| {
            let port = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
            NonZeroU16::new(port)
        };
        let number = *rest.first()?;
        Some(MappedElement {
            mapping: PortMapping {
                protocol: Protocol::ALL.into_iter().find(|it| it.number() == number)?,
                host_port: port(rest.get(4..)?)?,
                container_port: port(value.get(length..)?)?,
                host_ip: ip(host_ip),
            },
            address: ip(value.get(..length)?)?,
            comment: element.comment.clone(),
        })
    }

    fn conflict(&self, own: &PortMapping) -> Error {
        let (network, container) = RuleComment::parse(&self.comment);
        let what = format!(
            "portmap: host port {own} is mapped already: container {container} on network {network} has {}",
            self.mapping
        );
        Error::failed(what).details("choose another hostPort or hostIP, or remove that container")
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
