//! Applies a plan: bridge, veth pair, addresses and routes. The gateway is in `gateway.rs`.

use std::rc::Rc;
use std::time::Duration;

use crate::error::Error;
use crate::kernel::netlink::{Detection, Link, Netlink, NetlinkError, NewVeth, not_found_as_none};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::signals;
use crate::kernel::sysctl::Parameter;
use crate::link::namespace;
use crate::link::{Context, PORT_LIMIT, created_link, failed, peer_on_host};
use crate::net::{Cidr, Family, IfName};
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::gateway;
use crate::plugins::bridge::plan::{ObservedLinks, Plan};
use crate::plugins::bridge::vlan_ports;
use crate::undo::Undo;

/// Time limit of duplicate address detection, which takes about two seconds: one probe and its random delay.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);

const ROUTE_UNREACHABLE: &str = "the next hop must lie in a subnet of the container's addresses; \
    a route to what is on the link itself has \"scope\": 253 and no next hop";

/// The network namespaces that an attachment connects.
pub struct AttachContext {
    /// A socket in the host's namespace, shared with the undo stack.
    pub host: Rc<Netlink>,
    /// A socket in the container's namespace.
    pub pod: Netlink,
    pub netns: Netns,
}

impl AttachContext {
    /// Opens the namespace at a path, and a socket in it and in the host's.
    ///
    /// # Errors
    /// If there is no namespace at the path, it is the plugin's own and that is not allowed, or no socket can be
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
    let bridge = ensure_bridge(&context.host, config, plan.mtu)?;
    let gateway = gateway::ensure(&context.host, &bridge, &plan.gateways, config)?;
    signals::check()?;
    let host_end = create_veth(plan, config, context, &bridge, undo)?;
    let container = host_end
        .peer
        .ok_or_else(|| Error::failed(format!("{} has no peer in the container", plan.host)))?;
    signals::check()?;
    configure_container(plan, config, context, container)?;
    let host_mac = host_end.mac;
    if !config.leave_down {
        context
            .host
            .wait_running(&plan.host, PORT_LIMIT)
            .context("bring up port", &plan.host)?;
    }
    // RTM_GETLINK makes the kernel update the bridge's carrier (rtnl_getlink, net/core/rtnetlink.c); until then the first
    // packets from the host are dropped.
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

/// Waits until packets to the IPv6 addresses are delivered. Packets to IPv4 addresses are delivered immediately.
fn await_delivery(
    plan: &Plan,
    context: &AttachContext,
    link: u32,
    gateway: &Link,
) -> Result<(), Error> {
    let is_v6 = |cidr: &Cidr| cidr.family() == Family::V6;
    let container = plan.container.as_str();
    let wait = |netlink: &Netlink, netns: Option<&Netns>, cidr: Cidr, (link, name)| {
        netlink
            .wait_delivered((link, cidr.address()), netns, PORT_LIMIT)
            .context(
                &format!("wait until packets to {cidr} are delivered on"),
                name,
            )
    };
    for cidr in plan.addresses().into_iter().filter(is_v6) {
        wait(&context.pod, Some(&context.netns), cidr, (link, container))?;
    }
    for cidr in plan.gateways.iter().copied().filter(is_v6) {
        wait(&context.host, None, cidr, (gateway.index, &gateway.name))?;
    }
    Ok(())
}

/// Announces the addresses, which may recently have belonged to another MAC address. Setting the MAC address, also to
/// its current value, makes the kernel announce all addresses (`inetdev_event` and `ndisc_netdev_event` on
/// NETDEV_CHANGEADDR). Its announcements when the link came up were lost, because the port did not forward yet.
fn announce(plan: &Plan, context: &AttachContext, link: u32) -> Result<(), Error> {
    context
        .pod
        .set_mac(link, plan.mac)
        .context("announce the addresses of", &plan.container)
}

/// Creates the veth pair and starts its host end as a port of the bridge.
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
    // Undo deletes a pair that was or may have been created here, not one that existed before.
    if matches!(
        created,
        Ok(()) | Err(NetlinkError::Lost | NetlinkError::NoAnswer)
    ) {
        let name = plan.host.clone();
        let host = host.clone();
        undo.push(move || delete_created(&host, &name));
    }
    created.map_err(|cause| {
        let operation = format!("create {} in the container and", plan.container);
        let error = failed(&operation, &plan.host, cause);
        match cause {
            NetlinkError::Exists => {
                name_conflict(&plan.host, &plan.container, context).unwrap_or(error)
            }
            _ => error,
        }
    })?;
    // After the link exists, and before the first frame can pass.
    if let Some(spoof_check) = &plan.spoof_check {
        let owned = spoof_check.clone();
        let socket = host.clone();
        undo.push(move || owned.remove(&socket));
        spoof_check.install(&plan.host, plan.mac, host)?;
    }
    let _ = Parameter::AcceptRa.set(&plan.host, 0);
    // While the port is down, so that no frame passes in another VLAN.
    if let Some(vlans) = &config.vlans {
        vlan_ports::join_container_port(host, &plan.host, bridge, vlans)?;
    }
    host.start_port(&plan.host, config.port_flags(), &plan.alias)
        .context("start port", &plan.host)?;
    created_link(host, &plan.host)
}

