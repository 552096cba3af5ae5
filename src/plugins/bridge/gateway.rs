//! The gateway on the host: the bridge or, for containers in a VLAN, an interface of the host in that VLAN.

use crate::error::Error;
use crate::kernel::netlink::{
    Detection, Kind, Link, Netlink, NetlinkError, NewVeth, PortFlags, not_found_as_none,
};
use crate::kernel::sysctl;
use crate::link::{PORT_LIMIT, failed, made, new_mac};
use crate::net::{Cidr, Family, IfName, ParseError};
use crate::plugins::bridge::config::{AddressConflict, BridgeConfig};
use crate::plugins::bridge::ensure::refuse_advertisements;
use crate::plugins::bridge::plan::gateway_port;
use crate::plugins::bridge::vlan::Vlans;
use crate::plugins::bridge::vlan_ports::{self, Port};

/// The number of ports that an address conflict names.
const NAMED_PORTS: usize = 5;

/// Adds the gateway addresses and enables forwarding. Returns the interface with the addresses if it is not the bridge.
///
/// # Errors
/// When the interface has another address in their place, or the kernel refuses.
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

/// Enables forwarding on the host.
///
/// # Errors
/// When it is disabled and cannot be enabled.
pub fn forward(family: Family) -> Result<(), Error> {
    sysctl::enable_forwarding(family).map_err(|cause| {
        Error::failed(format!("cannot enable {family} forwarding: {cause}"))
            .details("isGateway needs it; set it to 1 where /proc/sys is read-only here")
    })
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
    let present = host.addresses(link.index);
    let present = present.map_err(|cause| fail("list addresses of", cause))?;
    let present: Vec<Cidr> = present.into_iter().map(|address| address.cidr).collect();
    let missing = |gateway: &&Cidr| !present.contains(gateway);
    for gateway in gateways.iter().filter(missing) {
        for other in conflicts(&present, *gateway, gateways) {
            if config.conflict == AddressConflict::Refuse {
                return Err(address_conflict(host, link, other, *gateway));
            }
            not_found_as_none(host.delete_address(link.index, other))
                .map_err(|cause| fail(&format!("remove {other} from"), cause))?;
        }
        // Without duplicate address detection: the gateway must answer at once, and its address is unique.
        match host.add_address(link.index, *gateway, Detection::Skipped) {
            Ok(()) | Err(NetlinkError::Exists) => {}
            Err(cause) => return Err(fail(&format!("add {gateway} to"), cause)),
        }
    }
    Ok(())
}

/// The addresses that conflict with a gateway address: IPv4, all that are not gateways of this network; IPv6, those with an
/// overlapping subnet. Link-local addresses do not conflict: `fe80::1` is a common gateway, and the kernel adds one of its
/// own.
fn conflicts(present: &[Cidr], gateway: Cidr, gateways: &[Cidr]) -> Vec<Cidr> {
    let others = present
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

fn address_conflict(host: &Netlink, link: &Link, present: Cidr, wanted: Cidr) -> Error {
    let (kind, name) = (&link.kind, &link.name);
    let ports = host.ports(link.index).unwrap_or_default();
    let named: Vec<String> = ports
        .iter()
        .take(NAMED_PORTS)
        .map(Link::display_name)
        .collect();
    let users = match ports.len() {
        0 => format!("{name} has no ports"),
        count if count > NAMED_PORTS => {
            format!("{count} ports use it, among them {}", named.join(", "))
        }
        _ => format!("its ports are {}", named.join(", ")),
    };
    Error::failed(format!("{kind} {name} already has an IP address different from {wanted}: it has {present}"))
        .details(users)
        .details(format!(
            "remove it if no container uses it (ip address del {present} dev {name}); an ADD with forceAddress set to true replaces it"
        ))
}

/// The host's interface in a VLAN of the bridge: one end of a veth pair whose peer is a port of the bridge, as in the Go
/// plugin. Created if it does not exist, completed if an ADD was interrupted.
///
/// Concurrent ADDs may do the same: each step is idempotent, and the interface comes up last.
fn ensure_interface(
    host: &Netlink,
    bridge: &Link,
    name: &IfName,
    vlans: &Vlans,
) -> Result<Link, Error> {
    let found = host.link(name);
    let link = match found.map_err(|cause| failed("look up", name, cause))? {
        Some(link) => link,
        None => {
            create_pair(host, bridge, name)?;
            made(host, name)?
        }
    };
    refuse_advertisements(&link);
    // Another kind was created by an administrator, for example a VLAN device on top of the bridge.
    if link.kind == Kind::Veth {
        ensure_port(host, bridge, &link, vlans)?;
    }
    if !link.is_up {
        host.set_up(link.index)
            .and_then(|()| host.wait_running(name, PORT_LIMIT))
            .map_err(|cause| failed("bring up", name, cause))?;
    }
    Ok(link)
}

fn create_pair(host: &Netlink, bridge: &Link, name: &IfName) -> Result<(), Error> {
    let port = gateway_port(name);
    let veth = NewVeth {
        port: &port,
        bridge: bridge.index,
        end: name,
        mac: new_mac(name)?,
        mtu: Some(bridge.mtu),
    };
    match host.create_veth(&veth, None) {
        // Another ADD was faster.
        Err(NetlinkError::Exists) => Ok(()),
        created => created.map_err(|cause| failed("create the gateway's interface", name, cause)),
    }
}

/// Makes the peer of the gateway's interface a port in its VLAN, unless it is one.
fn ensure_port(host: &Netlink, bridge: &Link, link: &Link, vlans: &Vlans) -> Result<(), Error> {
    let (Some(wanted), Some(index)) = (vlans.gateway_port(), link.peer) else {
        return Ok(());
    };
    let fail = |operation: &str, cause| {
        let port = format!("the other end of {}, a port of {}", link.name, bridge.name);
        Error::failed(format!("cannot {operation} {port}: {cause}"))
    };
    let other = host
        .link_at(index)
        .map_err(|cause| fail("look up", cause))?;
    let other = other.filter(|other| other.kind == Kind::Veth && other.peer == Some(link.index));
    let Some(other) = other else {
        let msg = format!(
            "cannot use {} as the gateway's interface: its other end is not on the host",
            link.name
        );
        let remedy = format!(
            "delete it (ip link del {}); ADD creates it again",
            link.name
        );
        return Err(Error::failed(msg).details(remedy));
    };
    refuse_advertisements(&other);
    let is_port = other.master == Some(bridge.index);
    if is_port && other.is_up && link.is_up {
        return Ok(());
    }
    if !is_port {
        host.set_bridge(index, bridge.index)
            .map_err(|cause| fail("attach", cause))?;
    }
    let name = other
        .name
        .parse()
        .map_err(|wrong: ParseError| Error::failed(format!("cannot use a port: {wrong}")))?;
    let port = Port {
        name: &name,
        index,
        bridge,
    };
    vlan_ports::join(host, &port, &wanted, vlans)?;
    host.start_port(&name, PortFlags::default(), &link.name)
        .map_err(|cause| fail("start", cause))
}
