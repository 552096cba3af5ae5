//! `gangplank reconcile`: restores what a firewall reload or a network manager removed from running pods.

use std::collections::HashSet;
use std::fmt::Write;

use serde::Serialize;

use crate::cli::Answer;
use crate::cli::args::ReconcileArgs;
use crate::cli::node::{ChainedCall, ChainedPlugin, Network, Node, Pod, Problem, RECHECK_DELAY};
use crate::error::Error;
use crate::kernel::netlink::Link;
use crate::kernel::sysctl::Parameter;
use crate::net::{Cidr, IfName};
use crate::plugins::bridge::is_mac_fixed;
use crate::plugins::bridge::reconcile::{self, LiveAttachment, ObservedBridge, Repair};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReconcileReport {
    dry_run: bool,
    restored: Vec<Difference>,
    /// Differences that are not repaired, because that would interrupt pods.
    left: Vec<Difference>,
    failures: Vec<Difference>,
}

#[derive(Serialize)]
struct Difference {
    network: String,
    what: String,
}

/// The exit status is 1 if a repair fails.
pub fn reconcile(args: &ReconcileArgs) -> Result<Answer, Error> {
    let node = Node::observe(&args.paths)?;
    let mut report = ReconcileReport {
        dry_run: args.dry_run,
        restored: Vec::new(),
        left: Vec::new(),
        failures: Vec::new(),
    };
    for network in node.select(args.network.as_deref())? {
        let difference = |what: String| Difference {
            network: network.name().to_string(),
            what,
        };
        report
            .left
            .extend(not_repaired(&node, network).map(difference));
        for repair in repairs(&node, network)? {
            let applied = match args.dry_run {
                true => Ok(()),
                false => apply(&repair, &node, network),
            };
            match applied {
                Ok(()) => report.restored.push(difference(repair.to_string())),
                Err(error) => report
                    .failures
                    .push(difference(format!("{repair}: {error}"))),
            }
        }
    }
    restore_chained(&node, args, &mut report);
    let status = u8::from(!report.failures.is_empty());
    Ok(Answer::report(&report, args.format, text).with_status(status))
}

/// Restores the entries of portmap and firewall: of each container, or else what containers share.
fn restore_chained(node: &Node, args: &ReconcileArgs, report: &mut ReconcileReport) {
    let calls = differing_calls(node, args.network.as_deref());
    let mut note = |network: &str, what: String, restore: &dyn Fn() -> Result<(), Error>| {
        let network = network.to_owned();
        match if args.dry_run { Ok(()) } else { restore() } {
            Ok(()) => report.restored.push(Difference { network, what }),
            Err(error) => report.failures.push(Difference {
                network,
                what: format!("{what}: {error}"),
            }),
        }
    };
    for call in &calls {
        note(call.network().as_str(), call.to_string(), &|| {
            call.restore()
        });
    }
    if args.network.is_none() && !calls.iter().any(|it| it.plugin == ChainedPlugin::Portmap) {
        for repair in node.shared_repairs() {
            note("all networks", repair.to_string(), &|| repair.apply());
        }
    }
}

/// The chained plugins of a network, or of all, whose entries are to be restored.
fn differing_calls<'n>(node: &'n Node, network: Option<&str>) -> Vec<&'n ChainedCall> {
    let is_selected = |call: &&ChainedCall| network.is_none_or(|it| it == call.network().as_str());
    let differing = node.differing_calls().iter();
    let mut calls: Vec<&ChainedCall> = differing
        .map(|(call, _)| call)
        .filter(is_selected)
        .collect();
    if !calls.is_empty() {
        // A DEL in progress looks like this for a moment.
        std::thread::sleep(RECHECK_DELAY);
        calls.retain(|call| call.difference().is_some());
    }
    calls
}

/// The repairs that the running pods of a network need.
///
/// # Errors
/// If the rules of MAC spoof checks cannot be listed.
pub fn repairs(node: &Node, network: &Network) -> Result<Vec<Repair>, Error> {
    let config = &network.configured.bridge;
    let observed = observe_bridge(node, network);
    let live: Vec<LiveAttachment> = attached_pods(node, network)
        .map(|(pod, link)| LiveAttachment {
            attachment: pod.attachment.clone(),
            link: link.clone(),
            addresses: pod.addresses.clone(),
            mac: pod.mac.as_deref().and_then(|mac| mac.parse().ok()),
            is_outdated: pod.is_outdated,
            is_masqueraded: !pod.problems.contains(&Problem::NotMasqueraded),
        })
        .collect();
    let on_bridge =
        attached_pods(node, network).filter(|(_, link)| !observed.is_on_other_bridge(link));
    let on_bridge = on_bridge
        .map(|(pod, _)| pod)
        .filter(|_| network.has_gateway());
    let gateways: Vec<Cidr> = match &network.configured.host_local {
        Some(_) => {
            let addresses = on_bridge.flat_map(|pod| pod.addresses.clone());
            network.gateways_of(&addresses.collect::<Vec<_>>())
        }
        // Gateways of other IPAM plugins are only in the cached results.
        None => {
            let mut known = HashSet::new();
            let gateways = on_bridge.flat_map(|pod| pod.cached_gateways.clone());
            gateways.filter(|gateway| known.insert(*gateway)).collect()
        }
    };
    reconcile::plan((network.name(), config), &observed, &gateways, live)
}

