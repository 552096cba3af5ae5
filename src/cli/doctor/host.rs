//! The host itself: the default route that forwarding endangers.

use crate::cli::doctor::finding::{Finding, Fix};
use crate::cli::node::Node;
use crate::kernel::netlink::{Kind, Link};
use crate::kernel::sysctl::{self, Parameter};
use crate::net::Family;
use crate::plugins::bridge::config::Gateway;

/// The protocol number of routes from router advertisements (RTPROT_RA, linux/rtnetlink.h).
const FROM_ADVERTISEMENT: u8 = 9;

/// Looks at the host.
pub fn examine(node: &Node, findings: &mut Vec<Finding>) {
    for network in &node.networks {
        // Pods that live make it an error of their own; before the first one it is told here.
        if network.configured.bridge.gateway == Gateway::None || !network.pods.is_empty() {
            continue;
        }
        for family in network.families() {
            if node.not_forwarded().contains(&family) {
                let cause = format!(
                    "the host does not forward {family}, which pods of network {} need",
                    network.name()
                );
                findings.push(
                    Finding::warning("forwarding-off", cause)
                        .shown_by(match family {
                            Family::V4 => "net.ipv4.ip_forward is 0",
                            Family::V6 => "net.ipv6.conf.all.forwarding is 0",
                        })
                        .remedy("none is needed: the next ADD switches it on")
                        .fixed_by(Fix::Forward(family)),
                );
            }
        }
    }
    findings.extend(advertised_route(node));
}

/// The kernel of a host that forwards IPv6 ignores router advertisements where accept_ra is 1, and loses the default route
/// that they gave it (Documentation/networking/ip-sysctl.rst, "accept_ra"). Where it is 0, NetworkManager or
/// systemd-networkd handles them and keeps the route; with 2 the kernel would add one of its own.
fn advertised_route(node: &Node) -> Option<Finding> {
    let mut advertised = node
        .uplinks
        .iter()
        .filter(|it| it.protocol == FROM_ADVERTISEMENT);
    advertised.find(|uplink| uplink.dst.family() == Family::V6)?;
    let link = node.uplink(Family::V6).next()?;
    if is_of_pods(node, link) {
        return from_pods(node, link);
    }
    let name = link.name.parse().ok()?;
    let accepted = Parameter::AcceptRa.read(&name).ok()?;
    let wanted = node.networks.iter().any(|network| {
        network.configured.bridge.gateway != Gateway::None
            && network.families().contains(&Family::V6)
    });
    let forwards = sysctl::forwards(Family::V6).unwrap_or(false);
    if accepted != "1" || !(forwards || wanted) {
        return None;
    }
    let cause = format!(
        "the IPv6 default route over {name} is from router advertisements, which a host that forwards IPv6 ignores: it will vanish"
    );
    Some(
        Finding::error("advertised-route", cause)
            .shown_by(format!("net.ipv6.conf.{name}.accept_ra is {accepted}"))
            .shown_by(format!(
                "IPv6 forwarding is {}",
                if forwards {
                    "on"
                } else {
                    "off, and the next ADD of an IPv6 pod switches it on"
                }
            ))
            .remedy(format!(
                "sysctl -w net.ipv6.conf.{name}.accept_ra=2, and in /etc/sysctl.d"
            ))
            .fixed_by(Fix::AcceptAdvertisements(name)),
    )
}

/// Whether pods reach the host by a link.
fn is_of_pods(node: &Node, link: &Link) -> bool {
    let mut networks = node.networks.iter();
    networks.any(|network| {
        let links = [node.bridge(network), node.gateway_link(network)];
        links.iter().flatten().any(|it| it.index == link.index)
    })
}

/// The default route is over a bridge that has pods and no uplink: one of them sent the router advertisement
/// (CVE-2020-10749).
fn from_pods(node: &Node, link: &Link) -> Option<Finding> {
    let mut ports = node.links.iter().filter(|it| it.master == Some(link.index));
    if ports.any(|port| port.kind != Kind::Veth) {
        return None;
    }
    let name = &link.name;
    let cause = format!(
        "the IPv6 default route of the host is over {name}, from a router advertisement that a pod can have sent"
    );
    Some(
        Finding::error("route-from-pod", cause)
            .shown_by(format!("{name} has no port but those of pods"))
            .remedy(format!("ip -6 route del default dev {name} proto ra")),
    )
}
