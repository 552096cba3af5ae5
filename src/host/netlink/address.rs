//! Addresses of links.

use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::message::{Message, Verb, family_number};
use super::{Netlink, NetlinkError};
use crate::host::attribute::{Attributes, each, ip, ip_bytes, native};
use crate::host::netns::Netns;
use crate::net::{Cidr, Family};

/// The length of what stands before the attributes (struct ifaddrmsg, linux/if_addr.h), in bytes.
pub(super) const HEADER: usize = 8;

/// Attributes of an address (linux/if_addr.h).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u8 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

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
    /// The index of its link.
    pub link: u32,
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
        let mut addresses = self.list_addresses(index)?;
        // Kernels before 4.20 do not filter.
        addresses.retain(|address| address.link == index);
        Ok(addresses)
    }

    /// The addresses of all links.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn all_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.list_addresses(0)
    }

    fn list_addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        let request = || Message::new(Verb::GetAddress, &header(0, index), &Attributes::default());
        let answers = self.dump(request)?;
        let of_ip = answers.iter().filter(|bytes| is_ip(bytes));
        of_ip
            .map(|bytes| Address::parse(bytes).ok_or(NetlinkError::Unreadable))
            .collect()
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
        let mut header = header_of(index, cidr);
        if cidr.family() == Family::V6 && detection == Detection::Skipped {
            header[2] = IFA_F_NODAD;
        }
        let broadcast = (cidr.family() == Family::V4 && cidr.prefix() < 31).then(|| cidr.last());
        let attributes = attributes(cidr).maybe(broadcast, |attributes, broadcast| {
            attributes.bytes(IFA_BROADCAST, &ip_bytes(broadcast))
        });
        let request = Message::new(Verb::NewAddress, &header, &attributes);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
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
        let header = header_of(index, cidr);
        self.change(
            Message::new(Verb::DelAddress, &header, &attributes(cidr)),
            0,
        )
    }
}

/// struct ifaddrmsg: family, prefix length, flags, scope, link.
fn header(family: u8, index: u32) -> [u8; HEADER] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d]
}

fn header_of(index: u32, cidr: Cidr) -> [u8; HEADER] {
    let mut header = header(family_number(cidr.family()), index);
    header[1] = cidr.prefix();
    header
}

fn attributes(cidr: Cidr) -> Attributes {
    let address = ip_bytes(cidr.address());
    let attributes = Attributes::default().bytes(IFA_LOCAL, &address);
    attributes.bytes(IFA_ADDRESS, &address)
}

/// Whether an address is of a family that we know: there are others on some kernels.
pub(super) fn is_ip(bytes: &[u8]) -> bool {
    let families = Family::BOTH.map(family_number);
    bytes.first().is_none_or(|family| families.contains(family))
}

impl Address {
    /// An address as the kernel tells it in a message of type RTM_NEWADDR, whose netlink header is not given; `None`
    /// when that is cut short or names none.
    pub fn parse(bytes: &[u8]) -> Option<Address> {
        let (header, attributes) = bytes.split_at_checked(HEADER)?;
        let (mut local, mut address) = (None, None);
        let mut flags = u32::from(header[2]);
        for (kind, value) in each(attributes) {
            match kind {
                IFA_LOCAL => local = ip(value),
                IFA_ADDRESS => address = ip(value),
                IFA_FLAGS => flags = native(value)?,
                _ => {}
            }
        }
        Some(Address {
            // On a point-to-point link IFA_ADDRESS is the other side's; IPv6 has only that one.
            cidr: Cidr::new(local.or(address)?, header[1])?,
            link: native(&header[4..8])?,
            is_tentative: flags & IFA_F_TENTATIVE != 0,
            is_duplicate: flags & IFA_F_DADFAILED != 0,
        })
    }
}
