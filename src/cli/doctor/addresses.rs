//! Findings about leases and ranges.

use std::time::{Duration, SystemTime};

use crate::cli::doctor::finding::{Finding, Fix, Id};
use crate::cli::node::{Network, Node, Pod, Problem, RangeUsage};
use crate::ipam::store::age;
use crate::net::Cidr;

/// A lease younger than this may belong to an ADD in progress.
const ADD_LIMIT: Duration = Duration::from_secs(60);

/// A range with this usage in percent is nearly full.
const NEARLY_FULL: u128 = 90;

/// The maximum number of names in one piece of evidence.
const MAX_NAMES: usize = 5;

pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for (at, network) in node.networks.iter().enumerate() {
        for pod in &network.pods {
            findings.extend(stale_lease(node, pod, at));
            findings.extend(link_without_lease(node, network, pod));
        }
        findings.extend(invalid_leases(network, at));
        findings.extend(shared_leases(network));
        findings.extend(full_range(network));
    }
    for (at, network) in node.networks.iter().enumerate() {
        let others = node.networks[..at].iter();
        findings.extend(others.filter_map(|other| overlapping_ranges(network, other)));
    }
    findings.extend(unknown_networks(node));
}

/// A lease whose container has no link.
fn stale_lease(node: &Node, pod: &Pod, at: usize) -> Option<Finding> {
    let network = &node.networks[at];
    let since = pod.since.filter(|_| !pod.addresses.is_empty())?;
    let addresses: Vec<String> = pod
        .addresses
        .iter()
        .map(|it| it.address().to_string())
        .collect();
    let addresses = addresses.join(" and ");
    let held = format!("{addresses} of network {network} is held by {pod}");
    let age = format!("the lease is {} old", age(since));
    let detach = Fix::Detach(at, pod.attachment.clone());
    if pod.problems.contains(&Problem::LeaseBeforeBoot) {
        let cause = format!("{held} from an earlier boot: DEL was not called");
        let finding = Finding::new(Id::StaleLease, cause).warning().evidence(age);
        let remedy = "none: the next ADD on this network releases it";
        return Some(finding.remedy(remedy).fix(detach));
    }
    let is_old = |since: SystemTime| since.elapsed().is_ok_and(|age| age > ADD_LIMIT);
    if !pod.problems.contains(&Problem::NoLink) || !is_old(since) {
        return None;
    }
    let cause = format!("{held}, which has no link on this host: DEL was not called");
    let finding = Finding::new(Id::StaleLease, cause).evidence(age);
    if pod.has_netns {
        // The link was deleted, but the namespace exists: the container may use the address in another way.
        let evidence = "the runtime has a cached result of the container, and its namespace exists";
        return Some(finding.evidence(evidence).remedy("restart the pod"));
    }
    let finding = finding.remedy("call DEL for the container, or remove the lease file");
    // Another configuration of the same name may use a plugin other than bridge, whose pods have other links.
    Some(match node.lists_named(network.name().as_str()) > 1 {
        true => finding,
        false => finding.fix(detach),
    })
}

/// A link whose pod has no lease.
fn link_without_lease(node: &Node, network: &Network, pod: &Pod) -> Option<Finding> {
    if !pod.problems.contains(&Problem::NoLease) {
        return None;
    }
    let cause = format!(
        "{pod} of network {network} has link {} but no lease: its address may be reassigned",
        node.link_of(pod)?.name
    );
    let store = network.configured.host_local.as_ref()?.store();
    Some(
        Finding::new(Id::LinkWithoutLease, cause)
            .evidence(format!("no lease in {}", store.directory().display()))
            .remedy("restart the pod, so that it gets a leased address"),
    )
}

