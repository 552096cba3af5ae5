//! The gateway on the host: the bridge or, for containers in a VLAN, an interface of the host in that VLAN.

use crate::error::Error;
use crate::kernel::netlink::{
    Detection, Kind, Link, Netlink, NetlinkError, NewVeth, PortFlags, SubnetRoute,
    not_found_as_none,
};
use crate::link::{Context, PORT_LIMIT, created_link, look_up, new_mac, peer_on_host};
use crate::net::{Cidr, Family, IfName, ParseError};
use crate::plugins::attachment::forward;
use crate::plugins::bridge::config::{AddressConflict, BridgeConfig};
use crate::plugins::bridge::ensure::ignore_router_advertisements;
use crate::plugins::bridge::plan::gateway_port;
use crate::plugins::bridge::vlan::Vlans;
use crate::plugins::bridge::vlan_ports::{self, Port};

const MAX_NAMED_PORTS: usize = 5;

/// Adds the gateway addresses and enables forwarding. Returns the interface with the addresses if it is not the bridge.
///
/// # Errors
/// If the interface has a conflicting address, or the kernel refuses.
pub(super) fn ensure(
    host: &Netlink,
    bridge: &Link,
    gateways: &[Cidr],
    config: &BridgeConfig,
) -> Result<Option<Link>, Error> {
    if gateways.is_empty() {
        return Ok(None);
    }
    let vlans = config.vlans.as_ref();
    let interface = match vlans.and_then(|vlans| Some((vlans, vlans.gateway.as_ref()?))) {
        Some((vlans, name)) => Some(ensure_interface(host, bridge, name, vlans)?),
        None => None,
    };
    let link = interface.as_ref().unwrap_or(bridge);
    ensure_addresses(host, link, gateways, config)?;
    for family in Family::BOTH {
        if gateways.iter().any(|gateway| gateway.family() == family) {
            forward(family)?;
        }
    }
    Ok(interface)
}

fn ensure_addresses(
    host: &Netlink,
    link: &Link,
    gateways: &[Cidr],
    config: &BridgeConfig,
) -> Result<(), Error> {
    let fail = |operation: &str, cause: NetlinkError| {
        Error::failed(format!(
            "cannot {operation} {} {}: {cause}",
            link.kind, link.name
        ))
    };
    let observed = host.addresses(link.index);
    let observed = observed.map_err(|cause| fail("list addresses of", cause))?;
    let observed: Vec<Cidr> = observed.into_iter().map(|address| address.cidr).collect();
    let missing = |gateway: &&Cidr| !observed.contains(gateway);
    for gateway in gateways.iter().filter(missing) {
        for other in conflicts(&observed, *gateway, gateways) {
            if config.conflict == AddressConflict::Reject {
                return Err(address_conflict(host, link, other, *gateway));
            }
            not_found_as_none(host.delete_address(link.index, other))
                .map_err(|cause| fail(&format!("remove {other} from"), cause))?;
        }
        // Without duplicate address detection: the gateway must be reachable immediately, and its address is unique.
        match host.add_address(
            link.index,
            *gateway,
            (Detection::Skipped, SubnetRoute::Added),
        ) {
            Ok(()) | Err(NetlinkError::Exists) => {}
            Err(cause) => return Err(fail(&format!("add {gateway} to"), cause)),
        }
    }
    Ok(())
}

/// The addresses that conflict with a gateway address. IPv4: all except the gateways of this network. IPv6: those with
/// an overlapping subnet, except for link-local addresses: `fe80::1` is a common gateway, and the kernel adds another
/// link-local address.
fn conflicts(observed: &[Cidr], gateway: Cidr, gateways: &[Cidr]) -> Vec<Cidr> {
    let others = observed
        .iter()
        .filter(|other| other.family() == gateway.family() && !gateways.contains(other));
    others
        .copied()
        .filter(|other| {
            gateway.family() == Family::V4
                || (other.overlaps(gateway) && !other.is_ipv6_link_local())
        })
        .collect()
}

