//! Routes as results have them, and as the kernel takes them.

use std::net::IpAddr;

use serde::Serialize;

use crate::net::Cidr;

/// A route of a result (CNI spec 1.1, "routes"); in JSON it has the spec's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; absent means "the address's gateway, if there is one".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// TCP maximum segment size advertised to the destination, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advmss: Option<i64>,
    /// Metric; the lower one wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Routing table; absent means main (254).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<i64>,
    /// Scope as in `rtnetlink(7)`: 0 universe, 253 link, 254 host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<i64>,
}

/// The numbers of a route as the kernel takes them. A result has them as they were configured; those that the kernel has
/// no room for the Go plugins cut off or leave out, and so do we.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteNumbers {
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// TCP maximum segment size in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// Scope.
    pub scope: u8,
}

impl Route {
    /// The routing table of routes that name none (RT_TABLE_MAIN, linux/rtnetlink.h).
    pub const MAIN_TABLE: u32 = 254;

    /// A plain route; the attributes are absent.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Route {
        Route {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// Its numbers as the kernel takes them.
    pub fn numbers(&self) -> RouteNumbers {
        let positive = |number: Option<i64>| {
            let number = number.filter(|number| *number > 0)?;
            u32::try_from(number).ok()
        };
        RouteNumbers {
            mtu: positive(self.mtu),
            advmss: positive(self.advmss),
            priority: positive(self.priority),
            table: positive(self.table).unwrap_or(Route::MAIN_TABLE),
            scope: self.scope.unwrap_or(0) as u8,
        }
    }

    /// Whether its destination is directly on the link (`scope` link or host), so that it has no next hop.
    pub fn is_on_link(&self) -> bool {
        self.numbers().scope >= 253
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_the_kernel_has_no_room_for_are_cut_off_or_left_out() {
        let plain = Route::new("10.9.0.0/16".parse().unwrap(), None);
        let numbers = |number: i64| {
            let route = Route {
                mtu: Some(number),
                priority: Some(number),
                table: Some(number),
                scope: Some(number),
                ..plain.clone()
            };
            let numbers = route.numbers();
            (numbers.mtu, numbers.priority, numbers.table, numbers.scope)
        };
        assert_eq!(numbers(5), (Some(5), Some(5), 5, 5));
        assert_eq!(numbers(0), (None, None, Route::MAIN_TABLE, 0));
        assert_eq!(numbers(-1), (None, None, Route::MAIN_TABLE, 255));
        assert_eq!(numbers(256), (Some(256), Some(256), 256, 0));
        assert_eq!(numbers(1 << 32), (None, None, Route::MAIN_TABLE, 0));
    }
}
