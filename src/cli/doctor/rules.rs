//! Findings about packet filters: masquerade entries without a container, dropped packets, and two variants of iptables.

use std::collections::BTreeMap;

use crate::cli::doctor::addresses::join;
use crate::cli::doctor::finding::{Finding, Fix, Id};
use crate::cli::doctor::forward::{Filter, Packet};
use crate::cli::node::{Network, Node};
use crate::kernel::sysctl;
use crate::net::Family;
use crate::netfilter::masquerade::MasqueradeEntry;
use crate::netfilter::tables;

pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for error in &node.inventory.failures {
        findings.push(
            Finding::new(Id::NotSeen, "masquerading rules cannot be listed")
                .evidence(error.to_string())
                .remedy("run it as root; if it is, repair or reinstall iptables"),
        );
    }
    stale_masquerading(node, findings);
    findings.extend(two_iptables());
    findings.extend(bridge_netfilter(node));
    for family in Family::BOTH {
        // Both variants of iptables filter each packet.
        let tables = tables::saved(family, "filter");
        let filters: Vec<Filter> = tables.iter().map(|it| Filter::parse(it)).collect();
        for network in &node.networks {
            let mut filters = filters.iter();
            findings.extend(filters.find_map(|it| forward_drop(node, network, family, it)));
        }
    }
}

/// Masquerading of containers that no longer exist.
fn stale_masquerading(node: &Node, findings: &mut Vec<Finding>) {
    let mut left_over: BTreeMap<String, Vec<MasqueradeEntry>> = BTreeMap::new();
    for entry in node.inventory.entries() {
        let Ok(network) = entry.network.parse() else {
            continue;
        };
        if !entry.is_of(&network, &node.valid_attachments(&entry.network)) {
            let entries = left_over.entry(entry.network.clone());
            entries.or_default().push(entry);
        }
    }
    for (name, entries) in left_over {
        let Ok(network) = name.parse() else { continue };
        let cause =
            format!("network {name} has masquerading rules of containers that no longer exist");
        let names: Vec<String> = entries.iter().map(MasqueradeEntry::to_string).collect();
        let finding = Finding::new(Id::MasqueradeLeftOver, cause).evidence(join(&names));
        findings.push(match node.has_leases(&name) {
            true => finding
                .remedy(
                    "remove them; the Go plugin leaves them when DEL is called without a namespace",
                )
                .fix(Fix::RemoveMasquerade(network, entries)),
            // Cached results prove nothing: they may be in another directory, and an ADD in progress has none yet.
            false => finding
                .evidence("no leases of that network are known on this node: its containers may be running")
                .remedy("remove them if none of these containers is running"),
        });
    }
}

/// Rules of iptables-legacy and of iptables-nft at the same time.
fn two_iptables() -> Option<Finding> {
    let (legacy, nft) = tables::nat_rules_by_variant();
    if legacy.is_empty() || nft.is_empty() {
        return None;
    }
    Some(
        Finding::new(Id::TwoIptables, "both variants of iptables have rules: both filter each packet, and each tool shows only its own")
            .evidence(format!("iptables-legacy: {}", join(&legacy)))
            .evidence(format!("iptables-nft: {}", join(&nft)))
            .remedy("configure all programs to use one variant (update-alternatives --config iptables), and restart those that used the other; a reboot removes their old rules"),
    )
}

/// kube-proxy's address translation does not see replies that stay on the bridge.
fn bridge_netfilter(node: &Node) -> Option<Finding> {
    if !node.networks.iter().any(Network::has_gateway) {
        return None;
    }
    let nat = tables::saved(Family::V4, "nat");
    if !nat.iter().any(|it| it.contains(":KUBE-SERVICES ")) {
        return None;
    }
    let (evidence, remedy) = match sysctl::bridge_calls_iptables() {
        Some(true) => return None,
        Some(false) => (
            "net.bridge.bridge-nf-call-iptables is 0",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1, and in /etc/sysctl.d",
        ),
        None => (
            "the kernel module br_netfilter is not loaded",
            "modprobe br_netfilter, and a line in /etc/modules-load.d; then sysctl -w net.bridge.bridge-nf-call-iptables=1",
        ),
    };
    let cause = "kube-proxy is running, but its rules do not see packets between ports of a bridge: a Service fails when its pod is on the client's node";
    Some(
        Finding::new(Id::BridgeNetfilter, cause)
            .evidence(evidence)
            .evidence("the nat table has KUBE-SERVICES")
            .remedy(remedy),
    )
}

/// The host drops packets that pods send to other networks, or the replies.
fn forward_drop(
    node: &Node,
    network: &Network,
    family: Family,
    filter: &Filter,
) -> Option<Finding> {
    let config = &network.configured.bridge;
    if !network.has_gateway() {
        return None;
    }
    let uplink = node.uplink(family).next();
    let mut ranges = network.ranges();
    let range = ranges.find(|range| range.family() == family)?;
    let request = Packet {
        state: "NEW",
        input: config.bridge.as_str(),
        output: uplink.map_or("uplink", |link| &link.name),
        source: range.last(),
        // Of the ranges for documentation (RFC 5737, RFC 3849).
        destination: match family {
            Family::V4 => [198, 51, 100, 1].into(),
            Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
        },
    };
    let reply = Packet {
        state: "ESTABLISHED",
        input: request.output,
        output: request.input,
        source: request.destination,
        destination: request.source,
    };
    let (reason, what) = match filter.drop_reason(&request) {
        Some(reason) => (reason, "packets"),
        None => (filter.drop_reason(&reply)?, "replies to packets"),
    };
    let cause = format!(
        "the host drops {family} {what} that pods of network {network} send to other networks"
    );
    Some(
        Finding::new(Id::ForwardDrop, cause)
            .evidence(reason)
            .remedy(format!("set \"forwardAccept\": true in {}, or accept them: iptables -I FORWARD -i {} -j ACCEPT, and the same with -o", network.configured.file.display(), config.bridge)),
    )
}
