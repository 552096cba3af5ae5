//! The plan of an ADD: names, addresses and routes, computed from configuration and lease before anything is changed.

use sha2::{Digest, Sha512};

use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::Error;
use crate::ipam::Lease;
use crate::link::plan::{Subnets, VethInput, VethPlan};
use crate::net::{Cidr, Family, IfName, Mac, Route};
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::plugins::bridge::config::{BridgeConfig, Gateway};

/// The index of the container's interface in the result; see [`Plan::into_result`].
const CONTAINER_INTERFACE: usize = 2;

/// What an ADD creates.
#[derive(Clone, Debug)]
pub struct Plan {
    pub veth: VethPlan,
    pub spoof_check: Option<MacSpoofCheck>,
    /// The gateway addresses of the host.
    pub gateways: Vec<Cidr>,
    /// The host's interface in the container's VLAN that has the gateway addresses; without VLANs the bridge has them.
    pub gateway_interface: Option<IfName>,
    /// Addresses, routes and DNS settings of the result.
    pub lease: Lease,
}

/// The name of the peer of a gateway's interface, a port of the bridge.
pub fn gateway_port(interface: &IfName) -> IfName {
    IfName::derived("veth", Sha512::digest(format!("gateway\0{interface}")))
}

/// The input of a plan besides the lease.
pub struct PlanInput<'a> {
    pub config: &'a BridgeConfig,
    /// The MTU of bridge and veth pair in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    pub network: &'a NetworkName,
    pub attachment: &'a Attachment,
    /// `namespace/name` of the pod, if the runtime passes them.
    pub pod: Option<&'a str>,
    pub spoof_check: Option<MacSpoofCheck>,
}

impl Plan {
    /// # Errors
    /// Code 7 for a gateway of the other address family, and as [`VethPlan::new`].
    pub fn new(input: PlanInput, mut lease: Lease) -> Result<Plan, Error> {
        let PlanInput {
            config,
            mtu,
            network,
            attachment,
            pod,
            spoof_check,
        } = input;
        for ip in &mut lease.ips {
            ip.interface = Some(CONTAINER_INTERFACE);
            if config.gateway != Gateway::None {
                ip.gateway = ip.gateway.or(Some(ip.address.first_host()));
            }
        }
        if config.gateway == Gateway::DefaultRoute {
            check_next_hops(&lease.ips)?;
            lease.routes.extend(missing_default_routes(&lease));
        }
        if let Some(dns) = &config.dns {
            lease.dns = dns.clone();
        }
        let gateways = match config.gateway {
            Gateway::None => Vec::new(),
            Gateway::Address | Gateway::DefaultRoute => gateways_of(&lease.ips)?,
        };
        let vlans = config.vlans.as_ref().filter(|_| !gateways.is_empty());
        let input = VethInput {
            network,
            attachment,
            pod,
            mac: config.mac,
            mtu,
            subnets: Subnets::OnLink,
        };
        Ok(Plan {
            veth: VethPlan::new(input, &lease)?,
            spoof_check,
            gateways,
            gateway_interface: vlans.and_then(|vlans| vlans.gateway.clone()),
            lease,
        })
    }

    /// The result, with the MAC addresses that the kernel reported.
    pub fn into_result(
        self,
        bridge: &IfName,
        observed: &ObservedLinks,
        sandbox: &str,
    ) -> AddResult {
        let interface = |name: &IfName, mac: Option<Mac>| Interface {
            name: name.to_string(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        };
        let mut container = interface(&self.veth.container, Some(self.veth.mac));
        container.sandbox = sandbox.to_owned();
        let Lease { ips, routes, dns } = self.lease;
        let host = interface(&self.veth.host, observed.host_mac);
        let mut interfaces = vec![interface(bridge, observed.bridge_mac), host, container];
        let gateway = self.gateway_interface.as_ref();
        interfaces.extend(gateway.map(|name| interface(name, observed.gateway_mac)));
        AddResult {
            interfaces,
            ips,
            routes,
            dns,
        }
    }
}

/// MAC addresses that the kernel reports after the link was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedLinks {
    pub bridge_mac: Option<Mac>,
    pub host_mac: Option<Mac>,
    /// The MAC address of the gateway's interface in the container's VLAN.
    pub gateway_mac: Option<Mac>,
}

