//! Plans which routes to change. Pure data.

use std::net::IpAddr;

use crate::cli::routes::nodes::ClusterNode;
use crate::error::{Code, Error};
use crate::kernel::netlink::RouteEntry;
use crate::net::{Cidr, Family, Route};

/// The protocol number of our routes (`rtm_protocol`, rtnetlink(7)). Numbers below 5 are reserved for the kernel and
/// administrators; linux/rtnetlink.h assigns 71 to no routing program.
pub const PROTOCOL: u8 = 71;

/// The metric of an IPv6 route without one (IP6_RT_PRIO_USER, linux/ipv6_route.h).
const IP6_RT_PRIO_USER: u32 = 1024;

/// A route to the pods of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    pub node: String,
    pub route: Route,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    Add(NodeRoute),
    /// The existing route, of our protocol, has another next hop or metric.
    Replace(NodeRoute, Route),
    /// The existing route, of our protocol, belongs to no node.
    Remove(Route),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct RoutePlan {
    /// In the order in which they must be applied.
    pub changes: Vec<RouteChange>,
    /// Destinations whose route is up to date.
    pub kept: Vec<Cidr>,
    /// Reasons why pods of a node cannot have a route.
    pub refused: Vec<String>,
}

/// This machine's node: by name, or by a local address. `None` if a list of lines does not contain it.
pub fn own_node<'a>(
    nodes: &'a [ClusterNode],
    name: Option<&str>,
    local: &[IpAddr],
) -> Result<Option<&'a ClusterNode>, Error> {
    let invalid = |what: String| Error::new(Code::INVALID_CONFIG, what);
    if let Some(name) = name {
        let named = nodes.iter().find(|node| node.name == name);
        return named.map(Some).ok_or_else(|| {
            let known: Vec<&str> = nodes.iter().take(10).map(|node| &*node.name).collect();
            let error = invalid(format!("no node is named {name:?}"));
            error.details(format!("the list has {}", known.join(", ")))
        });
    }
    let is_own = |node: &&ClusterNode| node.addresses.iter().any(|it| local.contains(it));
    let is_line = |node: &ClusterNode| {
        let address = node.addresses.first();
        address.is_some_and(|it| it.to_string() == node.name)
    };
    let what = match nodes.iter().filter(is_own).collect::<Vec<_>>()[..] {
        [own] => return Ok(Some(own)),
        [] if nodes.iter().all(is_line) => return Ok(None),
        [] => "none of the nodes has an InternalIP of this machine".to_owned(),
        [one, other, ..] => format!(
            "nodes {} and {} both have an address of this machine",
            one.name, other.name
        ),
    };
    Err(invalid(what).details("name the node of this machine: --node NAME"))
}

/// The routes to the pods of all other nodes, and the reasons why some are impossible.
pub fn wanted_routes(
    nodes: &[ClusterNode],
    own: Option<&ClusterNode>,
    metric: u32,
) -> (Vec<NodeRoute>, Vec<String>) {
    let (mut wanted, mut refused) = (Vec::new(), Vec::new());
    let others = nodes
        .iter()
        .filter(|node| own.is_none_or(|own| own.name != node.name));
    for node in others {
        for range in &node.ranges {
            let family = range.family();
            let of_family = |address: &&IpAddr| Family::of(**address) == family;
            match node.addresses.iter().find(of_family) {
                None => refused.push(format!(
                    "node {}: pods have {range}, but the node has no {family} address (InternalIP)",
                    node.name
                )),
                Some(address) => wanted.push(NodeRoute {
                    node: node.name.clone(),
                    route: Route {
                        priority: (metric != 0).then_some(metric.into()),
                        ..Route::new(*range, Some(*address))
                    },
                }),
            }
        }
    }
    (wanted, refused)
}

