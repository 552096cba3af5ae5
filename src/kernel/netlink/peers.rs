//! Other network namespaces: the links that lead there, and the links and addresses in them.

use std::os::fd::AsRawFd;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;

use super::address::Address;
use super::connection::Netlink;
use super::error::{NetlinkError, not_found_as_none};
use super::link_types::Link;

/// The number by which a namespace knows another one (`ip netns list-id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsId(i32);

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
    /// When the kernel refuses the request.
    pub fn cross_links(&self) -> Result<Vec<CrossLink>, NetlinkError> {
        let mut links = Vec::new();
        for message in self.dump(&LinkMessage::default())? {
            let netns = message.attributes.iter().find_map(|it| match it {
                LinkAttribute::LinkNetNsId(id) => NetnsId::assigned(*id),
                _ => None,
            });
            if let Some(netns) = netns {
                let link = Link::from(message);
                // Kernels before 5.1 leave out an index that is also the link's own (`nla_put_iflink`, rtnetlink.c).
                let peer = link.peer.unwrap_or(link.index);
                links.push(CrossLink { link, peer, netns });
            }
        }
        Ok(links)
    }

    /// All addresses in another namespace; `None` if that has ended. Its links are still there for a while then, but
    /// it cannot be used any more (`get_net_ns_by_id`, net/core/net_namespace.c).
    ///
    /// # Errors
    /// [`NetlinkError::Unsupported`] before Linux 4.20; when the kernel refuses the request.
    pub fn addresses_in(&self, netns: NetnsId) -> Result<Option<Vec<Address>>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.attributes = vec![AddressAttribute::TargetNetNsId(netns.0)];
        let answers = match self.dump(&request) {
            // "Invalid target network namespace id" (`inet_valid_dump_ifaddr_req`, net/ipv4/devinet.c).
            Err(NetlinkError::Refused(Errno::EINVAL)) => return Ok(None),
            answers => answers?,
        };
        let is_target = |it: &AddressAttribute| matches!(it, AddressAttribute::TargetNetNsId(_));
        let is_there = |answer: &AddressMessage| answer.attributes.iter().any(is_target);
        // A kernel that does not know the attribute lists this namespace instead.
        if !answers.iter().all(is_there) {
            return Err(NetlinkError::Unsupported);
        }
        Address::list(&answers).map(Some)
    }

    /// A link in another namespace.
    ///
    /// # Errors
    /// When the kernel refuses the request; `None` when there is no such link.
    pub fn link_in(&self, netns: NetnsId, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        // IFLA_TARGET_NETNSID by its old name.
        request.attributes = vec![LinkAttribute::IfNetnsId(netns.0)];
        Ok(not_found_as_none(self.fetch(&request))?.map(Link::from))
    }

    /// The number of an open namespace; `None` if this one has none for it: then no link leads there.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn id_of(&self, netns: &impl AsRawFd) -> Result<Option<NetnsId>, NetlinkError> {
        let mut request = NsidMessage::default();
        request.attributes = vec![NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned())];
        let answer = self.fetch(&request)?;
        let id = answer.attributes.iter().find_map(|it| match it {
            NsidAttribute::Id(id) => Some(*id),
            _ => None,
        });
        Ok(NetnsId::assigned(id.ok_or(NetlinkError::Unreadable)?))
    }
}

impl NetnsId {
    /// NETNSA_NSID_NOT_ASSIGNED is -1.
    fn assigned(id: i32) -> Option<NetnsId> {
        (id >= 0).then_some(NetnsId(id))
    }
}
