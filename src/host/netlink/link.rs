//! Links: bridges, veth pairs and what the kernel tells of them.

use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use super::message::Message;
use super::{Filtering, Netlink, NetlinkError, present};
use crate::host::attribute::{each, find, native};
use crate::host::netns::Netns;
use crate::net::{IfName, Mac};

/// The length of what stands before the attributes (struct ifinfomsg, linux/rtnetlink.h), in bytes.
pub(super) const HEADER: usize = 16;

/// Attributes of a link, and the state in which packets pass (linux/if_link.h, linux/if.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IF_OPER_UP: u8 = 6;

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// Another kind, by the kernel's name; "device" for one without a kind: hardware, loopback.
    Other(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Bridge => "bridge",
            Kind::Veth => "veth",
            Kind::Other(kind) => kind,
        })
    }
}

/// A link as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it was called for people; empty when nothing.
    pub alias: String,
    /// Its kind.
    pub kind: Kind,
    /// Its MAC address; `None` when it has none of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up (IFF_UP).
    pub is_up: bool,
    /// Whether packets pass now (operstate up).
    pub is_running: bool,
    /// Whether it was told to be promiscuous; a packet capture does not show here (IFF_PROMISC of `ifi_flags`
    /// is what users asked for, not the counter).
    pub is_promiscuous: bool,
    /// The index of the bridge it is a port of.
    pub master: Option<u32>,
    /// The index of the other end of a veth pair, in the namespace of that end.
    pub peer: Option<u32>,
    /// What a bridge does about VLANs.
    pub filtering: Filtering,
    /// How its bridge treats it, where it is a port.
    pub port: Option<PortFlags>,
    /// What went through it, where that was asked for.
    pub traffic: Option<Traffic>,
}

/// What went through a link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received and sent.
    pub packets: [u64; 2],
    /// Bytes received and sent.
    pub bytes: [u64; 2],
    /// Packets dropped while receiving and sending.
    pub dropped: [u64; 2],
}

impl Traffic {
    /// From struct rtnl_link_stats64 (linux/if_link.h): receiving before sending, packets, bytes, errors, drops.
    fn of(value: &[u8]) -> Option<Traffic> {
        let pair = |at: usize| {
            let number = |at: usize| value.get(at..at + 8)?.try_into().ok();
            Some([number(at)?, number(at + 8)?].map(u64::from_ne_bytes))
        };
        Some(Traffic {
            packets: pair(0)?,
            bytes: pair(16)?,
            dropped: pair(48)?,
        })
    }
}

/// A bridge to be made; it is born up.
#[derive(Clone, Debug)]
pub struct NewBridge<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its MAC address: given at birth, it does not follow the ports'.
    pub mac: Mac,
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

/// How a bridge treats a port (bridge(8), "bridge link set").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// A frame may leave by the port it came in.
    pub hairpin: bool,
    /// No frames between this port and other isolated ones.
    pub isolated: bool,
}

impl PortFlags {
    /// From what a link says of itself; `None` where it is no port of a bridge.
    fn of(link_info: &[u8]) -> Option<PortFlags> {
        let kind = find(link_info, IFLA_INFO_SLAVE_KIND)?;
        let port = find(link_info, IFLA_INFO_SLAVE_DATA)?;
        let is_set = |flag| find(port, flag).is_some_and(|value| value != [0]);
        (lossy(kind) == "bridge").then(|| PortFlags {
            hairpin: is_set(IFLA_BRPORT_MODE),
            isolated: is_set(IFLA_BRPORT_ISOLATED),
        })
    }
}