/// Compares the wanted routes with the existing ones.
pub fn plan(wanted: Vec<NodeRoute>, observed: &[RouteEntry]) -> RoutePlan {
    let mut plan = RoutePlan::default();
    let is_main = |route: &&RouteEntry| route.table == Route::MAIN_TABLE;
    let (ours, others): (Vec<&RouteEntry>, Vec<&RouteEntry>) = observed
        .iter()
        .filter(is_main)
        .partition(|route| route.protocol == PROTOCOL);
    for old in &ours {
        if wanted.iter().all(|wanted| wanted.route.dst != old.dst) {
            plan.changes.push(RouteChange::Remove(as_route(old)));
        }
    }
    for wanted in wanted {
        let dst = wanted.route.dst;
        let is_to_dst = |route: &&&RouteEntry| route.dst == dst;
        if let Some(other) = others.iter().find(is_to_dst) {
            match other.gw == wanted.route.gw {
                true => plan.kept.push(dst),
                false => plan.refused.push(conflict(&wanted, other)),
            }
            continue;
        }
        let mut old: Vec<&&RouteEntry> = ours.iter().filter(is_to_dst).collect();
        // An interrupted change of the metric leaves two routes. The one that is kept or replaced comes first.
        old.sort_by_key(|old| {
            let metric = metric_of(&wanted.route);
            (!is_same(old, &wanted.route), old.priority != metric)
        });
        let mut old = old.into_iter();
        match old.next() {
            None => plan.changes.push(RouteChange::Add(wanted)),
            Some(old) if is_same(old, &wanted.route) => plan.kept.push(dst),
            Some(old) => plan
                .changes
                .push(RouteChange::Replace(wanted, as_route(old))),
        }
        plan.changes
            .extend(old.map(|surplus| RouteChange::Remove(as_route(surplus))));
    }
    plan
}

fn is_same(observed: &RouteEntry, wanted: &Route) -> bool {
    observed.gw == wanted.gw && observed.priority == metric_of(wanted)
}

/// The metric that the kernel reports for a route.
pub fn metric_of(wanted: &Route) -> u32 {
    let default = match wanted.dst.family() {
        Family::V4 => 0,
        Family::V6 => IP6_RT_PRIO_USER,
    };
    wanted.attributes().priority.unwrap_or(default)
}

fn as_route(entry: &RouteEntry) -> Route {
    Route {
        priority: (entry.priority != 0).then_some(entry.priority.into()),
        ..Route::new(entry.dst, entry.gw)
    }
}

fn conflict(wanted: &NodeRoute, other: &RouteEntry) -> String {
    let via = match other.gw {
        Some(gw) => format!("via {gw}"),
        None => "over a link of this machine".to_owned(),
    };
    format!(
        "node {}: {} has a route {via} already, made by {}, which is not changed; remove it (ip route del {}) or assign \
         another range to the node",
        wanted.node,
        wanted.route.dst,
        protocol_name(other.protocol),
        other.dst
    )
}

