//! Links: asking for them, making, changing and deleting them.

use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::link::*;
use super::message::{Message, Verb};
use super::vlan::IFLA_BR_VLAN_FILTERING;
use super::{Netlink, NetlinkError, present};
use crate::host::attribute::Attributes;
use crate::host::netns::Netns;
use crate::net::{IfName, Mac};

/// Attributes that are only sent (linux/if_link.h, linux/veth.h, linux/rtnetlink.h).
const IFLA_NET_NS_FD: u16 = 28;
pub(super) const IFLA_EXT_MASK: u16 = 29;
const VETH_INFO_PEER: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// A bridge to be made; it is born down, so that its parameters can be set before it has addresses.
#[derive(Clone, Debug)]
pub struct NewBridge<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its MAC address. With one it has no carrier until a port has (`br_stp_change_bridge_id`, net/bridge/br_stp_if.c);
    /// without one the kernel's choice follows the ports'.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Whether it keeps VLANs apart.
    pub filters_vlans: bool,
}

/// A veth pair to be made: one end a port of a bridge, the other where frames are to go.
#[derive(Clone, Debug)]
pub struct NewVeth<'a> {
    /// The name of the port.
    pub port: &'a IfName,
    /// The index of the bridge.
    pub bridge: u32,
    /// The name of the other end.
    pub end: &'a IfName,
    /// The MAC address of the other end.
    pub mac: Mac,
    /// The MTU of both ends in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// The link of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell; that there is none is `None`.
    pub fn link(&self, name: &IfName) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(0, named(name))
    }

    /// The link with that index.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn link_at(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(index, Attributes::default())
    }

    fn fetch_link(&self, index: u32, which: Attributes) -> Result<Option<Link>, NetlinkError> {
        let sparing = which.native(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let request = Message::new(Verb::GetLink, &header(index), &sparing);
        let answer = present(self.fetch(request))?.flatten();
        answer.as_deref().map(read).transpose()
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn ports(&self, bridge: u32) -> Result<Vec<Link>, NetlinkError> {
        let wanted = Attributes::default().native(IFLA_MASTER, bridge);
        let mut links = self.list_links(&wanted.native(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))?;
        links.retain(|link| link.master == Some(bridge));
        Ok(links)
    }

    /// All links of the namespace, with what went through them.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.list_links(&Attributes::default())
    }

    fn list_links(&self, wanted: &Attributes) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(|| Message::new(Verb::GetLink, &header(0), wanted))?;
        answers.iter().map(|bytes| read(bytes)).collect()
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken, [`NetlinkError::Unsupported`] when this kernel has no bridges
    /// or none that keep VLANs apart.
    pub fn create_bridge(&self, bridge: &NewBridge) -> Result<(), NetlinkError> {
        // A kernel that cannot keep VLANs apart makes no bridge either (`br_dev_newlink`, net/bridge/br_netlink.c).
        let filtering = bridge
            .filters_vlans
            .then(|| Attributes::default().bytes(IFLA_BR_VLAN_FILTERING, &[1]));
        let info = Attributes::default()
            .text(IFLA_INFO_KIND, "bridge")
            .maybe(filtering, |info, filtering| {
                info.nest(IFLA_INFO_DATA, filtering)
            });
        let attributes = named(bridge.name)
            .maybe(bridge.mac, |it, mac| it.bytes(IFLA_ADDRESS, &mac.bytes()))
            .maybe(bridge.mtu, |it, mtu| it.native(IFLA_MTU, mtu))
            .nest(IFLA_LINKINFO, info);
        let request = Message::new(Verb::NewLink, &header(0), &attributes);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a veth pair in one message: the port in this namespace, the other end born in the container, or here
    /// where there is none.
    ///
    /// Both ends are down: the kernel refuses to make a veth that is up before its peer exists
    /// (`veth_open`, drivers/net/veth.c).
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when one of the names is taken; nothing is made then.
    pub fn create_veth(
        &self,
        veth: &NewVeth,
        container: Option<&Netns>,
    ) -> Result<(), NetlinkError> {
        let end = named(veth.end)
            .bytes(IFLA_ADDRESS, &veth.mac.bytes())
            .maybe(veth.mtu, |it, mtu| it.native(IFLA_MTU, mtu))
            .maybe(container, |it, netns| {
                it.native(IFLA_NET_NS_FD, netns.as_raw_fd() as u32)
            });
        let end = [&header(0), end.as_bytes()].concat();
        let info = Attributes::default().text(IFLA_INFO_KIND, "veth").nest(
            IFLA_INFO_DATA,
            Attributes::default().bytes(VETH_INFO_PEER, &end),
        );
        let port = named(veth.port)
            .native(IFLA_MASTER, veth.bridge)
            .maybe(veth.mtu, |it, mtu| it.native(IFLA_MTU, mtu))
            .nest(IFLA_LINKINFO, info);
        let request = Message::new(Verb::NewLink, &header(0), &port);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets a port's flags and alias, and brings it up, in one message.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn start_port(
        &self,
        name: &IfName,
        flags: PortFlags,
        alias: &str,
    ) -> Result<(), NetlinkError> {
        let port = Attributes::default()
            .bytes(IFLA_BRPORT_MODE, &[flags.hairpin.into()])
            .bytes(IFLA_BRPORT_ISOLATED, &[flags.isolated.into()]);
        let info = Attributes::default()
            .text(IFLA_INFO_SLAVE_KIND, "bridge")
            .nest(IFLA_INFO_SLAVE_DATA, port);
        let attributes = named(name)
            .bytes(IFLA_IFALIAS, alias.as_bytes())
            .nest(IFLA_LINKINFO, info);
        self.change(Message::new(Verb::NewLink, &raised(0), &attributes), 0)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(&raised(index), Attributes::default())
    }

    /// Waits until packets pass a link of the thread's namespace.
    ///
    /// # Errors
    /// [`NetlinkError::TimedOut`] when they do not in time, [`NetlinkError::NotFound`] when there is no such link.
    pub fn wait_running(&self, name: &IfName, limit: Duration) -> Result<(), NetlinkError> {
        self.until(&[MulticastGroup::Link], None, limit, || {
            match self.link(name)? {
                None => Err(NetlinkError::NotFound(Errno::ENODEV)),
                Some(link) => Ok(link.is_running.then_some(())),
            }
        })
    }

    /// Takes a link down.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(&flagged(index, 0, IFF_UP), Attributes::default())
    }

    /// Makes a link take every frame.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_promiscuous(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(
            &flagged(index, IFF_PROMISC, IFF_PROMISC),
            Attributes::default(),
        )
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When there is no such link or no such bridge.
    pub fn set_bridge(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        self.set(
            &header(index),
            Attributes::default().native(IFLA_MASTER, bridge),
        )
    }

    /// Gives a link a MAC address of its own.
    ///
    /// # Errors
    /// When there is no such link or the address is not assignable.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        self.set(
            &header(index),
            Attributes::default().bytes(IFLA_ADDRESS, &mac.bytes()),
        )
    }

    fn set(&self, header: &[u8], attributes: Attributes) -> Result<(), NetlinkError> {
        self.change(Message::new(Verb::SetLink, header, &attributes), 0)
    }

    /// Deletes a link by its name; the other end of a veth pair goes with it.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_link(&self, name: &IfName) -> Result<(), NetlinkError> {
        self.change(Message::new(Verb::DelLink, &header(0), &named(name)), 0)
    }
}

/// struct ifinfomsg: family, type, link, flags, and which flags count.
fn flagged(index: u32, flags: u32, change: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

pub(super) fn header(index: u32) -> [u8; HEADER] {
    flagged(index, 0, 0)
}

fn raised(index: u32) -> [u8; HEADER] {
    flagged(index, IFF_UP, IFF_UP)
}

fn named(name: &IfName) -> Attributes {
    Attributes::default().text(IFLA_IFNAME, name.as_str())
}