fn address_conflict(host: &Netlink, link: &Link, observed: Cidr, wanted: Cidr) -> Error {
    let (kind, name) = (&link.kind, &link.name);
    let ports = host.ports(link.index).unwrap_or_default();
    let named: Vec<String> = ports
        .iter()
        .take(MAX_NAMED_PORTS)
        .map(Link::display_name)
        .collect();
    let users = match ports.len() {
        0 => format!("{name} has no ports"),
        count if count > MAX_NAMED_PORTS => {
            format!("{count} ports use it, including {}", named.join(", "))
        }
        _ => format!("its ports are {}", named.join(", ")),
    };
    Error::failed(format!("{kind} {name} already has an IP address different from {wanted}: it has {observed}"))
        .details(users)
        .details(format!(
            "remove it if no container uses it (ip address del {observed} dev {name}); an ADD with forceAddress set to true replaces it"
        ))
}

/// The host's interface in a VLAN of the bridge: a veth whose peer is a port of the bridge, as in the Go plugin.
/// Created if it does not exist, completed if an ADD was interrupted.
///
/// Concurrent ADDs may do the same: each step is idempotent, and the interface comes up last.
fn ensure_interface(
    host: &Netlink,
    bridge: &Link,
    name: &IfName,
    vlans: &Vlans,
) -> Result<Link, Error> {
    let link = match look_up(host, name)? {
        Some(link) => link,
        None => {
            create_pair(host, bridge, name)?;
            created_link(host, name)?
        }
    };
    ignore_router_advertisements(&link);
    // An interface of another kind was created by an administrator, for example a VLAN device on the bridge.
    if link.kind == Kind::Veth {
        ensure_port(host, bridge, &link, vlans)?;
    }
    if !link.is_up {
        host.set_up(link.index)
            .and_then(|()| host.wait_running(name, PORT_LIMIT))
            .context("bring up", name)?;
    }
    Ok(link)
}

fn create_pair(host: &Netlink, bridge: &Link, name: &IfName) -> Result<(), Error> {
    let port = gateway_port(name);
    let veth = NewVeth {
        port: &port,
        bridge: Some(bridge.index),
        end: name,
        mac: new_mac(name)?,
        mtu: Some(bridge.mtu),
    };
    match host.create_veth(&veth, None) {
        // A concurrent ADD created it.
        Err(NetlinkError::Exists) => Ok(()),
        created => created.context("create the gateway's interface", name),
    }
}

/// Makes the peer of the gateway's interface a port of the bridge in its VLAN.
fn ensure_port(host: &Netlink, bridge: &Link, link: &Link, vlans: &Vlans) -> Result<(), Error> {
    let Some(wanted) = vlans.gateway_port() else {
        return Ok(());
    };
    let fail = |operation: &str, cause| {
        let port = format!("the veth peer of {}, a port of {}", link.name, bridge.name);
        Error::failed(format!("cannot {operation} {port}: {cause}"))
    };
    let peer = peer_on_host(host, link).map_err(|cause| fail("look up", cause))?;
    let Some(peer) = peer else {
        let msg = format!(
            "cannot use {} as the gateway's interface: its veth peer is not on the host",
            link.name
        );
        let remedy = format!(
            "delete it (ip link del {}); ADD creates it again",
            link.name
        );
        return Err(Error::failed(msg).details(remedy));
    };
    ignore_router_advertisements(&peer);
    let is_port = peer.master == Some(bridge.index);
    if is_port && peer.is_up && link.is_up {
        return Ok(());
    }
    if !is_port {
        host.set_bridge(peer.index, bridge.index)
            .map_err(|cause| fail("attach", cause))?;
    }
    let name = peer
        .name
        .parse()
        .map_err(|cause: ParseError| Error::failed(format!("cannot use a port: {cause}")))?;
    let port = Port {
        name: &name,
        index: peer.index,
        bridge,
    };
    vlan_ports::join(host, &port, &wanted, vlans)?;
    host.start_link(&name, Some(PortFlags::default()), &link.name)
        .map_err(|cause| fail("start", cause))
}
