//! Decoding of the kernel's messages into the types of `netlink-packet-route`, attribute by attribute.
//!
//! The crate decodes a message completely or not at all: one attribute that it cannot decode, of a newer kernel or of a
//! kind of interface that others made, would hide the interface or the route. Here such an attribute is skipped. Of the
//! some forty attributes of links, only those in use are decoded: decoding all of them made CHECK slower by 7 %.

use netlink_packet_core::{Emitable, NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourHeader, NeighbourMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidHeader, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteLwEnCapType, RouteMessage};
use nix::libc::{
    IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_OPERSTATE, IFLA_STATS64, IFLA_TXQLEN, RTM_DELADDR, RTM_DELLINK,
    RTM_DELROUTE, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETNSID, RTM_GETQDISC, RTM_GETROUTE,
    RTM_GETTCLASS, RTM_GETTFILTER, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_SETLINK,
};

use crate::net::Family;

/// A message about one kind of object, to the kernel and from it.
pub(super) trait Message: Emitable + Sized {
    /// The message type of requests for such objects (RTM_GET*). The answers are RTM_NEW*.
    const GET: u16;

    /// Decodes what follows the netlink header; `None` when the header of the message is truncated.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Message for LinkMessage {
    const GET: u16 = RTM_GETLINK;

    fn decode(bytes: &[u8]) -> Option<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header = LinkHeader::parse(bytes).ok()?;
        let family = message.header.interface_family;
        message.attributes = attributes(bytes, &message.header, |nla| match nla.kind() {
            IFLA_IFNAME => Some(LinkAttribute::IfName(lossy(nla))),
            IFLA_IFALIAS => Some(LinkAttribute::IfAlias(lossy(nla))),
            IFLA_LINKINFO => Some(LinkAttribute::LinkInfo(link_info(nla.value()))),
            // Without AF_BRIDGE it has the IPv4 and IPv6 settings of the interface.
            IFLA_AF_SPEC if family != AddressFamily::Bridge => None,
            IFLA_ADDRESS | IFLA_AF_SPEC | IFLA_LINK | IFLA_LINK_NETNSID | IFLA_MASTER
            | IFLA_MTU | IFLA_OPERSTATE | IFLA_STATS64 | IFLA_TXQLEN => {
                LinkAttribute::parse_with_param(nla, family).ok()
            }
            _ => None,
        });
        Some(message)
    }
}

/// IFLA_LINKINFO, IFLA_LINK_NETNSID, RTM_GETNSID, with the data of bridges and of their ports only.
fn link_info(bytes: &[u8]) -> Vec<LinkInfo> {
    let (mut is_bridge, mut is_bridge_port) = (false, false);
    let decode = |nla: &Nla| {
        Some(match nla.kind() {
            IFLA_INFO_KIND => {
                let kind = InfoKind::parse(nla).ok()?;
                is_bridge = kind == InfoKind::Bridge;
                LinkInfo::Kind(kind)
            }
            IFLA_INFO_SLAVE_KIND => {
                let kind = InfoPortKind::parse(nla).ok()?;
                is_bridge_port = kind == InfoPortKind::Bridge;
                LinkInfo::PortKind(kind)
            }
            IFLA_INFO_DATA if is_bridge => {
                let bridge = each(nla.value(), |nla| InfoBridge::parse(nla).ok());
                LinkInfo::Data(InfoData::Bridge(bridge))
            }
            IFLA_INFO_SLAVE_DATA if is_bridge_port => {
                let port = each(nla.value(), |nla| InfoBridgePort::parse(nla).ok());
                LinkInfo::PortData(InfoPortData::BridgePort(port))
            }
            _ => return None,
        })
    };
    each(bytes, decode)
}

impl Message for AddressMessage {
    const GET: u16 = RTM_GETADDR;

    fn decode(bytes: &[u8]) -> Option<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header = AddressHeader::parse(bytes).ok()?;
        message.attributes = attributes(bytes, &message.header, |nla| {
            AddressAttribute::parse(nla).ok()
        });
        Some(message)
    }
}

impl Message for RouteMessage {
    const GET: u16 = RTM_GETROUTE;

    fn decode(bytes: &[u8]) -> Option<RouteMessage> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader::parse(bytes).ok()?;
        let RouteHeader {
            address_family,
            kind,
            ..
        } = message.header;
        // The type of an encapsulation is not decoded: RTA_ENCAP is not used.
        let context = (address_family, kind, RouteLwEnCapType::None);
        message.attributes = attributes(bytes, &message.header, |nla| {
            RouteAttribute::parse_with_param(nla, context).ok()
        });
        Some(message)
    }
}

impl Message for NeighbourMessage {
    const GET: u16 = RTM_GETNEIGH;

    fn decode(bytes: &[u8]) -> Option<NeighbourMessage> {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader::parse(bytes).ok()?;
        let family = message.header.family;
        message.attributes = attributes(bytes, &message.header, |nla| {
            NeighbourAttribute::parse_with_param(nla, family).ok()
        });
        Some(message)
    }
}

impl Message for NsidMessage {
    const GET: u16 = RTM_GETNSID;

    fn decode(bytes: &[u8]) -> Option<NsidMessage> {
        let mut message = NsidMessage::default();
        message.header = NsidHeader::parse(bytes).ok()?;
        message.attributes =
            attributes(bytes, &message.header, |nla| NsidAttribute::parse(nla).ok());
        Some(message)
    }
}

pub(super) type Nla<'a> = NlaBuffer<&'a [u8]>;

/// The attributes behind the header of a message.
pub(super) fn attributes<'a, T>(
    bytes: &'a [u8],
    header: &impl Emitable,
    decode: impl FnMut(&Nla<'a>) -> Option<T>,
) -> Vec<T> {
    each(bytes.get(header.buffer_len()..).unwrap_or_default(), decode)
}

/// The attributes for which `decode` returns something, up to a truncated one.
fn each<'a, T>(bytes: &'a [u8], mut decode: impl FnMut(&Nla<'a>) -> Option<T>) -> Vec<T> {
    let attributes = NlasIterator::new(bytes).map_while(Result::ok);
    attributes.filter_map(|nla| decode(&nla)).collect()
}

/// A text without its terminator. The kernel takes names and aliases that are not UTF-8.
fn lossy(nla: &Nla) -> String {
    let value = nla.value();
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The name of a message type in rtnetlink(7).
pub(super) fn type_name(message_type: u16) -> &'static str {
    match message_type {
        RTM_NEWLINK => "RTM_NEWLINK",
        RTM_DELLINK => "RTM_DELLINK",
        RTM_GETLINK => "RTM_GETLINK",
        RTM_SETLINK => "RTM_SETLINK",
        RTM_NEWADDR => "RTM_NEWADDR",
        RTM_DELADDR => "RTM_DELADDR",
        RTM_GETADDR => "RTM_GETADDR",
        RTM_NEWROUTE => "RTM_NEWROUTE",
        RTM_DELROUTE => "RTM_DELROUTE",
        RTM_GETROUTE => "RTM_GETROUTE",
        RTM_GETNEIGH => "RTM_GETNEIGH",
        RTM_GETNSID => "RTM_GETNSID",
        RTM_GETQDISC => "RTM_GETQDISC",
        RTM_GETTCLASS => "RTM_GETTCLASS",
        RTM_GETTFILTER => "RTM_GETTFILTER",
        _ => "another request",
    }
}
