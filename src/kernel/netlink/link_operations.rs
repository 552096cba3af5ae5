//! Requests about links: looking them up, creating, changing and deleting them.

use std::os::fd::AsRawFd;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::libc::{IFLA_IFALIAS, RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK, RTMGRP_LINK};

use super::connection::Netlink;
use super::error::{NetlinkError, not_found_as_none};
use super::link_types::{Link, LinkSetting, PortFlags};
use crate::kernel::netns::Netns;
use crate::net::{IfName, Mac};

/// A bridge to be created; it is down, so that its parameters can be set before it has addresses.
#[derive(Clone, Debug)]
pub struct NewBridge<'a> {
    pub name: &'a IfName,
    /// With a MAC address the bridge has no carrier until a port has (`br_stp_change_bridge_id`,
    /// net/bridge/br_stp_if.c). Without one, the kernel takes that of a port, and changes it when ports are added or
    /// removed.
    pub mac: Option<Mac>,
    /// In bytes; the kernel's default if `None`.
    pub mtu: Option<u32>,
    pub filters_vlans: bool,
}

/// A veth pair to be created: a bridge port and the container end.
#[derive(Clone, Debug)]
pub struct NewVeth<'a> {
    pub port: &'a IfName,
    /// The index of the bridge of which the port becomes a port; none if `None`.
    pub bridge: Option<u32>,
    /// The name of the container end.
    pub end: &'a IfName,
    /// The MAC address of the container end.
    pub mac: Mac,
    /// The MTU of both ends, in bytes; the kernel's default if `None`.
    pub mtu: Option<u32>,
}

/// An intermediate functional block to be created: traffic redirected to it can be queued (drivers/net/ifb.c).
#[derive(Clone, Debug)]
pub struct NewIfb<'a> {
    pub name: &'a IfName,
    /// In bytes.
    pub mtu: u32,
    /// At most 255 bytes.
    pub alias: &'a str,
}