/// The pods of a network that have a link, except for ports of the bridge of another network of the same name: leases
/// do not distinguish the two networks.
fn attached_pods<'n>(
    node: &'n Node,
    network: &'n Network,
) -> impl Iterator<Item = (&'n Pod, &'n Link)> {
    let own = &network.configured.bridge.bridge;
    let others: Vec<u32> = node
        .networks_named(network.name().as_str())
        .filter(|other| other.configured.bridge.bridge != *own)
        .filter_map(|other| Some(node.bridge(other)?.index))
        .collect();
    let pods = network.pods.iter();
    pods.filter_map(|pod| Some((pod, node.link_of(pod)?)))
        .filter(move |(_, link)| link.master.is_none_or(|master| !others.contains(&master)))
}

/// Differences from the configuration whose repair would interrupt pods.
fn not_repaired<'n>(node: &'n Node, network: &'n Network) -> impl Iterator<Item = String> + 'n {
    let configured = &network.configured.bridge.bridge;
    let misplaced = ports_on_other_bridges(node, network).into_iter();
    let misplaced = misplaced.map(move |MisplacedPort { pod, port, master }| {
        let (port, pod) = (port.display_name(), &pod.attachment);
        let (kind, bridge) = (&master.kind, &master.name);
        format!(
            "port {port} of {pod} on {kind} {bridge}, although the configuration names bridge {configured}: restart the pod, or set \"bridge\" to {bridge}"
        )
    });
    let flags = ports_with_other_flags(node, network).into_iter();
    misplaced.chain(flags.map(|(pod, port)| {
        let (port, pod) = (port.display_name(), &pod.attachment);
        format!(
            "the flags of port {port} of {pod}: the configuration has changed since its ADD; restart the pod"
        )
    }))
}

/// The pods whose ports do not have the configured flags, because the configuration has changed since their ADD; see
/// [`LiveAttachment::desired_flags`].
pub fn ports_with_other_flags<'n>(
    node: &'n Node,
    network: &'n Network,
) -> Vec<(&'n Pod, &'n Link)> {
    let Some(bridge) = node.bridge(network) else {
        return Vec::new();
    };
    let config = &network.configured.bridge;
    let configured = config.port_flags();
    let pods = network.pods.iter().filter(|pod| pod.is_outdated);
    pods.filter_map(|pod| Some((pod, node.link_of(pod)?)))
        .filter(|(_, port)| port.master == Some(bridge.index))
        .filter(|(_, port)| port.port.is_some_and(|flags| !flags.satisfy(configured)))
        .collect()
}

fn observe_bridge(node: &Node, network: &Network) -> ObservedBridge {
    let bridge = node.bridge(network);
    let gateway = node.gateway_link(network);
    let ports = network.pods.iter().filter_map(|pod| node.link_of(pod));
    let ports = ports
        .filter(|port| port.master.is_none() || port.master == bridge.map(|bridge| bridge.index));
    let links = bridge.into_iter().chain(gateway).chain(ports);
    let mut advertised: Vec<IfName> = links.filter_map(|it| it.name.parse().ok()).collect();
    advertised.dedup();
    // Without IPv6 the parameter does not exist.
    advertised.retain(|name| matches!(Parameter::AcceptRa.read(name), Ok(value) if value != "0"));
    ObservedBridge {
        bridge: bridge.cloned(),
        is_mac_fixed: bridge.and_then(|bridge| is_mac_fixed(&node.host, bridge)),
        advertised,
        addresses: gateway
            .map(|link| node.addresses_of(link))
            .unwrap_or_default(),
        not_forwarded: node.not_forwarded.clone(),
    }
}

/// A port of a pod on another bridge than its network's.
pub struct MisplacedPort<'n> {
    pub pod: &'n Pod,
    pub port: &'n Link,
    pub master: &'n Link,
}

/// The ports of a network's pods on other bridges. They are not moved; see [`ObservedBridge::is_on_other_bridge`].
pub fn ports_on_other_bridges<'n>(node: &'n Node, network: &'n Network) -> Vec<MisplacedPort<'n>> {
    let bridge = node.bridge(network).map(|bridge| bridge.index);
    let misplaced = attached_pods(node, network).filter_map(|(pod, port)| {
        let index = port.master.filter(|master| Some(*master) != bridge)?;
        let master = node.links.iter().find(|link| link.index == index)?;
        Some(MisplacedPort { pod, port, master })
    });
    misplaced.collect()
}

/// Applies a repair. If it concerns one container, a concurrent DEL waits for it; after a DEL it does nothing.
pub fn apply(repair: &Repair, node: &Node, network: &Network) -> Result<(), Error> {
    let live = repair
        .attachment()
        .filter(|live| !live.addresses.is_empty());
    let _lock = match (live, &network.configured.host_local) {
        (Some(live), Some(host_local)) => {
            let store = host_local.store();
            let lock = store.lock_leases(store.held(&live.attachment)?.addresses())?;
            if store.held(&live.attachment)?.addresses().is_empty() {
                return Ok(());
            }
            Some(lock)
        }
        _ => None,
    };
    repair.apply(&node.host, network.name(), &network.configured.bridge)
}

fn text(report: &ReconcileReport) -> String {
    let restored = match report.dry_run {
        true => "would restore",
        false => "restored",
    };
    let mut text = String::new();
    for (label, differences) in [
        (restored, &report.restored),
        ("left", &report.left),
        ("failed:", &report.failures),
    ] {
        for Difference { network, what } in differences {
            let _ = writeln!(text, "{network}: {label} {what}");
        }
    }
    if text.is_empty() {
        text.push_str("nothing to restore\n");
    }
    text
}