/// Deletes a link, if possible through a new socket: the current one may be broken.
fn delete_created(host: &Netlink, name: &IfName) -> Result<(), Error> {
    let fresh = Netlink::open();
    let deleted = fresh.as_ref().unwrap_or(host).delete_link(name);
    not_found_as_none(deleted).map(drop).context("delete", name)
}

/// Rejects an attachment whose interface names already exist, before anything is changed. Other IPAM plugins do not
/// distinguish two ADDs of one attachment, so that the undo of the second would release the addresses of the first.
///
/// # Errors
/// If one of the names exists; the message names its owner.
pub fn require_unused_names(
    host: &IfName,
    container: &IfName,
    context: &AttachContext,
) -> Result<(), Error> {
    name_conflict(host, container, context).map_or(Ok(()), Err)
}

fn name_conflict(host: &IfName, container: &IfName, context: &AttachContext) -> Option<Error> {
    let remedy = "an attachment is added once; run DEL before another ADD";
    if let Ok(Some(link)) = context.pod.link(container) {
        let path = context.netns.path().display();
        let kind = &link.kind;
        let msg = format!("interface {container} already exists in {path}: it is a {kind}");
        return Some(
            Error::failed(msg)
                .details(owner_of(&link, context))
                .details(remedy),
        );
    }
    let link = context.host.link(host).ok().flatten()?;
    let msg = format!(
        "interface {} already exists on the host",
        link.display_name()
    );
    Some(Error::failed(msg).details(format!("it belongs to this attachment; {remedy}")))
}

/// Describes the owner of a container's interface by the alias of its peer.
fn owner_of(link: &Link, context: &AttachContext) -> String {
    match peer_on_host(&context.host, link).ok().flatten() {
        Some(peer) => format!("its veth peer on the host is {}", peer.display_name()),
        None => "its veth peer is not on the host: something else made it".to_owned(),
    }
}

/// Configures sysctls, addresses and routes of the container end, and brings it up.
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
            .context(&format!("add address {address} to"), name)?;
    }
    if !config.leave_down {
        pod.set_up(link).context("bring up", name)?;
    }
    if config.detect_duplicates && plan.addresses().iter().any(|a| a.family() == Family::V6) {
        pod.wait_unique(link, &context.netns, DETECTION_LIMIT)
            .context("make sure that no neighbour has the addresses of", name)?;
    }
    for route in &plan.routes {
        let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
        let operation = format!("add route {}{gw} over", route.dst);
        pod.add_route(link, route).map_err(|cause| {
            let error = failed(&operation, name, cause);
            match cause {
                NetlinkError::Unreachable => error.details(ROUTE_UNREACHABLE),
                _ => error,
            }
        })?;
    }
    Ok(())
}

/// Sets the sysctls that must be in place before the container end comes up.
fn prepare(plan: &Plan, config: &BridgeConfig, netns: &Netns) -> Result<(), Error> {
    let name = &plan.container;
    let has_v6 = plan
        .lease
        .ips
        .iter()
        .any(|ip| ip.address.family() == Family::V6);
    let settings = || {
        // Absent without IPv6. Addresses come from IPAM only, not from router advertisements.
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