/// A default route through the first gateway of each family without a default route in table main. A route without a
/// next hop counts: it gets the gateway as next hop.
fn missing_default_routes(lease: &Lease) -> Vec<Route> {
    let is_missing = |family: Family| {
        let default = family.default_destination();
        let is_default =
            |route: &Route| route.dst == default && route.attributes().table == Route::MAIN_TABLE;
        !lease.routes.iter().any(is_default)
    };
    let gateways = lease.ips.iter().filter_map(|ip| ip.gateway);
    let mut routes: Vec<Route> = Vec::new();
    for gateway in gateways.filter(|gateway| is_missing(Family::of(*gateway))) {
        let default = Family::of(gateway).default_destination();
        if routes.iter().all(|earlier| earlier.dst != default) {
            routes.push(Route::new(default, Some(gateway)));
        }
    }
    routes
}

/// The gateway addresses, each with the prefix length of its container's address, as the Go plugin adds them to the bridge.
fn gateways_of(ips: &[IpConfig]) -> Result<Vec<Cidr>, Error> {
    let mut gateways = Vec::new();
    for IpConfig {
        address, gateway, ..
    } in ips
    {
        let Some(gateway) = gateway else { continue };
        let cidr = Cidr::new(*gateway, address.prefix()).ok_or_else(|| {
            let wanted = format!("it must be {}, as {address} is", address.family());
            Error::config("a gateway", gateway, wanted)
        })?;
        if !gateways.contains(&cidr) {
            gateways.push(cidr);
        }
    }
    Ok(gateways)
}

