//! Routes.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use nix::libc::{RTM_DELROUTE, RTM_NEWROUTE, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE};

use super::connection::Netlink;
use super::error::NetlinkError;
use super::message::{Message, address_family};
use crate::kernel::netns::Netns;
use crate::net::{Cidr, Family, Route, RouteAttributes};

/// Which routes to list.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery {
    /// Their family.
    pub family: Family,
    /// Their output interface; any when there is none.
    pub link: Option<u32>,
}

/// A route of the kernel, with the attributes that a configured route can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Destination.
    pub dst: Cidr,
    /// Next hop.
    pub gw: Option<IpAddr>,
    /// The index of the link; `None` for a multipath route.
    pub link: Option<u32>,
    /// The indexes of the links of a multipath route.
    pub links: Vec<u32>,
    /// The next hops of a multipath route.
    pub gateways: Vec<IpAddr>,
    /// Table: 254 is main.
    pub table: u32,
    /// Its origin (rtnetlink(7), `rtm_protocol`): 2 the kernel, 3 by hand or at boot, 9 a router advertisement.
    pub protocol: u8,
    kind: RouteType,
    /// Metric; 0 when the route has none (IPv6 shows 1024 by default).
    pub priority: u32,
    /// The path MTU, where the route sets one.
    pub mtu: Option<u32>,
    /// The advertised MSS, where the route sets one.
    pub advmss: Option<u32>,
}

impl Netlink {
    /// Adds a route over a link, with all its attributes. Its `gw` is taken as it is.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network,
    /// [`NetlinkError::Exists`] when there is the same one.
    pub fn add_route(&self, link: u32, route: &Route) -> Result<(), NetlinkError> {
        let mut message = message(route, RouteProtocol::Boot);
        message.attributes.push(RouteAttribute::Oif(link));
        self.change(RTM_NEWROUTE, &message, NLM_F_CREATE)
    }

    /// Adds a route over a link whose packets have `source` as source address, unless the sender binds to another one.
    ///
    /// # Errors
    /// As [`Netlink::add_route`].
    pub fn add_route_from(
        &self,
        link: u32,
        route: &Route,
        source: IpAddr,
    ) -> Result<(), NetlinkError> {
        let mut message = message(route, RouteProtocol::Boot);
        let source = RouteAttribute::PrefSource(source.into());
        message
            .attributes
            .extend([RouteAttribute::Oif(link), source]);
        self.change(RTM_NEWROUTE, &message, NLM_F_CREATE)
    }

