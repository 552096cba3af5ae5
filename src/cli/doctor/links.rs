//! Bridges, ports and MTUs.

use crate::cli::doctor::addresses::{listed, some, titled};
use crate::cli::doctor::finding::{Finding, Fix};
use crate::cli::node::{Network, Node, Pod, Problem};
use crate::cli::reconcile;
use crate::kernel::netlink::{Kind, Link};
use crate::net::{Cidr, Family};
use crate::plugins::bridge::config::Gateway;
use crate::plugins::bridge::reconcile::Repair;

/// Looks at the links of all networks.
pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for (at, network) in node.networks.iter().enumerate() {
        if let Some(link) = node
            .bridge(network)
            .filter(|link| link.kind != Kind::Bridge)
        {
            findings.push(not_a_bridge(network, link));
            continue;
        }
        let conflict = address_conflict(node, network);
        let mut lacking = lacking(node, network, at);
        // The other address is in its place.
        lacking.retain(|it| conflict.is_none() || it.id != "gateway-address");
        findings.extend(conflict);
        findings.extend(bridge_missing(node, network));
        findings.extend(port_elsewhere(node, network));
        findings.extend(port_flags(node, network));
        findings.extend(lacking);
        findings.extend(
            network
                .pods
                .iter()
                .filter_map(|pod| own_end_down(node, network, pod)),
        );
        findings.extend(other_mtu(node, network));
        findings.extend(uplink_mtu(node, network));
        findings.extend(unknown_ports(node, network));
    }
}

fn not_a_bridge(network: &Network, link: &Link) -> Finding {
    let cause = format!(
        "network {} needs a bridge {}, but there is a {} of that name",
        network.name(),
        link.name,
        link.kind
    );
    Finding::error("not-a-bridge", cause)
        .shown_by(format!("ip -d link show dev {}", link.name))
        .remedy("rename it, or name another bridge in the configuration")
}

/// The bridge went, and nobody remembers which links were its ports.
fn bridge_missing(node: &Node, network: &Network) -> Option<Finding> {
    let is_unknown = |pod: &&Pod| pod.problems.contains(&Problem::LinkUnknown);
    let pods: Vec<String> = network.pods.iter().filter(is_unknown).map(titled).collect();
    if pods.is_empty() || node.bridge(network).is_some() {
        return None;
    }
    let bridge = &network.configured.bridge.bridge;
    let cause = format!(
        "bridge {bridge} of network {} is missing, though pods hold addresses",
        network.name()
    );
    Some(
        Finding::error("bridge-missing", cause)
            .shown_by(format!(
                "links that may be theirs are no bridge's ports: {}",
                some(&pods)
            ))
            .remedy("restart these pods: no runtime remembers which link is whose"),
    )
}

/// Ports of pods are on another bridge. The pods run there, so that nothing moves them.
fn port_elsewhere(node: &Node, network: &Network) -> Option<Finding> {
    let found = reconcile::elsewhere(node, network);
    let on = &found.first()?.master.name;
    let bridge = &network.configured.bridge.bridge;
    let pods = found.iter().map(|it| {
        let (pod, master) = (titled(it.pod), it.master);
        format!(
            "{pod}: {} is on {} {}",
            it.port.name, master.kind, master.name
        )
    });
    let pods: Vec<String> = pods.collect();
    let cause = format!(
        "pods of network {} are not on its bridge {bridge}: it was renamed in the configuration, or their ports were moved",
        network.name()
    );
    Some(
        Finding::error("port-elsewhere", cause)
            .shown_by(some(&pods))
            .remedy(format!(
                "restart these pods, or set \"bridge\" to {on} in {}",
                network.configured.file.display()
            )),
    )
}

