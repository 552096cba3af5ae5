//! Other network namespaces as they show from here: which links lead there, and what is inside.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::address::{Address, HEADER as ADDRESS_HEADER, is_ip};
use super::link::{HEADER as LINK_HEADER, Link, read};
use super::message::{Message, Verb};
use super::{Netlink, NetlinkError, present};
use crate::host::attribute::{Attributes, find, native};

/// Attributes of a link, an address and a namespace (linux/if_link.h, linux/if_addr.h, linux/net_namespace.h).
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFA_TARGET_NETNSID: u16 = 10;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// The length of struct rtgenmsg with its padding (linux/rtnetlink.h), in bytes.
const GENERIC_HEADER: usize = 4;

/// The number by which a namespace knows another one (`ip netns list-id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsId(u32);

/// A link whose other end, or the link that it is based on, is in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossLink {
    /// The link here.
    pub link: Link,
    /// The index of the other one, there.
    pub peer: u32,
    /// Where that is.
    pub netns: NetnsId,
}

impl Netlink {
    /// All links of this namespace that lead to another one.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn cross_links(&self) -> Result<Vec<CrossLink>, NetlinkError> {
        let request = || Message::new(Verb::GetLink, &[0; LINK_HEADER], &Attributes::default());
        let mut links = Vec::new();
        for bytes in self.dump(request)? {
            let attributes = bytes.get(LINK_HEADER..).unwrap_or_default();
            let netns = find(attributes, IFLA_LINK_NETNSID).and_then(native);
            if let Some(netns) = netns.and_then(NetnsId::assigned) {
                let link = read(&bytes)?;
                // Kernels before 5.1 leave out an index that is also the link's own (`nla_put_iflink`, rtnetlink.c).
                let peer = link.peer.unwrap_or(link.index);
                links.push(CrossLink { link, peer, netns });
            }
        }
        Ok(links)
    }

    /// All addresses in another namespace; `None` if that has ended. Its links are still there for a while then, but
    /// nobody can use it any more (`get_net_ns_by_id`, net/core/net_namespace.c).
    ///
    /// # Errors
    /// [`NetlinkError::Unsupported`] before Linux 4.20; when the kernel refuses to tell.
    pub fn addresses_in(&self, netns: NetnsId) -> Result<Option<Vec<Address>>, NetlinkError> {
        let wanted = Attributes::default().native(IFA_TARGET_NETNSID, netns.0);
        let request = || Message::new(Verb::GetAddress, &[0; ADDRESS_HEADER], &wanted);
        let answers = match self.dump(request) {
            // "Invalid target network namespace id" (`inet_valid_dump_ifaddr_req`, net/ipv4/devinet.c).
            Err(NetlinkError::Refused(Errno::EINVAL)) => return Ok(None),
            answers => answers?,
        };
        let is_there = |bytes: &Vec<u8>| {
            let attributes = bytes.get(ADDRESS_HEADER..).unwrap_or_default();
            find(attributes, IFA_TARGET_NETNSID).is_some()
        };
        // A kernel that does not know the attribute lists this namespace instead.
        if !answers.iter().all(is_there) {
            return Err(NetlinkError::Unsupported);
        }
        let parse = |bytes: &Vec<u8>| Address::parse(bytes).ok_or(NetlinkError::Unreadable);
        let of_ip = answers.iter().filter(|bytes| is_ip(bytes));
        of_ip.map(parse).collect::<Result<_, _>>().map(Some)
    }

    /// A link in another namespace.
    ///
    /// # Errors
    /// When the kernel refuses to tell; that there is none is `None`.
    pub fn link_in(&self, netns: NetnsId, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let wanted = Attributes::default().native(IFLA_TARGET_NETNSID, netns.0);
        let answer = present(self.fetch(Message::new(Verb::GetLink, &header, &wanted)))?;
        answer.flatten().as_deref().map(read).transpose()
    }

    /// The number of an open namespace; `None` if this one has none for it: then no link leads there.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn id_of(&self, netns: &impl AsRawFd) -> Result<Option<NetnsId>, NetlinkError> {
        let file: RawFd = netns.as_raw_fd();
        let wanted = Attributes::default().native(NETNSA_FD, file.cast_unsigned());
        let request = Message::new(Verb::GetNetnsId, &[0; GENERIC_HEADER], &wanted);
        let answer = self.fetch(request)?.ok_or(NetlinkError::Unreadable)?;
        let attributes = answer.get(GENERIC_HEADER..).unwrap_or_default();
        let id = find(attributes, NETNSA_NSID).and_then(native);
        Ok(NetnsId::assigned(id.ok_or(NetlinkError::Unreadable)?))
    }
}

impl NetnsId {
    /// NETNSA_NSID_NOT_ASSIGNED is -1.
    fn assigned(id: u32) -> Option<NetnsId> {
        (id.cast_signed() >= 0).then_some(NetnsId(id))
    }
}
