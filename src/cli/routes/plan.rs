//! Which routes must change, worked out before any does. Pure data.

use std::net::IpAddr;

use crate::cli::routes::nodes::Node;
use crate::error::{Code, Error};
use crate::kernel::netlink::RouteEntry;
use crate::net::{Cidr, Family, Route};

/// The number that our routes carry (`rtm_protocol`, rtnetlink(7)). Those below 5 are the kernel's own, and none of the
/// routing programs in linux/rtnetlink.h has this one.
pub const PROTOCOL: u8 = 71;

/// The metric of an IPv6 route that was given none (IP6_RT_PRIO_USER, linux/ipv6_route.h).
const DEFAULT_METRIC_IPV6: u32 = 1024;

/// A route to the pods of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The node.
    pub node: String,
    /// Destination, next hop and metric.
    pub route: Route,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none yet.
    Add(Wanted),
    /// Ours has another next hop or metric.
    Replace(Wanted, Route),
    /// Ours leads to no node any more.
    Remove(Route),
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In their order.
    pub steps: Vec<Step>,
    /// Destinations whose route is right already.
    pub kept: Vec<Cidr>,
    /// Why some nodes get no route.
    pub refused: Vec<String>,
}

/// The node that this machine is: the one of that name, or the one with one of its addresses. `None` when a list of
/// lines does not have it.
///
/// # Errors
/// Code 7 when none or more than one can be meant.
pub fn own_node<'a>(
    nodes: &'a [Node],
    name: Option<&str>,
    local: &[IpAddr],
) -> Result<Option<&'a Node>, Error> {
    if let Some(name) = name {
        let named = nodes.iter().find(|node| node.name == name);
        return match named {
            Some(node) => Ok(Some(node)),
            None => {
                let known: Vec<&str> = nodes.iter().take(10).map(|node| &*node.name).collect();
                let what = format!("no node is named {name:?}");
                Err(Error::new(Code::INVALID_CONFIG, what)
                    .details(format!("the list has {}", known.join(", "))))
            }
        };
    }
    let is_own = |node: &&Node| node.addresses.iter().any(|address| local.contains(address));
    let own: Vec<&Node> = nodes.iter().filter(is_own).collect();
    match own[..] {
        [] if nodes.iter().all(|node| {
            node.addresses
                .first()
                .is_some_and(|it| it.to_string() == node.name)
        }) =>
        {
            Ok(None)
        }
        [] => Err(Error::new(
            Code::INVALID_CONFIG,
            "none of the nodes has an InternalIP of this machine",
        )
        .details("say which one this is: --node NAME")),
        [own] => Ok(Some(own)),
        [one, other, ..] => Err(Error::new(
            Code::INVALID_CONFIG,
            format!(
                "nodes {} and {} both have an address of this machine",
                one.name, other.name
            ),
        )
        .details("say which one this is: --node NAME")),
    }
}

