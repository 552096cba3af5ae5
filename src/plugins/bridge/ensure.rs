//! Creates the bridge, or configures an existing one as containers need it.

use crate::error::Error;
use crate::kernel::netlink::{Kind, Link, LinkSetting, Netlink, NetlinkError, NewBridge};
use crate::kernel::sysctl::Parameter;
use crate::kernel::sysfs;
use crate::link::{Context, created_link, failed, new_mac};
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::vlan_ports;

/// The configured bridge, created if it does not exist. An MTU applies to a new bridge only.
pub(super) fn ensure_bridge(
    host: &Netlink,
    config: &BridgeConfig,
    mtu: Option<u32>,
) -> Result<Link, Error> {
    let name = &config.bridge;
    let mut bridge = match host.link(name).context("look up bridge", name)? {
        Some(bridge) => bridge,
        None => {
            create_bridge(host, config, mtu)?;
            created_link(host, name)?
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
    ignore_router_advertisements(&bridge);
    fix_mac(host, &mut bridge)?;
    if config.promiscuous && !bridge.is_promiscuous {
        host.configure(bridge.index, LinkSetting::Promiscuous(true))
            .context("make promiscuous bridge", name)?;
    }
    if !bridge.is_up {
        host.set_up(bridge.index).context("bring up bridge", name)?;
    }
    Ok(bridge)
}

/// Makes the host ignore router advertisements that arrive on a link: a container could give the host a default route with
/// one (CVE-2020-10749). Every ADD sets it, because another program may have created the link, or the ADD that created it
/// may have been killed.
pub(super) fn ignore_router_advertisements(link: &Link) {
    // By the kernel's name: the link may have been looked up by an alternative name. Without IPv6 the parameter does
    // not exist.
    if let Ok(name) = link.name.parse() {
        let _ = Parameter::AcceptRa.set(&name, 0);
    }
}

/// Sets the MAC address of a bridge to its current value, unless it is fixed already. Otherwise the kernel changes it
/// whenever the port with the lowest MAC address is added or removed (`br_stp_recalculate_bridge_id`,
/// net/bridge/br_stp_if.c), and containers send packets to the old one until their neighbour entries expire.
fn fix_mac(host: &Netlink, bridge: &mut Link) -> Result<(), Error> {
    if is_mac_fixed(host, bridge) == Some(true) {
        return Ok(());
    }
    // A bridge that lost all of its ports has the address zero.
    let mac = match bridge.mac.filter(|mac| !mac.is_zero()) {
        Some(mac) => mac,
        None => new_mac(&bridge.name)?,
    };
    host.set_mac(bridge.index, mac)
        .context("set the MAC address of bridge", &bridge.name)?;
    bridge.mac = Some(mac);
    Ok(())
}

/// Whether the MAC address of a bridge was set and does not follow its ports; `None` if unknown. Setting it again would
/// make the kernel drop all neighbour entries of the bridge (`neigh_changeaddr`, net/core/neighbour.c).
pub fn is_mac_fixed(host: &Netlink, bridge: &Link) -> Option<bool> {
    let mac = bridge.mac?;
    // An address that follows the ports is that of a port, if there is one. Netlink has no attribute for the other
    // cases, sysfs has.
    if bridge.is_running && host.fdb_entry(bridge.index, mac) == Ok(bridge.index) {
        return Some(true);
    }
    sysfs::is_mac_set(&bridge.name, bridge.index, mac)
}

fn create_bridge(host: &Netlink, config: &BridgeConfig, mtu: Option<u32>) -> Result<(), Error> {
    let name = &config.bridge;
    // With disableContainerInterface the bridge has no carrier, and gets an IPv6 link-local address, as that of the Go
    // plugin, only without a fixed MAC address. It is fixed before a port joins.
    let mac = (!config.leave_down).then(|| new_mac(name)).transpose()?;
    let new = NewBridge {
        name,
        mac,
        mtu,
        filters_vlans: config.vlans.is_some(),
    };
    match (host.create_bridge(&new), &config.vlans) {
        // A concurrent ADD created it.
        (Err(NetlinkError::Exists), _) => Ok(()),
        (Err(NetlinkError::Unsupported), Some(vlans)) => {
            Err(vlan_ports::no_filtering(vlans)
                .details("or it has no bridges at all (CONFIG_BRIDGE)"))
        }
        (Err(cause), _) => Err(failed("create bridge", name, cause)),
        (Ok(()), _) => {
            // During duplicate address detection, which takes seconds, the bridge resolves no IPv6 neighbours.
            let _ = Parameter::AcceptDad.set(name, 0);
            Ok(())
        }
    }
}
