//! What an ADD is going to make, worked out before anything is made. Pure data, from configuration and lease alone.

use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::bridge::config::{BridgeConfig, Gateway};
use crate::bridge::spoof::Guard;
use crate::cni::request::{Attachment, Id};
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::Error;
use crate::ipam::Lease;
use crate::net::{Cidr, Family, IfName, Mac, Route};

/// The longest alias of a link in bytes, without its terminator (IFALIASZ, linux/if.h).
const MAX_ALIAS: usize = 255;

/// The digits in the name of a veth: with "veth" they are the fifteen bytes that a name may have, and 44 bits of a hash.
const HOST_DIGITS: usize = 11;

/// The smallest MTU of IPv6 in bytes (RFC 8200, section 5).
pub const MIN_MTU_IPV6: u32 = 1280;

/// The position of the container's interface among those that the plan makes; see [`Plan::into_result`].
const CONTAINER_INTERFACE: usize = 2;

/// What an attachment will be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the veth's end on the host.
    pub host: IfName,
    /// Whose it is, for whoever lists links.
    pub alias: String,
    /// The name of the end in the container.
    pub container: IfName,
    /// The MAC address of that end.
    pub mac: Mac,
    /// What keeps the container from using another MAC address.
    pub guard: Option<Guard>,
    /// The gateway's addresses; empty when there is none.
    pub gateways: Vec<Cidr>,
    /// The host's interface in the container's VLAN that has them; without VLANs it is the bridge.
    pub gateway_interface: Option<IfName>,
    /// The routes to program, next hops filled in.
    pub routes: Vec<Route>,
    /// Addresses, routes and name service as the result tells them.
    pub lease: Lease,
}

/// The end of a veth pair on the host: found again without the container's namespace.
pub fn host_interface(network: &Id, who: &Attachment) -> IfName {
    let digest = Sha512::new()
        .chain_update(network.as_str())
        .chain_update("\0")
        .chain_update(who.container.as_str())
        .chain_update("\0")
        .chain_update(who.interface.as_str())
        .finalize();
    veth_name(digest)
}

/// Whether a name is like those of [`host_interface`].
pub fn is_host_interface(name: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix("veth")
        .is_some_and(|digits| digits.len() == HOST_DIGITS && digits.bytes().all(is_digit))
}

/// The port of a bridge behind a gateway's interface: whichever ADD makes it, makes the same one.
pub fn gateway_port(interface: &IfName) -> IfName {
    veth_name(Sha512::digest(format!("gateway\0{interface}")))
}

fn veth_name(digest: impl AsRef<[u8]>) -> IfName {
    let digest = digest.as_ref();
    let hex: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("veth{}", &hex[..HOST_DIGITS])
        .parse()
        .expect("it is fifteen bytes of ASCII")
}

impl Plan {
    /// Works out an attachment.
    ///
    /// # Errors
    /// Code 7 when the MTU is too small for the lease's IPv6 addresses.
    pub fn new(
        config: &BridgeConfig,
        network: &Id,
        who: &Attachment,
        lease: Lease,
    ) -> Result<Plan, Error> {
        let mut lease = lease;
        let has_v6 = lease.ips.iter().any(|ip| ip.address.family() == Family::V6);
        if let Some(mtu) = config
            .mtu
            .bytes()
            .filter(|mtu| has_v6 && *mtu < MIN_MTU_IPV6)
        {
            return Err(Error::config(
                "mtu",
                mtu,
                format!("IPv6 needs at least {MIN_MTU_IPV6}"),
            ));
        }
        for ip in &mut lease.ips {
            ip.interface = Some(CONTAINER_INTERFACE);
            if config.gateway != Gateway::None {
                ip.gateway = ip.gateway.or(Some(ip.address.first_host()));
            }
        }
        if config.gateway == Gateway::DefaultRoute {
            lease.routes.extend(missing_default_routes(&lease));
        }
        if let Some(dns) = &config.dns {
            lease.dns = dns.clone();
        }
        let gateways = match config.gateway {
            Gateway::None => Vec::new(),
            Gateway::Address | Gateway::DefaultRoute => gateways_of(&lease.ips),
        };
        let vlans = config.vlans.as_ref().filter(|_| !gateways.is_empty());
        let mac = config
            .mac
            .unwrap_or_else(|| mac_for(&lease.ips, network, who));
        Ok(Plan {
            host: host_interface(network, who),
            alias: String::new(),
            container: who.interface.clone(),
            mac,
            guard: None,
            gateways,
            gateway_interface: vlans.and_then(|vlans| vlans.gateway.clone()),
            routes: lease
                .routes
                .iter()
                .map(|route| with_next_hop(route, &lease.ips))
                .collect(),
            lease,
        })
    }

    /// The same with an alias for the host's end, cut to what the kernel takes. It comes from whoever names pods and is
    /// printed raw by those who list links: no control character gets there.
    pub fn with_alias(mut self, alias: &str) -> Plan {
        self.alias = alias[..alias.floor_char_boundary(MAX_ALIAS)].to_owned();
        self.alias = self.alias.replace(char::is_control, "?");
        self
    }

