//! Configurations that work, but not as it seems, and plugins that cannot take part in them.

use std::net::IpAddr;

use crate::cli::args;
use crate::cli::chain::Lack;
use crate::cli::doctor::finding::Finding;
use crate::cli::node::{Configured, Node};
use crate::cni::json::JsonCursor;
use crate::ipam::HostLocal;
use crate::ipam::range::Range;
use crate::net::{Cidr, Family, Route};

/// Looks at the configurations.
pub fn examine(node: &Node, asked: &args::Doctor, findings: &mut Vec<Finding>) {
    for (chain, file) in &node.chains {
        for unfit in chain.unfit(&asked.cni_path) {
            let finding = match unfit.lack {
                Lack::Version => Finding::error("plugin-cni-version", unfit.cause),
                Lack::Status => Finding::error("plugin-status", unfit.cause),
            };
            let finding = finding.shown_by(file.display().to_string());
            let finding = unfit.answers.into_iter().fold(finding, Finding::shown_by);
            findings.push(finding.remedy(unfit.remedy));
        }
    }
    for network in &node.networks {
        findings.extend(questionable(&network.configured));
    }
}

/// What the Go plugins accept, and so do we, though it does something else than its author may think.
fn questionable(configured: &Configured) -> Vec<Finding> {
    let root = configured.conf.root();
    let mut doubts = without_effect(&root);
    if let Some(host_local) = &configured.host_local {
        doubts.extend(of_ranges(host_local));
        doubts.extend(of_routes(host_local.routes()));
    }
    let finding = |(cause, remedy): Doubt| {
        let network = &configured.conf.name;
        Finding::warning("questionable-key", format!("network {network}: {cause}"))
            .shown_by(configured.file.display().to_string())
            .remedy(remedy)
    };
    doubts.into_iter().map(finding).collect()
}

/// What is questionable, and the remedy.
type Doubt = (String, &'static str);

fn without_effect(root: &JsonCursor) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    if let Ok(Some(mtu)) = root.integer("mtu")
        && mtu < 0
    {
        doubts.push((
            format!("mtu is {mtu}, which is the same as no mtu"),
            "write a positive number, or remove the key",
        ));
    }
    if let Ok(Some(backend)) = root.text("ipMasqBackend")
        && !matches!(backend, "iptables" | "nftables")
    {
        doubts.push((
            format!("ipMasqBackend is {backend:?}: ADD will fail when ipMasq is set"),
            "write \"iptables\" or \"nftables\", or remove the key",
        ));
    }
    doubts
}

fn of_ranges(host_local: &HostLocal) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let sets = host_local.pools().iter().map(|pool| &pool.set);
    for range in sets.flat_map(|set| set.ranges()) {
        if is_unreachable(range) {
            doubts.push((
                format!(
                    "gateway {} is not in the subnet of {range}",
                    range.gateway()
                ),
                "pods need a route to it; IPv6 gateways can be link-local, such as fe80::1",
            ));
        }
        if range.gives_edges() {
            doubts.push((
                format!("range {range} has no address but the network or broadcast address of its subnet"),
                "other hosts may not answer to such an address; choose another range",
            ));
        }
    }
    doubts
}

/// Whether pods have no way to the gateway by their own address: it is neither in the subnet nor link-local.
fn is_unreachable(range: &Range) -> bool {
    let gateway: IpAddr = range.gateway();
    let is_link_local = range.family() == Family::V6 && Cidr::host(gateway).is_ipv6_link_local();
    !range.subnet().contains(gateway) && !is_link_local
}

fn of_routes(routes: &[Route]) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for (at, route) in routes.iter().enumerate() {
        let dst = route.dst;
        if !dst.is_network() {
            let cause = format!("route {dst} has host bits set, which the kernel clears");
            doubts.push((cause, "write the network address"));
        }
        if routes[..at].contains(route) {
            let cause = format!("route {dst} is listed twice");
            doubts.push((cause, "remove one of them: the Go plugin fails with it"));
        }
        let numbers = [
            ("mtu", route.mtu, 1..=i64::from(u32::MAX)),
            ("advmss", route.advmss, 1..=i64::from(u32::MAX)),
            ("priority", route.priority, 1..=i64::from(u32::MAX)),
            ("table", route.table, 0..=i64::from(u32::MAX)),
            ("scope", route.scope, 0..=255),
        ];
        for (key, number, range) in numbers {
            if let Some(number) = number.filter(|number| !range.contains(number)) {
                let cause = format!(
                    "{key} {number} of route {dst} is not what the kernel gets, which has no room for it"
                );
                doubts.push((
                    cause,
                    "write a number that the kernel takes, or remove the key",
                ));
            }
        }
    }
    doubts
}
