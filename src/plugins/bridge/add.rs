//! Carrying out a plan: the bridge, the veth pair, addresses and routes. The gateway has a file of its own.

use std::rc::Rc;
use std::time::Duration;

use crate::error::Error;
use crate::kernel::netlink::{
    Detection, Kind, Link, Netlink, NetlinkError, NewVeth, not_found_as_none,
};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::signals;
use crate::kernel::sysctl::Parameter;
use crate::net::{Cidr, Family, IfName};
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::link::namespace;
use crate::plugins::bridge::gateway;
use crate::link::{PORT_LIMIT, failed, made};
use crate::plugins::bridge::plan::{ObservedLinks, Plan};
use crate::plugins::bridge::vlan_ports;
use crate::undo::Undo;

/// How long duplicate address detection may take: one probe and its random delay are about two seconds.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);

/// What to do about a route that the kernel refuses.
const UNREACHABLE: &str = "the next hop must lie in a subnet of the container's addresses; \
    a route to what is on the link itself has \"scope\": 253 and no next hop";

/// Where an attachment is made or compared.
pub struct AttachContext {
    /// The host's side. Shared with the undo stack.
    pub host: Rc<Netlink>,
    /// The container's side.
    pub pod: Netlink,
    /// The container's namespace.
    pub netns: Netns,
}

impl AttachContext {
    /// Opens the namespace at a path, and a socket on either side.
    ///
    /// # Errors
    /// When there is no namespace at the path, or it is the plugin's own and that is not allowed; when no socket can be
    /// opened.
    pub fn open(path: &str, own_netns: OwnNetns) -> Result<AttachContext, Error> {
        let netns = namespace::open(path, own_netns)?;
        Ok(AttachContext {
            host: Rc::new(namespace::host_netlink()?),
            pod: namespace::netlink(&netns)?,
            netns,
        })
    }
}

/// Makes bridge and link. What must be given back when a later step fails is on the stack.
///
/// # Errors
/// When the kernel refuses a step; the message names operation, object and cause.
pub fn attach(
    plan: &Plan,
    config: &BridgeConfig,
    context: &AttachContext,
    undo: &mut Undo,
) -> Result<ObservedLinks, Error> {
    let bridge = ensure_bridge(&context.host, config, plan.mtu)?;
    let gateway = gateway::ensure(&context.host, &bridge, &plan.gateways, config)?;
    signals::check()?;
    let host_end = create_veth(plan, config, context, &bridge, undo)?;
    let container = host_end
        .peer
        .ok_or_else(|| Error::failed(format!("{} has no other end in the container", plan.host)))?;
    signals::check()?;
    configure_container(plan, config, context, container)?;
    let host_mac = host_end.mac;
    if !config.leave_down {
        context
            .host
            .wait_running(&plan.host, PORT_LIMIT)
            .map_err(|cause| failed("bring up port", &plan.host, cause))?;
    }
    // The kernel settles the bridge's own carrier when it is asked for it (rtnl_getlink, net/core/rtnetlink.c); until
    // then the first packets from the host would be dropped.
    let bridge = context
        .host
        .link_at(bridge.index)
        .ok()
        .flatten()
        .unwrap_or(bridge);
    if !plan.lease.ips.is_empty() {
        let gateway = gateway.as_ref().unwrap_or(&bridge);
        await_delivery(plan, context, container, gateway)?;
        announce(plan, context, container)?;
    }
    Ok(ObservedLinks {
        bridge_mac: bridge.mac,
        host_mac,
        gateway_mac: gateway.and_then(|gateway| gateway.mac),
    })
}

/// Waits until the IPv6 addresses take packets; those of IPv4 do at once.
fn await_delivery(
    plan: &Plan,
    context: &AttachContext,
    end: u32,
    gateway: &Link,
) -> Result<(), Error> {
    let is_v6 = |cidr: &Cidr| cidr.family() == Family::V6;
    let container = plan.container.as_str();
    let wait = |netlink: &Netlink, netns: Option<&Netns>, cidr: Cidr, (link, name)| {
        let delivered = netlink.wait_delivered((link, cidr.address()), netns, PORT_LIMIT);
        delivered.map_err(|cause| failed(&format!("make {cidr} take packets on"), name, cause))
    };
    for cidr in plan.addresses().into_iter().filter(is_v6) {
        wait(&context.pod, Some(&context.netns), cidr, (end, container))?;
    }
    for cidr in plan.gateways.iter().copied().filter(is_v6) {
        wait(&context.host, None, cidr, (gateway.index, &gateway.name))?;
    }
    Ok(())
}

