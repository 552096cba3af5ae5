//! The VLANs of bridge ports: requirements, configuration and comparison.

use crate::error::{Code, Error};
use crate::kernel::netlink::{Link, Netlink, VlanFiltering, not_found_as_none};
use crate::link::{Context, created_link};
use crate::net::{IfName, PortVlans, VlanId};
use crate::plugins::bridge::vlan::Vlans;

/// Rejects a bridge without VLAN filtering. Enabling it on an existing bridge would change which hosts its other ports
/// reach. The Go plugin continues without isolation.
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
                vlans.requirement()
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
        vlans.requirement()
    );
    Error::new(Code::UNSUPPORTED_FIELD, msg)
}

/// Adds the container's port to its VLANs.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn join_container_port(
    host: &Netlink,
    name: &IfName,
    bridge: &Link,
    vlans: &Vlans,
) -> Result<(), Error> {
    let Some(wanted) = vlans.port() else {
        return Ok(());
    };
    let index = created_link(host, name)?.index;
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

/// Adds a port to VLANs and removes it from the bridge's default VLAN. Idempotent.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn join(
    host: &Netlink,
    port: &Port,
    wanted: &PortVlans,
    vlans: &Vlans,
) -> Result<(), Error> {
    if let Some(vlan) = vlans.default_to_remove(wanted, default_pvid(port.bridge)) {
        not_found_as_none(host.leave_vlan(port.index, vlan))
            .context("remove", format!("port {} from VLAN {vlan}", port.name))?;
    }
    host.join_vlans(port.index, wanted)
        .context("add", format!("port {} to its VLANs", port.name))
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
    let observed = host.port_vlans(port.index).map_err(|cause| {
        Error::failed(format!(
            "cannot list the VLANs of port {}: {cause}",
            port.name
        ))
    })?;
    match vlans.difference(&observed, default_pvid(bridge)) {
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
