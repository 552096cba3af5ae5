//! `gangplank routes`: this node's routes to the pods of the other nodes.

mod nodes;
mod plan;

use std::fmt::Write;
use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::RoutesArgs;
use crate::cli::{Answer, unreadable};
use crate::error::Error;
use crate::kernel::netlink::{Netlink, NetlinkError, RouteEntry, RouteQuery, not_found_as_none};
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family, Route};
pub use nodes::parse;
use nodes::parse_list;
use plan::{NodeRoute, PROTOCOL, RouteChange, metric_of};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RoutesReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    dry_run: bool,
    changes: Vec<AppliedChange>,
    kept: Vec<Cidr>,
    failures: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AppliedChange {
    action: &'static str,
    dst: Cidr,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<IpAddr>,
}

/// Changes the routes to match the list of nodes. The exit status is 1 if a node's pods cannot have a route.
///
/// # Errors
/// Those of [`parse_list`]; when this machine's node is ambiguous; when routes cannot be listed. Nothing is changed then.
pub fn routes(args: &RoutesArgs, stdin: &str) -> Result<Answer, Error> {
    let nodes = parse_list(stdin)?;
    let host = host_netlink()?;
    let local = host.all_addresses().map_err(unreadable("addresses"))?;
    let local: Vec<IpAddr> = local.iter().map(|address| address.cidr.address()).collect();
    let own = plan::own_node(&nodes, args.node.as_deref(), &local)?;
    let (wanted, mut failures) = plan::wanted_routes(&nodes, own, args.metric);
    let mut present = Vec::new();
    for family in Family::BOTH {
        let routes = host.routes(RouteQuery { family, link: None });
        present.extend(routes.map_err(unreadable("routes"))?);
    }
    let plan = plan::plan(wanted, &present);
    failures.extend(plan.refused);
    let mut report = RoutesReport {
        node: own.map(|node| node.name.clone()),
        dry_run: args.dry_run,
        changes: Vec::new(),
        kept: plan.kept,
        failures,
    };
    for change in plan.changes {
        let applied = check_next_hop(&host, &change).and_then(|()| match args.dry_run {
            true => Ok(()),
            false => apply(&host, &change),
        });
        match applied {
            Ok(()) => report.changes.push(change.into()),
            Err(failure) => report.failures.push(failure),
        }
    }
    let status = u8::from(!report.failures.is_empty());
    Ok(Answer::report(&report, args.format, text).with_status(status))
}

/// Rejects a next hop that is not on a network to which this machine is connected.
fn check_next_hop(host: &Netlink, change: &RouteChange) -> Result<(), String> {
    let (RouteChange::Add(wanted) | RouteChange::Replace(wanted, _)) = change else {
        return Ok(());
    };
    let Some(gateway) = wanted.route.gw else {
        return Ok(());
    };
    let (node, dst) = (&wanted.node, wanted.route.dst);
    let reason = match host.route_to(gateway, None) {
        Ok(RouteEntry { gw: None, .. }) => return Ok(()),
        Ok(RouteEntry { gw: Some(hop), .. }) => format!("packets to it go through {hop}"),
        Err(NetlinkError::Unreachable) => "there is no route to it".to_owned(),
        Err(cause) => {
            return Err(format!(
                "node {node}: cannot look up the route to {gateway}: {cause}"
            ));
        }
    };
    Err(format!(
        "node {node}: its address {gateway} is not on a network that this machine is connected to ({reason}), so it cannot be \
         the next hop to {dst}: pods there need a route on the routers between, or a tunnel"
    ))
}

fn apply(host: &Netlink, change: &RouteChange) -> Result<(), String> {
    let remove = |route: &Route| not_found_as_none(host.delete_route(route, PROTOCOL)).map(drop);
    let (applied, wanted) = match change {
        RouteChange::Remove(route) => {
            return remove(route)
                .map_err(|cause| format!("cannot remove the route to {}: {cause}", route.dst));
        }
        RouteChange::Add(wanted) => (host.put_route(&wanted.route, PROTOCOL), wanted),
        RouteChange::Replace(wanted, old) if metric_of(old) == metric_of(&wanted.route) => {
            (host.replace_route(&wanted.route, PROTOCOL), wanted)
        }
        // With another metric, the kernel adds the new route beside the old one.
        RouteChange::Replace(wanted, old) => {
            let put = host.put_route(&wanted.route, PROTOCOL);
            (put.and_then(|()| remove(old)), wanted)
        }
    };
    applied.map_err(|cause| {
        // Only unicast routes are listed: a conflicting blackhole route shows up here.
        let hint = match cause {
            NetlinkError::Exists => ", and is not ours: see ip route show type blackhole",
            _ => "",
        };
        let (node, dst) = (&wanted.node, wanted.route.dst);
        format!("node {node}: cannot add the route to {dst}: {cause}{hint}")
    })
}

impl From<RouteChange> for AppliedChange {
    fn from(change: RouteChange) -> AppliedChange {
        let (action, route, node, was) = match change {
            RouteChange::Add(NodeRoute { node, route }) => ("add", route, Some(node), None),
            RouteChange::Replace(NodeRoute { node, route }, old) => {
                ("replace", route, Some(node), old.gw)
            }
            RouteChange::Remove(route) => ("remove", route, None, None),
        };
        AppliedChange {
            action,
            dst: route.dst,
            gateway: route.gw,
            node,
            was,
        }
    }
}

fn text(report: &RoutesReport) -> String {
    let mut text = String::new();
    for change in &report.changes {
        let _ = write!(text, "{:<7} {}", change.action, change.dst);
        if let Some(gateway) = change.gateway {
            let _ = write!(text, " via {gateway}");
        }
        if let Some(node) = &change.node {
            let _ = write!(text, "  node {node}");
        }
        if let Some(was) = change.was {
            let _ = write!(text, ", was via {was}");
        }
        text.push('\n');
    }
    for failure in &report.failures {
        let _ = writeln!(text, "failed  {failure}");
    }
    let changed = match report.dry_run {
        true => "would be changed",
        false => "changed",
    };
    let _ = writeln!(
        text,
        "{} {changed}, {} right already, {} failed",
        report.changes.len(),
        report.kept.len(),
        report.failures.len()
    );
    text
}
