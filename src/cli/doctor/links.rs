//! Findings about bridges, ports and MTUs.

use crate::cli::doctor::addresses::{join, join_addresses};
use crate::cli::doctor::finding::{Finding, Fix, Id};
use crate::cli::node::{Network, Node, Pod, Problem};
use crate::cli::reconcile::{self, MisplacedPort};
use crate::ipam::range::Range;
use crate::kernel::netlink::{Kind, Link, PortFlags};
use crate::net::{Cidr, Family, IfName};
use crate::plugins::bridge::reconcile::Repair;

pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for (at, network) in node.networks.iter().enumerate() {
        if let Some(link) = node.bridge(network)
            && link.kind != Kind::Bridge
        {
            findings.push(not_a_bridge(network, link));
            continue;
        }
        let conflict = address_conflict(node, network);
        let mut repairs = repairs(node, network, at);
        // The gateway address cannot be added while there is a conflicting one.
        repairs.retain(|it| conflict.is_none() || it.id != Id::GatewayAddress);
        findings.extend(conflict);
        findings.extend(missing_bridge(node, network));
        findings.extend(ports_on_other_bridges(node, network));
        findings.extend(port_flags(node, network));
        findings.extend(repairs);
        let pods = network.pods.iter();
        findings.extend(pods.filter_map(|pod| pod_link_down(node, network, pod)));
        findings.extend(pod_mtu(node, network));
        findings.extend(uplink_mtu(node, network));
        findings.extend(unknown_ports(node, network));
    }
}

fn not_a_bridge(network: &Network, link: &Link) -> Finding {
    let name = &link.name;
    let cause = format!(
        "network {network} needs a bridge {name}, but there is a {} of that name",
        link.kind
    );
    Finding::new(Id::NotABridge, cause)
        .evidence(format!("ip -d link show dev {name}"))
        .remedy("rename it, or name another bridge in the configuration")
}

/// The bridge was deleted, and no cached result names the links that were its ports.
fn missing_bridge(node: &Node, network: &Network) -> Option<Finding> {
    let is_unknown = |pod: &&Pod| pod.problems.contains(&Problem::LinkUnknown);
    let pods = network.pods.iter().filter(is_unknown);
    let pods: Vec<String> = pods.map(Pod::to_string).collect();
    if pods.is_empty() || node.bridge(network).is_some() {
        return None;
    }
    let bridge = &network.configured.bridge.bridge;
    let cause =
        format!("bridge {bridge} of network {network} is missing, although pods have addresses");
    Some(
        Finding::new(Id::BridgeMissing, cause)
            .evidence(format!(
                "the links of these pods are unknown, and on no bridge: {}",
                join(&pods)
            ))
            .remedy("restart these pods: no runtime has cached which links are theirs"),
    )
}

/// Ports of pods are on another bridge. They are not moved, because the pods work there.
fn ports_on_other_bridges(node: &Node, network: &Network) -> Option<Finding> {
    let found = reconcile::ports_on_other_bridges(node, network);
    let other = &found.first()?.master.name;
    let ports = found.iter().map(|MisplacedPort { pod, port, master }| {
        let (port, kind, master) = (&port.name, &master.kind, &master.name);
        format!("{pod}: {port} is on {kind} {master}")
    });
    let cause = format!(
        "pods of network {network} are not on its bridge {}: it was renamed in the configuration, or their ports were moved",
        network.configured.bridge.bridge
    );
    Some(
        Finding::new(Id::PortElsewhere, cause)
            .evidence(join(&ports.collect::<Vec<_>>()))
            .remedy(format!(
                "restart these pods, or set \"bridge\" to {other} in {}",
                network.configured.file.display()
            )),
    )
}

/// Ports keep their flags if the configuration has changed since the ADD of their pods.
fn port_flags(node: &Node, network: &Network) -> Option<Finding> {
    let found = reconcile::ports_with_other_flags(node, network);
    let ports = found.iter().map(|(pod, port)| {
        let PortFlags { hairpin, isolated } = port.port.unwrap_or_default();
        let port = &port.name;
        format!("{pod}: {port} has hairpin {hairpin} and isolated {isolated}")
    });
    let ports: Vec<String> = ports.collect();
    let cause = format!(
        "ports of network {network} do not have the flags of hairpinMode and portIsolation: the configuration has changed since ADD"
    );
    (!ports.is_empty()).then(|| {
        Finding::new(Id::PortFlags, cause)
            .evidence(join(&ports))
            .remedy("restart these pods")
    })
}

/// The bridge has another IPv4 address in place of the gateway's.
fn address_conflict(node: &Node, network: &Network) -> Option<Finding> {
    let link = node
        .gateway_link(network)
        .filter(|_| network.has_gateway())?;
    let observed = node.addresses_of(link);
    let gateways: Vec<Cidr> = network.ranges().filter_map(Range::gateway_cidr).collect();
    let is_v4 = |cidr: &&Cidr| cidr.family() == Family::V4;
    let mut missing = gateways.iter().filter(is_v4);
    missing.find(|gateway| !observed.contains(gateway))?;
    let mut others = observed.iter().filter(is_v4);
    let other = others.find(|cidr| !gateways.contains(cidr))?;
    let name = &link.name;
    let cause = format!(
        "bridge {name} has the address {other}, but network {network} has the gateway {}",
        join_addresses(&gateways)
    );
    let ports: Vec<String> = node.ports(link).map(Link::display_name).collect();
    Some(
        Finding::new(Id::BridgeAddress, cause)
            .evidence(format!("{name} has {}", join_addresses(&observed)))
            .evidence(match ports.is_empty() {
                true => format!("{name} has no ports"),
                false => format!("its ports are {}", join(&ports)),
            })
            .remedy(format!("if no pod uses the old subnet: ip address del {other} dev {name}; or set forceAddress to true, so that ADD does it")),
    )
}

