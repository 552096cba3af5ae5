//! Decides whether an interface in a container belongs to an attachment.

use std::net::IpAddr;

use crate::cni::result::AddResult;
use crate::kernel::netlink::Link;
use crate::net::{IfName, Mac};

/// A veth that has the attachment's interface name in the container.
#[derive(Debug, Default)]
pub struct ContainerEnd {
    pub mac: Option<Mac>,
    /// Without link-local addresses.
    pub addresses: Vec<IpAddr>,
    /// Its peer, if it is on the host.
    pub peer: Option<Link>,
}

/// What is known about the attachment.
#[derive(Debug, Default)]
pub struct KnownAttachment<'a> {
    pub interface: &'a str,
    /// The derived name of the peer.
    pub host: &'a str,
    /// prevResult, if the runtime passed one.
    pub prev: Option<&'a AddResult>,
    /// Its leased addresses; `None` if IPAM is not host-local.
    pub leased: Option<&'a [IpAddr]>,
    /// What the host end must be connected to.
    pub side: Side,
}

/// What the host ends of a network's attachments are connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// The network's bridge does not exist.
    #[default]
    Unknown,
    /// The bridge with this index.
    PortOf(u32),
    /// No bridge.
    Routed,
}

impl Side {
    /// Whether a link is a host end of the network, as far as its connection shows.
    pub fn has(self, host_end: &Link) -> bool {
        match self {
            Side::Unknown => false,
            Side::PortOf(bridge) => host_end.master == Some(bridge),
            Side::Routed => host_end.master.is_none(),
        }
    }
}

/// Whether the interface belongs to the attachment. Another attachment may have the same interface name: on another
/// network, which made this ADD fail, or of another container whose namespace now has this path.
///
/// A derived peer name identifies the attachment. Peers of the Go plugin have random names; the first of these criteria
/// that applies decides:
///
/// 1. prevResult lists the peer, or the interface with its MAC address.
/// 2. The interface has an address of the lease or of prevResult. If it has only other addresses, or has addresses while
///    host-local has no lease, it belongs to another attachment.
/// 3. Without addresses, or with those of another IPAM plugin: the peer is a port of the network's bridge, or of none if
///    the network has none.
pub fn is_owner(known: &KnownAttachment, end: &ContainerEnd) -> bool {
    let peer = end.peer.as_ref();
    if let Some(peer) = peer.filter(|peer| IfName::is_derived_veth(&peer.name)) {
        return peer.name == known.host;
    }
    let by_side = || peer.is_some_and(|peer| known.side.has(peer));
    is_listed(known, end)
        .or_else(|| has_own_address(known, end))
        .unwrap_or_else(by_side)
}

/// Whether prevResult lists the interface or its peer; `None` if it lists no interface of either kind.
fn is_listed(known: &KnownAttachment, end: &ContainerEnd) -> Option<bool> {
    let interfaces = &known.prev?.interfaces;
    let (on_host, inside): (Vec<_>, Vec<_>) =
        interfaces.iter().partition(|it| it.sandbox.is_empty());
    let mut inside = inside
        .into_iter()
        .filter(|it| it.name == known.interface && !it.mac.is_empty())
        .peekable();
    if on_host.is_empty() && inside.peek().is_none() {
        return None;
    }
    // On the host only names are compared: the MAC address of a bridge may be that of a port.
    let is_peer = |name: &str| end.peer.as_ref().is_some_and(|peer| peer.name == name);
    let mac = end.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Some(
        on_host.iter().any(|it| is_peer(&it.name))
            || inside.any(|it| it.mac.eq_ignore_ascii_case(&mac)),
    )
}

