//! Routes.

use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::message::{Message, Verb, family_number};
use super::{Netlink, NetlinkError};
use crate::host::attribute::{Attributes, each, find, ip, ip_bytes, native};
use crate::host::netns::Netns;
use crate::net::{Cidr, Family, Route, RouteNumbers};

/// The length of what stands before the attributes (struct rtmsg, linux/rtnetlink.h), in bytes.
const HEADER: usize = 12;

/// Attributes and metrics of a route (linux/rtnetlink.h).
const RTA_DST: u16 = 1;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// Types of routes, and the maker of routes at boot or by hand (linux/rtnetlink.h).
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTPROT_BOOT: u8 = 3;

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
    /// The next hops of one over several.
    pub gateways: Vec<IpAddr>,
    /// Table: 254 is main.
    pub table: u32,
    /// Who made it (rtnetlink(7), `rtm_protocol`): 2 the kernel, 3 by hand or at boot, 9 from a router advertisement.
    pub protocol: u8,
    /// What becomes of the packets.
    kind: u8,
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
        let request = message(Verb::NewRoute, Some(link), route, RTPROT_BOOT);
        self.change(request, NLM_F_CREATE)
    }

    /// Adds a route under a protocol number of its own. The kernel finds the link by the next hop.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network,
    /// [`NetlinkError::Exists`] when there is one with the same destination and metric, of whatever type and maker.
    pub fn put_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        let request = message(Verb::NewRoute, None, route, protocol);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The same, in place of the one with the same destination and metric, whoever made that.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when the next hop is not on a connected network.
    pub fn replace_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        let request = message(Verb::NewRoute, None, route, protocol);
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route of that destination, next hop, metric and protocol.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn delete_route(&self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        self.change(message(Verb::DelRoute, None, route, protocol), 0)
    }

    /// The route that packets to an address take: the host's own, or those that come in by a link.
    ///
    /// # Errors
    /// [`NetlinkError::Unreachable`] when there is none.
    pub fn route_to(&self, address: IpAddr, from: Option<u32>) -> Result<RouteEntry, NetlinkError> {
        let family = Family::of(address);
        let header = Header {
            family: family_number(family),
            prefix: family.bits(),
            ..Header::default()
        };
        let packet = Attributes::default()
            .bytes(RTA_DST, &ip_bytes(address))
            .maybe(from, |it, link| it.native(RTA_IIF, link));
        let request = Message::new(Verb::GetRoute, &header.bytes(), &packet);
        let answer = self.fetch(request)?;
        read(&answer.ok_or(NetlinkError::Unreachable)?)
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
            Family::V4 => MulticastGroup::Ipv4Route,
            Family::V6 => MulticastGroup::Ipv6Route,
        };
        self.until(&[group], netns, limit, || {
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
            Ok(route) => Ok(route.kind == RTN_LOCAL),
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
    /// When the kernel refuses to tell.
    pub fn routes(&self, query: RouteQuery) -> Result<Vec<RouteEntry>, NetlinkError> {
        let header = Header {
            family: family_number(query.family),
            ..Header::default()
        };
        let link = || Attributes::default().maybe(query.link, |it, link| it.native(RTA_OIF, link));
        let request = || Message::new(Verb::GetRoute, &header.bytes(), &link());
        let mut routes = Vec::new();
        for answer in self.dump(request)? {
            let route = read(&answer)?;
            let over = |wanted| route.all_links().any(|link| link == wanted);
            let is_there = query.link.is_none_or(over);
            if is_there && route.kind == RTN_UNICAST {
                routes.push(route);
            }
        }
        Ok(routes)
    }
}

/// struct rtmsg.
#[derive(Clone, Copy, Default)]
struct Header {
    family: u8,
    prefix: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let Header {
            family,
            prefix,
            table,
            protocol,
            scope,
            kind,
        } = self;
        // Between them the length of a source, and its type of service; behind them flags.
        [
            family, prefix, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0,
        ]
    }
}

fn message(verb: Verb, link: Option<u32>, route: &Route, protocol: u8) -> Message {
    let RouteNumbers {
        mtu,
        advmss,
        priority,
        table,
        scope,
    } = route.numbers();
    let small = u8::try_from(table);
    let header = Header {
        family: family_number(route.dst.family()),
        prefix: route.dst.prefix(),
        table: small.unwrap_or(0),
        protocol,
        scope,
        kind: RTN_UNICAST,
    };
    let metrics = Attributes::default()
        .maybe(mtu, |metrics, mtu| metrics.native(RTAX_MTU, mtu))
        .maybe(advmss, |metrics, advmss| {
            metrics.native(RTAX_ADVMSS, advmss)
        });
    let metrics = Some(metrics).filter(|metrics| !metrics.as_bytes().is_empty());
    let attributes = Attributes::default()
        .maybe(small.err(), |it, _| it.native(RTA_TABLE, table))
        .bytes(RTA_DST, &ip_bytes(route.dst.address()))
        .maybe(link, |it, link| it.native(RTA_OIF, link))
        .maybe(route.gw, |it, gw| it.bytes(RTA_GATEWAY, &ip_bytes(gw)))
        .maybe(priority, |it, priority| it.native(RTA_PRIORITY, priority))
        .maybe(metrics, |it, metrics| it.nest(RTA_METRICS, metrics));
    Message::new(verb, &header.bytes(), &attributes)
}

fn read(bytes: &[u8]) -> Result<RouteEntry, NetlinkError> {
    RouteEntry::parse(bytes).ok_or(NetlinkError::Unreadable)
}

/// Links and gateways of next hops (struct rtnexthop: length, flags, weight, index; attributes behind them), as far as they
/// can be read.
fn hops(mut bytes: &[u8]) -> (Vec<u32>, Vec<IpAddr>) {
    let (mut links, mut gateways) = (Vec::new(), Vec::new());
    while let Some((head, _)) = bytes.split_first_chunk::<8>() {
        let [a, b, _, _, index @ ..] = *head;
        links.push(u32::from_ne_bytes(index));
        let length = usize::from(u16::from_ne_bytes([a, b])).max(8);
        let attributes = bytes.get(8..length).unwrap_or_default();
        gateways.extend(find(attributes, RTA_GATEWAY).and_then(ip));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (links, gateways)
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
            kind: RTN_UNICAST,
            priority: 0,
            mtu: None,
            advmss: None,
        }
    }

    /// The links it leads over.
    pub fn all_links(&self) -> impl Iterator<Item = u32> {
        self.link.into_iter().chain(self.links.iter().copied())
    }

    /// A route as the kernel tells it in a message of type RTM_NEWROUTE, whose netlink header is not given; `None` when
    /// that is cut short or of another family.
    pub fn parse(bytes: &[u8]) -> Option<RouteEntry> {
        let (header, attributes) = bytes.split_at_checked(HEADER)?;
        let of = |known: &Family| family_number(*known) == header[0];
        let family = Family::BOTH.into_iter().find(of)?;
        let dst = Cidr::new(family.default_destination().address(), header[1])?;
        let mut route = RouteEntry {
            table: header[4].into(),
            protocol: header[5],
            kind: header[7],
            ..RouteEntry::new(dst, None)
        };
        for (kind, value) in each(attributes) {
            match kind {
                RTA_DST => route.dst = Cidr::new(ip(value)?, header[1])?,
                RTA_OIF => route.link = native(value),
                RTA_MULTIPATH => (route.links, route.gateways) = hops(value),
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
