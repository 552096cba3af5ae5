//! The plan of an ADD: addresses and routes of both ends, computed before the link is created.

use std::net::IpAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::{AddResult, Dns, Interface, IpConfig};
use crate::error::Error;
use crate::ipam::Lease;
use crate::kernel::netlink::{Detection, SubnetRoute};
use crate::kernel::signals;
use crate::kernel::sysctl::Parameter;
use crate::link::container::{self, ContainerOptions};
use crate::link::namespace::AttachContext;
use crate::link::plan::{GatewayRoute, Subnets, VethInput, VethPlan};
use crate::link::{Context, PORT_LIMIT, created_link, wait_delivered};
use crate::net::{Cidr, Family, Mac, Route};
use crate::plugins::attachment::forward;
use crate::undo::Undo;

/// The index of the container's interface in the result; see [`Plan::into_result`].
const CONTAINER_INTERFACE: usize = 1;

/// RT_SCOPE_HOST and RT_SCOPE_LINK (rtnetlink(7)).
const SCOPE_HOST: i64 = 254;
const SCOPE_LINK: i64 = 253;

pub struct PlanInput<'a> {
    pub network: &'a NetworkName,
    pub attachment: &'a Attachment,
    /// `namespace/name` of the pod, if the runtime passes them.
    pub pod: Option<&'a str>,
    /// In bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Replaces that of IPAM.
    pub dns: Option<&'a Dns>,
}

/// What an ADD creates.
pub struct Plan {
    pub veth: VethPlan,
    /// The addresses of the host end.
    gateways: Vec<Cidr>,
    lease: Lease,
}

