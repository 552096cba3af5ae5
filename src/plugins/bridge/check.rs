//! CHECK: compares prevResult and configuration with the state of the kernel, as far as the attachment depends on it.

use crate::cni::environment::Target;
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::{Code, Error};
use crate::kernel::log::timed_span;
use crate::kernel::netlink::{Kind, Link, PortFlags, RouteEntry, RouteQuery};
use crate::link::namespace::AttachContext;
use crate::link::{Context, look_up, peer_on_host};
use crate::net::{Cidr, Family, IfName, Route, RouteAttributes};
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::Masquerade;
use crate::plugins::bridge::config::{BridgeConfig, Gateway};
use crate::plugins::bridge::{Bridge, forward_accept, vlan_ports};
use crate::state::{self, BridgeDifference, PortDifference};

/// The desired state of an attachment.
pub struct Expected {
    config: BridgeConfig,
    interface: IfName,
    spoof_check: Option<MacSpoofCheck>,
    result: AddResult,
    container: Interface,
    masquerade: Masquerade,
}

impl Expected {
    /// From a request with a prevResult.
    ///
    /// # Errors
    /// Code 7 if there is no prevResult, or it does not list the container's interface.
    pub fn new(request: &Bridge, target: &Target) -> Result<Expected, Error> {
        let Target { attachment, netns } = target;
        let config = request.config.clone();
        let result = request.previous.clone()?.ok_or_else(|| {
            let msg = "configuration: prevResult is missing, but CHECK compares with it";
            Error::new(Code::INVALID_CONFIG, msg)
                .details("the runtime must pass the result of the ADD")
        })?;
        let is_container = |interface: &&Interface| {
            interface.name == attachment.interface.as_str() && interface.sandbox == *netns
        };
        let container = result
            .interfaces
            .iter()
            .find(is_container)
            .cloned()
            .ok_or_else(|| {
                let wanted = format!("none of them is {} in {netns}", attachment.interface);
                Error::config("prevResult.interfaces", "a list", wanted)
            })?;
        let spoof_check = config
            .mac_spoof_check
            .then(|| MacSpoofCheck::of(&request.network, attachment))
            .transpose()?;
        Ok(Expected {
            spoof_check,
            config,
            interface: attachment.interface.clone(),
            result,
            container,
            masquerade: Masquerade::of(&request.network, attachment),
        })
    }

    /// The addresses of the container's interface: those with its index, or if there are none, those without an index.
    fn addresses(&self) -> impl Iterator<Item = &IpConfig> {
        let index = self
            .result
            .interfaces
            .iter()
            .position(|interface| *interface == self.container);
        let ips = &self.result.ips;
        let wanted = index.filter(|_| ips.iter().any(|ip| ip.interface == index));
        ips.iter().filter(move |ip| ip.interface == wanted)
    }

    /// Whether prevResult lists no other interface in the container. Other plugins of a chain may add routes over their
    /// interfaces.
    fn is_alone(&self) -> bool {
        let sandbox = &self.container.sandbox;
        let interfaces = self.result.interfaces.iter();
        interfaces.filter(|other| other.sandbox == *sandbox).count() == 1
    }

    fn check_masquerade(&self) -> Result<(), Error> {
        let Some(policy) = &self.config.masquerade else {
            return Ok(());
        };
        let addresses: Vec<Cidr> = self.addresses().map(|ip| ip.address).collect();
        self.masquerade.check(&addresses, policy)
    }

    fn check_forwarding(&self) -> Result<(), Error> {
        let Some(forwarding) = &self.config.forwarding else {
            return Ok(());
        };
        let addresses: Vec<Cidr> = self.addresses().map(|ip| ip.address).collect();
        forwarding.check(&forward_accept::families(&addresses))
    }
}

/// # Errors
/// The first difference: object, desired and observed value.
pub fn check(expected: &Expected, context: &AttachContext) -> Result<(), Error> {
    let bridge = check_bridge(expected, context)?;
    let container = check_container(expected, context)?;
    let port = check_port(expected, context, &bridge, &container)?;
    check_mac_spoof_check(expected, &port, &container)?;
    check_addresses(expected, context, &container)?;
    check_routes(expected, context, &container)?;
    timed_span("masquerade", || expected.check_masquerade())?;
    expected.check_forwarding()
}

fn differs(what: impl std::fmt::Display) -> Error {
    Error::failed(format!("check: {what}"))
        .details("the attachment is not as its ADD made it; run DEL, then ADD again")
}

fn check_bridge(expected: &Expected, context: &AttachContext) -> Result<Link, Error> {
    let name = &expected.config.bridge;
    let bridge = context.host.link(name).context("look up bridge", name)?;
    let differences = expected
        .config
        .desired_bridge()
        .differences(bridge.as_ref());
    let bridge = match (differences.first(), bridge) {
        (None, Some(bridge)) => bridge,
        (Some(other @ BridgeDifference::OtherKind(_)), _) => {
            return Err(differs(format!("{name} {other}")));
        }
        (difference, _) => {
            let difference = difference.unwrap_or(&BridgeDifference::Missing);
            return Err(differs(format!("bridge {name} {difference}")));
        }
    };
    if expected.config.gateway != Gateway::None {
        check_gateways(expected, context, &bridge)?;
    }
    Ok(bridge)
}

