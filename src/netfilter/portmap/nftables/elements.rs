//! The keys and values of map elements.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::kernel::nftables::{Element, Value, address_key, concatenation};
use crate::net::Family;
use crate::netfilter::portmap::nftables::base::Maps;
use crate::netfilter::portmap::{Mapped, PortMapping, Protocol};
use crate::netfilter::rule_comment::RuleComment;

/// The chain of the attachment that a comment names: it begins with two hashes.
pub fn chain_of(comment: &str) -> String {
    let key = comment.split(',').next().unwrap_or_default();
    format!("pod-{key}")
}

pub fn key_of(mapping: &PortMapping, maps: Maps) -> (&'static str, Vec<u8>) {
    match mapping.host_address() {
        Some(address) => (maps.addresses, with_address(address, mapping)),
        None => (maps.ports, without_address(mapping)),
    }
}

pub fn without_address(mapping: &PortMapping) -> Vec<u8> {
    let port = mapping.host_port.get().to_be_bytes();
    concatenation(&[&[mapping.protocol.number()], &port])
}

pub fn with_address(address: IpAddr, mapping: &PortMapping) -> Vec<u8> {
    [address_key(address), without_address(mapping)].concat()
}

/// An element of the maps `ports` or `addresses` of a family.
pub fn parse(element: &Element, family: Family) -> Option<Mapped> {
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
    let (network, container) = RuleComment::parse(&element.comment);
    Some(Mapped {
        mapping: PortMapping {
            protocol: Protocol::ALL.into_iter().find(|it| it.number() == number)?,
            host_port: port(rest.get(4..)?)?,
            container_port: port(value.get(length..)?)?,
            host_ip: ip(host_ip),
        },
        address: ip(value.get(..length)?)?,
        network: network.to_owned(),
        container: container.to_owned(),
        object: element.comment.clone(),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