impl Plan {
    /// # Errors
    /// Code 7 for an address without a usable gateway, and as [`VethPlan::new`].
    pub fn new(input: PlanInput, mut lease: Lease) -> Result<Plan, Error> {
        let PlanInput {
            network,
            attachment,
            pod,
            mtu,
            dns,
        } = input;
        for ip in &mut lease.ips {
            ip.interface = Some(CONTAINER_INTERFACE);
        }
        if let Some(dns) = dns {
            lease.dns = dns.clone();
        }
        let mut gateways: Vec<Cidr> = Vec::new();
        for ip in &lease.ips {
            let gateway = Cidr::host(gateway_of(ip)?);
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        let input = VethInput {
            network,
            attachment,
            pod,
            mac: None,
            mtu,
            subnets: Subnets::Routed(gateway_routes(&lease.ips)),
        };
        Ok(Plan {
            veth: VethPlan::new(input, &lease)?,
            gateways,
            lease,
        })
    }

    /// Creates the link, and the host's routes to it. Returns the MAC address of the host end.
    ///
    /// # Errors
    /// If the kernel refuses a step; the message names operation, object and cause.
    pub fn attach(&self, context: &AttachContext, undo: &mut Undo) -> Result<Option<Mac>, Error> {
        let (host, veth) = (&context.host, &self.veth);
        for family in Family::BOTH {
            if self.gateways.iter().any(|it| it.family() == family) {
                forward(family)?;
            }
        }
        veth.create(context, None, undo)?;
        // Without IPv6 the parameters do not exist. During duplicate address detection, which takes seconds, the host
        // resolves no neighbours for packets that it forwards (`ndisc_send_ns`, net/ipv6/ndisc.c).
        let _ = Parameter::AcceptRa.set(&veth.host, 0);
        let _ = Parameter::AcceptDad.set(&veth.host, 0);
        host.start_link(&veth.host, None, &veth.alias)
            .context("start", &veth.host)?;
        let end = created_link(host, &veth.host)?;
        let peer = end
            .peer
            .ok_or_else(|| Error::failed(format!("{} has no peer in the container", veth.host)))?;
        signals::check()?;
        let options = ContainerOptions {
            detect_duplicates: false,
            leave_down: false,
        };
        container::configure(veth, options, context, peer)?;
        host.wait_running(&veth.host, PORT_LIMIT)
            .context("bring up", &veth.host)?;
        for &gateway in &self.gateways {
            let options = (Detection::Skipped, SubnetRoute::Added);
            host.add_address(end.index, gateway, options)
                .context(&format!("add address {gateway} to"), &veth.host)?;
        }
        for address in &veth.addresses {
            let route = host_route(address.address());
            // A route that another program left behind must not attract the container's packets.
            host.move_route(end.index, &route)
                .context(&format!("add route {} over", route.dst), &veth.host)?;
        }
        let host_end = (end.index, veth.host.as_str());
        wait_delivered(host, None, &self.gateways, host_end)?;
        Ok(end.mac)
    }

    /// The result, with the MAC address that the kernel reported.
    pub fn into_result(self, host_mac: Option<Mac>, sandbox: &str) -> AddResult {
        let host = Interface {
            name: self.veth.host.to_string(),
            mac: host_mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        };
        let container = Interface {
            name: self.veth.container.to_string(),
            mac: self.veth.mac.to_string(),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        };
        AddResult {
            interfaces: vec![host, container],
            ..self.lease.into()
        }
    }
}

/// The host's route to an address of the container.
pub fn host_route(address: IpAddr) -> Route {
    Route {
        scope: (Family::of(address) == Family::V4).then_some(SCOPE_HOST),
        ..Route::new(Cidr::host(address), None)
    }
}

/// The container's routes to its gateways, and to its subnets over them. Addresses may share a gateway or a subnet. The
/// subnet of an address with the full prefix length is the address itself.
pub fn gateway_routes(ips: &[IpConfig]) -> Vec<GatewayRoute> {
    let mut routes: Vec<GatewayRoute> = Vec::new();
    let mut push = |dst: Cidr, gw: Option<IpAddr>, source: IpAddr| {
        let on_link = gw.is_none() && dst.family() == Family::V4;
        let route = Route {
            scope: on_link.then_some(SCOPE_LINK),
            ..Route::new(dst, gw)
        };
        if routes.iter().all(|earlier| earlier.route.dst != dst) {
            routes.push(GatewayRoute { route, source });
        }
    };
    for ip in ips {
        let (Some(gateway), source) = (ip.gateway, ip.address.address()) else {
            continue;
        };
        push(Cidr::host(gateway), None, source);
        if ip.address != Cidr::host(source) {
            push(ip.address.network(), Some(gateway), source);
        }
    }
    routes
}

fn gateway_of(ip: &IpConfig) -> Result<IpAddr, Error> {
    let address = ip.address;
    let gateway = ip.gateway.ok_or_else(|| {
        let wanted = "ptp needs one for each address: set gateway in ipam";
        Error::config(format!("the gateway of {address}"), "missing", wanted)
    })?;
    if Family::of(gateway) != address.family() {
        let wanted = format!("it must be {}, as {address} is", address.family());
        return Err(Error::config("a gateway", gateway, wanted));
    }
    if gateway == address.address() {
        let wanted = "it is the container's own address";
        return Err(Error::config("a gateway", gateway, wanted));
    }
    Ok(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: &str) -> IpConfig {
        IpConfig {
            interface: None,
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
        }
    }

    fn routes(ips: &[IpConfig]) -> Vec<String> {
        let text = |GatewayRoute { route, source }: &GatewayRoute| {
            let gw = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            format!("{}{gw} src {source}", route.dst)
        };
        gateway_routes(ips).iter().map(text).collect()
    }

    #[test]
    fn the_subnet_is_reached_through_the_gateway() {
        assert_eq!(
            routes(&[ip("10.2.0.2/24", "10.2.0.1"), ip("fd02::2/64", "fd02::1")]),
            [
                "10.2.0.1/32 src 10.2.0.2",
                "10.2.0.0/24 via 10.2.0.1 src 10.2.0.2",
                "fd02::1/128 src fd02::2",
                "fd02::/64 via fd02::1 src fd02::2",
            ]
        );
    }

    #[test]
    fn addresses_share_a_gateway_and_may_have_the_full_prefix_length() {
        let shared = [ip("10.2.0.2/24", "10.2.0.1"), ip("10.2.0.3/32", "10.2.0.1")];
        assert_eq!(
            routes(&shared),
            [
                "10.2.0.1/32 src 10.2.0.2",
                "10.2.0.0/24 via 10.2.0.1 src 10.2.0.2"
            ]
        );
        assert_eq!(
            routes(&[ip("10.2.0.2/32", "169.254.1.1")]),
            ["169.254.1.1/32 src 10.2.0.2"]
        );
    }

    #[test]
    fn a_gateway_must_be_another_address_of_the_family() {
        for (gateway, says) in [
            ("", "the gateway of 10.2.0.2/24"),
            ("fd02::1", "it must be IPv4"),
            ("10.2.0.2", "the container's own address"),
        ] {
            let error = gateway_of(&ip("10.2.0.2/24", gateway)).unwrap_err();
            assert!(error.msg.contains(says) && error.code.0 == 7, "{error:?}");
        }
    }
}