    /// The same with a guard against spoofed MAC addresses.
    pub fn with_guard(self, guard: Option<Guard>) -> Plan {
        Plan { guard, ..self }
    }

    /// The addresses of the container.
    pub fn addresses(&self) -> Vec<Cidr> {
        self.lease.ips.iter().map(|ip| ip.address).collect()
    }

    /// The result, with what only the kernel knew.
    pub fn into_result(self, bridge: &IfName, facts: &Facts, sandbox: &str) -> AddResult {
        let interface = |name: &IfName, mac: Option<Mac>| Interface {
            name: name.to_string(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        };
        let mut container = interface(&self.container, Some(self.mac));
        container.sandbox = sandbox.to_owned();
        let Lease { ips, routes, dns } = self.lease;
        let host = interface(&self.host, facts.host_mac);
        let mut interfaces = vec![interface(bridge, facts.bridge_mac), host, container];
        let gateway = self.gateway_interface.as_ref();
        interfaces.extend(gateway.map(|name| interface(name, facts.gateway_mac)));
        AddResult {
            interfaces,
            ips,
            routes,
            dns,
        }
    }
}

/// What the kernel tells of a finished attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The MAC address of the bridge.
    pub bridge_mac: Option<Mac>,
    /// The MAC address of the veth's end on the host.
    pub host_mac: Option<Mac>,
    /// The MAC address of the gateway's interface in the container's VLAN.
    pub gateway_mac: Option<Mac>,
}

/// A default route through the first gateway of each family that has none yet. One without a next hop counts: it gets
/// the gateway as its next hop (in other tables it does not help the main one).
fn missing_default_routes(lease: &Lease) -> Vec<Route> {
    let lacks = |family: Family| {
        let default = family.default_destination();
        let is_default = |route: &Route| {
            route.dst == default
                && route
                    .table
                    .is_none_or(|table| table == 0 || table == Route::MAIN_TABLE)
        };
        !lease.routes.iter().any(is_default)
    };
    let families = Family::BOTH.into_iter().filter(|family| lacks(*family));
    let route = |family: Family| {
        let gateway = gateway_of(&lease.ips, family)?;
        Some(Route::new(family.default_destination(), Some(gateway)))
    };
    families.filter_map(route).collect()
}

fn gateway_of(ips: &[IpConfig], family: Family) -> Option<IpAddr> {
    ips.iter()
        .filter_map(|ip| ip.gateway)
        .find(|gateway| Family::of(*gateway) == family)
}

fn gateways_of(ips: &[IpConfig]) -> Vec<Cidr> {
    let mut gateways = Vec::new();
    for ip in ips {
        let gateway = ip
            .gateway
            .and_then(|gateway| Cidr::new(gateway, ip.address.prefix()));
        gateways.extend(gateway.filter(|gateway| !gateways.contains(gateway)));
    }
    gateways
}

/// A route without a next hop goes to the gateway of its family, unless it says that its destination is on the link.
fn with_next_hop(route: &Route, ips: &[IpConfig]) -> Route {
    let mut route = route.clone();
    if route.gw.is_none() && !route.is_on_link() {
        route.gw = gateway_of(ips, route.dst.family());
    }
    route
}

