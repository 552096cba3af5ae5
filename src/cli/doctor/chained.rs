//! Findings about the entries of portmap, firewall and bandwidth: of containers that no longer exist, and incomplete ones
//! of running containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::cli::doctor::addresses::join;
use crate::cli::doctor::finding::{Finding, Fix, Id};
use crate::cli::node::{ChainedPlugin, Node, Pod};
use crate::cni::names::Attachment;
use crate::error::{Error, Failures};
use crate::kernel::netlink::Link;
use crate::net::Family;
use crate::netfilter::firewall::inventory::{FirewallRecord, TABLE, isolated_bridges, records};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::portmap::inventory::{MappedPort, emptied_chain};
use crate::netfilter::portmap::ports;
use crate::netfilter::tables;
use crate::plugins::bandwidth::ifb;

const RESTART: &str =
    "restart the pod: its configuration is unknown without the runtime's cached result";

pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    let calls = node.differing_calls();
    for (at, (call, difference)) in calls.iter().enumerate() {
        let id = match call.plugin {
            ChainedPlugin::Firewall => Id::FirewallMissing,
            ChainedPlugin::Portmap => Id::PortMappingMissing,
        };
        let cause = format!("{call} on network {} are missing or differ", call.network());
        findings.push(
            Finding::new(id, cause)
                .evidence(difference.to_string())
                .remedy("gangplank reconcile")
                .fix(Fix::RestoreCall(at)),
        );
    }
    if !calls
        .iter()
        .any(|(it, _)| it.plugin == ChainedPlugin::Portmap)
    {
        findings.extend(shared_port_mappings(node));
    }
    findings.extend(emptied_port_mappings(node));
    findings.extend(stale_port_mappings(node));
    let mut listings = Vec::new();
    for family in Family::BOTH {
        let saved = tables::saved(family, "filter").into_iter();
        listings.extend(saved.map(|table| (family, Listing::parse(&table))));
    }
    // If the kernel does not answer, the mapped ports could not be listed either.
    for record in records().unwrap_or_default() {
        findings.extend(firewall_record(node, &record, &listings));
    }
    let bridges = listings
        .iter()
        .flat_map(|(_, listing)| isolated_bridges(listing));
    let bridges = bridges.collect();
    findings.extend(isolation_of_missing_bridges(node, bridges));
    findings.extend(unused_ifbs(node));
}

/// The ifbs of veths that no longer exist.
fn unused_ifbs(node: &Node) -> impl Iterator<Item = Finding> {
    let is_unused = |ifb: &Link| ifb::redirecting(&node.host, ifb).is_ok_and(|it| it.is_empty());
    let ifbs = ifb::all(&node.host).unwrap_or_default().into_iter();
    ifbs.filter(is_unused).map(|ifb| {
        let cause = format!(
            "no packets are redirected to the ifb {}",
            ifb.display_name()
        );
        Finding::new(Id::BandwidthLeftOver, cause)
            .evidence("the interface whose packets it limited was deleted")
            .remedy("delete it, as DEL of bandwidth does")
            .fix(Fix::RemoveIfb(Box::new(ifb)))
    })
}

/// Port mappings to which no packet is led any more.
fn shared_port_mappings(node: &Node) -> impl Iterator<Item = Finding> {
    node.shared_repairs().into_iter().map(|repair| {
        Finding::new(Id::PortMappingMissing, format!("{repair} are missing"))
            .evidence("containers have port mappings, but no packet reaches them")
            .remedy("gangplank reconcile")
            .fix(Fix::RestoreShared(repair))
    })
}

/// Chains of running containers that were flushed, and whose ports are not in a cached result.
fn emptied_port_mappings(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    for network in &node.networks {
        let is_unknown = |pod: &&Pod| !differs(node, ChainedPlugin::Portmap, &pod.attachment);
        for pod in network.pods.iter().filter(is_unknown) {
            let mut tables = node.inventory.nat_tables();
            let chain = tables
                .find_map(|(.., listing)| emptied_chain(network.name(), &pod.attachment, listing));
            findings.extend(chain.map(|chain| {
                let cause = format!("the port mappings of {pod} on network {network} were flushed");
                Finding::new(Id::PortMappingMissing, cause)
                    .evidence(format!("chain {chain} of the nat table has no rules"))
                    .remedy(RESTART)
            }));
        }
    }
    findings
}

