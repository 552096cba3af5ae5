//! Configures the container end of a veth pair.

use std::time::Duration;

use crate::error::Error;
use crate::kernel::netlink::{Detection, NetlinkError, SubnetRoute};
use crate::kernel::netns::Netns;
use crate::kernel::sysctl::Parameter;
use crate::link::namespace::AttachContext;
use crate::link::plan::{GatewayRoute, Subnets, VethPlan};
use crate::link::{self, Context, failed, namespace};
use crate::net::{Family, IfName, Route};

/// Time limit of duplicate address detection, which takes about two seconds: one probe and its random delay.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);

const ROUTE_UNREACHABLE: &str = "the next hop must lie in a subnet of the container's addresses; \
    a route to what is on the link itself has \"scope\": 253 and no next hop";

#[derive(Clone, Copy, Debug)]
pub struct ContainerOptions {
    /// Perform duplicate address detection (`enabledad`).
    pub detect_duplicates: bool,
    /// Leave the container end down (`disableContainerInterface`).
    pub leave_down: bool,
}

fn has_v6(plan: &VethPlan) -> bool {
    let mut addresses = plan.addresses.iter();
    addresses.any(|address| address.family() == Family::V6)
}

/// Sets the sysctls, addresses and routes of the container end, and brings it up.
///
/// # Errors
/// When the kernel refuses a step, or a neighbour has one of the addresses.
pub fn configure(
    plan: &VethPlan,
    options: ContainerOptions,
    context: &AttachContext,
    link: u32,
) -> Result<(), Error> {
    let (pod, name) = (&context.pod, &plan.container);
    if !plan.addresses.is_empty() {
        prepare(plan, options, &context.netns)?;
    }
    let detection = match options.detect_duplicates {
        true => Detection::Performed,
        false => Detection::Skipped,
    };
    let (subnet_route, gateway_routes) = match &plan.subnets {
        Subnets::OnLink => (SubnetRoute::Added, &[][..]),
        Subnets::Routed(routes) => (SubnetRoute::Omitted, &routes[..]),
    };
    for &address in &plan.addresses {
        pod.add_address(link, address, (detection, subnet_route))
            .context(&format!("add address {address} to"), name)?;
    }
    if !options.leave_down {
        pod.set_up(link).context("bring up", name)?;
    }
    if options.detect_duplicates && has_v6(plan) {
        let unique = pod.wait_unique(link, &context.netns, DETECTION_LIMIT);
        unique.context("make sure that no neighbour has the addresses of", name)?;
    }
    if !gateway_routes.is_empty() {
        // The kernel refuses a source address that it does not deliver to yet (`ip6_route_info_create`, net/ipv6/route.c).
        wait_delivered(plan, context, link)?;
    }
    for GatewayRoute { route, source } in gateway_routes {
        let added = pod.add_route_from(link, route, *source);
        added.map_err(|cause| route_refused(route, name, cause))?;
    }
    for route in &plan.routes {
        let added = pod.add_route(link, route);
        added.map_err(|cause| route_refused(route, name, cause))?;
    }
    Ok(())
}

/// Waits until packets to the addresses of the container end are delivered.
///
/// # Errors
/// If they are not in time.
pub fn wait_delivered(plan: &VethPlan, context: &AttachContext, link: u32) -> Result<(), Error> {
    let end = (link, plan.container.as_str());
    link::wait_delivered(&context.pod, Some(&context.netns), &plan.addresses, end)
}

fn route_refused(route: &Route, name: &IfName, cause: NetlinkError) -> Error {
    let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
    let error = failed(&format!("add route {}{gw} over", route.dst), name, cause);
    match cause {
        NetlinkError::Unreachable => error.details(ROUTE_UNREACHABLE),
        _ => error,
    }
}

/// Sets the sysctls that must be in place before the container end comes up.
fn prepare(plan: &VethPlan, options: ContainerOptions, netns: &Netns) -> Result<(), Error> {
    let name = &plan.container;
    let has_v6 = has_v6(plan);
    let settings = || {
        // Absent without IPv6. Addresses come from IPAM only, not from router advertisements.
        let _ = Parameter::AcceptRa.set(name, 0);
        let dad = u8::from(options.detect_duplicates);
        if options.detect_duplicates {
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

/// Announces the addresses, which may recently have belonged to another MAC address. Setting the MAC address, also to
/// its current value, makes the kernel announce all addresses (`inetdev_event` and `ndisc_netdev_event` on
/// NETDEV_CHANGEADDR). Its announcements when the link came up were lost, because the port did not forward yet.
///
/// # Errors
/// When the kernel refuses.
pub fn announce(plan: &VethPlan, context: &AttachContext, link: u32) -> Result<(), Error> {
    let announced = context.pod.set_mac(link, plan.mac);
    announced.context("announce the addresses of", &plan.container)
}