impl Netlink {
    /// The link of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell; that there is none is `None`.
    pub fn link(&self, name: &IfName) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(message(vec![LinkAttribute::IfName(name.to_string())]))
    }

    /// The link with that index.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn link_at(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.fetch_link(indexed(index, Vec::new()))
    }

    fn fetch_link(&self, mut request: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        let sparing = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        request.attributes.push(sparing);
        let answer = present(self.fetch(Message::GetLink(request)))?.flatten();
        answer.as_deref().map(read).transpose()
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn ports(&self, bridge: u32) -> Result<Vec<Link>, NetlinkError> {
        let mut links = self.list_links(|| {
            message(vec![
                LinkAttribute::Controller(bridge),
                LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
            ])
        })?;
        links.retain(|link| link.master == Some(bridge));
        Ok(links)
    }

    /// All links of the namespace, with what went through them.
    ///
    /// # Errors
    /// As [`Netlink::link`].
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.list_links(LinkMessage::default)
    }

    fn list_links(&self, request: impl Fn() -> LinkMessage) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(|| Message::GetLink(request()))?;
        answers.iter().map(|bytes| read(bytes)).collect()
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken, [`NetlinkError::Unsupported`] when this kernel has no bridges
    /// or none that keep VLANs apart.
    pub fn create_bridge(&self, bridge: &NewBridge) -> Result<(), NetlinkError> {
        let mut attributes = vec![
            LinkAttribute::IfName(bridge.name.to_string()),
            LinkAttribute::Address(bridge.mac.bytes().to_vec()),
        ];
        attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        if bridge.filters_vlans {
            // A kernel that cannot do it makes no bridge either (`br_dev_newlink`, net/bridge/br_netlink.c).
            let filtering = vec![InfoBridge::VlanFiltering(true)];
            info.push(LinkInfo::Data(InfoData::Bridge(filtering)));
        }
        attributes.push(LinkAttribute::LinkInfo(info));
        let mut request = message(attributes);
        raise(&mut request);
        self.change(Message::NewLink(request), NLM_F_CREATE | NLM_F_EXCL)
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
        let mut end = vec![
            LinkAttribute::IfName(veth.end.to_string()),
            LinkAttribute::Address(veth.mac.bytes().to_vec()),
        ];
        end.extend(container.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        let mut port = vec![
            LinkAttribute::IfName(veth.port.to_string()),
            LinkAttribute::Controller(veth.bridge),
        ];
        end.extend(veth.mtu.map(LinkAttribute::Mtu));
        port.extend(veth.mtu.map(LinkAttribute::Mtu));
        port.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message(end)))),
        ]));
        self.change(Message::NewLink(message(port)), NLM_F_CREATE | NLM_F_EXCL)
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
        let mut request = message(vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::IfAlias(alias.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::HairpinMode(flags.hairpin),
                    InfoBridgePort::Isolated(flags.isolated),
                ])),
            ]),
        ]);
        raise(&mut request);
        self.change(Message::NewLink(request), 0)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let mut request = indexed(index, Vec::new());
        raise(&mut request);
        self.change(Message::SetLink(request), 0)
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
        let mut request = indexed(index, Vec::new());
        request.header.change_mask = LinkFlags::Up;
        self.change(Message::SetLink(request), 0)
    }

    /// Makes a link take every frame.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_promiscuous(&self, index: u32) -> Result<(), NetlinkError> {
        let mut request = indexed(index, Vec::new());
        request.header.flags = LinkFlags::Promisc;
        request.header.change_mask = LinkFlags::Promisc;
        self.change(Message::SetLink(request), 0)
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When there is no such link or no such bridge.
    pub fn set_bridge(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let request = indexed(index, vec![LinkAttribute::Controller(bridge)]);
        self.change(Message::SetLink(request), 0)
    }

    /// Gives a link a MAC address of its own.
    ///
    /// # Errors
    /// When there is no such link or the address is not assignable.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let request = indexed(index, vec![LinkAttribute::Address(mac.bytes().to_vec())]);
        self.change(Message::SetLink(request), 0)
    }

    /// Deletes a link by its name; the other end of a veth pair goes with it.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_link(&self, name: &IfName) -> Result<(), NetlinkError> {
        let request = message(vec![LinkAttribute::IfName(name.to_string())]);
        self.change(Message::DelLink(request), 0)
    }
}

fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn indexed(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = message(attributes);
    message.header.index = index;
    message
}

fn raise(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

impl Link {
    /// Its name, with what it was called for people: whose it is, where one of ours.
    pub fn title(&self) -> String {
        match self.alias.as_str() {
            "" => self.name.clone(),
            alias => format!("{} ({alias})", self.name),
        }
    }

    /// A link as the kernel tells it in a message of type RTM_NEWLINK, whose netlink header is not given; `None` when
    /// that is cut short.
    pub fn parse(bytes: &[u8]) -> Option<Link> {
        let (header, attributes) = bytes.split_at_checked(HEADER)?;
        let flags = native(&header[8..12])?;
        let has = |flag: LinkFlags| flags & flag.bits() != 0;
        let mut link = Link {
            index: native(&header[4..8])?,
            name: String::new(),
            alias: String::new(),
            kind: Kind::Other("device".to_owned()),
            mac: None,
            mtu: 0,
            is_up: has(LinkFlags::Up),
            is_running: false,
            is_promiscuous: has(LinkFlags::Promisc),
            master: None,
            peer: None,
            filtering: Filtering::Impossible,
            port: None,
            traffic: None,
        };
        for (kind, value) in each(attributes) {
            match kind {
                IFLA_IFNAME => link.name = lossy(value),
                IFLA_IFALIAS => link.alias = lossy(value),
                IFLA_MTU => link.mtu = native(value)?,
                IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(value).ok().map(Mac::from_bytes),
                IFLA_OPERSTATE => link.is_running = value.first() == Some(&IF_OPER_UP),
                IFLA_MASTER => link.master = native(value).filter(|index| *index != 0),
                IFLA_LINK => link.peer = native(value).filter(|index| *index != 0),
                IFLA_STATS64 => link.traffic = Traffic::of(value),
                IFLA_LINKINFO => {
                    link.kind = find(value, IFLA_INFO_KIND).map_or(link.kind, Kind::of);
                    link.port = PortFlags::of(value);
                    if link.kind == Kind::Bridge {
                        link.filtering = Filtering::of(find(value, IFLA_INFO_DATA).unwrap_or(&[]));
                    }
                }
                _ => {}
            }
        }
        Some(link)
    }
}

fn read(bytes: &[u8]) -> Result<Link, NetlinkError> {
    Link::parse(bytes).ok_or(NetlinkError::Unreadable)
}

/// A name that is not UTF-8 is still a name.
fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

impl Kind {
    fn of(value: &[u8]) -> Kind {
        match lossy(value).as_str() {
            "bridge" => Kind::Bridge,
            "veth" => Kind::Veth,
            other => Kind::Other(other.to_owned()),
        }
    }
}
