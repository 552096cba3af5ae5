//! Applies a plan: bridge, veth pair, addresses and routes. The gateway is in `gateway.rs`.

use crate::error::Error;
use crate::kernel::netlink::Link;
use crate::kernel::signals;
use crate::kernel::sysctl::Parameter;
use crate::link::container::{self, ContainerOptions};
use crate::link::namespace::AttachContext;
use crate::link::{Context, PORT_LIMIT, created_link, wait_delivered};
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::gateway;
use crate::plugins::bridge::plan::{ObservedLinks, Plan};
use crate::plugins::bridge::vlan_ports;
use crate::undo::Undo;

/// Creates the bridge, if it does not exist, and the link. Pushes the inverse of each effect.
///
/// # Errors
/// If the kernel refuses a step; the message names operation, object and cause.
pub fn attach(
    plan: &Plan,
    config: &BridgeConfig,
    context: &AttachContext,
    undo: &mut Undo,
) -> Result<ObservedLinks, Error> {
    let veth = &plan.veth;
    let bridge = ensure_bridge(&context.host, config, veth.mtu)?;
    let gateway = gateway::ensure(&context.host, &bridge, &plan.gateways, config)?;
    signals::check()?;
    veth.create(context, Some(bridge.index), undo)?;
    let host_end = start_port(plan, config, context, &bridge, undo)?;
    let index = host_end
        .peer
        .ok_or_else(|| Error::failed(format!("{} has no peer in the container", veth.host)))?;
    signals::check()?;
    let options = ContainerOptions {
        detect_duplicates: config.detect_duplicates,
        leave_down: config.leave_down,
    };
    container::configure(veth, options, context, index)?;
    if !config.leave_down {
        context
            .host
            .wait_running(&veth.host, PORT_LIMIT)
            .context("bring up port", &veth.host)?;
    }
    // RTM_GETLINK makes the kernel update the bridge's carrier (rtnl_getlink, net/core/rtnetlink.c); until then the first
    // packets from the host are dropped.
    let bridge = context
        .host
        .link_at(bridge.index)
        .ok()
        .flatten()
        .unwrap_or(bridge);
    if !veth.addresses.is_empty() {
        container::wait_delivered(veth, context, index)?;
        let gateway = gateway.as_ref().unwrap_or(&bridge);
        let gateway_link = (gateway.index, gateway.name.as_str());
        wait_delivered(&context.host, None, &plan.gateways, gateway_link)?;
        container::announce(veth, context, index)?;
    }
    Ok(ObservedLinks {
        bridge_mac: bridge.mac,
        host_mac: host_end.mac,
        gateway_mac: gateway.and_then(|gateway| gateway.mac),
    })
}

/// Starts the host end as a port of the bridge.
fn start_port(
    plan: &Plan,
    config: &BridgeConfig,
    context: &AttachContext,
    bridge: &Link,
    undo: &mut Undo,
) -> Result<Link, Error> {
    let (host, veth) = (&context.host, &plan.veth);
    // After the link exists, and before the first frame can pass.
    if let Some(spoof_check) = &plan.spoof_check {
        let owned = spoof_check.clone();
        let socket = host.clone();
        undo.push(move || owned.remove(&socket));
        spoof_check.install(&veth.host, veth.mac, host)?;
    }
    let _ = Parameter::AcceptRa.set(&veth.host, 0);
    // While the port is down, so that no frame passes in another VLAN.
    if let Some(vlans) = &config.vlans {
        vlan_ports::join_container_port(host, &veth.host, bridge, vlans)?;
    }
    host.start_link(&veth.host, Some(config.port_flags()), &veth.alias)
        .context("start port", &veth.host)?;
    created_link(host, &veth.host)
}