/// The program that creates routes of a protocol number, with its name in iproute2.
fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        2 => "the kernel",
        3 => "hand or at boot (proto boot)",
        4 => "an administrator (proto static)",
        9 => "a router advertisement (proto ra)",
        16 => "a DHCP client (proto dhcp)",
        other => return format!("another program (proto {other})"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::routes::nodes::parse;

    fn entry(dst: &str, gw: &str, protocol: u8) -> RouteEntry {
        let mut entry = RouteEntry::new(dst.parse().unwrap(), gw.parse().ok());
        entry.protocol = protocol;
        entry
    }

    fn route(dst: &str, gw: &str) -> Route {
        Route::new(dst.parse().unwrap(), gw.parse().ok())
    }

    const LIST: &str =
        "192.168.0.1 10.1.0.0/24\n192.168.0.2 10.1.1.0/24\n192.168.0.3 10.1.2.0/24\n";

    #[test]
    fn only_differing_routes_change() {
        let nodes = parse(LIST).unwrap();
        let own = own_node(&nodes, None, &["192.168.0.1".parse().unwrap()]).unwrap();
        let (wanted, refused) = wanted_routes(&nodes, own, 0);
        assert_eq!(refused, [""; 0]);
        let fresh = plan(wanted.clone(), &[]);
        assert_eq!(
            fresh.changes,
            [
                RouteChange::Add(wanted[0].clone()),
                RouteChange::Add(wanted[1].clone())
            ]
        );
        let present = [
            entry("10.1.1.0/24", "192.168.0.2", PROTOCOL),
            entry("10.1.2.0/24", "192.168.0.9", PROTOCOL),
            entry("10.1.7.0/24", "192.168.0.7", PROTOCOL),
            entry("10.9.0.0/16", "192.168.0.7", 4),
        ];
        let plan = plan(wanted.clone(), &present);
        assert_eq!(
            plan.changes,
            [
                RouteChange::Remove(route("10.1.7.0/24", "192.168.0.7")),
                RouteChange::Replace(wanted[1].clone(), route("10.1.2.0/24", "192.168.0.9")),
            ]
        );
        assert_eq!(plan.kept, [wanted[0].route.dst]);
    }

    #[test]
    fn routes_of_other_programs_are_kept_or_reported() {
        let nodes = parse(LIST).unwrap();
        let (wanted, _) = wanted_routes(&nodes, Some(&nodes[0]), 0);
        let present = [
            entry("10.1.1.0/24", "192.168.0.2", 4),
            entry("10.1.2.0/24", "192.168.0.9", 3),
        ];
        let plan = plan(wanted.clone(), &present);
        assert_eq!(plan.changes, []);
        assert_eq!(plan.kept, [wanted[0].route.dst]);
        assert!(
            plan.refused[0].contains("node 192.168.0.3: 10.1.2.0/24 has a route via 192.168.0.9"),
            "{plan:?}"
        );
    }

    #[test]
    fn the_route_with_the_configured_metric_is_kept() {
        let nodes = parse("192.168.0.2 10.1.1.0/24\n").unwrap();
        let (wanted, _) = wanted_routes(&nodes, None, 100);
        let with = |gw: &str, metric: u32| {
            let mut entry = entry("10.1.1.0/24", gw, PROTOCOL);
            entry.priority = metric;
            entry
        };
        let (right, old) = (with("192.168.0.2", 100), with("192.168.0.2", 0));
        let plan = |observed: &[RouteEntry]| plan(wanted.clone(), observed);
        let kept = plan(&[old.clone(), right]);
        assert_eq!(kept.kept, [wanted[0].route.dst]);
        assert_eq!(kept.changes, [RouteChange::Remove(as_route(&old))]);
        // The replaced route is not removed as well.
        let other = with("192.168.0.9", 100);
        let replaced = plan(&[old.clone(), other.clone()]);
        let replace = RouteChange::Replace(wanted[0].clone(), as_route(&other));
        assert_eq!(
            replaced.changes,
            [replace, RouteChange::Remove(as_route(&old))]
        );
    }

    #[test]
    fn the_own_node_is_found_by_address_or_name() {
        let nodes = parse(LIST).unwrap();
        let local = |text: &str| [text.parse().unwrap()];
        let name = |own: Result<Option<&ClusterNode>, Error>| {
            own.map(|own| own.map(|node| node.name.clone()))
        };
        assert_eq!(
            name(own_node(&nodes, None, &local("192.168.0.3"))),
            Ok(Some("192.168.0.3".to_owned()))
        );
        assert_eq!(name(own_node(&nodes, None, &local("10.0.0.1"))), Ok(None));
        let both = [
            "192.168.0.1".parse().unwrap(),
            "192.168.0.2".parse().unwrap(),
        ];
        assert!(own_node(&nodes, None, &both).is_err());
        assert!(own_node(&nodes, Some("d"), &[]).is_err());
        let named = parse(r#"{"metadata": {"name": "a"}}"#).unwrap();
        let error = own_node(&named, None, &local("10.0.0.1")).unwrap_err();
        assert!(error.to_string().contains("--node"), "{error}");
    }

    #[test]
    fn a_node_without_an_address_of_the_family_is_reported() {
        let nodes = parse("192.168.0.2 fd00::/64\n").unwrap();
        let (routes, refused) = wanted_routes(&nodes, None, 5);
        assert_eq!(routes, []);
        assert!(refused[0].contains("no IPv6 address"), "{refused:?}");
    }
}