/// Rejects gateways of another family than their container's address.
fn check_next_hops(ips: &[IpConfig]) -> Result<(), Error> {
    for IpConfig {
        address, gateway, ..
    } in ips
    {
        if let Some(gateway) = gateway.filter(|gateway| Family::of(*gateway) != address.family()) {
            let family = address.family();
            let wanted = format!("isDefaultGateway needs an {family} one for {address}");
            return Err(Error::config("a gateway", gateway, wanted));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::args::Args;
    use crate::cni::conf::NetConf;
    use crate::cni::result::Dns;
    use crate::plugins::attachment::mtu::Mtu;

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
        let input = PlanInput {
            config: &config,
            mtu: match config.mtu {
                Mtu::Bytes(mtu) => Some(mtu),
                Mtu::Kernel | Mtu::Uplink => None,
            },
            network: &conf.name,
            attachment: &attachment("eth0"),
            pod: None,
            spoof_check: None,
        };
        Plan::new(input, lease)
    }

    fn attachment(interface: &str) -> Attachment {
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
    fn the_mac_derives_from_the_address() {
        let dual = plan("", &[("fd00::7/64", ""), ("10.1.2.3/24", "")], vec![]).unwrap();
        assert_eq!(dual.veth.mac.to_string(), "0a:58:0a:01:02:03");
        let v6 = plan("", &[("fd00::7/64", "")], vec![]).unwrap();
        let again = plan("", &[("fd00::7/112", "")], vec![]).unwrap();
        assert_eq!(v6.veth.mac, again.veth.mac);
        assert!(
            v6.veth.mac.is_assignable() && plan("", &[], vec![]).unwrap().veth.mac.is_assignable()
        );
    }

    #[test]
    fn the_gateway_is_the_first_address_unless_ipam_sets_one() {
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
        assert!(plan.veth.routes.is_empty());
    }

    #[test]
    fn in_a_vlan_the_result_lists_the_gateway_interface_last() {
        let ips = [("10.1.2.3/24", "")];
        let observed = ObservedLinks {
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
                .into_result(&"cni0".parse().unwrap(), &observed, "/n")
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
    fn routes_without_a_next_hop_get_the_gateway_unless_they_are_on_link() {
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
        assert_eq!(plan.veth.routes[0].gw, "10.1.2.1".parse().ok());
        assert_eq!(plan.veth.routes[1].gw, None);
        assert_eq!(
            plan.lease.routes[0].gw, None,
            "the result contains the unmodified route"
        );
    }

    #[test]
    fn a_default_route_is_added_per_family_once() {
        let keys = r#", "isDefaultGateway": true"#;
        let ips = [("10.1.2.3/24", ""), ("fd00::3/64", "")];
        let added = plan(keys, &ips, vec![]).unwrap().lease.routes;
        assert_eq!(added.len(), 2);
        assert_eq!(added[0], default_v4(Some("10.1.2.1")));
        for configured in [default_v4(None), default_v4(Some("10.1.2.9"))] {
            let routes = plan(keys, &ips[..1], vec![configured.clone()])
                .unwrap()
                .lease
                .routes;
            assert_eq!(routes, [configured]);
        }
        let other_table = Route {
            table: Some(100),
            ..default_v4(None)
        };
        assert_eq!(
            plan(keys, &ips[..1], vec![other_table])
                .unwrap()
                .lease
                .routes
                .len(),
            2
        );
    }

    #[test]
    fn a_gateway_outside_the_subnet_has_the_prefix_length_of_the_address() {
        let gateways =
            |keys: &str, ips: &[(&str, &str)]| plan(keys, ips, vec![]).map(|plan| plan.gateways);
        let (gateway, default) = (r#", "isGateway": true"#, r#", "isDefaultGateway": true"#);
        let cidrs = |text: &str| vec![text.parse::<Cidr>().unwrap()];
        let (v4, v6) = (("10.1.2.3/24", "fe80::1"), ("fd00::3/64", "10.9.0.1"));
        assert_eq!(
            gateways(default, &[("fd00::3/64", "fe80::1")]),
            Ok(cidrs("fe80::1/64"))
        );
        assert_eq!(gateways(gateway, &[v4]), Ok(cidrs("fe80::1/24")));
        assert_eq!(gateways("", &[v4, v6]), Ok(vec![]));
        for (keys, ip) in [(default, v4), (gateway, v6), (default, v6)] {
            let error = gateways(keys, &[ip]).unwrap_err();
            assert!(error.msg.contains(ip.1) && error.code.0 == 7, "{error:?}");
        }
    }

    #[test]
    fn routes_have_no_duplicates_and_no_ipv6_host_bits() {
        let route = |dst: &str, gw: &str| Route::new(dst.parse().unwrap(), gw.parse().ok());
        let other_scope = Route {
            scope: Some(255 + 254),
            ..route("10.9.0.0/16", "")
        };
        let routes = vec![
            route("10.9.0.0/16", ""),
            route("10.9.0.0/16", "10.1.2.1"),
            other_scope.clone(),
            route("fd09::5/64", "fe80::1"),
            route("fd09::6/64", "fe80::1"),
        ];
        let plan = plan("", &[("10.1.2.3/24", "10.1.2.1")], routes.clone()).unwrap();
        let kernel = [
            routes[1].clone(),
            other_scope,
            route("fd09::/64", "fe80::1"),
        ];
        assert_eq!(plan.veth.routes, kernel);
        assert_eq!(plan.lease.routes, routes);
    }

    #[test]
    fn ipv6_requires_its_minimum_mtu() {
        assert!(plan(r#", "mtu": 1200"#, &[("fd00::3/64", "")], vec![]).is_err());
        assert!(plan(r#", "mtu": 1200"#, &[("10.1.2.3/24", "")], vec![]).is_ok());
    }
}