/// Tells the neighbours whose the addresses are now: somebody else may have had them a moment ago, under another MAC
/// address. Setting the MAC address, even to what it is, makes the kernel announce all addresses (`inetdev_event` and
/// `ndisc_netdev_event` on NETDEV_CHANGEADDR); when the link came up, the port did not forward yet.
fn announce(plan: &Plan, context: &AttachContext, link: u32) -> Result<(), Error> {
    let announced = context.pod.set_mac(link, plan.mac);
    announced.map_err(|cause| failed("announce the addresses of", &plan.container, cause))
}

/// Makes the veth pair and starts the host's end as a port of the bridge.
fn create_veth(
    plan: &Plan,
    config: &BridgeConfig,
    context: &AttachContext,
    bridge: &Link,
    undo: &mut Undo,
) -> Result<Link, Error> {
    let host = &context.host;
    let veth = NewVeth {
        port: &plan.host,
        bridge: bridge.index,
        end: &plan.container,
        mac: plan.mac,
        mtu: plan.mtu,
    };
    let created = host.create_veth(&veth, Some(&context.netns));
    // A pair that may have been made is ours to delete, and one that was there before is not.
    if matches!(
        created,
        Ok(()) | Err(NetlinkError::Lost | NetlinkError::NoAnswer)
    ) {
        let name = plan.host.clone();
        let host = host.clone();
        undo.push(move || delete_made(&host, &name));
    }
    created.map_err(|cause| {
        let operation = format!("create {} in the container and", plan.container);
        let error = failed(&operation, &plan.host, cause);
        match cause {
            NetlinkError::Exists => taken(&plan.host, &plan.container, context).unwrap_or(error),
            _ => error,
        }
    })?;
    // Not before the link is ours, and before the first frame can pass.
    if let Some(spoof_check) = &plan.spoof_check {
        let owned = spoof_check.clone();
        let socket = host.clone();
        undo.push(move || owned.remove(&socket));
        spoof_check.install(&plan.host, plan.mac, host)?;
    }
    let _ = Parameter::AcceptRa.set(&plan.host, 0);
    // While it is down, so that no frame passes in another VLAN.
    if let Some(vlans) = &config.vlans {
        vlan_ports::join_container_port(host, &plan.host, bridge, vlans)?;
    }
    host.start_port(&plan.host, config.port_flags(), &plan.alias)
        .map_err(|cause| failed("start port", &plan.host, cause))?;
    made(host, &plan.host)
}

/// Deletes a link by a socket of its own where one can be had: the other may be what failed.
fn delete_made(host: &Netlink, name: &IfName) -> Result<(), Error> {
    let fresh = Netlink::open();
    let deleted = fresh.as_ref().unwrap_or(host).delete_link(name);
    match not_found_as_none(deleted) {
        Ok(_) => Ok(()),
        Err(cause) => Err(failed("delete", name, cause)),
    }
}

/// Refuses an attachment whose names are taken. Asked before anything is made: other IPAM plugins know attachments and
/// not ADDs, so what the undo of a second ADD gave back would be the first one's.
///
/// # Errors
/// When one of the names is taken; the message says by whom.
pub fn require_free(
    host: &IfName,
    container: &IfName,
    context: &AttachContext,
) -> Result<(), Error> {
    taken(host, container, context).map_or(Ok(()), Err)
}

