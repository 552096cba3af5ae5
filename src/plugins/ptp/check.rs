//! CHECK: compares prevResult and configuration with the state of the kernel, as far as the attachment depends on it.

use crate::cni::environment::Target;
use crate::cni::result::IpConfig;
use crate::error::Error;
use crate::kernel::netlink::{Link, Netlink, RouteQuery};
use crate::link::Context;
use crate::link::namespace::AttachContext;
use crate::link::plan::GatewayRoute;
use crate::net::{Cidr, Family, Route};
use crate::plugins::attachment::check::{ExpectedContainer, differs};
use crate::plugins::ptp::Ptp;
use crate::plugins::ptp::plan::{gateway_routes, host_route};

/// # Errors
/// The first difference: object, desired and observed value.
pub fn check(request: &Ptp, target: &Target, context: &AttachContext) -> Result<(), Error> {
    let previous = request.previous.clone()?;
    let expected = ExpectedContainer::new(previous, &request.network, target)?;
    let container = expected.check_link(context)?;
    expected.check_up(&container)?;
    let host_end = expected.host_end(context, &container)?;
    let ips: Vec<IpConfig> = expected.addresses().cloned().collect();
    check_host_end(&ips, &context.host, &host_end)?;
    expected.check_rest(context, &container, request.masquerade.as_ref())?;
    let of_container = gateway_routes(&ips);
    let of_container = of_container.iter().map(|GatewayRoute { route, .. }| route);
    check_routes(of_container, &context.pod, &container)
}

fn check_host_end(ips: &[IpConfig], host: &Netlink, link: &Link) -> Result<(), Error> {
    let name = &link.name;
    if !link.is_up {
        return Err(differs(format!("the host end {name} is down")));
    }
    let observed = host.addresses(link.index);
    let observed = observed.context("list addresses of", name)?;
    let gateways = ips.iter().filter_map(|ip| ip.gateway).map(Cidr::host);
    for gateway in gateways {
        if !observed.iter().any(|address| address.cidr == gateway) {
            return Err(differs(format!(
                "the host end {name} has lost the gateway address {gateway}"
            )));
        }
    }
    let to_container = ips.iter().map(|ip| host_route(ip.address.address()));
    check_routes(to_container.collect::<Vec<_>>().iter(), host, link)
}

fn check_routes<'r>(
    wanted: impl Iterator<Item = &'r Route>,
    netlink: &Netlink,
    link: &Link,
) -> Result<(), Error> {
    let mut observed = Vec::new();
    for family in Family::BOTH {
        let query = RouteQuery {
            family,
            link: Some(link.index),
        };
        observed.extend(
            netlink
                .routes(query)
                .context("list routes over", &link.name)?,
        );
    }
    for route in wanted {
        if !observed
            .iter()
            .any(|it| it.dst == route.dst && it.gw == route.gw)
        {
            let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            return Err(differs(format!(
                "route {}{gw} over {} is missing",
                route.dst, link.name
            )));
        }
    }
    Ok(())
}
