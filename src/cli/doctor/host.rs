//! Findings about the host: forwarding, and an IPv6 default route from router advertisements.

use crate::cli::doctor::finding::{Finding, Fix, Id};
use crate::cli::node::{Network, Node};
use crate::kernel::netlink::{Kind, Link};
use crate::kernel::sysctl::Parameter;
use crate::net::Family;

/// The protocol number of routes from router advertisements (RTPROT_RA, linux/rtnetlink.h).
const RTPROT_RA: u8 = 9;

pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for network in &node.networks {
        // With running pods it is an error, which `links` reports.
        if !network.has_gateway() || !network.pods.is_empty() {
            continue;
        }
        let mut families = network.families();
        families.retain(|family| node.not_forwarded.contains(family));
        findings.extend(
            families
                .into_iter()
                .map(|family| forwarding_off(network, family)),
        );
    }
    findings.extend(advertised_route(node));
}

fn forwarding_off(network: &Network, family: Family) -> Finding {
    let cause = format!("the host does not forward {family}, which pods of network {network} need");
    Finding::new(Id::ForwardingOff, cause)
        .warning()
        .evidence(match family {
            Family::V4 => "net.ipv4.ip_forward is 0",
            Family::V6 => "net.ipv6.conf.all.forwarding is 0",
        })
        .remedy("none: the next ADD enables it")
        .fix(Fix::EnableForwarding(family))
}

/// If the host forwards IPv6, the kernel ignores router advertisements on interfaces with `accept_ra` 1, and the default
/// route from earlier ones expires (Documentation/networking/ip-sysctl.rst, "accept_ra"). With 0 NetworkManager or
/// systemd-networkd handles them and keeps the route; with 2 the kernel would add a second one.
fn advertised_route(node: &Node) -> Option<Finding> {
    let mut uplinks = node.uplinks.iter();
    uplinks.find(|it| it.protocol == RTPROT_RA && it.dst.family() == Family::V6)?;
    let link = node.uplink(Family::V6).next()?;
    if is_of_pods(node, link) {
        return route_from_pod(node, link);
    }
    let name = link.name.parse().ok()?;
    let accept_ra = Parameter::AcceptRa.read(&name).ok()?;
    let is_needed =
        |network: &Network| network.has_gateway() && network.families().contains(&Family::V6);
    let forwarding = match node.not_forwarded.contains(&Family::V6) {
        false => "on",
        true if node.networks.iter().any(is_needed) => {
            "off, and the next ADD of an IPv6 pod enables it"
        }
        true => return None,
    };
    if accept_ra != "1" {
        return None;
    }
    let cause = format!(
        "the IPv6 default route over {name} is from router advertisements, which a host that forwards IPv6 ignores: it will expire"
    );
    Some(
        Finding::new(Id::AdvertisedRoute, cause)
            .evidence(format!("net.ipv6.conf.{name}.accept_ra is {accept_ra}"))
            .evidence(format!("IPv6 forwarding is {forwarding}"))
            .remedy(format!(
                "sysctl -w net.ipv6.conf.{name}.accept_ra=2, and in /etc/sysctl.d"
            ))
            .fix(Fix::AcceptRouterAdvertisements(name)),
    )
}

/// Whether a link connects the host with pods.
fn is_of_pods(node: &Node, link: &Link) -> bool {
    node.networks.iter().any(|network| {
        let links = [node.bridge(network), node.gateway_link(network)];
        links.iter().flatten().any(|it| it.index == link.index)
    })
}

/// The default route is over a bridge that has ports of pods and no uplink: a pod sent the router advertisement
/// (CVE-2020-10749).
fn route_from_pod(node: &Node, link: &Link) -> Option<Finding> {
    if node.ports(link).any(|port| port.kind != Kind::Veth) {
        return None;
    }
    let name = &link.name;
    let cause = format!(
        "the IPv6 default route of the host is over {name}, from a router advertisement that a pod can have sent"
    );
    Some(
        Finding::new(Id::RouteFromPod, cause)
            .evidence(format!("{name} has only ports of pods"))
            .remedy(format!("ip -6 route del default dev {name} proto ra")),
    )
}
