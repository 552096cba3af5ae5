//! The default routes of the host.

use super::connection::Netlink;
use super::error::NetlinkError;
use super::route::{RouteEntry, RouteQuery};
use crate::net::{Family, Route};

impl Netlink {
    /// The default route of each family that packets take.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn uplinks(&self) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut uplinks = Vec::new();
        for family in Family::BOTH {
            let routes = self.routes(RouteQuery { family, link: None })?;
            uplinks.extend(default_route(routes, family));
        }
        Ok(uplinks)
    }

    /// The MTU of the IPv4 default route in bytes, or else of the IPv6 one: the lower of the link's and the route's.
    /// `None` without a default route.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn uplink_mtu(&self) -> Result<Option<u32>, NetlinkError> {
        for route in self.uplinks()? {
            let mut mtu = route.mtu;
            for link in route.all_links() {
                let link = self.link_at(link)?.map(|link| link.mtu);
                mtu = mtu.into_iter().chain(link).min();
            }
            if mtu.is_some() {
                return Ok(mtu);
            }
        }
        Ok(None)
    }
}

/// The default route of the lowest metric, which packets take.
fn default_route(routes: Vec<RouteEntry>, family: Family) -> Option<RouteEntry> {
    let is_default = |route: &RouteEntry| {
        route.dst == family.default_destination()
            && route.table == Route::MAIN_TABLE
            && route.all_links().next().is_some()
    };
    let defaults = routes.into_iter().filter(is_default);
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
        let routes = vec![
            route("10.0.0.0/8", 0, Some(1)),
            route("0.0.0.0/0", 200, Some(2)),
            route("0.0.0.0/0", 100, Some(3)),
            elsewhere,
            nowhere,
        ];
        let third = routes[2].clone();
        assert_eq!(default_route(routes.clone(), Family::V4), Some(third));
        assert_eq!(default_route(routes, Family::V6), None);
    }
}
