//! The VLANs of the bridge's ports: what the kernel must be able to do, joining and leaving, and what CHECK compares.

use crate::error::{Code, Error};
use crate::kernel::netlink::{Link, Netlink, VlanFiltering, not_found_as_none};
use crate::net::{IfName, PortVlans, VlanId};
use crate::link::failed;
use crate::link::made;
use crate::plugins::bridge::vlan::Vlans;

/// Refuses a bridge that does not keep VLANs apart.
///
/// It is not switched on here: the bridge is there already, and what its other ports reach would change under them.
/// The reference goes on, and the container shares one segment with all others.
///
/// # Errors
/// Code 2 when the kernel cannot, 999 when the bridge does not.
pub(super) fn require_filtering(bridge: &Link, vlans: &Vlans) -> Result<(), Error> {
    let name = &bridge.name;
    match bridge.filtering {
        VlanFiltering::On { .. } => Ok(()),
        VlanFiltering::Unsupported => Err(no_filtering(vlans)),
        VlanFiltering::Off => {
            let msg = format!(
                "{}, but bridge {name} is there already and does not keep VLANs apart",
                vlans.asked()
            );
            Err(Error::failed(msg).details(format!(
                "switch it on: ip link set {name} type bridge vlan_filtering 1"
            )))
        }
    }
}

/// The refusal on a kernel without 802.1Q.
pub(super) fn no_filtering(vlans: &Vlans) -> Error {
    let msg = format!(
        "configuration: {}, but this kernel has no 802.1Q VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING)",
        vlans.asked()
    );
    Error::new(Code::UNSUPPORTED_FIELD, msg)
}

/// Puts the container's port into its VLANs.
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

/// A port of a bridge.
pub(super) struct Port<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its index.
    pub index: u32,
    /// Its bridge.
    pub bridge: &'a Link,
}

/// Puts a port into VLANs and takes it out of the one that the bridge gave it. Doing it again changes nothing.
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