fn invalid_leases(network: &Network, at: usize) -> Option<Finding> {
    let invalid = network.leases.iter().filter(|lease| lease.owner.is_none());
    let names: Vec<String> = invalid.map(|lease| lease.address.to_string()).collect();
    if names.is_empty() {
        return None;
    }
    let store = network.configured.host_local.as_ref()?.store();
    let cause = format!(
        "{} lease files of network {network} are empty or garbled, because of a crash or a full disk",
        names.len()
    );
    Some(
        Finding::new(Id::GarbledLease, cause)
            .evidence(format!("{}: {}", store.directory().display(), join(&names)))
            .remedy("remove these files; the Go plugin treats the addresses as used, gangplank assigns them")
            .fix(Fix::RemoveInvalidLeases(at)),
    )
}

/// Several machines lease from one directory. Leases of another machine cannot be distinguished from leases from before
/// a boot, so none is removed.
fn shared_leases(network: &Network) -> Option<Finding> {
    let store = network.configured.host_local.as_ref()?.store();
    if !store.is_shared() {
        return None;
    }
    let directory = store.directory().display();
    let cause = format!(
        "several machines share the lease directory of network {network}, so a reboot releases no leases"
    );
    Some(
        Finding::new(Id::SharedLeases, cause)
            .evidence(format!("{directory}/.gangplank.boot lists them"))
            .remedy(format!(
                "give each machine its own dataDir; if only the name or the ID of this machine has changed, remove {directory}/.gangplank.boot"
            )),
    )
}

fn full_range(network: &Network) -> Option<Finding> {
    let mut usage = network.usage().into_iter();
    let usage = usage.find(|it| it.used as u128 * 100 >= it.size.saturating_mul(NEARLY_FULL))?;
    let (id, what) = match usage.used as u128 >= usage.size {
        true => (Id::RangeFull, "full: new pods get no address"),
        false => (Id::RangeNearlyFull, "nearly full"),
    };
    let RangeUsage { range, used, size } = usage;
    let cause = format!("range {range} of network {network} is {what}");
    Some(
        Finding::new(id, cause)
            .evidence(format!("{used} of {size} addresses are used"))
            .remedy(
                "remove pods or stale leases, or give the network a larger range or a second one",
            ),
    )
}

fn overlapping_ranges(network: &Network, other: &Network) -> Option<Finding> {
    // Networks of one name share their leases, so that no address is assigned twice.
    if network.name() == other.name() {
        return None;
    }
    let mut pairs = network
        .ranges()
        .flat_map(|range| other.ranges().map(move |other| (range, other)));
    let (range, other_range) = pairs.find(|(range, other)| range.overlaps(other))?;
    let cause = format!(
        "networks {other} and {network} have overlapping ranges: pods of both can get the same address"
    );
    Some(
        Finding::new(Id::OverlappingRanges, cause)
            .evidence(format!(
                "{other_range} in {}",
                other.configured.file.display()
            ))
            .evidence(format!("{range} in {}", network.configured.file.display()))
            .remedy("give one of them another range"),
    )
}

fn unknown_networks(node: &Node) -> impl Iterator<Item = Finding> {
    let leases = node.other_leases.iter();
    let unknown = leases.filter(|(store, _)| node.lists_named(store.network().as_str()) == 0);
    unknown.map(|(store, leases)| {
        let addresses = leases.iter().map(|lease| lease.address.to_string());
        let addresses: Vec<String> = addresses.collect();
        let directory = store.directory().display();
        let cause = format!(
            "{} leases belong to a network without a configuration",
            leases.len()
        );
        Finding::new(Id::UnknownNetwork, cause)
            .evidence(format!("{directory}: {}", join(&addresses)))
            .remedy(format!(
                "if none of the containers is running, remove {directory}"
            ))
    })
}

/// Joins the first [`MAX_NAMES`] names and counts the others.
pub fn join(names: &[String]) -> String {
    match names.len() {
        0..=MAX_NAMES => names.join(", "),
        count => format!(
            "{} and {} more",
            names[..MAX_NAMES].join(", "),
            count - MAX_NAMES
        ),
    }
}

pub fn join_addresses(cidrs: &[Cidr]) -> String {
    let texts: Vec<String> = cidrs.iter().map(Cidr::to_string).collect();
    match texts.is_empty() {
        true => "no address".to_owned(),
        false => texts.join(" and "),
    }
}
