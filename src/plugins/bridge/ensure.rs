//! The bridge: made where it does not exist, and brought to the state that containers need.

use crate::error::Error;
use crate::kernel::netlink::{Kind, Link, Netlink, NetlinkError, NewBridge};
use crate::kernel::sysctl::Parameter;
use crate::kernel::sysfs;
use crate::plugins::bridge::config::BridgeConfig;
use crate::link::{failed, made, new_mac};
use crate::plugins::bridge::vlan_ports;

/// The bridge as it is configured, made where it is not there.
pub(super) fn ensure_bridge(
    host: &Netlink,
    config: &BridgeConfig,
    mtu: Option<u32>,
) -> Result<Link, Error> {
    let name = &config.bridge;
    let found = host.link(name);
    let mut bridge = match found.map_err(|cause| failed("look up bridge", name, cause))? {
        Some(bridge) => bridge,
        None => {
            create_bridge(host, config, mtu)?;
            made(host, name)?
        }
    };
    if bridge.kind != Kind::Bridge {
        let msg = format!(
            "cannot use {name} as a bridge: there is a {} of that name",
            bridge.kind
        );
        return Err(Error::failed(msg).details("rename it or choose another name in \"bridge\""));
    }
    if let Some(vlans) = &config.vlans {
        vlan_ports::require_filtering(&bridge, vlans)?;
    }
    refuse_advertisements(&bridge);
    fix_mac(host, &mut bridge)?;
    if config.promiscuous && !bridge.is_promiscuous {
        let set = host.set_promiscuous(bridge.index);
        set.map_err(|cause| failed("make promiscuous bridge", name, cause))?;
    }
    if !bridge.is_up {
        host.set_up(bridge.index)
            .map_err(|cause| failed("bring up bridge", name, cause))?;
    }
    Ok(bridge)
}

/// Has the host ignore router advertisements that come in by a link: any container can send one, and the host would take
/// its default route from it (CVE-2020-10749). Written by each ADD, for the link may not be ours, and the ADD that made it
/// may have been killed.
pub(super) fn refuse_advertisements(link: &Link) {
    // Its own name and not the one that it was found by, which may be an alternative name. Where the kernel has no IPv6
    // there is no such parameter.
    if let Ok(name) = link.name.parse() {
        let _ = Parameter::AcceptRa.set(&name, 0);
    }
}

/// Sets the MAC address of a bridge to what it is, unless that was done already. Otherwise the kernel changes it whenever
/// the port with the lowest MAC address comes or goes (`br_stp_recalculate_bridge_id`, net/bridge/br_stp_if.c), and
/// containers send their packets to the old one until their neighbour entries expire.
fn fix_mac(host: &Netlink, bridge: &mut Link) -> Result<(), Error> {
    if is_mac_fixed(host, bridge) == Some(true) {
        return Ok(());
    }
    // A bridge that has lost all of its ports shows zeros.
    let mac = match bridge.mac.filter(|mac| !mac.is_zero()) {
        Some(mac) => mac,
        None => new_mac(&bridge.name)?,
    };
    let set = host.set_mac(bridge.index, mac);
    set.map_err(|cause| failed("set the MAC address of bridge", &bridge.name, cause))?;
    bridge.mac = Some(mac);
    Ok(())
}

/// Whether the MAC address of a bridge was set and does not follow its ports'; `None` when that cannot be told. Setting it
/// once more would make the kernel forget all neighbours on the bridge (`neigh_changeaddr`, net/core/neighbour.c).
pub fn is_mac_fixed(host: &Netlink, bridge: &Link) -> Option<bool> {
    let mac = bridge.mac?;
    // One that follows the ports' is that of a port once there is one. The rest no netlink attribute tells.
    if bridge.is_running && host.fdb_entry(bridge.index, mac) == Ok(bridge.index) {
        return Some(true);
    }
    sysfs::is_mac_set(&bridge.name, bridge.index, mac)
}

fn create_bridge(
    host: &Netlink,
    config: &BridgeConfig,
    mtu: Option<u32>,
) -> Result<(), Error> {
    let name = &config.bridge;
    // Where the container's end stays down, a bridge without carrier would never get an IPv6 link-local address, which the
    // Go plugin's has. Its MAC address is set before a port joins.
    let mac = (!config.leave_down).then(|| new_mac(name)).transpose()?;
    let new = NewBridge {
        name,
        mac,
        mtu,
        filters_vlans: config.vlans.is_some(),
    };
    match (host.create_bridge(&new), &config.vlans) {
        // Another ADD was faster.
        (Err(NetlinkError::Exists), _) => Ok(()),
        (Err(NetlinkError::Unsupported), Some(vlans)) => {
            Err(vlan_ports::no_filtering(vlans)
                .details("or it has no bridges at all (CONFIG_BRIDGE)"))
        }
        (Err(cause), _) => Err(failed("create bridge", name, cause)),
        (Ok(()), _) => {
            // Until its own address is settled, seconds later, the bridge would look for no IPv6 neighbour.
            let _ = Parameter::AcceptDad.set(name, 0);
            Ok(())
        }
    }
}
