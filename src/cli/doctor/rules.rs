//! Rules: masquerading that nobody needs, forwarding that is dropped, two variants of iptables at once.

use crate::cli::doctor::addresses::some;
use crate::cli::doctor::finding::{Finding, Fix};
use crate::cli::doctor::forward::{Filter, Packet};
use crate::cli::node::{Network, Node};
use crate::cni::ValidAttachments;
use crate::ipam::{LeaseFile, Store};
use crate::kernel::sysctl;
use crate::net::Family;
use crate::netfilter::masquerade::MasqueradeEntry;
use crate::netfilter::tables;
use crate::plugins::bridge::config::Gateway;

/// Looks at the rules of the node.
pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for error in &node.inventory.failures {
        findings.push(
            Finding::error("not-seen", "masquerading rules cannot be listed")
                .shown_by(error.to_string())
                .remedy("run it as root; if it is, repair or reinstall iptables"),
        );
    }
    left_over(node, findings);
    findings.extend(both_variants());
    findings.extend(bridge_netfilter(node));
    for family in Family::BOTH {
        // Packets pass both variants.
        let filters = tables::saved(family, "filter");
        let filters: Vec<Filter> = filters.iter().map(|it| Filter::parse(it)).collect();
        for network in &node.networks {
            let mut found = filters.iter();
            findings.extend(found.find_map(|it| forward_dropped(node, network, family, it)));
        }
    }
}

/// Masquerading of containers that are gone (user-pain R2).
fn left_over(node: &Node, findings: &mut Vec<Finding>) {
    let mut of_network: std::collections::BTreeMap<String, Vec<MasqueradeEntry>> =
        Default::default();
    for masquerade_entry in node.inventory.entries() {
        let Ok(network) = masquerade_entry.network.parse() else {
            continue;
        };
        let valid = live(node, &masquerade_entry.network);
        if !masquerade_entry.is_of(&network, &valid) {
            of_network
                .entry(masquerade_entry.network.clone())
                .or_default()
                .push(masquerade_entry);
        }
    }
    for (name, left) in of_network {
        let Ok(network) = name.parse() else { continue };
        let cause = format!("network {name} has masquerading rules of containers that are gone");
        let names: Vec<String> = left.iter().map(MasqueradeEntry::to_string).collect();
        let finding = Finding::warning("masquerade-left-over", cause).shown_by(some(&names));
        findings.push(match has_leases(node, &name) {
            true => finding
                .remedy("remove them; the Go plugin leaves them when DEL comes without a namespace")
                .fixed_by(Fix::Unmasquerade(network, left)),
            // A runtime's memory alone may lie elsewhere, and knows no ADD that is at work.
            false => finding
                .shown_by("no leases of that network are known here: its containers may live all the same")
                .remedy("remove them if none of these containers runs any more"),
        });
    }
}

/// Whether leases tell all attachments of the networks of that name: of every configuration that has it.
fn has_leases(node: &Node, name: &str) -> bool {
    let with_name = node.names.iter().filter(|(other, _)| other == name);
    let with_leases = node.networks.iter().filter(|network| {
        network.name().as_str() == name && network.configured.host_local.is_some()
    });
    let of_orphan = |(store, _): &(Store, _)| store.directory().ends_with(name);
    match with_name.count() {
        0 => node.orphans.iter().any(of_orphan),
        count => with_leases.count() >= count,
    }
}

/// All attachments of the networks of that name that may still need their rules.
fn live(node: &Node, name: &str) -> ValidAttachments {
    let networks = node
        .networks
        .iter()
        .filter(|network| network.name().as_str() == name);
    let configured =
        networks.flat_map(|network| network.pods.iter().map(|pod| pod.attachment.clone()));
    let cached = node
        .cache
        .iter()
        .filter(|cached| cached.network.as_str() == name)
        .map(|cached| cached.attachment.clone());
    let orphans = node
        .orphans
        .iter()
        .filter(|(store, _)| store.directory().ends_with(name));
    let orphans = orphans.flat_map(|(_, leases)| leases);
    let orphans = orphans.filter_map(LeaseFile::attachment);
    configured.chain(cached).chain(orphans).collect()
}

/// Rules of iptables-legacy and of iptables-nft at the same time (user-pain R6).
fn both_variants() -> Option<Finding> {
    let (legacy, nft) = tables::nat_rules_by_variant();
    if legacy.is_empty() || nft.is_empty() {
        return None;
    }
    Some(
        Finding::warning("two-iptables", "both variants of iptables hold rules: packets pass both, and each tool shows only its own")
            .shown_by(format!("iptables-legacy: {}", some(&legacy)))
            .shown_by(format!("iptables-nft: {}", some(&nft)))
            .remedy("let all programs use one (update-alternatives --config iptables), and restart those that used the other; their old rules go with a reboot"),
    )
}

/// Answers of a Service's pod on the same node do not pass its address translation (user-pain R21).
fn bridge_netfilter(node: &Node) -> Option<Finding> {
    let bridges = node
        .networks
        .iter()
        .any(|network| network.configured.bridge.gateway != Gateway::None);
    let nat = tables::saved(Family::V4, "nat");
    if !bridges || !nat.iter().any(|it| it.contains(":KUBE-SERVICES ")) {
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
    let cause = "kube-proxy is at work, but frames on bridges do not pass its rules: a Service fails when its pod is on the client's node";
    Some(
        Finding::error("bridge-netfilter", cause)
            .shown_by(evidence)
            .shown_by("the nat table has KUBE-SERVICES")
            .remedy(remedy),
    )
}

/// The host drops what pods send and get (user-pain R15).
fn forward_dropped(
    node: &Node,
    network: &Network,
    family: Family,
    filter: &Filter,
) -> Option<Finding> {
    let config = &network.configured.bridge;
    if config.gateway == Gateway::None || !network.families().contains(&family) {
        return None;
    }
    let uplink = node.uplink(family).next();
    let pools = network
        .configured
        .host_local
        .iter()
        .flat_map(|it| it.pools());
    let source = pools
        .flat_map(|pool| pool.set.ranges())
        .find(|range| range.family() == family)?;
    let there = Packet {
        state: "NEW",
        input: config.bridge.as_str(),
        output: uplink.map_or("uplink", |link| &link.name),
        source: source.last(),
        destination: match family {
            Family::V4 => [198, 51, 100, 1].into(),
            Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
        },
    };
    let back = Packet {
        state: "ESTABLISHED",
        input: there.output,
        output: there.input,
        source: there.destination,
        destination: there.source,
    };
    let (why, which) = match filter.dropped(&there) {
        Some(why) => (why, "packets that pods of network"),
        None => (
            filter.dropped(&back)?,
            "the answers to what pods of network",
        ),
    };
    let cause = format!(
        "the host drops {family} {which} {} send beyond it",
        network.name()
    );
    Some(
        Finding::error("forward-drop", cause)
            .shown_by(why)
            .remedy(format!("set \"forwardAccept\": true in {}, or accept them: iptables -I FORWARD -i {} -j ACCEPT, and the same with -o", network.configured.file.display(), config.bridge)),
    )
}
