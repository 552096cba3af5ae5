//! Leases: stale, lost, garbled, nearly used up, and ranges that overlap.

use std::time::{Duration, SystemTime};

use crate::cli::doctor::finding::{Finding, Fix};
use crate::cli::node::{Network, Node, Pod, Problem};
use crate::ipam::lease_file::age;
use crate::net::Cidr;

/// A lease younger than this may be of an ADD that is at work.
const SETTLED: Duration = Duration::from_secs(60);

/// From this share of a range on, in percent, it is nearly full.
const NEARLY_FULL: u128 = 90;

/// How many names a piece of evidence lists.
const NAMED: usize = 5;

/// Looks at the leases of all networks.
pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for (at, network) in node.networks.iter().enumerate() {
        for pod in &network.pods {
            findings.extend(stale(node, pod, at));
            findings.extend(lost(node, network, pod));
        }
        findings.extend(garbled(network, at));
        findings.extend(shared(network));
        findings.extend(usage(network));
    }
    overlaps(node, findings);
    orphans(node, findings);
}

/// A lease whose container has no link any more (user-pain R1).
fn stale(node: &Node, pod: &Pod, at: usize) -> Option<Finding> {
    let network = &node.networks[at];
    let is_old = |since: SystemTime| since.elapsed().is_ok_and(|age| age > SETTLED);
    let addresses: Vec<String> = pod
        .addresses
        .iter()
        .map(|it| it.address().to_string())
        .collect();
    let held = format!(
        "{} of network {} is held by {}",
        addresses.join(" and "),
        network.name(),
        titled(pod)
    );
    if addresses.is_empty() {
        return None;
    }
    let since = pod.since?;
    let age = format!("the lease is {} old", age(since));
    let remedy = "free it: a DEL of that container, or removing the file of the lease";
    if pod.problems.contains(&Problem::Outlived) {
        let cause = format!("{held} of an earlier boot: its DEL never came");
        let finding = Finding::warning("stale-lease", cause).shown_by(age);
        return Some(
            finding
                .remedy("none is needed: the next ADD on this network frees it")
                .fixed_by(Fix::Detach(at, pod.attachment.clone())),
        );
    }
    if !pod.problems.contains(&Problem::NoLink) || !is_old(since) {
        return None;
    }
    let cause = format!("{held}, which has no link on this host: its DEL never came");
    let finding = Finding::error("stale-lease", cause)
        .shown_by(age)
        .remedy(remedy);
    let sharing = node.names.iter();
    let sharing = sharing.filter(|(name, _)| name == network.name().as_str());
    Some(match pod.may_live {
        // A plugin that is no bridge gives its pods other links.
        false if sharing.count() > 1 => finding,
        false => finding.fixed_by(Fix::Detach(at, pod.attachment.clone())),
        // It lost its link, but its namespace is there: it may hold on to the address in another way.
        true => finding
            .shown_by("the runtime knows the container, and its namespace is there")
            .remedy("restart the pod"),
    })
}

/// A link that has no lease: its address may be given away (user-pain R35).
fn lost(node: &Node, network: &Network, pod: &Pod) -> Option<Finding> {
    if !pod.problems.contains(&Problem::NoLease) || pod.problems.contains(&Problem::NoLink) {
        return None;
    }
    let link = &node.links[pod.link?];
    let cause = format!(
        "{} of network {} has link {} but no lease: others can be given its address",
        titled(pod),
        network.name(),
        link.name
    );
    let place = network
        .configured
        .host_local
        .as_ref()
        .map(|it| it.store().directory().display().to_string());
    Some(
        Finding::error("link-without-lease", cause)
            .shown_by(format!("no file of it in {}", place.unwrap_or_default()))
            .remedy("restart the pod, so that it gets an address that is its own"),
    )
}

fn garbled(network: &Network, at: usize) -> Option<Finding> {
    let garbled = network.leases.iter().filter(|lease| lease.owner.is_none());
    let names: Vec<String> = garbled.map(|lease| lease.address.to_string()).collect();
    if names.is_empty() {
        return None;
    }
    let place = network
        .configured
        .host_local
        .as_ref()?
        .store()
        .directory()
        .display();
    let cause = format!(
        "{} lease files of network {} are empty or garbled, from a crash or a full disk",
        names.len(),
        network.name()
    );
    Some(
        Finding::warning("garbled-lease", cause)
            .shown_by(format!("{place}: {}", some(&names)))
            .remedy("remove these files; the Go plugin takes them for addresses in use, gangplank assigns them")
            .fixed_by(Fix::ClearGarbled(at)),
    )
}