    /// As [`Netlink::add_route`], but replaces a route with the same destination and metric over another link.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn move_route(&self, link: u32, route: &Route) -> Result<(), NetlinkError> {
        let mut message = message(route, RouteProtocol::Boot);
        message.attributes.push(RouteAttribute::Oif(link));
        self.change(RTM_NEWROUTE, &message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a route under a protocol number of its own. The kernel finds the link by the next hop.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network,
    /// [`NetlinkError::Exists`] when there is one with the same destination and metric, of whatever type and maker.
    pub fn put_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        let message = message(route, protocol.into());
        self.change(RTM_NEWROUTE, &message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// As [`Netlink::put_route`], but replaces a route with the same destination and metric, of any protocol.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network.
    pub fn replace_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        let message = message(route, protocol.into());
        self.change(RTM_NEWROUTE, &message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route of that destination, next hop, metric and protocol.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        self.change(RTM_DELROUTE, &message(route, protocol.into()), 0)
    }

    /// The route that packets to an address take: the host's own, or those that come in by a link.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when there is none.
    pub fn route_to(&self, address: IpAddr, from: Option<u32>) -> Result<RouteEntry, NetlinkError> {
        let family = Family::of(address);
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.header.destination_prefix_length = family.bits();
        message.attributes = vec![RouteAttribute::Destination(address.into())];
        message.attributes.extend(from.map(RouteAttribute::Iif));
        RouteEntry::of(&self.fetch(&message)?).ok_or(NetlinkError::Unreadable)
    }

    /// Waits until packets to the address of a link are delivered in `netns` (the thread's own namespace when `None`).
    ///
    /// An IPv6 address that skips duplicate address detection is never shown as tentative, but the route that delivers
    /// to it is added by a kernel worker later (`addrconf_dad_work`, net/ipv6/addrconf.c).
    ///
    /// # Errors
    /// [`NetlinkError::TimedOut`] when they are not in time.
    pub fn wait_delivered(
        &self,
        (link, address): (u32, IpAddr),
        netns: Option<&Netns>,
        limit: Duration,
    ) -> Result<(), NetlinkError> {
        let group = match Family::of(address) {
            Family::V4 => RTMGRP_IPV4_ROUTE,
            Family::V6 => RTMGRP_IPV6_ROUTE,
        };
        self.until(group, netns, limit, || {
            // The address of a bridge in a VRF is in the VRF's table, and a rule may send what the host itself sends to
            // another table: only a packet that comes in by the link is looked up where the address is. Before 4.19 the
            // route is over the loopback interface, and found without the link only.
            let is_local = |from| self.is_delivered(address, from);
            Ok((is_local(None)? || is_local(Some(link))?).then_some(()))
        })
    }

    /// Whether the kernel would deliver a packet to this address here.
    fn is_delivered(&self, address: IpAddr, from: Option<u32>) -> Result<bool, NetlinkError> {
        match self.route_to(address, from) {
            Ok(route) => Ok(route.kind == RouteType::Local),
            // A rule or a route that rejects (prohibit, unreachable, blackhole) answers EACCES or EINVAL.
            Err(NetlinkError::Unreachable | NetlinkError::Denied | NetlinkError::Refused(_)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The unicast routes over a link or all, in all tables.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn routes(&self, query: RouteQuery) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(query.family);
        message
            .attributes
            .extend(query.link.map(RouteAttribute::Oif));
        let mut routes = Vec::new();
        for answer in self.dump(&message)? {
            let route = RouteEntry::of(&answer).ok_or(NetlinkError::Unreadable)?;
            let leads_over = |wanted| route.all_links().any(|link| link == wanted);
            let is_wanted = query.link.is_none_or(leads_over);
            if is_wanted && route.kind == RouteType::Unicast {
                routes.push(route);
            }
        }
        Ok(routes)
    }
}

/// The message that adds or deletes a route.
fn message(route: &Route, protocol: RouteProtocol) -> RouteMessage {
    let RouteAttributes {
        mtu,
        advmss,
        priority,
        table,
        scope,
    } = route.attributes();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = address_family(route.dst.family());
    header.destination_prefix_length = route.dst.prefix();
    header.protocol = protocol;
    header.scope = scope.into();
    header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    match u8::try_from(table) {
        Ok(table) => header.table = table,
        Err(_) => attributes.push(RouteAttribute::Table(table)),
    }
    let gateway = route.gw.map(RouteAddress::from);
    let metrics: Vec<RouteMetric> = [mtu.map(RouteMetric::Mtu), advmss.map(RouteMetric::Advmss)]
        .into_iter()
        .flatten()
        .collect();
    attributes.push(RouteAttribute::Destination(route.dst.address().into()));
    attributes.extend(gateway.map(RouteAttribute::Gateway));
    attributes.extend(priority.map(RouteAttribute::Priority));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// An IP address of a route; there are others, of MPLS.
fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

impl RouteEntry {
    /// A unicast route of table main without attributes.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> RouteEntry {
        RouteEntry {
            dst,
            gw,
            link: None,
            links: Vec::new(),
            gateways: Vec::new(),
            table: Route::MAIN_TABLE,
            protocol: 0,
            kind: RouteType::Unicast,
            priority: 0,
            mtu: None,
            advmss: None,
        }
    }

    /// The indexes of its links.
    pub fn all_links(&self) -> impl Iterator<Item = u32> {
        self.link.into_iter().chain(self.links.iter().copied())
    }

    /// Decodes an RTM_NEWROUTE message without its netlink header; `None` when it is truncated or of another family.
    pub fn parse(bytes: &[u8]) -> Option<RouteEntry> {
        RouteEntry::of(&RouteMessage::decode(bytes)?)
    }

    fn of(message: &RouteMessage) -> Option<RouteEntry> {
        let (header, attributes) = (&message.header, &message.attributes);
        let is_of = |family: &Family| address_family(*family) == header.address_family;
        let family = Family::BOTH.into_iter().find(is_of)?;
        let destination = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
        // Only a default route has no RTA_DST.
        let destination = match header.destination_prefix_length {
            0 => destination.unwrap_or(family.default_destination().address()),
            _ => destination?,
        };
        let dst = Cidr::new(destination, header.destination_prefix_length)?;
        let mut route = RouteEntry {
            table: header.table.into(),
            protocol: header.protocol.into(),
            kind: header.kind,
            ..RouteEntry::new(dst, None)
        };
        attributes
            .iter()
            .for_each(|attribute| route.read(attribute));
        Some(route)
    }

    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(link) => self.link = Some(*link),
            RouteAttribute::MultiPath(hops) => {
                self.links = hops.iter().map(|hop| hop.interface_index).collect();
                let gateway = |attribute: &RouteAttribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                };
                let attributes = hops.iter().flat_map(|hop| &hop.attributes);
                self.gateways = attributes.filter_map(gateway).collect();
            }
            RouteAttribute::Gateway(address) => self.gw = ip(address),
            RouteAttribute::Priority(priority) => self.priority = *priority,
            RouteAttribute::Table(table) => self.table = *table,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => self.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => self.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};
    use netlink_packet_route::route::RouteNextHop;
    use nix::libc::{RTA_DST, RTA_ENCAP, RTA_ENCAP_TYPE};

    use super::*;

    fn bytes(message: &RouteMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn route(dst: &str) -> Route {
        Route {
            mtu: Some(1400),
            advmss: Some(1360),
            priority: Some(50),
            table: Some(1000),
            ..Route::new(dst.parse().unwrap(), Some("10.1.2.1".parse().unwrap()))
        }
    }

    #[test]
    fn an_encoded_route_is_decoded_to_the_same() {
        let mut message = message(&route("10.9.0.0/16"), RouteProtocol::Boot);
        assert_eq!(message.header.table, 0, "RTA_TABLE has it");
        message.attributes.push(RouteAttribute::Oif(4));
        let expected = RouteEntry {
            link: Some(4),
            table: 1000,
            protocol: 3,
            priority: 50,
            mtu: Some(1400),
            advmss: Some(1360),
            ..RouteEntry::new(
                "10.9.0.0/16".parse().unwrap(),
                Some("10.1.2.1".parse().unwrap()),
            )
        };
        assert_eq!(RouteEntry::parse(&bytes(&message)), Some(expected));
    }

    #[test]
    fn a_multipath_route_has_several_links() {
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            let gateway: IpAddr = "10.1.2.1".parse().unwrap();
            hop.attributes = vec![RouteAttribute::Gateway(gateway.into())];
            hop
        };
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(Family::V4);
        message.attributes = vec![RouteAttribute::MultiPath(vec![hop(3), hop(5)])];
        let route = RouteEntry::parse(&bytes(&message)).unwrap();
        assert_eq!(route.dst, Family::V4.default_destination());
        assert_eq!((route.link, route.links), (None, vec![3, 5]));
        let gateway: IpAddr = "10.1.2.1".parse().unwrap();
        assert_eq!(route.gateways, [gateway, gateway]);
    }

    #[test]
    fn an_encapsulation_that_cannot_be_decoded_is_skipped() {
        let mut message = message(&route("10.9.0.0/16"), RouteProtocol::Boot);
        for (kind, value) in [(RTA_ENCAP_TYPE, &[5, 0][..]), (RTA_ENCAP, &[1, 2, 3])] {
            let raw = DefaultNla::new(kind, value.to_vec());
            message.attributes.push(RouteAttribute::Other(raw));
        }
        message.attributes.push(RouteAttribute::Oif(4));
        let route = RouteEntry::parse(&bytes(&message)).unwrap();
        assert_eq!((route.link, route.mtu), (Some(4), Some(1400)));
    }

    #[test]
    fn a_truncated_route_or_one_of_another_family_is_refused() {
        let mut message = message(&route("10.9.0.0/16"), RouteProtocol::Boot);
        let whole = bytes(&message);
        // The header and the first attributes: RTA_TABLE and RTA_DST.
        for length in 0..12 + 8 + 8 {
            assert_eq!(RouteEntry::parse(&whole[..length]), None, "{length} bytes");
        }
        assert!(RouteEntry::parse(&whole[..12 + 8 + 8]).is_some());
        message.header.address_family = netlink_packet_route::AddressFamily::Mpls;
        assert_eq!(RouteEntry::parse(&bytes(&message)), None);
        message.header.address_family = address_family(Family::V4);
        message.attributes[1] = RouteAttribute::Other(DefaultNla::new(RTA_DST, vec![1, 2, 3]));
        assert_eq!(RouteEntry::parse(&bytes(&message)), None);
    }
}