/// Says which of the two names is taken, and by whom; `None` when neither is.
fn taken(host: &IfName, container: &IfName, context: &AttachContext) -> Option<Error> {
    let again = "an attachment is added once; run DEL before another ADD";
    if let Ok(Some(link)) = context.pod.link(container) {
        let path = context.netns.path().display();
        let kind = &link.kind;
        let msg = format!("interface {container} already exists in {path}: it is a {kind}");
        return Some(
            Error::failed(msg)
                .details(whose(&link, context))
                .details(again),
        );
    }
    let link = context.host.link(host).ok().flatten()?;
    let msg = format!(
        "interface {} already exists on the host",
        link.display_name()
    );
    Some(Error::failed(msg).details(format!("it belongs to this very attachment; {again}")))
}

/// Whose a container's interface is: the alias of the other end tells.
fn whose(link: &Link, context: &AttachContext) -> String {
    let other = link.peer.and_then(|index| context.host.link_at(index).ok());
    let ours = |other: &Link| other.kind == Kind::Veth && other.peer == Some(link.index);
    match other.flatten().filter(ours) {
        Some(other) => format!("its other end on the host is {}", other.display_name()),
        None => "no other end of it is on the host: something else made it".to_owned(),
    }
}

/// Gives the container's end its settings, addresses and routes, and brings it up.
fn configure_container(
    plan: &Plan,
    config: &BridgeConfig,
    context: &AttachContext,
    link: u32,
) -> Result<(), Error> {
    let (pod, name) = (&context.pod, &plan.container);
    if !plan.lease.ips.is_empty() {
        prepare(plan, config, &context.netns)?;
    }
    let detection = match config.detect_duplicates {
        true => Detection::Performed,
        false => Detection::Skipped,
    };
    for address in plan.addresses() {
        pod.add_address(link, address, detection)
            .map_err(|cause| failed(&format!("add address {address} to"), name, cause))?;
    }
    if !config.leave_down {
        pod.set_up(link)
            .map_err(|cause| failed("bring up", name, cause))?;
    }
    if config.detect_duplicates && plan.addresses().iter().any(|a| a.family() == Family::V6) {
        let unique = pod.wait_unique(link, &context.netns, DETECTION_LIMIT);
        unique.map_err(|cause| {
            failed(
                "make sure that no neighbour has the addresses of",
                name,
                cause,
            )
        })?;
    }
    for route in &plan.routes {
        let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
        let operation = format!("add route {}{gw} over", route.dst);
        pod.add_route(link, route).map_err(|cause| {
            let error = failed(&operation, name, cause);
            match cause {
                NetlinkError::Unreachable => error.details(UNREACHABLE),
                _ => error,
            }
        })?;
    }
    Ok(())
}

/// Sets what the kernel must know of the container's end before it comes up.
fn prepare(plan: &Plan, config: &BridgeConfig, netns: &Netns) -> Result<(), Error> {
    let name = &plan.container;
    let has_v6 = plan
        .lease
        .ips
        .iter()
        .any(|ip| ip.address.family() == Family::V6);
    let settings = || {
        // These are absent where the kernel has no IPv6. IPAM owns the addresses, so nobody else hands out any.
        let _ = Parameter::AcceptRa.set(name, 0);
        let dad = u8::from(config.detect_duplicates);
        if config.detect_duplicates {
            let _ = Parameter::EnhancedDad.set(name, 1);
        }
        let _ = Parameter::AcceptDad.set(name, dad);
        let _ = Parameter::ArpNotify.set(name, 1);
        if has_v6 {
            let _ = Parameter::NdiscNotify.set(name, 1);
            let _ = Parameter::KeepAddrOnDown.set(name, 1);
            enable_ipv6(name)
        } else {
            Ok(())
        }
    };
    netns
        .inside(settings)
        .map_err(|cause| namespace::error(&netns.path().to_string_lossy(), cause))?
}

fn enable_ipv6(name: &IfName) -> Result<(), Error> {
    let loopback: IfName = "lo".parse().expect("it is a name");
    for link in [&loopback, name] {
        let is_off = Parameter::DisableIpv6
            .read(link)
            .is_ok_and(|value| value != "0");
        if is_off {
            Parameter::DisableIpv6.set(link, 0).map_err(|cause| {
                Error::failed(format!(
                    "cannot enable IPv6 on {link} in the container: {cause}"
                ))
            })?;
        }
    }
    Ok(())
}
