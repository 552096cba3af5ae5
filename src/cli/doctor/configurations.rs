//! Findings about configurations with keys that have no effect or an unexpected one, and about plugins that do not
//! support them.

use crate::cli::args::DoctorArgs;
use crate::cli::doctor::finding::{Finding, Id};
use crate::cli::node::{Configured, Node};
use crate::cni::json::JsonCursor;
use crate::ipam::range::Range;
use crate::net::{Cidr, Route};

pub fn examine(node: &Node, args: &DoctorArgs, findings: &mut Vec<Finding>) {
    for (list, file) in &node.lists {
        for mut finding in list.unsupported(&args.cni_path) {
            finding.evidence.insert(0, file.display().to_string());
            findings.push(finding);
        }
    }
    for network in &node.networks {
        findings.extend(questionable_keys(&network.configured));
    }
}

/// The cause and the remedy.
type Questionable = (String, &'static str);

/// Values that the Go plugins and gangplank accept, but whose effect is probably not intended.
fn questionable_keys(configured: &Configured) -> impl Iterator<Item = Finding> {
    let mut found = root_keys(&configured.conf.root());
    if let Some(host_local) = &configured.host_local {
        let ranges = host_local.pools().iter().flat_map(|pool| pool.set.ranges());
        found.extend(ranges.flat_map(range_keys));
        let routes = host_local.routes();
        found.extend((0..routes.len()).flat_map(|at| route_keys(&routes[at], &routes[..at])));
    }
    found.into_iter().map(|(cause, remedy)| {
        let network = &configured.conf.name;
        Finding::new(Id::QuestionableKey, format!("network {network}: {cause}"))
            .evidence(configured.file.display().to_string())
            .remedy(remedy)
    })
}

fn root_keys(root: &JsonCursor) -> Vec<Questionable> {
    let mut found = Vec::new();
    if let Ok(Some(mtu)) = root.integer("mtu")
        && mtu < 0
    {
        found.push((
            format!("mtu is {mtu}, which is the same as no mtu"),
            "write a positive number, or remove the key",
        ));
    }
    if let Ok(Some(backend)) = root.text("ipMasqBackend")
        && !matches!(backend, "iptables" | "nftables")
    {
        found.push((
            format!("ipMasqBackend is {backend:?}: ADD will fail when ipMasq is set"),
            "write \"iptables\" or \"nftables\", or remove the key",
        ));
    }
    found
}

fn range_keys(range: &Range) -> Vec<Questionable> {
    let mut found = Vec::new();
    let gateway = range.gateway();
    if !range.subnet().contains(gateway) && !Cidr::host(gateway).is_ipv6_link_local() {
        found.push((
            format!("gateway {gateway} is not in the subnet of {range}"),
            "pods need a route to it; IPv6 gateways can be link-local, such as fe80::1",
        ));
    }
    if range.allocates_edges() {
        found.push((
            format!(
                "range {range} has no address but the network or broadcast address of its subnet"
            ),
            "other hosts may not answer to such an address; choose another range",
        ));
    }
    found
}

fn route_keys(route: &Route, before: &[Route]) -> Vec<Questionable> {
    let mut found = Vec::new();
    let dst = route.dst;
    if !dst.is_network() {
        found.push((
            format!("route {dst} has host bits set, which the kernel clears"),
            "write the network address",
        ));
    }
    if before.contains(route) {
        found.push((
            format!("route {dst} is listed twice"),
            "remove one of them: the Go plugin fails with it",
        ));
    }
    let u32_max = i64::from(u32::MAX);
    for (key, number, range) in [
        ("mtu", route.mtu, 1..=u32_max),
        ("advmss", route.advmss, 1..=u32_max),
        ("priority", route.priority, 1..=u32_max),
        ("table", route.table, 0..=u32_max),
        ("scope", route.scope, 0..=255),
    ] {
        if let Some(number) = number.filter(|number| !range.contains(number)) {
            found.push((
                format!("{key} {number} of route {dst} is out of the kernel's range: another number takes effect"),
                "write a number that the kernel accepts, or remove the key",
            ));
        }
    }
    found
}
