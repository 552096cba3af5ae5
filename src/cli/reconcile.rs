//! `gangplank reconcile`: puts back what a firewall reload or a network manager took from live pods.

use std::fmt::Write;

use serde::Serialize;

use crate::cli::node::{Network, Node, Pod, Problem};
use crate::cli::{Answer, args};
use crate::error::Error;
use crate::kernel::netlink::Link;
use crate::kernel::sysctl::Parameter;
use crate::net::{Cidr, IfName};
use crate::plugins::bridge::config::Gateway;
use crate::plugins::bridge::is_mac_fixed;
use crate::plugins::bridge::reconcile::{self, LiveAttachment, ObservedBridge, Repair};

/// What was put back, or would be.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    restored: Vec<Line>,
    /// What differs from the configuration and is left so.
    left: Vec<Line>,
    failures: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    network: String,
    what: String,
}

/// Puts back what live pods lack. Exit status 1 when something could not be.
///
/// # Errors
/// When the node cannot be looked at, or has no network of that name.
pub fn reconcile(asked: &args::Reconcile) -> Result<Answer, Error> {
    let node = Node::look(&asked.paths)?;
    let networks = node.wanted(asked.network.as_deref())?;
    let mut report = Report {
        dry_run: asked.dry_run,
        restored: Vec::new(),
        left: Vec::new(),
        failures: Vec::new(),
    };
    for network in networks {
        let line = |what: String| Line {
            network: network.name().to_string(),
            what,
        };
        report.left.extend(left(&node, network).map(line));
        for repair in repairs(&node, network)? {
            match asked.dry_run {
                true => report.restored.push(line(repair.to_string())),
                false => match repair_one(&node, network, &repair) {
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

/// What the live pods of a network lack.
///
/// # Errors
/// When the rules of MAC spoof checks cannot be listed.
pub fn repairs(node: &Node, network: &Network) -> Result<Vec<Repair>, Error> {
    let config = &network.configured.bridge;
    let with_link = network.pods.iter().filter_map(|pod| Some((pod, pod.link?)));
    let present = not_found_as_none(node, network);
    let live: Vec<LiveAttachment> = with_link
        .filter(|(_, at)| !is_of_twin(node, network, *at))
        .map(|(pod, at)| LiveAttachment {
            attachment: pod.attachment.clone(),
            link: node.links[at].clone(),
            addresses: pod.addresses.clone(),
            mac: pod.mac.as_deref().and_then(|mac| mac.parse().ok()),
            is_outdated: pod.is_outdated,
            is_masqueraded: !pod
                .problems
                .iter()
                .any(|it| matches!(it, Problem::Unmasqueraded(_))),
        })
        .collect();
    let gateways = match config.gateway {
        Gateway::None => Vec::new(),
        // What another IPAM plugin gave, only the runtime remembers.
        _ if network.configured.host_local.is_none() => node.cached_gateways(network),
        Gateway::Address | Gateway::DefaultRoute => network.gateways_of(
            &live
                .iter()
                .filter(|it| !present.is_elsewhere(&it.link))
                .flat_map(|it| it.addresses.clone())
                .collect::<Vec<Cidr>>(),
        ),
    };
    reconcile::plan((network.name(), config), &present, &gateways, live)
}

/// What differs from the configuration and would interrupt pods.
fn left<'n>(node: &'n Node, network: &'n Network) -> impl Iterator<Item = String> + 'n {
    let wanted = &network.configured.bridge.bridge;
    let elsewhere = elsewhere(node, network).into_iter();
    let elsewhere = elsewhere.map(move |Elsewhere { pod, port, master }| {
        let (kind, on) = (&master.kind, &master.name);
        let what = format!("port {} of {} on {kind} {on}", port.display_name(), pod.attachment);
        format!("{what}, though the configuration names bridge {wanted}: restart the pod, or set \"bridge\" to {on}")
    });
    let flags = with_other_flags(node, network).into_iter();
    elsewhere.chain(flags.map(|(pod, port)| {
        let what = format!(
            "the flags of port {} of {}",
            port.display_name(),
            pod.attachment
        );
        format!("{what}, for the configuration has changed since its ADD: restart the pod")
    }))
}

/// The pods of a network whose ports keep other flags than the configuration asks for; see [`LiveAttachment::wanted_flags`].
pub fn with_other_flags<'n>(node: &'n Node, network: &'n Network) -> Vec<(&'n Pod, &'n Link)> {
    let config = &network.configured.bridge;
    let bridge = node.bridge(network).map(|bridge| bridge.index);
    let wanted = config.port_flags();
    let pods = network.pods.iter().filter(|pod| pod.is_outdated);
    let with_port = pods.filter_map(|pod| Some((pod, &node.links[pod.link?])));
    with_port
        .filter(|(_, port)| port.master.is_some() && port.master == bridge)
        .filter(|(_, port)| port.port.is_some_and(|flags| flags != wanted))
        .collect()
}

fn not_found_as_none(node: &Node, network: &Network) -> ObservedBridge {
    let bridge = node.bridge(network);
    let gateway = node.gateway_link(network);
    let ports = network.pods.iter().filter_map(|pod| pod.link);
    let ports = ports
        .map(|at| &node.links[at])
        .filter(|port| port.master.is_none() || port.master == bridge.map(|bridge| bridge.index));
    let names = bridge.into_iter().chain(gateway).chain(ports);
    let mut advertised: Vec<IfName> = names.filter_map(|it| it.name.parse().ok()).collect();
    advertised.dedup();
    // Without IPv6 there is no such parameter.
    advertised.retain(|name| {
        Parameter::AcceptRa
            .read(name)
            .is_ok_and(|value| value != "0")
    });
    ObservedBridge {
        bridge: bridge.cloned(),
        is_mac_fixed: bridge.and_then(|bridge| is_mac_fixed(&node.host, bridge)),
        advertised,
        addresses: gateway
            .map(|link| node.addresses_of(link))
            .unwrap_or_default(),
        not_forwarded: node.not_forwarded(),
    }
}

/// A pod whose port is on another bridge than its network's.
pub struct Elsewhere<'n> {
    /// The pod.
    pub pod: &'n Pod,
    /// Its port.
    pub port: &'n Link,
    /// What the port is on.
    pub master: &'n Link,
}

/// The pods of a network that are elsewhere, which nothing moves; see [`ObservedBridge::is_elsewhere`].
pub fn elsewhere<'n>(node: &'n Node, network: &'n Network) -> Vec<Elsewhere<'n>> {
    let bridge = node.bridge(network).map(|bridge| bridge.index);
    let with_link = network.pods.iter().filter_map(|pod| Some((pod, pod.link?)));
    with_link
        .filter(|(_, at)| !is_of_twin(node, network, *at))
        .filter_map(|(pod, at)| {
            let port = &node.links[at];
            let master = port.master.filter(|master| Some(*master) != bridge)?;
            let master = node.links.iter().find(|link| link.index == master)?;
            Some(Elsewhere { pod, port, master })
        })
        .collect()
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
pub fn repair_one(node: &Node, network: &Network, repair: &Repair) -> Result<(), Error> {
    let mut locked = None;
    let live = repair.of().filter(|live| !live.addresses.is_empty());
    if let (Some(LiveAttachment { attachment, .. }), Some(host_local)) =
        (live, &network.configured.host_local)
    {
        let store = host_local.store();
        locked = Some(store.lock_leases(store.held(attachment)?.addresses())?);
        if store.held(attachment)?.addresses().is_empty() {
            return Ok(());
        }
    }
    let _locked = locked;
    repair.apply(&node.host, network.name(), &network.configured.bridge)
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
    for Line { network, what } in &report.left {
        let _ = writeln!(text, "{network}: left {what}");
    }
    for Line { network, what } in &report.failures {
        let _ = writeln!(text, "{network}: failed: {what}");
    }
    if text.is_empty() {
        text.push_str("nothing to restore\n");
    }
    text
}
