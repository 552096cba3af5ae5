//! Routes in results and for the kernel.

use std::net::IpAddr;

use serde::Serialize;

use crate::net::Cidr;

/// A route of a result (CNI spec 1.1, "routes").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    pub dst: Cidr,
    /// Next hop; if absent, the gateway of the address.
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

/// The attributes of a route as the kernel accepts them. A result contains them as configured; like the Go plugins,
/// values out of the kernel's range are truncated or omitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAttributes {
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: u32,
    pub scope: u8,
}

impl Route {
    /// RT_TABLE_MAIN (linux/rtnetlink.h).
    pub const MAIN_TABLE: u32 = 254;

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

    pub fn attributes(&self) -> RouteAttributes {
        let positive = |number: Option<i64>| {
            let number = number.filter(|number| *number > 0)?;
            u32::try_from(number).ok()
        };
        RouteAttributes {
            mtu: positive(self.mtu),
            advmss: positive(self.advmss),
            priority: positive(self.priority),
            table: positive(self.table).unwrap_or(Route::MAIN_TABLE),
            scope: self.scope.unwrap_or(0) as u8,
        }
    }

    /// Whether the destination is directly reachable on the link (`scope` link or host), without a next hop.
    pub fn is_on_link(&self) -> bool {
        self.attributes().scope >= 253
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_truncated_or_omitted() {
        let plain = Route::new("10.9.0.0/16".parse().unwrap(), None);
        let parsed = |number: i64| {
            let route = Route {
                mtu: Some(number),
                priority: Some(number),
                table: Some(number),
                scope: Some(number),
                ..plain.clone()
            };
            let attributes = route.attributes();
            (
                attributes.mtu,
                attributes.priority,
                attributes.table,
                attributes.scope,
            )
        };
        assert_eq!(parsed(5), (Some(5), Some(5), 5, 5));
        assert_eq!(parsed(0), (None, None, Route::MAIN_TABLE, 0));
        assert_eq!(parsed(-1), (None, None, Route::MAIN_TABLE, 255));
        assert_eq!(parsed(256), (Some(256), Some(256), 256, 0));
        assert_eq!(parsed(1 << 32), (None, None, Route::MAIN_TABLE, 0));
    }
}