/// Ports keep the flags that they have: the configuration has changed since the ADD of their pods.
fn port_flags(node: &Node, network: &Network) -> Option<Finding> {
    let found = reconcile::with_other_flags(node, network);
    let pods = found.iter().map(|(pod, port)| {
        let flags = port.port.unwrap_or_default();
        format!(
            "{}: {} has hairpin {} and isolated {}",
            titled(pod),
            port.name,
            flags.hairpin,
            flags.isolated
        )
    });
    let pods: Vec<String> = pods.collect();
    let cause = format!(
        "ports of network {} have other flags than hairpinMode and portIsolation, for the configuration has changed since",
        network.name()
    );
    (!pods.is_empty()).then(|| {
        Finding::warning("port-flags", cause)
            .shown_by(some(&pods))
            .remedy("restart these pods")
    })
}

/// The bridge has another IPv4 address in place of the gateway's (user-pain R9).
fn address_conflict(node: &Node, network: &Network) -> Option<Finding> {
    if network.configured.bridge.gateway == Gateway::None {
        return None;
    }
    let link = node.gateway_link(network)?;
    let present = node.addresses_of(link);
    let pools = network
        .configured
        .host_local
        .iter()
        .flat_map(|it| it.pools());
    let wanted: Vec<Cidr> = pools
        .flat_map(|pool| pool.set.ranges())
        .map(|range| range.with_prefix(range.gateway()))
        .collect();
    let is_other = |cidr: &&Cidr| cidr.family() == Family::V4 && !wanted.contains(cidr);
    let has_v4 = wanted
        .iter()
        .any(|cidr| cidr.family() == Family::V4 && !present.contains(cidr));
    let other = present.iter().find(is_other).filter(|_| has_v4)?;
    let name = &link.name;
    let cause = format!(
        "bridge {name} has the address {other}, but network {} has the gateway {}",
        network.name(),
        listed(&wanted)
    );
    let ports = node
        .links
        .iter()
        .filter(|port| port.master == Some(link.index));
    let ports: Vec<String> = ports.map(Link::display_name).collect();
    Some(
        Finding::error("bridge-address", cause)
            .shown_by(format!("{name} has {}", listed(&present)))
            .shown_by(match ports.is_empty() {
                true => format!("{name} has no ports"),
                false => format!("its ports are {}", some(&ports)),
            })
            .remedy(format!("if no pod uses the old subnet: ip address del {other} dev {name}; or set forceAddress to true, so that ADD does it")),
    )
}

/// What others took from live pods: all that `reconcile` would put back.
fn lacking(node: &Node, network: &Network, at: usize) -> Vec<Finding> {
    let repairs = match reconcile::repairs(node, network) {
        Ok(repairs) => repairs,
        Err(error) => {
            let cause = format!(
                "what pods of network {} lack cannot be told",
                network.name()
            );
            let finding = Finding::warning("not-seen", cause).shown_by(error.to_string());
            return vec![finding.remedy("run it as root")];
        }
    };
    let finding = |repair: Repair| {
        let id = match &repair {
            Repair::Bridge => "bridge-down",
            Repair::BridgeMac => "bridge-mac",
            Repair::Advertisements(_) => "router-advertisements",
            Repair::Gateways(_) => "gateway-address",
            Repair::Forwarding(_) => "forwarding-off",
            Repair::Port(_) => "port",
            Repair::MacSpoofCheck(..) => "mac-check-missing",
            Repair::Masquerade(_) => "masquerade-missing",
            Repair::ForwardAccept(..) => "forward-accept-missing",
        };
        let cause = format!(
            "network {} lacks {repair}, though pods live that need it",
            network.name()
        );
        let finding = match repair {
            // Pods work until the port with that MAC address goes.
            Repair::BridgeMac => Finding::warning(id, cause),
            _ => Finding::error(id, cause),
        };
        finding
            .shown_by(how_it_shows(node, network, &repair))
            .remedy("gangplank reconcile")
            .fixed_by(Fix::Restore(at, Box::new(repair)))
    };
    repairs.into_iter().map(finding).collect()
}