impl Netlink {
    ///
    /// # Errors
    /// When the kernel refuses the request; `None` when there is no such link.
    pub fn link(&self, name: &IfName) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(named(name))
    }

    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn link_at(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(indexed(index))
    }

    fn fetch_link(&self, mut message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        message.attributes.push(without_counters());
        Ok(not_found_as_none(self.fetch(&message))?.map(Link::from))
    }

    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn ports(&self, bridge: u32) -> Result<Vec<Link>, NetlinkError> {
        let filter = vec![LinkAttribute::Controller(bridge), without_counters()];
        let mut links = self.list_links(filter)?;
        links.retain(|link| link.master == Some(bridge));
        Ok(links)
    }

    /// All links of the network namespace, with their counters.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.list_links(Vec::new())
    }

    fn list_links(&self, filter: Vec<LinkAttribute>) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(&message(filter))?;
        Ok(answers.into_iter().map(Link::from).collect())
    }

    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken, [`NetlinkError::Unsupported`] when this kernel has no bridges
    /// or no VLAN filtering.
    pub fn create_bridge(&self, bridge: &NewBridge) -> Result<(), NetlinkError> {
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        // A kernel without VLAN filtering then does not create the bridge (`br_dev_newlink`, net/bridge/br_netlink.c).
        if bridge.filters_vlans {
            let filtering = vec![InfoBridge::VlanFiltering(true)];
            info.push(LinkInfo::Data(InfoData::Bridge(filtering)));
        }
        let mut message = named(bridge.name);
        let mtu = bridge.mtu.map(LinkAttribute::Mtu);
        let optional = bridge.mac.map(mac).into_iter().chain(mtu);
        message.attributes.extend(optional);
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.change(RTM_NEWLINK, &message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Creates a veth pair in one request: the port in this network namespace, the other end in the container's, or in
    /// this one without a container.
    ///
    /// Both ends are down: the kernel refuses to create a veth that is up before its peer exists
    /// (`veth_open`, drivers/net/veth.c).
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when one of the names is taken; neither end is created then.
    pub fn create_veth(
        &self,
        veth: &NewVeth,
        container: Option<&Netns>,
    ) -> Result<(), NetlinkError> {
        let mtu = || veth.mtu.map(LinkAttribute::Mtu);
        let netns = container.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd()));
        let mut end = named(veth.end);
        end.attributes.push(mac(veth.mac));
        end.attributes.extend(mtu().into_iter().chain(netns));
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end))),
        ];
        let mut port = named(veth.port);
        port.attributes
            .extend(veth.bridge.map(LinkAttribute::Controller));
        port.attributes.extend(mtu());
        port.attributes.push(LinkAttribute::LinkInfo(info));
        self.change(RTM_NEWLINK, &port, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Creates an ifb that is up, with a random MAC address.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken, [`NetlinkError::Unsupported`] when this kernel has no ifb.
    pub fn create_ifb(&self, ifb: &NewIfb) -> Result<(), NetlinkError> {
        let mut message = flagged(named(ifb.name), LinkFlags::Up, LinkFlags::Up);
        message.attributes.extend([
            LinkAttribute::Mtu(ifb.mtu),
            LinkAttribute::TxQueueLen(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ]);
        self.change(RTM_NEWLINK, &message, NLM_F_CREATE | NLM_F_EXCL)?;
        // The kernel ignores the alias of a new link (`rtnl_create_link`).
        let mut message = named(ifb.name);
        message.attributes.push(alias(ifb.alias));
        self.set(&message)
    }

    /// Sets the alias of a link, its flags if it is a port of a bridge, and sets it up, in one request.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn start_link(
        &self,
        name: &IfName,
        flags: Option<PortFlags>,
        alias: &str,
    ) -> Result<(), NetlinkError> {
        let mut message = flagged(named(name), LinkFlags::Up, LinkFlags::Up);
        message.attributes.push(self::alias(alias));
        message.attributes.extend(flags.map(port_info));
        self.change(RTM_NEWLINK, &message, 0)
    }

    ///
    /// # Errors
    /// When there is no such port.
    pub fn set_port_flags(&self, index: u32, flags: PortFlags) -> Result<(), NetlinkError> {
        let mut message = indexed(index);
        message.attributes.push(port_info(flags));
        self.change(RTM_NEWLINK, &message, 0)
    }

    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(&flagged(indexed(index), LinkFlags::Up, LinkFlags::Up))
    }

    /// Waits until a link of the thread's network namespace passes packets.
    ///
    /// # Errors
    /// [`NetlinkError::TimedOut`] when it does not in time, [`NetlinkError::NotFound`] when there is no such link.
    pub fn wait_running(&self, name: &IfName, limit: Duration) -> Result<(), NetlinkError> {
        self.until(RTMGRP_LINK, None, limit, || match self.link(name)? {
            None => Err(NetlinkError::NotFound(Errno::ENODEV)),
            Some(link) => Ok(link.is_running.then_some(())),
        })
    }

    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(&flagged(indexed(index), LinkFlags::empty(), LinkFlags::Up))
    }

    ///
    /// # Errors
    /// When there is no such link or the value is not valid for it.
    pub fn configure(&self, index: u32, setting: LinkSetting) -> Result<(), NetlinkError> {
        let flag = |flag: LinkFlags, enabled: bool| {
            let flags = if enabled { flag } else { LinkFlags::empty() };
            self.set(&flagged(indexed(index), flags, flag))
        };
        match setting {
            LinkSetting::Mac(address) => self.set_mac(index, address),
            LinkSetting::Promiscuous(enabled) => flag(LinkFlags::Promisc, enabled),
            LinkSetting::Mtu(mtu) => self.set_attribute(index, LinkAttribute::Mtu(mtu)),
            LinkSetting::AllMulticast(enabled) => flag(LinkFlags::Allmulti, enabled),
            LinkSetting::TxQueueLength(length) => {
                self.set_attribute(index, LinkAttribute::TxQueueLen(length))
            }
        }
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When there is no such link or no such bridge.
    pub fn set_bridge(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        self.set_attribute(index, LinkAttribute::Controller(bridge))
    }

    /// Sets a link's MAC address.
    ///
    /// # Errors
    /// When there is no such link or the address is not assignable.
    pub fn set_mac(&self, index: u32, address: Mac) -> Result<(), NetlinkError> {
        self.set_attribute(index, mac(address))
    }

    fn set_attribute(&self, index: u32, attribute: LinkAttribute) -> Result<(), NetlinkError> {
        let mut message = indexed(index);
        message.attributes.push(attribute);
        self.set(&message)
    }

    fn set(&self, message: &LinkMessage) -> Result<(), NetlinkError> {
        self.change(RTM_SETLINK, message, 0)
    }

    /// Deletes a link by its name, and with it the other end of a veth pair.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_link(&self, name: &IfName) -> Result<(), NetlinkError> {
        self.change(RTM_DELLINK, &named(name), 0)
    }
}

fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn port_info(flags: PortFlags) -> LinkAttribute {
    let port = vec![
        InfoBridgePort::HairpinMode(flags.hairpin),
        InfoBridgePort::Isolated(flags.isolated),
    ];
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(port)),
    ])
}

/// `LinkAttribute::IfAlias` appends a zero byte: see the documentation of this module's parent.
fn alias(alias: &str) -> LinkAttribute {
    LinkAttribute::Other(DefaultNla::new(IFLA_IFALIAS, alias.as_bytes().to_vec()))
}

fn named(name: &IfName) -> LinkMessage {
    message(vec![LinkAttribute::IfName(name.as_str().to_owned())])
}

fn indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets the flags in `mask` to those in `flags`.
fn flagged(mut message: LinkMessage, flags: LinkFlags, mask: LinkFlags) -> LinkMessage {
    message.header.flags = flags;
    message.header.change_mask = mask;
    message
}

fn mac(mac: Mac) -> LinkAttribute {
    LinkAttribute::Address(mac.bytes().to_vec())
}

/// RTEXT_FILTER_SKIP_STATS: the kernel omits IFLA_STATS64 and IFLA_INET6_STATS.
fn without_counters() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}
