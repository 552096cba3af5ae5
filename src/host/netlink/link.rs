//! Links: bridges, veth pairs and what the kernel tells of them.

use super::{Filtering, NetlinkError};
use crate::host::attribute::{each, find, native};
use crate::net::Mac;

/// The length of what stands before the attributes (struct ifinfomsg, linux/rtnetlink.h), in bytes.
pub(super) const HEADER: usize = 16;

/// Attributes of a link, and the state in which packets pass (linux/if_link.h, linux/if.h).
pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
pub(super) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(super) const IFLA_INFO_SLAVE_DATA: u16 = 5;
pub(super) const IFLA_BRPORT_MODE: u16 = 4;
pub(super) const IFLA_BRPORT_ISOLATED: u16 = 33;
pub(super) const IFF_UP: u32 = 0x1;
pub(super) const IFF_PROMISC: u32 = 0x100;
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
        let has = |flag: u32| flags & flag != 0;
        let mut link = Link {
            index: native(&header[4..8])?,
            name: String::new(),
            alias: String::new(),
            kind: Kind::Other("device".to_owned()),
            mac: None,
            mtu: 0,
            is_up: has(IFF_UP),
            is_running: false,
            is_promiscuous: has(IFF_PROMISC),
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

pub(super) fn read(bytes: &[u8]) -> Result<Link, NetlinkError> {
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