/// Whether the interface has an address of the attachment; `None` if the addresses do not decide.
fn has_own_address(known: &KnownAttachment, end: &ContainerEnd) -> Option<bool> {
    let listed = known.prev.into_iter().flat_map(|prev| &prev.ips);
    let mut own: Vec<IpAddr> = listed.map(|ip| ip.address.address()).collect();
    own.extend(known.leased.unwrap_or_default());
    let has_none = end.addresses.is_empty() || (own.is_empty() && known.leased.is_none());
    (!has_none).then(|| end.addresses.iter().any(|address| own.contains(address)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::result::{Interface, IpConfig};
    use crate::kernel::netlink::{Kind, VlanFiltering};

    fn peer(name: &str, master: u32) -> Option<Link> {
        Some(Link {
            index: 7,
            name: name.to_owned(),
            alias: String::new(),
            kind: Kind::Veth,
            mac: None,
            mtu: 1500,
            is_up: true,
            is_running: true,
            is_promiscuous: false,
            receives_all_multicast: false,
            tx_queue_length: 0,
            master: Some(master),
            peer: Some(2),
            filtering: VlanFiltering::Unsupported,
            port: None,
            traffic: None,
        })
    }

    fn end(address: &str, peer: Option<Link>) -> ContainerEnd {
        ContainerEnd {
            mac: "02:00:00:00:00:07".parse().ok(),
            addresses: address.parse().into_iter().collect(),
            peer,
        }
    }

    fn prev(host: &str, mac: &str) -> AddResult {
        let interface = |name: &str, mac: &str, sandbox: &str| Interface {
            name: name.to_owned(),
            mac: mac.to_owned(),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        };
        AddResult {
            interfaces: vec![interface(host, "", ""), interface("eth0", mac, "/n")],
            ..AddResult::default()
        }
    }

    const GO: &str = "veth0a1b2c3d";

    #[test]
    fn a_peer_with_another_derived_name_belongs_to_another_attachment() {
        let (prev, leased) = (prev("veth0a1b2c3d4e5", "02:00:00:00:00:07"), ["10.0.0.2"]);
        let leased = leased.map(|it| it.parse().unwrap());
        let known = KnownAttachment {
            interface: "eth0",
            host: "vethfedcba98765",
            prev: Some(&prev),
            leased: Some(&leased),
            side: Side::PortOf(3),
        };
        assert!(!is_owner(
            &known,
            &end("10.0.0.2", peer("veth0a1b2c3d4e5", 3))
        ));
        assert!(is_owner(&known, &end("10.0.0.2", peer("renamed", 3))));
    }

    #[test]
    fn prev_result_decides_before_addresses_and_bridge() {
        let leased = ["10.0.0.2".parse().unwrap()];
        for (host, mac, expected) in [
            (GO, "02:00:00:00:00:99", true),
            ("veth99999999", "02:00:00:00:00:07", true),
            ("veth99999999", "02:00:00:00:00:99", false),
            ("veth99999999", "", false),
        ] {
            let prev = prev(host, mac);
            let known = KnownAttachment {
                interface: "eth0",
                host: "vethfedcba98765",
                prev: Some(&prev),
                leased: Some(&leased),
                side: Side::PortOf(3),
            };
            let end = end("10.0.0.2", peer(GO, 3));
            assert_eq!(is_owner(&known, &end), expected, "{host} {mac}");
        }
    }

    #[test]
    fn without_interfaces_in_prev_result_addresses_decide_and_then_the_bridge() {
        let old = AddResult {
            ips: vec![IpConfig {
                interface: None,
                address: "10.0.0.2/24".parse().unwrap(),
                gateway: None,
            }],
            ..AddResult::default()
        };
        let held = ["10.0.0.2".parse().unwrap()];
        for (prev, leased, address, master, expected) in [
            (None, Some(&held[..]), "10.0.0.2", 9, true),
            (None, Some(&held[..]), "10.0.0.3", 3, false),
            (None, Some(&[][..]), "10.0.0.2", 3, false),
            (Some(&old), Some(&[][..]), "10.0.0.2", 9, true),
            (Some(&old), None, "10.0.0.3", 3, false),
            // An interrupted ADD.
            (None, Some(&held[..]), "", 3, true),
            (None, Some(&[][..]), "", 9, false),
            // A layer-2 network, or another IPAM plugin.
            (None, None, "10.0.0.2", 3, true),
            (None, None, "", 9, false),
        ] {
            let known = KnownAttachment {
                interface: "eth0",
                host: "vethfedcba98765",
                prev,
                leased,
                side: Side::PortOf(3),
            };
            let end = end(address, peer(GO, master));
            assert_eq!(is_owner(&known, &end), expected, "{known:?} {end:?}");
        }
    }

    #[test]
    fn without_a_peer_on_the_host_addresses_decide() {
        let leased = ["10.0.0.2".parse().unwrap()];
        let known = KnownAttachment {
            interface: "eth0",
            leased: Some(&leased),
            ..KnownAttachment::default()
        };
        assert!(is_owner(&known, &end("10.0.0.2", None)));
        assert!(!is_owner(&known, &end("", None)));
    }
}