/// The routes to the pods of all other nodes, and why some can have none.
pub fn wanted(nodes: &[Node], own: Option<&Node>, metric: u32) -> (Vec<Wanted>, Vec<String>) {
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
                    "node {}: pods have {range}, but the node has no {family} address (InternalIP) to reach them by",
                    node.name
                )),
                Some(address) => wanted.push(Wanted {
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

/// Compares what should be with the routes that there are.
pub fn plan(wanted: Vec<Wanted>, present: &[RouteEntry]) -> Plan {
    let mut plan = Plan::default();
    let main = |route: &&RouteEntry| route.table == Route::MAIN_TABLE;
    let (ours, others): (Vec<&RouteEntry>, Vec<&RouteEntry>) = present
        .iter()
        .filter(main)
        .partition(|route| route.protocol == PROTOCOL);
    for old in &ours {
        if wanted.iter().all(|wanted| wanted.route.dst != old.dst) {
            plan.steps.push(Step::Remove(as_route(old)));
        }
    }
    for wanted in wanted {
        let dst = wanted.route.dst;
        let there = |route: &&&RouteEntry| route.dst == dst;
        if let Some(other) = others.iter().find(there) {
            match other.gw == wanted.route.gw {
                true => plan.kept.push(dst),
                false => plan.refused.push(in_the_way(&wanted, other)),
            }
            continue;
        }
        let mut old: Vec<&&RouteEntry> = ours.iter().filter(there).collect();
        // A change of metric that was cut short leaves two: what is right, or takes the new one's place, comes first.
        old.sort_by_key(|old| {
            let metric = metric_of(&wanted.route);
            (!is_same(old, &wanted.route), old.priority != metric)
        });
        let mut old = old.into_iter();
        match old.next() {
            None => plan.steps.push(Step::Add(wanted)),
            Some(old) if is_same(old, &wanted.route) => plan.kept.push(dst),
            Some(old) => plan.steps.push(Step::Replace(wanted, as_route(old))),
        }
        plan.steps
            .extend(old.map(|surplus| Step::Remove(as_route(surplus))));
    }
    plan
}

fn is_same(present: &RouteEntry, wanted: &Route) -> bool {
    present.gw == wanted.gw && present.priority == metric_of(wanted)
}

/// The metric as the kernel will show it.
pub fn metric_of(wanted: &Route) -> u32 {
    let default = match wanted.dst.family() {
        Family::V4 => 0,
        Family::V6 => DEFAULT_METRIC_IPV6,
    };
    wanted.numbers().priority.unwrap_or(default)
}

fn as_route(entry: &RouteEntry) -> Route {
    Route {
        priority: (entry.priority != 0).then_some(entry.priority.into()),
        ..Route::new(entry.dst, entry.gw)
    }
}

fn in_the_way(wanted: &Wanted, other: &RouteEntry) -> String {
    let leads = match other.gw {
        Some(gw) => format!("via {gw}"),
        None => "over a link of this machine".to_owned(),
    };
    format!(
        "node {}: {} has a route {leads} already, made by {}, which is not touched; remove it (ip route del {}) or \
         give the node another range",
        wanted.node,
        wanted.route.dst,
        maker(other.protocol),
        other.dst
    )
}

/// Who makes routes of a protocol number, by its name in iproute2.
fn maker(protocol: u8) -> String {
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
    fn what_differs_is_changed_and_nothing_else() {
        let nodes = parse(LIST).unwrap();
        let own = own_node(&nodes, None, &["192.168.0.1".parse().unwrap()]).unwrap();
        let (wanted, refused) = wanted(&nodes, own, 0);
        assert_eq!(refused, [""; 0]);
        let fresh = plan(wanted.clone(), &[]);
        assert_eq!(
            fresh.steps,
            [Step::Add(wanted[0].clone()), Step::Add(wanted[1].clone())]
        );
        let present = [
            entry("10.1.1.0/24", "192.168.0.2", PROTOCOL),
            entry("10.1.2.0/24", "192.168.0.9", PROTOCOL),
            entry("10.1.7.0/24", "192.168.0.7", PROTOCOL),
            entry("10.9.0.0/16", "192.168.0.7", 4),
        ];
        let plan = plan(wanted.clone(), &present);
        assert_eq!(
            plan.steps,
            [
                Step::Remove(route("10.1.7.0/24", "192.168.0.7")),
                Step::Replace(wanted[1].clone(), route("10.1.2.0/24", "192.168.0.9")),
            ]
        );
        assert_eq!(plan.kept, [wanted[0].route.dst]);
    }

    #[test]
    fn the_routes_of_others_are_kept_or_named() {
        let nodes = parse(LIST).unwrap();
        let (wanted, _) = wanted(&nodes, Some(&nodes[0]), 0);
        let present = [
            entry("10.1.1.0/24", "192.168.0.2", 4),
            entry("10.1.2.0/24", "192.168.0.9", 3),
        ];
        let plan = plan(wanted.clone(), &present);
        assert_eq!(plan.steps, []);
        assert_eq!(plan.kept, [wanted[0].route.dst]);
        assert!(
            plan.refused[0].contains("node 192.168.0.3: 10.1.2.0/24 has a route via 192.168.0.9"),
            "{plan:?}"
        );
    }

    #[test]
    fn of_two_metrics_the_wanted_one_stays() {
        let nodes = parse("192.168.0.2 10.1.1.0/24\n").unwrap();
        let (wanted, _) = wanted(&nodes, None, 100);
        let with = |gw: &str, metric: u32| {
            let mut entry = entry("10.1.1.0/24", gw, PROTOCOL);
            entry.priority = metric;
            entry
        };
        let (right, old) = (with("192.168.0.2", 100), with("192.168.0.2", 0));
        let plan = |present: &[RouteEntry]| plan(wanted.clone(), present);
        let kept = plan(&[old.clone(), right]);
        assert_eq!(kept.kept, [wanted[0].route.dst]);
        assert_eq!(kept.steps, [Step::Remove(as_route(&old))]);
        // The one whose place is taken is not removed behind that.
        let other = with("192.168.0.9", 100);
        let replaced = plan(&[old.clone(), other.clone()]);
        let replace = Step::Replace(wanted[0].clone(), as_route(&other));
        assert_eq!(replaced.steps, [replace, Step::Remove(as_route(&old))]);
    }

    #[test]
    fn the_own_node_is_found_or_asked_for() {
        let nodes = parse(LIST).unwrap();
        let local = |text: &str| [text.parse().unwrap()];
        let name =
            |own: Result<Option<&Node>, Error>| own.map(|own| own.map(|node| node.name.clone()));
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
    fn a_node_without_an_address_of_the_family_is_named() {
        let nodes = parse("192.168.0.2 fd00::/64\n").unwrap();
        let (routes, refused) = wanted(&nodes, None, 5);
        assert_eq!(routes, []);
        assert!(refused[0].contains("no IPv6 address"), "{refused:?}");
    }
}