fn how_it_shows(node: &Node, network: &Network, repair: &Repair) -> String {
    let bridge = &network.configured.bridge.bridge;
    match (repair.of(), node.bridge(network)) {
        (Some(live), _) => format!(
            "{} has {} on {}",
            live.attachment,
            listed(&live.addresses),
            live.link.name
        ),
        (None, None) => format!("there is no link {bridge}"),
        (None, Some(link)) => format!(
            "{bridge} is {}, with {}",
            if link.is_up { "up" } else { "down" },
            listed(&node.addresses_of(link))
        ),
    }
}

/// The end of a link inside the pod is down: nothing on the host can be put back for that.
fn own_end_down(node: &Node, network: &Network, pod: &Pod) -> Option<Finding> {
    let link = &node.links[pod.link?];
    if !link.is_up || !pod.problems.contains(&Problem::Down) {
        return None;
    }
    let cause = format!(
        "{} of network {} has a link on which no packets pass: its own end is down",
        titled(pod),
        network.name()
    );
    Some(
        Finding::error("pod-link-down", cause)
            .shown_by(format!("{} is up and without carrier", link.name))
            .remedy(format!(
                "in the pod: ip link set {} up; or restart it",
                pod.attachment.interface
            )),
    )
}

fn other_mtu(node: &Node, network: &Network) -> Option<Finding> {
    let bridge = node.bridge(network)?;
    let pods = network.pods.iter().filter_map(|pod| {
        let mtu = pod.problems.iter().find_map(|it| match it {
            Problem::Mtu(mtu) => Some(*mtu),
            _ => None,
        })?;
        Some(format!("{} has {mtu}", titled(pod)))
    });
    let pods: Vec<String> = pods.collect();
    if pods.is_empty() {
        return None;
    }
    let cause = format!(
        "pods of network {} have another MTU than bridge {}: packets that are too large vanish",
        network.name(),
        bridge.name
    );
    Some(
        Finding::warning("mtu-differs", cause)
            .shown_by(format!("{} has MTU {}", bridge.name, bridge.mtu))
            .shown_by(some(&pods))
            .remedy("restart these pods, so that they get the MTU that is configured now"),
    )
}

/// Packets of pods do not fit through the uplink (user-pain R19).
fn uplink_mtu(node: &Node, network: &Network) -> Option<Finding> {
    let config = &network.configured.bridge;
    if config.gateway == Gateway::None {
        return None;
    }
    let bridge = node.bridge(network)?;
    let narrow = Family::BOTH
        .into_iter()
        .flat_map(|family| node.uplink(family))
        .min_by_key(|link| link.mtu)
        .filter(|link| link.mtu < bridge.mtu && link.index != bridge.index)?;
    let cause = format!(
        "bridge {} has MTU {}, but the uplink {} takes {} bytes: what pods send through it can vanish",
        bridge.name, bridge.mtu, narrow.name, narrow.mtu
    );
    Some(
        Finding::warning("mtu-uplink", cause)
            .shown_by(format!("the default route goes over {}", narrow.name))
            .remedy(format!(
                "set \"mtu\" to {} or to \"auto\" in {}, and restart the pods",
                narrow.mtu,
                network.configured.file.display()
            )),
    )
}

/// Ports that are no pod's, which a pod's link without a lease looks like when nobody remembers it.
fn unknown_ports(node: &Node, network: &Network) -> Option<Finding> {
    let is_lost = |link: &&Link| {
        link.kind == Kind::Veth && link.name.starts_with("veth") && link.name.len() == 15
    };
    let ports = network.unknown_ports.iter().map(|at| &node.links[*at]);
    let names: Vec<String> = ports.filter(is_lost).map(Link::display_name).collect();
    if names.is_empty() || network.configured.host_local.is_none() {
        return None;
    }
    let cause = format!(
        "bridge {} has pods' links without a lease in network {}: others can be given their addresses",
        network.configured.bridge.bridge,
        network.name()
    );
    Some(
        Finding::error("link-without-lease", cause)
            .shown_by(some(&names))
            .remedy("restart these pods; or if they are of another network on this bridge, put its configuration here"),
    )
}
