//! `gangplank routes`: this node's routes to the pods of the other nodes.

mod nodes;
mod plan;

use std::fmt::Write;
use std::net::IpAddr;

use serde::Serialize;

use crate::cli::{Answer, args};
use crate::error::Error;
use crate::kernel::netlink::{Netlink, NetlinkError, RouteQuery, not_found_as_none};
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family};
pub use nodes::parse;
use nodes::parse_list;
use plan::{PROTOCOL, Plan, Step, Wanted, metric_of};

/// What was done, or would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    dry_run: bool,
    changes: Vec<Change>,
    kept: Vec<Cidr>,
    failures: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Change {
    action: &'static str,
    dst: Cidr,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<IpAddr>,
}

/// Makes the routes match the list of nodes. Exit status 1 when some node's pods cannot be reached.
///
/// # Errors
/// Those of [`parse_list`]; when it cannot be told which node this is; when the kernel does not tell its routes. Nothing is
/// changed then.
pub fn routes(asked: &args::Routes, stdin: &str) -> Result<Answer, Error> {
    let nodes = parse_list(stdin)?;
    let host = host_netlink()?;
    let local = listed("addresses", host.all_addresses())?;
    let local: Vec<IpAddr> = local.iter().map(|address| address.cidr.address()).collect();
    let own = plan::own_node(&nodes, asked.node.as_deref(), &local)?;
    let (wanted, mut refused) = plan::wanted(&nodes, own, asked.metric);
    let mut there = Vec::new();
    for family in Family::BOTH {
        there.extend(listed(
            "routes",
            host.routes(RouteQuery { family, link: None }),
        )?);
    }
    let plan = plan::plan(wanted, &there);
    refused.extend(plan.refused.iter().cloned());
    let mut report = Report {
        node: own.map(|node| node.name.clone()),
        dry_run: asked.dry_run,
        changes: Vec::new(),
        kept: plan.kept.clone(),
        failures: refused,
    };
    apply(&host, plan, &mut report);
    let status = u8::from(!report.failures.is_empty());
    Ok(match asked.json {
        true => Answer::json(&report, status),
        false => Answer {
            text: tell(&report),
            status,
            warnings: Vec::new(),
        },
    })
}

fn listed<T>(what: &str, answer: Result<T, NetlinkError>) -> Result<T, Error> {
    answer.map_err(|cause| Error::failed(format!("cannot list this machine's {what}: {cause}")))
}

fn apply(host: &Netlink, plan: Plan, report: &mut Report) {
    for step in plan.steps {
        let outcome = match &step {
            Step::Add(wanted) | Step::Replace(wanted, _) => {
                reach(host, wanted).and_then(|()| match report.dry_run {
                    true => Ok(()),
                    false => put(host, &step, wanted),
                })
            }
            Step::Remove(_) if report.dry_run => Ok(()),
            Step::Remove(route) => not_found_as_none(host.delete_route(route, PROTOCOL))
                .map(drop)
                .map_err(|cause| format!("cannot remove the route to {}: {cause}", route.dst)),
        };
        match outcome {
            Ok(()) => report.changes.push(change(step)),
            Err(why) => report.failures.push(why),
        }
    }
}

/// Whether a next hop is on a network that this machine is connected to.
fn reach(host: &Netlink, wanted: &Wanted) -> Result<(), String> {
    let Some(gateway) = wanted.route.gw else {
        return Ok(());
    };
    let way = match host.route_to(gateway, None) {
        Ok(route) => match route.gw {
            None => return Ok(()),
            Some(hop) => format!("packets to it go through {hop}"),
        },
        Err(NetlinkError::Unreachable) => "there is no route to it".to_owned(),
        Err(cause) => {
            return Err(format!(
                "node {}: cannot look up the way to {gateway}: {cause}",
                wanted.node
            ));
        }
    };
    Err(format!(
        "node {}: its address {gateway} is not on a network that this machine is connected to ({way}), so it cannot be \
         the next hop to {}: pods there need a route on the routers between, or a tunnel",
        wanted.node, wanted.route.dst
    ))
}

fn put(host: &Netlink, step: &Step, wanted: &Wanted) -> Result<(), String> {
    let failed = |cause| {
        // Those that are listed are unicast routes; one that refuses packets (blackhole) is seen only here.
        let whose = match cause {
            NetlinkError::Exists => ", and is not ours: see ip route show type blackhole",
            _ => "",
        };
        format!(
            "node {}: cannot add the route to {}: {cause}{whose}",
            wanted.node, wanted.route.dst
        )
    };
    match step {
        Step::Replace(_, old) if metric_of(old) == metric_of(&wanted.route) => {
            host.replace_route(&wanted.route, PROTOCOL).map_err(failed)
        }
        // One of another metric stands beside the new one.
        Step::Replace(_, old) => host
            .put_route(&wanted.route, PROTOCOL)
            .and_then(|()| not_found_as_none(host.delete_route(old, PROTOCOL)).map(drop))
            .map_err(failed),
        Step::Add(_) | Step::Remove(_) => host.put_route(&wanted.route, PROTOCOL).map_err(failed),
    }
}

fn change(step: Step) -> Change {
    let (action, route, node, was) = match step {
        Step::Add(wanted) => ("add", wanted.route, Some(wanted.node), None),
        Step::Replace(wanted, old) => ("replace", wanted.route, Some(wanted.node), old.gw),
        Step::Remove(route) => ("remove", route, None, None),
    };
    Change {
        action,
        dst: route.dst,
        gateway: route.gw,
        node,
        was,
    }
}

fn tell(report: &Report) -> String {
    let mut text = String::new();
    for Change {
        action,
        dst,
        gateway,
        node,
        was,
    } in &report.changes
    {
        let via = gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        let node = node
            .as_ref()
            .map(|node| format!("  node {node}"))
            .unwrap_or_default();
        let was = was
            .map(|was| format!(", was via {was}"))
            .unwrap_or_default();
        let _ = writeln!(text, "{action:<7} {dst}{via}{node}{was}");
    }
    for failure in &report.failures {
        let _ = writeln!(text, "failed  {failure}");
    }
    let would = if report.dry_run {
        "would be changed"
    } else {
        "changed"
    };
    let _ = writeln!(
        text,
        "{} {would}, {} right already, {} failed",
        report.changes.len(),
        report.kept.len(),
        report.failures.len()
    );
    text
}
