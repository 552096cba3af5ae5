//! The MTU of the way out of the node, for `mtu` "auto".

use crate::bridge::attach::failed;
use crate::bridge::config::{BridgeConfig, MTUS, Mtu};
use crate::error::Error;
use crate::host::netlink::{Netlink, NetlinkError, RouteEntry, RouteQuery};
use crate::net::Family;

/// The table that packets of nobody in particular take (RT_TABLE_MAIN).
const MAIN_TABLE: u32 = 254;

/// The MTU for a network's links: where the uplink's is asked for, that, now. Without an uplink it is that of the bridge,
/// and without a bridge the kernel's default.
///
/// # Errors
/// When the kernel refuses to tell.
pub(super) fn settle(host: &Netlink, config: &BridgeConfig) -> Result<Mtu, Error> {
    if config.mtu != Mtu::Uplink {
        return Ok(config.mtu);
    }
    let found = find(host).map_err(|cause| {
        Error::failed(format!("cannot find the MTU of the uplink: {cause}"))
            .details("mtu is \"auto\"; a number needs no uplink")
    })?;
    let name = &config.bridge;
    let found = match found {
        Some(mtu) => Some(mtu),
        None => {
            let bridge = host.link(name);
            let bridge = bridge.map_err(|cause| failed("look up bridge", name, cause))?;
            bridge.map(|bridge| bridge.mtu)
        }
    };
    let within = |mtu: u32| Mtu::Bytes(mtu.clamp(*MTUS.start(), *MTUS.end()));
    Ok(found.map_or(Mtu::Kernel, within))
}

/// That of the default route of IPv4, or else of IPv6; `None` where there is neither.
fn find(host: &Netlink) -> Result<Option<u32>, NetlinkError> {
    for family in Family::BOTH {
        let routes = host.routes(RouteQuery { family, link: None })?;
        let Some(route) = default_route(&routes, family) else {
            continue;
        };
        let mut mtu = route.mtu;
        for link in route.link.iter().chain(&route.links) {
            let link = host.link_at(*link)?.map(|link| link.mtu);
            mtu = mtu.into_iter().chain(link).min();
        }
        if mtu.is_some() {
            return Ok(mtu);
        }
    }
    Ok(None)
}

/// The one that packets take: that of the lowest metric.
fn default_route(routes: &[RouteEntry], family: Family) -> Option<&RouteEntry> {
    let is_default = |route: &&RouteEntry| {
        route.dst == family.default_destination()
            && route.table == MAIN_TABLE
            && (route.link.is_some() || !route.links.is_empty())
    };
    let defaults = routes.iter().filter(is_default);
    defaults.min_by_key(|route| route.priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: &str, priority: u32, link: Option<u32>) -> RouteEntry {
        let mut route = RouteEntry::new(dst.parse().unwrap(), None);
        (route.priority, route.link) = (priority, link);
        route
    }

    #[test]
    fn of_default_routes_the_lowest_metric_of_the_main_table_counts() {
        let mut elsewhere = route("0.0.0.0/0", 0, Some(5));
        elsewhere.table = 100;
        let nowhere = route("0.0.0.0/0", 0, None);
        let routes = [
            route("10.0.0.0/8", 0, Some(1)),
            route("0.0.0.0/0", 200, Some(2)),
            route("0.0.0.0/0", 100, Some(3)),
            elsewhere,
            nowhere,
        ];
        assert_eq!(default_route(&routes, Family::V4), Some(&routes[2]));
        assert_eq!(default_route(&routes, Family::V6), None);
    }
}
