//! CHECK: compares prevResult and configuration with the state of the kernel, as far as the attachment depends on it.

use crate::cni::environment::Target;
use crate::cni::result::IpConfig;
use crate::error::Error;
use crate::kernel::netlink::{Link, PortFlags};
use crate::link::namespace::AttachContext;
use crate::link::{Context, look_up};
use crate::net::Cidr;
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::plugins::attachment::check::{ExpectedContainer, differs};
use crate::plugins::bridge::config::{BridgeConfig, Gateway};
use crate::plugins::bridge::{Bridge, forward_accept, vlan_ports};
use crate::state::{self, BridgeDifference, PortDifference};

/// The desired state of an attachment.
pub struct Expected<'a> {
    config: &'a BridgeConfig,
    spoof_check: Option<MacSpoofCheck>,
    container: ExpectedContainer,
}

impl Expected<'_> {
    /// From a request with a prevResult.
    ///
    /// # Errors
    /// See [`ExpectedContainer::new`].
    pub fn new<'a>(request: &'a Bridge, target: &Target) -> Result<Expected<'a>, Error> {
        let config = &request.config;
        let previous = request.previous.clone()?;
        let container = ExpectedContainer::new(previous, &request.network, target)?;
        let spoof_check = config
            .mac_spoof_check
            .then(|| MacSpoofCheck::of(&request.network, &target.attachment))
            .transpose()?;
        Ok(Expected {
            spoof_check,
            config,
            container,
        })
    }

    fn check_forwarding(&self) -> Result<(), Error> {
        let Some(forwarding) = &self.config.forwarding else {
            return Ok(());
        };
        let addresses: Vec<Cidr> = self.container.addresses().map(|ip| ip.address).collect();
        forwarding.check(&forward_accept::families(&addresses))
    }
}

/// # Errors
/// The first difference: object, desired and observed value.
pub fn check(expected: &Expected, context: &AttachContext) -> Result<(), Error> {
    let bridge = check_bridge(expected, context)?;
    let container = expected.container.check_link(context)?;
    if !expected.config.leave_down {
        expected.container.check_up(&container)?;
    }
    let port = check_port(expected, context, &bridge, &container)?;
    check_mac_spoof_check(expected, &port, &container)?;
    let policy = expected.config.masquerade.as_ref();
    expected.container.check_rest(context, &container, policy)?;
    expected.check_forwarding()
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
    let wanted: Vec<Cidr> = expected
        .container
        .addresses()
        .filter_map(gateway_of)
        .collect();
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

fn check_port(
    expected: &Expected,
    context: &AttachContext,
    bridge: &Link,
    container: &Link,
) -> Result<Link, Error> {
    let bridge_name = &expected.config.bridge;
    let port = expected.container.host_end(context, container)?;
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
