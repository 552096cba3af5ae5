//! `gangplank reconcile`: puts back what a firewall reload or a network manager took from living pods.

use std::fmt::Write;

use serde::Serialize;

use crate::bridge::config::Gateway;
use crate::bridge::restore::{self, Living, Present, Repair};
use crate::cli::node::{Ailment, Network, Node};
use crate::cli::{Answer, args};
use crate::error::Error;
use crate::net::Cidr;

/// What was put back, or would be.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    restored: Vec<Line>,
    failures: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    network: String,
    what: String,
}

/// Puts back what living pods lack. Exit status 1 when something could not be.
///
/// # Errors
/// When the node cannot be looked at, or has no network of that name.
pub fn reconcile(asked: &args::Reconcile) -> Result<Answer, Error> {
    let node = Node::look(&asked.places)?;
    let networks = node.wanted(asked.network.as_deref())?;
    let mut report = Report {
        dry_run: asked.dry_run,
        restored: Vec::new(),
        failures: Vec::new(),
    };
    for network in networks {
        let line = |what: String| Line {
            network: network.name().to_string(),
            what,
        };
        for repair in repairs(&node, network)? {
            match asked.dry_run {
                true => report.restored.push(line(repair.to_string())),
                false => match mend(&node, network, &repair) {
                    Ok(()) => report.restored.push(line(repair.to_string())),
                    Err(error) => report.failures.push(line(format!("{repair}: {error}"))),
                },
            }
        }
    }
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

/// What the living pods of a network lack.
///
/// # Errors
/// When the rules of guards cannot be listed.
pub fn repairs(node: &Node, network: &Network) -> Result<Vec<Repair>, Error> {
    let config = &network.configured.bridge;
    let with_link = network.pods.iter().filter_map(|pod| Some((pod, pod.link?)));
    let living: Vec<Living> = with_link
        .filter(|(_, at)| !is_of_twin(node, network, *at))
        .map(|(pod, at)| Living {
            who: pod.who.clone(),
            link: node.links[at].clone(),
            addresses: pod.addresses.clone(),
            mac: pod.mac.as_deref().and_then(|mac| mac.parse().ok()),
            is_masqueraded: !pod
                .ailments
                .iter()
                .any(|it| matches!(it, Ailment::Unmasqueraded(_))),
        })
        .collect();
    let gateways = match config.gateway {
        Gateway::None => Vec::new(),
        // What another IPAM plugin gave, only the runtime remembers.
        _ if network.configured.host_local.is_none() => node.told_gateways(network),
        Gateway::Address | Gateway::DefaultRoute => network.gateways_of(
            &living
                .iter()
                .flat_map(|it| it.addresses.clone())
                .collect::<Vec<Cidr>>(),
        ),
    };
    let present = Present {
        bridge: node.bridge(network).cloned(),
        addresses: node
            .gateway_link(network)
            .map(|link| node.addresses_of(link))
            .unwrap_or_default(),
        not_forwarded: node.not_forwarded(),
    };
    restore::plan(config, &present, &gateways, living)
}

/// Whether a link is a port of the bridge of another network of the same name. Leases do not tell these two apart, and
/// both would claim the pod.
fn is_of_twin(node: &Node, network: &Network, at: usize) -> bool {
    let own = &network.configured.bridge.bridge;
    let twins = node
        .networks
        .iter()
        .filter(|other| other.name() == network.name() && other.configured.bridge.bridge != *own);
    let mut bridges = twins.filter_map(|twin| node.bridge(twin));
    bridges.any(|bridge| node.links[at].master == Some(bridge.index))
}

/// Puts one thing back, unless its container is detached meanwhile; a DEL waits until it is done.
///
/// # Errors
/// When the kernel or a program refuses; code 11 when a DEL takes too long.
pub fn mend(node: &Node, network: &Network, repair: &Repair) -> Result<(), Error> {
    let mut locked = None;
    let living = repair.of().filter(|living| !living.addresses.is_empty());
    if let (Some(Living { who, .. }), Some(host_local)) = (living, &network.configured.host_local) {
        locked = Some(host_local.lock(&host_local.held(who)?)?);
        if host_local.held(who)?.addresses().is_empty() {
            return Ok(());
        }
    }
    let _locked = locked;
    repair.carry_out(&node.host, network.name(), &network.configured.bridge)
}

fn tell(report: &Report) -> String {
    let mut text = String::new();
    let done = if report.dry_run {
        "would restore"
    } else {
        "restored"
    };
    for Line { network, what } in &report.restored {
        let _ = writeln!(text, "{network}: {done} {what}");
    }
    for Line { network, what } in &report.failures {
        let _ = writeln!(text, "{network}: failed: {what}");
    }
    if text.is_empty() {
        text.push_str("nothing to restore\n");
    }
    text
}