/// A MAC address that follows the address, so that whoever inherits the address is found under the neighbours' cached
/// entry; without an address one that follows the attachment.
fn mac_for(ips: &[IpConfig], network: &Id, who: &Attachment) -> Mac {
    let v4 = ips.iter().find_map(|ip| match ip.address.address() {
        IpAddr::V4(v4) => Some(v4.octets()),
        IpAddr::V6(_) => None,
    });
    let [a, b, c, d] = v4.unwrap_or_else(|| match ips.first() {
        Some(ip) => last_four(Sha512::digest(ip.address.address().to_string())),
        None => last_four(Sha512::digest(format!(
            "{network}\0{}\0{}",
            who.container, who.interface
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
    use crate::cni::conf::NetConf;
    use crate::cni::request::Args;
    use crate::cni::result::Dns;

    fn plan(keys: &str, ips: &[(&str, &str)], routes: Vec<Route>) -> Result<Plan, Error> {
        let conf = format!(r#"{{"name": "n", "cniVersion": "1.0.0"{keys}}}"#);
        let conf = NetConf::parse(conf.into_bytes()).unwrap();
        let config = BridgeConfig::parse(&conf, &Args::default()).unwrap();
        let ip = |(address, gateway): &(&str, &str)| IpConfig {
            interface: None,
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        let lease = Lease {
            ips: ips.iter().map(ip).collect(),
            routes,
            dns: Dns::default(),
        };
        Plan::new(&config, &conf.name, &who("eth0"), lease)
    }

    fn who(interface: &str) -> Attachment {
        Attachment {
            container: "c1".parse().unwrap(),
            interface: interface.parse().unwrap(),
        }
    }

    fn default_v4(gw: Option<&str>) -> Route {
        Route::new(
            "0.0.0.0/0".parse().unwrap(),
            gw.map(|gw| gw.parse().unwrap()),
        )
    }

    #[test]
    fn the_hosts_end_is_named_after_the_attachment() {
        let network = "n".parse().unwrap();
        let name = host_interface(&network, &who("eth0"));
        assert!(is_host_interface(name.as_str()));
        assert_eq!(name, host_interface(&network, &who("eth0")));
        assert_ne!(name, host_interface(&network, &who("eth1")));
    }

    #[test]
    fn an_alias_is_short_and_printable() {
        let plan = plan("", &[], vec![]).unwrap();
        let plan = plan.with_alias(&format!("shop/\x1b[2J\n\u{9b}{}", "ü".repeat(200)));
        assert!(plan.alias.starts_with("shop/?[2J??ü") && plan.alias.len() <= 255);
    }

    #[test]
    fn the_mac_follows_the_address() {
        let dual = plan("", &[("fd00::7/64", ""), ("10.1.2.3/24", "")], vec![]).unwrap();
        assert_eq!(dual.mac.to_string(), "0a:58:0a:01:02:03");
        let v6 = plan("", &[("fd00::7/64", "")], vec![]).unwrap();
        let again = plan("", &[("fd00::7/112", "")], vec![]).unwrap();
        assert_eq!(v6.mac, again.mac);
        assert!(v6.mac.is_assignable() && plan("", &[], vec![]).unwrap().mac.is_assignable());
    }

    #[test]
    fn a_gateway_is_the_first_address_unless_ipam_says_otherwise() {
        let keys = r#", "isGateway": true"#;
        let plan = plan(
            keys,
            &[("10.1.2.3/24", ""), ("fd00::3/64", "fd00::9")],
            vec![],
        )
        .unwrap();
        let gateways: Vec<String> = plan.gateways.iter().map(Cidr::to_string).collect();
        assert_eq!(gateways, ["10.1.2.1/24", "fd00::9/64"]);
        assert_eq!(plan.lease.ips[0].gateway, "10.1.2.1".parse().ok());
        assert!(plan.routes.is_empty());
    }

    #[test]
    fn in_a_vlan_the_gateway_has_an_interface_which_the_result_lists_last() {
        let ips = [("10.1.2.3/24", "")];
        let facts = Facts {
            bridge_mac: None,
            host_mac: None,
            gateway_mac: Some(Mac::from_bytes([2, 0, 0, 0, 0, 7])),
        };
        for (keys, expected) in [
            (r#", "isGateway": true, "vlan": 100"#, Some("cni0.100")),
            (r#", "isGateway": true, "vlanTrunk": [{"id": 7}]"#, None),
            (r#", "vlan": 100"#, None),
        ] {
            let plan = plan(keys, &ips, vec![]).unwrap();
            let interfaces = plan
                .into_result(&"cni0".parse().unwrap(), &facts, "/n")
                .interfaces;
            let fourth = interfaces
                .get(3)
                .map(|last| (last.name.as_str(), last.mac.as_str()));
            assert_eq!(
                fourth,
                expected.map(|name| (name, "02:00:00:00:00:07")),
                "{keys}"
            );
        }
    }

    #[test]
    fn routes_without_a_next_hop_go_to_the_gateway_but_not_those_on_the_link() {
        let on_link = Route {
            scope: Some(253),
            ..Route::new("10.9.0.0/16".parse().unwrap(), None)
        };
        let plan = plan(
            "",
            &[("10.1.2.3/24", "10.1.2.1")],
            vec![default_v4(None), on_link],
        )
        .unwrap();
        assert_eq!(plan.routes[0].gw, "10.1.2.1".parse().ok());
        assert_eq!(plan.routes[1].gw, None);
        assert_eq!(
            plan.lease.routes[0].gw, None,
            "the result tells the route as IPAM gave it"
        );
    }

    #[test]
    fn a_default_route_is_added_per_family_once() {
        let keys = r#", "isDefaultGateway": true"#;
        let ips = [("10.1.2.3/24", ""), ("fd00::3/64", "")];
        let added = plan(keys, &ips, vec![]).unwrap().lease.routes;
        assert_eq!(added.len(), 2);
        assert_eq!(added[0], default_v4(Some("10.1.2.1")));
        for given in [default_v4(None), default_v4(Some("10.1.2.9"))] {
            let routes = plan(keys, &ips[..1], vec![given.clone()])
                .unwrap()
                .lease
                .routes;
            assert_eq!(routes, [given]);
        }
        let elsewhere = Route {
            table: Some(100),
            ..default_v4(None)
        };
        assert_eq!(
            plan(keys, &ips[..1], vec![elsewhere])
                .unwrap()
                .lease
                .routes
                .len(),
            2
        );
    }

    #[test]
    fn ipv6_needs_its_smallest_mtu() {
        assert!(plan(r#", "mtu": 1200"#, &[("fd00::3/64", "")], vec![]).is_err());
        assert!(plan(r#", "mtu": 1200"#, &[("10.1.2.3/24", "")], vec![]).is_ok());
    }
}
