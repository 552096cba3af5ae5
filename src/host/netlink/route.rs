//! Routes.

use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NLM_F_CREATE;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use super::message::Message;
use super::{Netlink, NetlinkError};
use crate::host::netns::Netns;
use crate::net::{Cidr, Family, Route};

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
    /// The links it leaves by: several where it has several next hops, none where it goes nowhere.
    pub links: Vec<u32>,
    /// Table: 254 is main.
    pub table: u32,
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
        let mut request = RouteMessage::default();
        request.header.address_family = family(route.dst.family());
        request.header.destination_prefix_length = route.dst.prefix();
        request.header.protocol = RouteProtocol::Boot;
        request.header.scope = RouteScope::from(route.scope.unwrap_or(0));
        request.header.kind = RouteType::Unicast;
        let attributes = &mut request.attributes;
        match route.table.map(u8::try_from) {
            None => request.header.table = RouteHeader::RT_TABLE_MAIN,
            Some(Ok(table)) => request.header.table = table,
            Some(Err(_)) => attributes.extend(route.table.map(RouteAttribute::Table)),
        }
        attributes.push(RouteAttribute::Destination(route.dst.address().into()));
        attributes.push(RouteAttribute::Oif(link));
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
        self.change(Message::NewRoute(request), NLM_F_CREATE)
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
        let mut request = RouteMessage::default();
        request.header.address_family = family(Family::of(address));
        request.header.destination_prefix_length = Family::of(address).bits();
        let destination = RouteAttribute::Destination(address.into());
        request.attributes.push(destination);
        match self.fetch(Message::GetRoute(request)) {
            Ok(Some(Message::NewRoute(route))) => Ok(route.header.kind == RouteType::Local),
            Ok(_) | Err(NetlinkError::Unreachable) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The unicast routes over a link or all, in all tables.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn routes(&self, query: RouteQuery) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(query.family);
        request.header.kind = RouteType::Unspec;
        request
            .attributes
            .extend(query.link.map(RouteAttribute::Oif));
        let answers = self.dump(Message::GetRoute(request))?;
        let entries = answers.into_iter().filter_map(|answer| match answer {
            Message::NewRoute(message) => RouteEntry::of(&message, query),
            _ => None,
        });
        Ok(entries.collect())
    }
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

impl RouteEntry {
    /// A unicast route over the link as a message of the kernel tells it; `None` for any other.
    pub fn of(message: &RouteMessage, query: RouteQuery) -> Option<RouteEntry> {
        if message.header.kind != RouteType::Unicast {
            return None;
        }
        let nothing = query.family.default_destination().address();
        let mut route = RouteEntry {
            dst: Cidr::new(nothing, message.header.destination_prefix_length)?,
            gw: None,
            links: Vec::new(),
            table: message.header.table.into(),
            priority: 0,
            mtu: None,
            advmss: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.links.push(*index),
                RouteAttribute::MultiPath(hops) => {
                    route
                        .links
                        .extend(hops.iter().map(|hop| hop.interface_index));
                }
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(priority) => route.priority = *priority,
                RouteAttribute::Gateway(gateway) => route.gw = ip(gateway),
                RouteAttribute::Destination(dst) => {
                    route.dst = Cidr::new(ip(dst)?, message.header.destination_prefix_length)?
                }
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                            RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        query
            .link
            .is_none_or(|wanted| route.links.contains(&wanted))
            .then_some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
