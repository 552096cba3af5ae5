//! Removes the rules of `forwardAccept` with the last container of a bridge.

use crate::cni::conf::NetConf;
use crate::error::Error;
use crate::kernel::netlink::{Kind, Link, Netlink};
use crate::link::Context;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::forward::Forwarding;
use crate::plugins::bridge::config::bridge_of;
use crate::plugins::bridge::plan::gateway_port;

/// The families of addresses; both without addresses, because br_netfilter filters bridged frames as packets.
pub(super) fn families(addresses: &[Cidr]) -> Vec<Family> {
    let has = |family: &Family| addresses.iter().any(|it| it.family() == *family);
    let families = Family::BOTH.into_iter();
    families
        .filter(|family| addresses.is_empty() || has(family))
        .collect()
}

/// Removes the rules of a network's bridge if the bridge has no containers, even if the configuration no longer has the
/// key.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove_if_unused(host: &Netlink, conf: &NetConf) -> Result<(), Error> {
    let root = conf.root();
    // An invalid name does not make DEL fail.
    let Some(bridge) = bridge_of(&root).ok() else {
        return Ok(());
    };
    let Some(forwarding) = Forwarding::of(&bridge) else {
        return Ok(());
    };
    let is_configured = root.bool("forwardAccept").ok().flatten() == Some(true);
    if is_configured || forwarding.is_in_nftables()? {
        remove_if_unused_on(host, &bridge, &forwarding)?;
    }
    Ok(())
}

/// Like [`remove_if_unused`], for known rules.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove_if_unused_on(
    host: &Netlink,
    bridge: &IfName,
    forwarding: &Forwarding,
) -> Result<(), Error> {
    match has_containers(host, bridge)? {
        true => Ok(()),
        false => forwarding.remove_unless(|| has_containers(host, bridge)),
    }
}

fn has_containers(host: &Netlink, bridge: &IfName) -> Result<bool, Error> {
    let ports = || match host.link(bridge)? {
        Some(bridge) => host.ports(bridge.index),
        None => Ok(Vec::new()),
    };
    let ports = ports().context("list the ports of", bridge)?;
    Ok(ports.iter().any(may_be_container_port))
}

/// Whether a port may be a container's: not hardware, and not the port of the host's interface in a VLAN.
fn may_be_container_port(port: &Link) -> bool {
    let interface = port.alias.parse().ok();
    let is_gateway = interface.is_some_and(|it| gateway_port(&it).as_str() == port.name);
    port.kind == Kind::Veth && !is_gateway
}
