//! Addresses of links.

use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};

use super::message::Message;
use super::{Netlink, NetlinkError};
use crate::host::netns::Netns;
use crate::net::{Cidr, Family};

/// Whether an IPv6 address waits until no neighbour claims it (RFC 4862, section 5.4). IPv4 has no such state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// It is usable at once: IPAM has made sure that it is unique.
    Skipped,
    /// It is tentative first.
    Performed,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address with its prefix length.
    pub cidr: Cidr,
    /// Not yet usable: duplicate address detection runs.
    pub is_tentative: bool,
    /// Another host has it: duplicate address detection failed.
    pub is_duplicate: bool,
}

impl Netlink {
    /// The addresses of a link, both families, link-local ones included.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let answers = self.dump(Message::GetAddress(request))?;
        let of_link = answers.into_iter().filter_map(|answer| match answer {
            // Kernels before 4.20 do not filter.
            Message::NewAddress(message) if message.header.index == index => Address::of(&message),
            _ => None,
        });
        Ok(of_link.collect())
    }

    /// Gives a link an address.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when it has it already.
    pub fn add_address(
        &self,
        index: u32,
        cidr: Cidr,
        detection: Detection,
    ) -> Result<(), NetlinkError> {
        let mut request = message(index, cidr);
        if cidr.family() == Family::V6 && detection == Detection::Skipped {
            request.header.flags = AddressHeaderFlags::Nodad;
        }
        if let std::net::IpAddr::V4(broadcast) = cidr.last()
            && cidr.prefix() < 31
        {
            request
                .attributes
                .push(AddressAttribute::Broadcast(broadcast));
        }
        self.change(Message::NewAddress(request), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Waits until duplicate address detection is over for all addresses of a link in `netns`.
    ///
    /// # Errors
    /// [`NetlinkError::Duplicate`] when a neighbour has one of them, [`NetlinkError::TimedOut`] when it does not end.
    pub fn wait_unique(
        &self,
        index: u32,
        netns: &Netns,
        limit: Duration,
    ) -> Result<(), NetlinkError> {
        let groups = [MulticastGroup::Ipv6Ifaddr];
        self.until(&groups, Some(netns), limit, || {
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

    /// Takes an address from a link.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when it has no such address.
    pub fn delete_address(&self, index: u32, cidr: Cidr) -> Result<(), NetlinkError> {
        self.change(Message::DelAddress(message(index, cidr)), 0)
    }
}

fn message(index: u32, cidr: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match cidr.family() {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.prefix_len = cidr.prefix();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(cidr.address()),
        AddressAttribute::Address(cidr.address()),
    ];
    message
}

impl Address {
    /// An address as a message of the kernel tells it; `None` when it names none.
    pub fn of(message: &AddressMessage) -> Option<Address> {
        let (mut local, mut address) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the other side's; IPv6 has only that one.
        let cidr = Cidr::new(local.or(address)?, message.header.prefix_len)?;
        Some(Address {
            cidr,
            is_tentative: flags.contains(AddressFlags::Tentative),
            is_duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}