fn differs(node: &Node, plugin: ChainedPlugin, attachment: &Attachment) -> bool {
    let mut calls = node.differing_calls().iter();
    calls.any(|(it, _)| it.plugin == plugin && it.target.attachment == *attachment)
}

/// Port mappings of containers that no longer exist.
fn stale_port_mappings(node: &Node) -> Vec<Finding> {
    let mut containers: BTreeMap<(&str, &str), Vec<MappedPort>> = BTreeMap::new();
    for port in &node.mapped_ports {
        if node.is_left_over(port) {
            let owner = (port.mapped.network.as_str(), port.mapped.container.as_str());
            containers.entry(owner).or_default().push(port.clone());
        }
    }
    let findings = containers.into_iter().map(|((network, container), ports)| {
        let of = match network {
            "" => String::new(),
            network => format!(" of network {network}"),
        };
        let cause =
            format!("ports are mapped to container {container}{of}, which no longer exists");
        let mut names: Vec<String> = ports.iter().map(MappedPort::to_string).collect();
        names.sort();
        let finding = Finding::new(Id::PortMappingLeftOver, cause).evidence(join(&names));
        finding
            .remedy("remove them: they lead packets to an address that may be reassigned")
            .fix(Fix::RemovePortMappings(ports))
    });
    findings.collect()
}

/// A record of a container that no longer exists, or whose rules are incomplete.
fn firewall_record(
    node: &Node,
    record: &FirewallRecord,
    listings: &[(Family, Listing)],
) -> Option<Finding> {
    let FirewallRecord {
        network,
        attachment,
        addresses,
    } = record;
    let recorded: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let evidence = format!("table inet {TABLE} has {}", join(&recorded));
    let is_known = node
        .valid_attachments(network.as_str())
        .contains(&attachment.container, attachment.interface.as_str());
    let mut in_use = addresses.iter().filter(|it| node.may_be_in_use(**it));
    if !is_known && (node.has_leases(network.as_str()) || in_use.next().is_none()) {
        let cause =
            format!("network {network} has firewall rules of {attachment}, which no longer exists");
        return Some(
            Finding::new(Id::FirewallLeftOver, cause)
                .evidence(evidence)
                .remedy("remove them: they accept packets of addresses that may be reassigned")
                .fix(Fix::RemoveFirewall(network.clone(), attachment.clone())),
        );
    }
    if differs(node, ChainedPlugin::Firewall, attachment) {
        return None;
    }
    let mut tables = listings.iter();
    let missing = tables.find_map(|(family, listing)| record.missing(*family, listing))?;
    let cause = format!("firewall rules of {attachment} on network {network} are missing");
    Some(
        Finding::new(Id::FirewallMissing, cause)
            .evidence(format!("{evidence}; missing: {missing}"))
            .remedy(RESTART),
    )
}

/// Isolation rules of bridges that no longer exist.
fn isolation_of_missing_bridges(node: &Node, mut bridges: BTreeSet<String>) -> Option<Finding> {
    bridges.retain(|bridge| !node.links.iter().any(|link| link.name == *bridge));
    let names: Vec<String> = bridges.into_iter().collect();
    if names.is_empty() {
        return None;
    }
    let cause = "the filter table isolates bridges that do not exist";
    Some(
        Finding::new(Id::FirewallLeftOver, cause)
            .evidence(join(&names))
            .remedy("remove the rules of these bridges in CNI-ISOLATION-STAGE-1 and CNI-ISOLATION-STAGE-2")
            .fix(Fix::RemoveIsolation(names)),
    )
}

/// Removes port mappings of containers that no longer exist.
///
/// # Errors
/// If something could not be removed, after everything else was tried.
pub fn remove_port_mappings(ports: &[MappedPort]) -> Result<(), Error> {
    let mut failures = Failures::default();
    for port in ports {
        failures.note(port.remove());
    }
    failures.note(ports::reset_unused_localnet());
    failures.into_result()
}
