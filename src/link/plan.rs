//! The plan of a veth pair between host and container: names, MAC address, addresses and routes, computed before
//! anything is changed.

use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::IpConfig;
use crate::error::Error;
use crate::ipam::Lease;
use crate::net::{Cidr, Family, IfName, Mac, Route};

/// Maximum length of a link alias in bytes, without its terminator (IFALIASZ, linux/if.h).
const MAX_ALIAS: usize = 255;

/// The minimum MTU of IPv6 in bytes (RFC 8200, section 5).
pub const MIN_MTU_IPV6: u32 = 1280;

#[derive(Clone, Debug)]
pub struct VethPlan {
    /// The name of the host end.
    pub host: IfName,
    /// The alias of the host end, which names the pod.
    pub alias: String,
    /// The name of the container end.
    pub container: IfName,
    /// The MAC address of the container end.
    pub mac: Mac,
    /// The MTU of both ends, in bytes; the kernel's default if `None`.
    pub mtu: Option<u32>,
    /// The addresses of the container end.
    pub addresses: Vec<Cidr>,
    /// The routes of the container, without duplicates.
    pub routes: Vec<Route>,
    pub subnets: Subnets,
}

/// How a container reaches the subnets of its addresses.
#[derive(Clone, Debug)]
pub enum Subnets {
    /// They are on the link: the kernel adds the routes.
    OnLink,
    /// Through routes to gateways and over them, which are added in this order before those of the lease.
    Routed(Vec<GatewayRoute>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRoute {
    pub route: Route,
    /// The source address of packets.
    pub source: IpAddr,
}

/// What a [`VethPlan`] is computed from, with a lease.
pub struct VethInput<'a> {
    pub network: &'a NetworkName,
    pub attachment: &'a Attachment,
    /// `NAMESPACE/NAME` of the pod, if the runtime passed it.
    pub pod: Option<&'a str>,
    /// The requested MAC address.
    pub mac: Option<Mac>,
    /// The MTU of both ends, in bytes; the kernel's default if `None`.
    pub mtu: Option<u32>,
    pub subnets: Subnets,
}

impl VethPlan {
    /// # Errors
    /// Code 7 for an MTU that is too small for IPv6, and as [`check_routes`].
    pub fn new(input: VethInput, lease: &Lease) -> Result<VethPlan, Error> {
        let VethInput {
            network,
            attachment,
            pod,
            mac,
            mtu,
            subnets,
        } = input;
        let addresses: Vec<Cidr> = lease.ips.iter().map(|ip| ip.address).collect();
        let has_v6 = addresses.iter().any(|it| it.family() == Family::V6);
        if let Some(mtu) = mtu.filter(|mtu| has_v6 && *mtu < MIN_MTU_IPV6) {
            let wanted = format!("IPv6 needs at least {MIN_MTU_IPV6}");
            return Err(Error::config("mtu", mtu, wanted));
        }
        Ok(VethPlan {
            host: attachment.host_interface(network),
            alias: alias_of(pod.unwrap_or(attachment.container.as_str())),
            container: attachment.interface.clone(),
            mac: mac.unwrap_or_else(|| mac_for(&lease.ips, network, attachment)),
            mtu,
            routes: kernel_routes(lease)?,
            addresses,
            subnets,
        })
    }
}

/// The alias of the host end, truncated to the maximum length. Control characters are replaced, because programs that
/// list links print them raw.
fn alias_of(owner: &str) -> String {
    owner[..owner.floor_char_boundary(MAX_ALIAS)].replace(char::is_control, "?")
}

/// Rejects routes that the kernel rejects for all addresses, before anything is changed.
///
/// # Errors
/// Code 7 for an IPv4 destination with host bits (`fib_valid_key_len`, net/ipv4/fib_trie.c), or a next hop of the other
/// family. The host bits of an IPv6 destination are cleared by the kernel (`ip6_route_info_create`, net/ipv6/route.c).
pub fn check_routes(routes: &[Route]) -> Result<(), Error> {
    for route in routes {
        let (dst, family) = (route.dst, route.dst.family());
        if family == Family::V4 && !dst.is_network() {
            let wanted = format!("it has host bits set: the network is {}", dst.network());
            return Err(Error::config("a route's dst", dst, wanted));
        }
        if let Some(gw) = route.gw.filter(|gw| Family::of(*gw) != family) {
            let wanted = format!("it must be {family}, as its destination {dst} is");
            return Err(Error::config("a route's gw", gw, wanted));
        }
    }
    Ok(())
}

/// The routes of a lease without duplicates: the kernel refuses the second of two routes that are equal in what it compares
/// (`fib_table_insert`, net/ipv4/fib_trie.c; `fib6_add_rt2node`, net/ipv6/ip6_fib.c).
fn kernel_routes(lease: &Lease) -> Result<Vec<Route>, Error> {
    check_routes(&lease.routes)?;
    let mut routes: Vec<Route> = Vec::new();
    let key = |route: &Route| {
        let attributes = route.attributes();
        let scope = (route.dst.family() == Family::V4).then_some(attributes.scope);
        (
            route.dst,
            route.gw,
            attributes.table,
            attributes.priority,
            scope,
        )
    };
    for route in &lease.routes {
        let mut route = with_next_hop(route, &lease.ips);
        route.dst = route.dst.network();
        if !routes.iter().any(|earlier| key(earlier) == key(&route)) {
            routes.push(route);
        }
    }
    Ok(routes)
}

/// The next hop of a route without one is the gateway of its family, unless its scope is link or host.
fn with_next_hop(route: &Route, ips: &[IpConfig]) -> Route {
    let mut route = route.clone();
    if route.gw.is_none() && !route.is_on_link() {
        route.gw = gateway_of(ips, route.dst.family());
    }
    route
}

fn gateway_of(ips: &[IpConfig], family: Family) -> Option<IpAddr> {
    ips.iter()
        .filter_map(|ip| ip.gateway)
        .find(|gateway| Family::of(*gateway) == family)
}

/// Derived from the IP address, so that cached neighbour entries stay valid when another container gets the address;
/// without an address, from the attachment.
fn mac_for(ips: &[IpConfig], network: &NetworkName, attachment: &Attachment) -> Mac {
    let v4 = ips.iter().find_map(|ip| match ip.address.address() {
        IpAddr::V4(v4) => Some(v4.octets()),
        IpAddr::V6(_) => None,
    });
    let [a, b, c, d] = v4.unwrap_or_else(|| match ips.first() {
        Some(ip) => last_four(Sha512::digest(ip.address.address().to_string())),
        None => last_four(Sha512::digest(format!(
            "{network}\0{}\0{}",
            attachment.container, attachment.interface
        ))),
    });
    Mac::from_bytes([0x0a, 0x58, a, b, c, d])
}

fn last_four(digest: impl AsRef<[u8]>) -> [u8; 4] {
    *digest
        .as_ref()
        .last_chunk()
        .expect("a digest is longer than four bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_end_is_named_after_the_attachment() {
        let attachment = |interface: &str| Attachment {
            container: "c1".parse().unwrap(),
            interface: interface.parse().unwrap(),
        };
        let network = "n".parse().unwrap();
        let name = attachment("eth0").host_interface(&network);
        assert!(IfName::is_derived_veth(name.as_str()));
        assert!(!IfName::is_derived_veth("veth35229476"));
        assert_eq!(name, attachment("eth0").host_interface(&network));
        assert_ne!(name, attachment("eth1").host_interface(&network));
    }

    #[test]
    fn an_alias_is_short_and_printable() {
        let alias = alias_of(&format!("shop/\x1b[2J\n\u{9b}{}", "ü".repeat(200)));
        assert!(alias.starts_with("shop/?[2J??ü") && alias.len() <= 255);
    }

    #[test]
    fn routes_that_the_kernel_rejects_are_rejected_early() {
        for (dst, gw, says) in [
            ("10.9.0.1/16", "", "the network is 10.9.0.0/16"),
            ("10.9.0.0/16", "fe80::1", "it must be IPv4"),
            ("::/0", "10.1.2.1", "it must be IPv6"),
        ] {
            let route = Route::new(dst.parse().unwrap(), gw.parse().ok());
            let error = check_routes(&[route]).unwrap_err();
            assert!(error.msg.contains(says) && error.code.0 == 7, "{error:?}");
        }
    }
}
