//! Routes.

use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use super::message::Message;
use super::{Netlink, NetlinkError};
use crate::host::attribute::{each, find, ip, native};
use crate::host::netns::Netns;
use crate::net::{Cidr, Family, Route};

/// The length of what stands before the attributes (struct rtmsg, linux/rtnetlink.h), in bytes.
const HEADER: usize = 12;

/// Attributes and metrics of a route (linux/rtnetlink.h).
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// Which routes to list.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery {
    /// Their family.
    pub family: Family,
    /// Their output interface; any when there is none.
    pub link: Option<u32>,
}

/// A route of the kernel, as far as it can be compared with one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Destination.
    pub dst: Cidr,
    /// Next hop.
    pub gw: Option<IpAddr>,
    /// The index of the link; `None` for one over several.
    pub link: Option<u32>,
    /// The links of one over several.
    pub links: Vec<u32>,
    /// Table: 254 is main.
    pub table: u32,
    /// Who made it (rtnetlink(7), `rtm_protocol`): 2 the kernel, 3 by hand or at boot, 9 from a router advertisement.
    pub protocol: u8,
    /// What becomes of the packets.
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
        let request = message(Some(link), route, RouteProtocol::Boot);
        self.change(Message::NewRoute(request), NLM_F_CREATE)
    }

    /// Adds a route under a protocol number of its own, in place of the one with the same destination and metric if
    /// there is one. The kernel finds the link by the next hop.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network.
    pub fn put_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        let request = message(None, route, protocol.into());
        self.change(Message::NewRoute(request), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route of that destination, next hop, metric and protocol.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        self.change(Message::DelRoute(message(None, route, protocol.into())), 0)
    }

    /// The route that packets to an address take.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when there is none.
    pub fn route_to(&self, address: IpAddr) -> Result<RouteEntry, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(Family::of(address));
        request.header.destination_prefix_length = Family::of(address).bits();
        let destination = RouteAttribute::Destination(address.into());
        request.attributes.push(destination);
        let answer = self.fetch(Message::GetRoute(request))?;
        read(&answer.ok_or(NetlinkError::Unreachable)?)
    }

    /// Waits until packets to an address of a link in `netns` (the thread's own namespace when `None`) are delivered.
    ///
    /// An IPv6 address that skips duplicate address detection is never shown as tentative, but the route that delivers
    /// to it is added by a kernel worker later (`addrconf_dad_work`, net/ipv6/addrconf.c).
    ///
    /// # Errors
    /// [`NetlinkError::TimedOut`] when they are not in time.
    pub fn wait_delivered(
        &self,
        address: IpAddr,
        netns: Option<&Netns>,
        limit: Duration,
    ) -> Result<(), NetlinkError> {
        let group = match Family::of(address) {
            Family::V4 => MulticastGroup::Ipv4Route,
            Family::V6 => MulticastGroup::Ipv6Route,
        };
        self.until(&[group], netns, limit, || {
            Ok(self.is_delivered(address)?.then_some(()))
        })
    }

    /// Whether the kernel would deliver a packet to this address here.
    fn is_delivered(&self, address: IpAddr) -> Result<bool, NetlinkError> {
        match self.route_to(address) {
            Ok(route) => Ok(route.kind == RouteType::Local),
            Err(NetlinkError::Unreachable) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The unicast routes over a link or all, in all tables.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn routes(&self, query: RouteQuery) -> Result<Vec<RouteEntry>, NetlinkError> {
        let request = || {
            let mut request = RouteMessage::default();
            request.header.address_family = family(query.family);
            request.header.kind = RouteType::Unspec;
            let link = query.link.map(RouteAttribute::Oif);
            request.attributes.extend(link);
            Message::GetRoute(request)
        };
        let mut routes = Vec::new();
        for answer in self.dump(request)? {
            let route = read(&answer)?;
            let is_there = query.link.is_none_or(|wanted| route.link == Some(wanted));
            if is_there && route.kind == RouteType::Unicast {
                routes.push(route);
            }
        }
        Ok(routes)
    }
}

fn message(link: Option<u32>, route: &Route, protocol: RouteProtocol) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family(route.dst.family());
    request.header.destination_prefix_length = route.dst.prefix();
    request.header.protocol = protocol;
    request.header.scope = RouteScope::from(route.scope.unwrap_or(0));
    request.header.kind = RouteType::Unicast;
    let attributes = &mut request.attributes;
    match route.table.map(u8::try_from) {
        None => request.header.table = RouteHeader::RT_TABLE_MAIN,
        Some(Ok(table)) => request.header.table = table,
        Some(Err(_)) => attributes.extend(route.table.map(RouteAttribute::Table)),
    }
    attributes.push(RouteAttribute::Destination(route.dst.address().into()));
    attributes.extend(link.map(RouteAttribute::Oif));
    attributes.extend(route.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    let metrics = [
        route.mtu.map(RouteMetric::Mtu),
        route.advmss.map(RouteMetric::Advmss),
    ];
    let metrics: Vec<_> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    request
}

fn read(bytes: &[u8]) -> Result<RouteEntry, NetlinkError> {
    RouteEntry::parse(bytes).ok_or(NetlinkError::Unreadable)
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The links of next hops (struct rtnexthop: length, flags, weight, index; attributes behind them), as far as they can be
/// read.
fn hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<8>() {
        let [a, b, _, _, index @ ..] = *head;
        links.push(u32::from_ne_bytes(index));
        let length = usize::from(u16::from_ne_bytes([a, b])).next_multiple_of(4);
        bytes = bytes.get(length.max(8)..).unwrap_or_default();
    }
    links
}

impl RouteEntry {
    /// A unicast route of table main without attributes.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> RouteEntry {
        RouteEntry {
            dst,
            gw,
            link: None,
            links: Vec::new(),
            table: RouteHeader::RT_TABLE_MAIN.into(),
            protocol: 0,
            kind: RouteType::Unicast,
            priority: 0,
            mtu: None,
            advmss: None,
        }
    }

    /// A route as the kernel tells it in a message of type RTM_NEWROUTE, whose netlink header is not given; `None` when
    /// that is cut short or of another family.
    pub fn parse(bytes: &[u8]) -> Option<RouteEntry> {
        let (header, attributes) = bytes.split_at_checked(HEADER)?;
        let of = |known: &Family| u8::from(family(*known)) == header[0];
        let family = Family::BOTH.into_iter().find(of)?;
        let dst = Cidr::new(family.default_destination().address(), header[1])?;
        let mut route = RouteEntry {
            table: header[4].into(),
            protocol: header[5],
            kind: RouteType::from(header[7]),
            ..RouteEntry::new(dst, None)
        };
        for (kind, value) in each(attributes) {
            match kind {
                RTA_DST => route.dst = Cidr::new(ip(value)?, header[1])?,
                RTA_OIF => route.link = native(value),
                RTA_MULTIPATH => route.links = hops(value),
                RTA_GATEWAY => route.gw = ip(value),
                RTA_PRIORITY => route.priority = native(value)?,
                RTA_TABLE => route.table = native(value)?,
                RTA_METRICS => {
                    route.mtu = find(value, RTAX_MTU).and_then(native);
                    route.advmss = find(value, RTAX_ADVMSS).and_then(native);
                }
                _ => {}
            }
        }
        Some(route)
    }
}