/// The repairs of `gangplank reconcile`.
fn repairs(node: &Node, network: &Network, at: usize) -> Vec<Finding> {
    let repairs = match reconcile::repairs(node, network) {
        Ok(repairs) => repairs,
        Err(error) => {
            let cause = format!("cannot determine what pods of network {network} lack");
            let finding = Finding::new(Id::NotSeen, cause).warning();
            return vec![finding.evidence(error.to_string()).remedy("run it as root")];
        }
    };
    let finding = |repair: Repair| {
        let id = match &repair {
            Repair::Bridge => Id::BridgeDown,
            Repair::BridgeMac => Id::BridgeMac,
            Repair::Advertisements(_) => Id::RouterAdvertisements,
            Repair::Gateways(_) => Id::GatewayAddress,
            Repair::Forwarding(_) => Id::ForwardingOff,
            Repair::Port(_) => Id::Port,
            Repair::MacSpoofCheck(..) => Id::MacCheckMissing,
            Repair::Masquerade(_) => Id::MasqueradeMissing,
            Repair::ForwardAccept(..) => Id::ForwardAcceptMissing,
        };
        let cause = format!("network {network} lacks {repair}, which running pods need");
        Finding::new(id, cause)
            .evidence(repair_evidence(node, network, &repair))
            .remedy("gangplank reconcile")
            .fix(Fix::Reconcile(at, Box::new(repair)))
    };
    repairs.into_iter().map(finding).collect()
}

fn repair_evidence(node: &Node, network: &Network, repair: &Repair) -> String {
    let bridge = &network.configured.bridge.bridge;
    match (repair.attachment(), node.bridge(network)) {
        (Some(live), _) => format!(
            "{} has {} on {}",
            live.attachment,
            join_addresses(&live.addresses),
            live.link.name
        ),
        (None, None) => format!("there is no link {bridge}"),
        (None, Some(link)) => format!(
            "{bridge} is {}, with {}",
            if link.is_up { "up" } else { "down" },
            join_addresses(&node.addresses_of(link))
        ),
    }
}

/// The host end of a veth pair is up and the container end is down, which cannot be repaired on the host.
fn pod_link_down(node: &Node, network: &Network, pod: &Pod) -> Option<Finding> {
    let link = node.link_of(pod)?;
    if !link.is_up || !pod.problems.contains(&Problem::LinkDown) {
        return None;
    }
    let cause = format!(
        "{pod} of network {network} has a link that forwards no packets: the container end is down"
    );
    Some(
        Finding::new(Id::PodLinkDown, cause)
            .evidence(format!("{} is up, without carrier", link.name))
            .remedy(format!(
                "in the pod: ip link set {} up; or restart it",
                pod.attachment.interface
            )),
    )
}

fn pod_mtu(node: &Node, network: &Network) -> Option<Finding> {
    let bridge = node.bridge(network)?;
    let name = &bridge.name;
    let pods = network.pods.iter();
    let pods = pods.filter(|pod| pod.problems.contains(&Problem::OtherMtu));
    let pods = pods.filter_map(|pod| Some(format!("{pod} has {}", node.link_of(pod)?.mtu)));
    let pods: Vec<String> = pods.collect();
    if pods.is_empty() {
        return None;
    }
    let cause = format!(
        "pods of network {network} have another MTU than bridge {name}: packets that are too large are dropped"
    );
    Some(
        Finding::new(Id::MtuDiffers, cause)
            .evidence(format!("{name} has MTU {}", bridge.mtu))
            .evidence(join(&pods))
            .remedy("restart these pods, so that they get the configured MTU"),
    )
}

/// Packets of pods exceed the uplink's MTU.
fn uplink_mtu(node: &Node, network: &Network) -> Option<Finding> {
    let bridge = node.bridge(network).filter(|_| network.has_gateway())?;
    let uplink = Family::BOTH
        .into_iter()
        .flat_map(|family| node.uplink(family))
        .min_by_key(|link| link.mtu)
        .filter(|link| link.mtu < bridge.mtu && link.index != bridge.index)?;
    let cause = format!(
        "bridge {} has MTU {}, but the uplink {} has MTU {}: larger packets of pods can be dropped there",
        bridge.name, bridge.mtu, uplink.name, uplink.mtu
    );
    Some(
        Finding::new(Id::MtuUplink, cause)
            .evidence(format!("the default route is over {}", uplink.name))
            .remedy(format!(
                "set \"mtu\" to {} or to \"auto\" in {}, and restart the pods",
                uplink.mtu,
                network.configured.file.display()
            )),
    )
}

/// Ports with a derived name that belong to no known pod: links without a lease or a cached result.
fn unknown_ports(node: &Node, network: &Network) -> Option<Finding> {
    let ports = node.unknown_ports(network);
    let veths = ports.filter(|it| it.kind == Kind::Veth && IfName::is_derived_veth(&it.name));
    let names: Vec<String> = veths.map(Link::display_name).collect();
    if names.is_empty() || network.configured.host_local.is_none() {
        return None;
    }
    let cause = format!(
        "bridge {} has links of pods without a lease in network {network}: their addresses may be reassigned",
        network.configured.bridge.bridge
    );
    Some(
        Finding::new(Id::LinkWithoutLease, cause)
            .evidence(join(&names))
            .remedy("restart these pods; if they are of another network on this bridge, add its configuration"),
    )
}
