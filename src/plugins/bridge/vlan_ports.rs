//! The VLANs of bridge ports: requirements, configuration and comparison.

use crate::error::{Code, Error};
use crate::kernel::netlink::{Link, Netlink, VlanFiltering, not_found_as_none};
use crate::link::failed;
use crate::link::made;
use crate::net::{IfName, PortVlans, VlanId};
use crate::plugins::bridge::vlan::Vlans;

/// Rejects a bridge without VLAN filtering. It is not enabled on an existing bridge, because that would change what its
/// other ports reach. The Go plugin continues, and the container shares one segment with all others.
///
/// # Errors
/// Code 2 if the kernel does not support it, 999 if the bridge has it disabled.
pub(super) fn require_filtering(bridge: &Link, vlans: &Vlans) -> Result<(), Error> {
    let name = &bridge.name;
    match bridge.filtering {
        VlanFiltering::On { .. } => Ok(()),
        VlanFiltering::Unsupported => Err(no_filtering(vlans)),
        VlanFiltering::Off => {
            let msg = format!(
                "{}, but bridge {name} exists already and has VLAN filtering disabled",
                vlans.asked()
            );
            Err(Error::failed(msg).details(format!(
                "enable it: ip link set {name} type bridge vlan_filtering 1"
            )))
        }
    }
}

/// The error on a kernel without VLAN filtering.
pub(super) fn no_filtering(vlans: &Vlans) -> Error {
    let msg = format!(
        "configuration: {}, but this kernel has no 802.1Q VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING)",
        vlans.asked()
    );
    Error::new(Code::UNSUPPORTED_FIELD, msg)
}

/// Adds the container's port to its VLANs.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn join_container_port(
    host: &Netlink,
    name: &IfName,
    bridge: &Link,
    vlans: &Vlans,
) -> Result<(), Error> {
    let Some(wanted) = vlans.port() else {
        return Ok(());
    };
    let index = made(host, name)?.index;
    let port = Port {
        name,
        index,
        bridge,
    };
    join(host, &port, &wanted, vlans)
}

pub(super) struct Port<'a> {
    pub name: &'a IfName,
    pub index: u32,
    pub bridge: &'a Link,
}

/// Adds a port to VLANs and removes it from the one that the bridge assigned. Repeating it changes nothing.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn join(
    host: &Netlink,
    port: &Port,
    wanted: &PortVlans,
    vlans: &Vlans,
) -> Result<(), Error> {
    if let Some(surplus) = vlans.surplus(wanted, default_pvid(port.bridge)) {
        not_found_as_none(host.leave_vlan(port.index, surplus)).map_err(|cause| {
            failed(
                &format!("take out of VLAN {surplus} port"),
                port.name,
                cause,
            )
        })?;
    }
    let joined = host.join_vlans(port.index, wanted);
    joined.map_err(|cause| failed("put into its VLANs port", port.name, cause))
}

/// Compares the VLANs of the container's port.
///
/// # Errors
/// The first difference.
pub(super) fn check(
    host: &Netlink,
    port: &Link,
    bridge: &Link,
    vlans: &Vlans,
) -> Result<(), Error> {
    let present = host.port_vlans(port.index).map_err(|cause| {
        Error::failed(format!(
            "cannot list the VLANs of port {}: {cause}",
            port.name
        ))
    })?;
    match vlans.difference(&present, default_pvid(bridge)) {
        None => Ok(()),
        Some(difference) => Err(Error::failed(format!(
            "check: port {}: {difference}",
            port.name
        ))),
    }
}

fn default_pvid(bridge: &Link) -> Option<VlanId> {
    match bridge.filtering {
        VlanFiltering::On { default_pvid } => default_pvid,
        VlanFiltering::Off | VlanFiltering::Unsupported => None,
    }
}