/// None is given up after a boot then, for the containers of the other machine do not show here.
fn shared(network: &Network) -> Option<Finding> {
    let store = network.configured.host_local.as_ref()?.store();
    if !store.is_shared() {
        return None;
    }
    let directory = store.directory().display();
    let cause = format!(
        "several machines have made leases of network {} in one directory, so none is freed after a boot",
        network.name()
    );
    Some(
        Finding::warning("shared-leases", cause)
            .shown_by(format!("{directory}/.gangplank.boot names them"))
            .remedy(format!(
                "give each machine a dataDir of its own; if this one only got another name or machine ID, remove {directory}/.gangplank.boot"
            )),
    )
}

fn usage(network: &Network) -> Option<Finding> {
    let full = |(used, size, _): &&(usize, u128, String)| {
        *used as u128 * 100 >= size.saturating_mul(NEARLY_FULL)
    };
    let usage = network.usage();
    let (used, size, range) = usage.iter().find(full)?;
    let is_full = *used as u128 >= *size;
    let cause = format!(
        "range {range} of network {} is {}",
        network.name(),
        if is_full {
            "full: new pods get no address"
        } else {
            "nearly full"
        }
    );
    let finding = match is_full {
        true => Finding::error("range-full", cause),
        false => Finding::warning("range-nearly-full", cause),
    };
    let finding = finding.shown_by(format!("{used} of {size} addresses are used"));
    Some(
        finding.remedy(
            "remove pods or stale leases, or give the network a larger range or a second one",
        ),
    )
}

fn overlaps(node: &Node, findings: &mut Vec<Finding>) {
    for (at, network) in node.networks.iter().enumerate() {
        for other in &node.networks[..at] {
            // Those of one name share their leases too, so that no address is given twice.
            if network.name() == other.name() {
                continue;
            }
            let Some((ours, theirs)) = overlap(network, other) else {
                continue;
            };
            let cause = format!(
                "networks {} and {} have ranges that overlap: pods of both can get the same address",
                other.name(),
                network.name()
            );
            findings.push(
                Finding::error("overlapping-ranges", cause)
                    .shown_by(format!("{theirs} in {}", other.configured.file.display()))
                    .shown_by(format!("{ours} in {}", network.configured.file.display()))
                    .remedy("give one of them another range"),
            );
        }
    }
}

fn overlap(network: &Network, other: &Network) -> Option<(String, String)> {
    let pools = |network: &Network| {
        let host_local = network.configured.host_local.clone();
        host_local.map(|it| it.pools().to_vec()).unwrap_or_default()
    };
    let theirs = pools(other);
    for ours in pools(network) {
        for theirs in &theirs {
            if let Some((a, b)) = ours.set.overlap(&theirs.set) {
                return Some((a.to_string(), b.to_string()));
            }
        }
    }
    None
}

fn orphans(node: &Node, findings: &mut Vec<Finding>) {
    for (store, leases) in &node.orphans {
        let owners: Vec<String> = leases
            .iter()
            .map(|lease| lease.address.to_string())
            .collect();
        let directory = store.directory().display();
        let cause = format!(
            "{} leases are of a network that no configuration names",
            leases.len()
        );
        findings.push(
            Finding::warning("unknown-network", cause)
                .shown_by(format!("{directory}: {}", some(&owners)))
                .remedy(format!(
                    "if none of its containers runs any more, remove {directory}"
                )),
        );
    }
}

/// A pod by its name, else by its container.
pub fn titled(pod: &Pod) -> String {
    match &pod.name {
        Some(name) => format!("pod {name} (container {})", pod.attachment.container),
        None => format!("container {}", pod.attachment.container),
    }
}

/// The first of some names, and how many more there are.
pub fn some(names: &[String]) -> String {
    match names.len() {
        0..=NAMED => names.join(", "),
        count => format!("{} and {} more", names[..NAMED].join(", "), count - NAMED),
    }
}

/// Addresses for a person.
pub fn listed(cidrs: &[Cidr]) -> String {
    match cidrs.is_empty() {
        true => "no address".to_owned(),
        false => cidrs
            .iter()
            .map(Cidr::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
    }
}
