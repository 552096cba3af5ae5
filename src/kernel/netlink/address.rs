//! Addresses of links.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use nix::libc::{RTM_DELADDR, RTM_NEWADDR, RTMGRP_IPV6_IFADDR};

use super::connection::Netlink;
use super::error::NetlinkError;
use super::message::{Message, address_family};
use crate::kernel::netns::Netns;
use crate::net::{Cidr, Family};

/// Duplicate address detection for an IPv6 address (RFC 4862, section 5.4); IPv4 has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The address is usable at once: IPAM ensures that it is unique.
    Skipped,
    Performed,
}

/// Whether the kernel adds the route to the subnet of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubnetRoute {
    Added,
    /// The subnet is not on the link (IFA_F_NOPREFIXROUTE).
    Omitted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub cidr: Cidr,
    /// The index of the link.
    pub link: u32,
    /// Duplicate address detection is in progress.
    pub is_tentative: bool,
    /// Duplicate address detection found another host with it.
    pub is_duplicate: bool,
}

impl Netlink {
    /// The addresses of a link, both families, link-local ones included.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        let mut addresses = self.list_addresses(index)?;
        // Kernels before 4.20 do not filter.
        addresses.retain(|address| address.link == index);
        Ok(addresses)
    }

    /// The addresses of all links.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn all_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.list_addresses(0)
    }

    fn list_addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        Address::list(&self.dump(&message)?)
    }

    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the link has it already.
    pub fn add_address(
        &self,
        index: u32,
        cidr: Cidr,
        (detection, route): (Detection, SubnetRoute),
    ) -> Result<(), NetlinkError> {
        let mut message = message(index, cidr);
        if route == SubnetRoute::Omitted {
            // The header has only the lower eight flags.
            let flags = AddressAttribute::Flags(AddressFlags::Noprefixroute);
            message.attributes.push(flags);
        }
        if cidr.family() == Family::V6 && detection == Detection::Skipped {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        if let IpAddr::V4(broadcast) = cidr.last()
            && cidr.prefix() < 31
        {
            let broadcast = AddressAttribute::Broadcast(broadcast);
            message.attributes.push(broadcast);
        }
        self.change(RTM_NEWADDR, &message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Waits until duplicate address detection is over for all addresses of a link in `netns`.
    ///
    /// # Errors
    /// [`NetlinkError::Duplicate`] if another host has one of them, [`NetlinkError::TimedOut`].
    pub fn wait_unique(
        &self,
        index: u32,
        netns: &Netns,
        limit: Duration,
    ) -> Result<(), NetlinkError> {
        self.until(RTMGRP_IPV6_IFADDR, Some(netns), limit, || {
            let addresses = self.addresses(index)?;
            match addresses.iter().find(|address| address.is_duplicate) {
                Some(duplicate) => Err(NetlinkError::Duplicate(duplicate.cidr)),
                None => Ok(addresses
                    .iter()
                    .all(|address| !address.is_tentative)
                    .then_some(())),
            }
        })
    }

    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the link does not have it.
    pub fn delete_address(&self, index: u32, cidr: Cidr) -> Result<(), NetlinkError> {
        self.change(RTM_DELADDR, &message(index, cidr), 0)
    }
}

fn message(index: u32, cidr: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(cidr.family());
    message.header.prefix_len = cidr.prefix();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(cidr.address()),
        AddressAttribute::Address(cidr.address()),
    ];
    message
}

impl Address {
    /// Decodes an RTM_NEWADDR message without its netlink header; `None` when it is truncated or has no address.
    pub fn parse(bytes: &[u8]) -> Option<Address> {
        Address::of(&AddressMessage::decode(bytes)?)
    }

    /// The IPv4 and IPv6 addresses in the answers to a dump.
    pub(super) fn list(answers: &[AddressMessage]) -> Result<Vec<Address>, NetlinkError> {
        let families = Family::BOTH.map(address_family);
        // Some kernels also list addresses of other families.
        let of_ip = answers
            .iter()
            .filter(|answer| families.contains(&answer.header.family));
        of_ip
            .map(|answer| Address::of(answer).ok_or(NetlinkError::Unreadable))
            .collect()
    }

    fn of(message: &AddressMessage) -> Option<Address> {
        let header = &message.header;
        let (mut local, mut address) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Address {
            // On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has only that one.
            cidr: Cidr::new(local.or(address)?, header.prefix_len)?,
            link: header.index,
            is_tentative: flags.contains(AddressFlags::Tentative),
            is_duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn bytes(attributes: &[AddressAttribute]) -> Vec<u8> {
        let mut message = message(3, "10.1.2.3/24".parse().unwrap());
        message.header.flags = AddressHeaderFlags::Dadfailed;
        message.attributes.extend_from_slice(attributes);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn the_local_address_and_all_flags_count() {
        let peer = AddressAttribute::Address("10.9.9.9".parse().unwrap());
        let address = Address::parse(&bytes(std::slice::from_ref(&peer))).unwrap();
        assert_eq!(address.cidr.to_string(), "10.1.2.3/24");
        assert_eq!(address.link, 3);
        assert!(address.is_duplicate && !address.is_tentative);
        // IFA_FLAGS has more bits than the header, and replaces it.
        let flags = AddressAttribute::Flags(AddressFlags::Tentative | AddressFlags::StablePrivacy);
        let address = Address::parse(&bytes(&[peer, flags])).unwrap();
        assert!(address.is_tentative && !address.is_duplicate);
    }

    #[test]
    fn a_truncated_address_is_refused() {
        let bytes = bytes(&[]);
        assert!(Address::parse(&bytes).is_some());
        // The header, and the first of two attributes.
        for length in 0..8 + 8 {
            assert_eq!(Address::parse(&bytes[..length]), None, "{length} bytes");
        }
    }
}