/// The gateway addresses are on the bridge or, with a VLAN, on the host's interface in that VLAN.
fn check_gateways(
    expected: &Expected,
    context: &AttachContext,
    bridge: &Link,
) -> Result<(), Error> {
    let gateway_of = |ip: &IpConfig| Cidr::new(ip.gateway?, ip.address.prefix());
    let wanted: Vec<Cidr> = expected.addresses().filter_map(gateway_of).collect();
    let vlans = expected.config.vlans.as_ref();
    let interface = match vlans.and_then(|vlans| vlans.gateway.as_ref()) {
        Some(name) if !wanted.is_empty() => {
            let missing = || differs(format!("the gateway's interface {name} is missing"));
            Some(look_up(&context.host, name)?.ok_or_else(missing)?)
        }
        _ => None,
    };
    let link = interface.as_ref().unwrap_or(bridge);
    let name = &link.name;
    if !link.is_up {
        return Err(differs(format!("the gateway's interface {name} is down")));
    }
    let observed = context.host.addresses(link.index);
    let observed = observed
        .map_err(|cause| Error::failed(format!("cannot list addresses of {name}: {cause}")))?;
    let observed: Vec<Cidr> = observed.iter().map(|address| address.cidr).collect();
    match state::missing_addresses(&wanted, &observed).first() {
        None => Ok(()),
        Some(gateway) => {
            let kind = &link.kind;
            Err(differs(format!(
                "{kind} {name} has lost the gateway address {gateway}"
            )))
        }
    }
}

fn check_container(expected: &Expected, context: &AttachContext) -> Result<Link, Error> {
    let name = &expected.interface;
    let link = look_up(&context.pod, name)?
        .ok_or_else(|| differs(format!("interface {name} is missing in the container")))?;
    if link.kind != Kind::Veth {
        return Err(differs(format!(
            "interface {name} is not a veth but a {}",
            link.kind
        )));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let wanted = &expected.container.mac;
    if !wanted.is_empty() && !mac.eq_ignore_ascii_case(wanted) {
        return Err(differs(format!(
            "interface {name} has the MAC address {mac}, expected {wanted}"
        )));
    }
    if !link.is_up && !expected.config.leave_down {
        return Err(differs(format!("interface {name} is down")));
    }
    Ok(link)
}

fn check_port(
    expected: &Expected,
    context: &AttachContext,
    bridge: &Link,
    container: &Link,
) -> Result<Link, Error> {
    let (name, bridge_name) = (&expected.interface, &expected.config.bridge);
    let port = peer_on_host(&context.host, container)
        .context("look up the veth peer of", name)?
        .ok_or_else(|| differs(format!("the veth peer of {name} is not on the host")))?;
    let desired = Some(expected.config.port_flags());
    let host = &port.name;
    match state::port_differences(&port, Some(bridge), desired).first() {
        None => {}
        Some(PortDifference::Detached) => {
            return Err(differs(format!(
                "{host} is not a port of bridge {bridge_name}"
            )));
        }
        Some(PortDifference::Down) => {
            return Err(differs(format!(
                "port {host} of bridge {bridge_name} is down"
            )));
        }
        Some(PortDifference::Flags(PortFlags { hairpin, isolated })) => {
            return Err(differs(format!(
                "port {host} of bridge {bridge_name} has other flags than hairpin {hairpin} and isolated {isolated}"
            )));
        }
    }
    let vlans = expected.config.vlans.as_ref();
    vlans.map_or(Ok(()), |vlans| {
        vlan_ports::check(&context.host, &port, bridge, vlans)
    })?;
    Ok(port)
}

fn check_mac_spoof_check(expected: &Expected, port: &Link, container: &Link) -> Result<(), Error> {
    let (Some(spoof_check), Ok(host), Some(mac)) =
        (&expected.spoof_check, port.name.parse(), container.mac)
    else {
        return Ok(());
    };
    match spoof_check.differing(&host, mac)? {
        Some(what) => Err(differs(format!(
            "{what} differs from what macspoofchk installs for {host} and {mac}"
        ))),
        None => Ok(()),
    }
}

fn check_addresses(
    expected: &Expected,
    context: &AttachContext,
    container: &Link,
) -> Result<(), Error> {
    let name = &expected.interface;
    let observed = context
        .pod
        .addresses(container.index)
        .context("list addresses of", name)?;
    let missing = expected
        .addresses()
        .find(|ip| !observed.iter().any(|a| a.cidr == ip.address));
    missing.map_or(Ok(()), |ip| {
        Err(differs(format!(
            "interface {name} has lost the address {}",
            ip.address
        )))
    })
}

fn check_routes(
    expected: &Expected,
    context: &AttachContext,
    container: &Link,
) -> Result<(), Error> {
    for family in Family::BOTH {
        let of_family = |route: &&Route| route.dst.family() == family;
        let wanted: Vec<&Route> = expected.result.routes.iter().filter(of_family).collect();
        if wanted.is_empty() {
            continue;
        }
        let query = RouteQuery {
            family,
            link: expected.is_alone().then_some(container.index),
        };
        let observed = context
            .pod
            .routes(query)
            .context("list routes of", &expected.interface)?;
        if let Some(missing) = wanted
            .iter()
            .find(|route| !observed.iter().any(|p| matches(p, route)))
        {
            let gw = missing
                .gw
                .map(|gw| format!(" via {gw}"))
                .unwrap_or_default();
            let table = missing
                .table
                .map(|table| format!(" in table {table}"))
                .unwrap_or_default();
            let name = &expected.interface;
            return Err(differs(format!(
                "route {}{gw}{table} over {name} is missing",
                missing.dst
            )));
        }
    }
    Ok(())
}

/// Whether a route matches a desired one, except for metrics, which the Go plugin does not set. The kernel merges equal
/// IPv6 routes over several links into one with several next hops.
fn matches(observed: &RouteEntry, wanted: &Route) -> bool {
    let RouteAttributes {
        priority, table, ..
    } = wanted.attributes();
    observed.dst == wanted.dst.network()
        && observed.table == table
        && wanted
            .gw
            .is_none_or(|gw| observed.gw == Some(gw) || observed.gateways.contains(&gw))
        && priority.is_none_or(|priority| observed.priority == priority)
}
