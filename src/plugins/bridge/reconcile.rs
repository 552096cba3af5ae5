//! Restores what other programs removed or changed while containers run: rules after a firewall reload, addresses and
//! ports of the bridge after a change by a network manager.
//!
//! [`plan`] compares the configuration with the observed state and changes nothing; [`Repair::apply`] makes one repair.
//! Nothing is restored for containers that no longer exist.

use std::fmt;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::{Link, Netlink, PortFlags};
use crate::kernel::sysctl::Parameter;
use crate::link::Context;
use crate::net::{Cidr, Family, IfName, Mac};
use crate::netfilter::forward::Forwarding;
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::Masquerade;
use crate::plugins::attachment::forward;
use crate::plugins::bridge::config::{AddressConflict, BridgeConfig};
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::{forward_accept, gateway, vlan_ports};
use crate::state::{self, BridgeDifference};

/// An attachment whose link exists.
#[derive(Clone, Debug)]
pub struct LiveAttachment {
    pub attachment: Attachment,
    /// The host end of its link.
    pub link: Link,
    /// Its addresses with the prefix length of their subnets.
    pub addresses: Vec<Cidr>,
    /// The MAC address of the container's end, if known.
    pub mac: Option<Mac>,
    /// Whether all its addresses are masqueraded.
    pub is_masqueraded: bool,
    /// Whether the configuration may have changed since its ADD.
    pub is_outdated: bool,
}

impl LiveAttachment {
    /// The desired flags of its port: the current ones if the configuration has changed since the ADD, because
    /// portIsolation would separate the container from others that it communicates with.
    pub fn desired_flags(&self, config: &BridgeConfig) -> PortFlags {
        let current = self.link.port.filter(|_| self.is_outdated);
        current.unwrap_or(config.port_flags())
    }
}

#[derive(Clone, Debug)]
pub struct ObservedBridge {
    /// The link with the bridge's name.
    pub bridge: Option<Link>,
    /// See [`crate::plugins::bridge::is_mac_fixed`].
    pub is_mac_fixed: Option<bool>,
    /// The links of the network on which the host accepts router advertisements.
    pub advertised: Vec<IfName>,
    /// The addresses of the link that should have the gateway addresses.
    pub addresses: Vec<Cidr>,
    /// The families for which forwarding is disabled.
    pub not_forwarded: Vec<Family>,
}

impl ObservedBridge {
    /// Whether a link is a port of another bridge: the configuration named it at the time of the ADD, or an
    /// administrator moved the port. The container works there and is not moved, because it would lose its neighbours.
    pub fn is_on_other_bridge(&self, link: &Link) -> bool {
        let bridge = self.bridge.as_ref().map(|bridge| bridge.index);
        link.master.is_some() && link.master != bridge
    }
}

#[derive(Clone, Debug)]
pub enum Repair {
    /// The bridge is missing or down, or lacks promiscuous mode.
    Bridge,
    /// The bridge's MAC address follows its ports.
    BridgeMac,
    /// The host accepts router advertisements on a link of the network.
    Advertisements(IfName),
    /// Gateway addresses that the bridge lacks.
    Gateways(Vec<Cidr>),
    /// Forwarding is disabled.
    Forwarding(Family),
    /// A port is detached or down, or has other flags.
    Port(LiveAttachment),
    MacSpoofCheck(LiveAttachment, Mac),
    Masquerade(LiveAttachment),
    /// The rules of `forwardAccept`.
    ForwardAccept(Forwarding, Vec<Family>),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::Bridge => f.write_str("the bridge, up and with its configured flags"),
            Repair::BridgeMac => f.write_str("a fixed MAC address of the bridge"),
            Repair::Advertisements(link) => {
                write!(
                    f,
                    "accept_ra=0 on {link}, against router advertisements of pods"
                )
            }
            Repair::Gateways(gateways) => {
                let list: Vec<String> = gateways.iter().map(Cidr::to_string).collect();
                write!(f, "gateway address {} on the bridge", list.join(" and "))
            }
            Repair::Forwarding(family) => write!(f, "{family} forwarding"),
            Repair::Port(live) => write!(
                f,
                "port {} of {}",
                live.link.display_name(),
                live.attachment
            ),
            Repair::MacSpoofCheck(live, mac) => {
                write!(f, "MAC spoof check of {} ({mac})", live.attachment)
            }
            Repair::Masquerade(live) => write!(f, "masquerading of {}", live.attachment),
            Repair::ForwardAccept(..) => f.write_str("the accept rules of the bridge in FORWARD"),
        }
    }
}

/// The repairs, in the order in which to apply them. `gateways` are the addresses that the bridge should have. For a
/// container on another bridge (see [`ObservedBridge::is_on_other_bridge`]) only its rules are restored.
///
/// # Errors
/// If the rules of MAC spoof checks cannot be listed.
pub fn plan(
    (network, config): (&NetworkName, &BridgeConfig),
    observed: &ObservedBridge,
    gateways: &[Cidr],
    live: Vec<LiveAttachment>,
) -> Result<Vec<Repair>, Error> {
    let mut repairs = Vec::new();
    let on_bridge: Vec<&LiveAttachment> = live
        .iter()
        .filter(|live| !observed.is_on_other_bridge(&live.link))
        .collect();
    if !on_bridge.is_empty() {
        repairs.extend(plan_bridge(config, observed, gateways, &on_bridge));
    }
    for live in live {
        if let Some(mac) = live.mac.filter(|_| config.mac_spoof_check)
            && let Ok(name) = live.link.name.parse()
            && MacSpoofCheck::of(network, &live.attachment)?
                .differing(&name, mac)?
                .is_some()
        {
            repairs.push(Repair::MacSpoofCheck(live.clone(), mac));
        }
        if config.masquerade.is_some() && !live.is_masqueraded {
            repairs.push(Repair::Masquerade(live));
        }
    }
    Ok(repairs)
}

/// The repairs of the bridge and its ports.
fn plan_bridge(
    config: &BridgeConfig,
    observed: &ObservedBridge,
    gateways: &[Cidr],
    live: &[&LiveAttachment],
) -> Vec<Repair> {
    let mut repairs = Vec::new();
    let bridge = observed.bridge.as_ref();
    let differences = config.desired_bridge().differences(bridge);
    if differences.iter().any(is_repaired_by_add) {
        repairs.push(Repair::Bridge);
    }
    if observed.is_mac_fixed == Some(false) {
        repairs.push(Repair::BridgeMac);
    }
    let advertised = observed.advertised.iter().cloned();
    repairs.extend(advertised.map(Repair::Advertisements));
    let is_desired = |live: &LiveAttachment| {
        let desired = live.desired_flags(config);
        state::port_differences(&live.link, bridge, Some(desired)).is_empty()
    };
    let differing = live.iter().filter(|live| !is_desired(live));
    repairs.extend(differing.map(|live| Repair::Port((*live).clone())));
    // After the ports, because the gateway's MAC address is announced to them.
    let missing = state::missing_addresses(gateways, &observed.addresses);
    if !missing.is_empty() {
        repairs.push(Repair::Gateways(missing));
    }
    let off = observed.not_forwarded.iter().copied();
    let is_needed = |family: &Family| gateways.iter().any(|gateway| gateway.family() == *family);
    repairs.extend(off.filter(is_needed).map(Repair::Forwarding));
    let addresses = live.iter().flat_map(|it| it.addresses.clone());
    let families = forward_accept::families(&addresses.collect::<Vec<Cidr>>());
    if let Some(forwarding) = &config.forwarding
        && forwarding.check(&families).is_err()
    {
        repairs.push(Repair::ForwardAccept(forwarding.clone(), families));
    }
    repairs
}

/// ADD creates and starts the bridge. It does not replace other interfaces or enable VLAN filtering.
fn is_repaired_by_add(difference: &BridgeDifference) -> bool {
    match difference {
        BridgeDifference::Missing | BridgeDifference::Down | BridgeDifference::NotPromiscuous => {
            true
        }
        BridgeDifference::OtherKind(_) | BridgeDifference::VlanFilteringDisabled => false,
    }
}

impl Repair {
    /// `None` if the repair concerns the whole network.
    pub fn attachment(&self) -> Option<&LiveAttachment> {
        match self {
            Repair::Port(live) | Repair::MacSpoofCheck(live, _) | Repair::Masquerade(live) => {
                Some(live)
            }
            Repair::Bridge
            | Repair::BridgeMac
            | Repair::Advertisements(_)
            | Repair::Gateways(_)
            | Repair::Forwarding(_)
            | Repair::ForwardAccept(..) => None,
        }
    }

    /// Applies the repair. Idempotent.
    ///
    /// # Errors
    /// If the kernel or a program refuses, or the bridge has another address in place of a gateway's.
    pub fn apply(
        &self,
        host: &Netlink,
        network: &NetworkName,
        config: &BridgeConfig,
    ) -> Result<(), Error> {
        match self {
            Repair::Bridge | Repair::BridgeMac => ensure_configured_bridge(host, config).map(drop),
            Repair::Advertisements(link) => Parameter::AcceptRa.set(link, 0).map_err(|cause| {
                Error::failed(format!(
                    "cannot set net.ipv6.conf.{link}.accept_ra to 0: {cause}"
                ))
            }),
            Repair::Gateways(gateways) => {
                let bridge = ensure_configured_bridge(host, config)?;
                // Ignores forceAddress: the other address may be the gateway of running containers.
                let config = BridgeConfig {
                    conflict: AddressConflict::Reject,
                    ..config.clone()
                };
                let interface = gateway::ensure(host, &bridge, gateways, &config)?;
                announce(host, &interface.unwrap_or(bridge))
            }
            Repair::Forwarding(family) => forward(*family),
            Repair::Port(live) => restore_port(host, live, config),
            Repair::MacSpoofCheck(live, mac) => {
                let spoof_check = MacSpoofCheck::of(network, &live.attachment)?;
                spoof_check.install(&name_of(&live.link)?, *mac, host)
            }
            Repair::Masquerade(live) => {
                let masquerade = Masquerade::of(network, &live.attachment);
                let policy = config.masquerade.clone().unwrap_or_default();
                masquerade.install(&live.addresses, &policy)
            }
            Repair::ForwardAccept(forwarding, families) => forwarding.install(families),
        }
    }
}

fn ensure_configured_bridge(host: &Netlink, config: &BridgeConfig) -> Result<Link, Error> {
    ensure_bridge(host, config, config.resolve_mtu(host)?)
}

fn restore_port(host: &Netlink, live: &LiveAttachment, config: &BridgeConfig) -> Result<(), Error> {
    let link = &live.link;
    let bridge = ensure_configured_bridge(host, config)?;
    let name = name_of(link)?;
    if link.master.is_none() {
        host.set_bridge(link.index, bridge.index)
            .context(&format!("attach to bridge {}", bridge.name), &name)?;
        if let Some(vlans) = &config.vlans {
            vlan_ports::join_container_port(host, &name, &bridge, vlans)?;
        }
    }
    let mut flags = live.desired_flags(config);
    flags.isolated |= link.port.is_some_and(|it| it.isolated);
    host.start_link(&name, Some(flags), &link.alias)
        .context("start port", &name)
}

/// Announces the gateway's MAC address to the containers, because a bridge that was created again has another one.
/// Setting it to its current value makes the kernel announce it.
fn announce(host: &Netlink, link: &Link) -> Result<(), Error> {
    let name = name_of(link)?;
    // If a parameter cannot be set, containers resolve the address again when their neighbour entries expire.
    let _ = Parameter::ArpNotify.set(&name, 1);
    let _ = Parameter::NdiscNotify.set(&name, 1);
    let Some(mac) = link.mac else { return Ok(()) };
    host.set_mac(link.index, mac)
        .context("announce the addresses of", &name)
}

fn name_of(link: &Link) -> Result<IfName, Error> {
    let parsed = link.name.parse();
    parsed.map_err(|cause: crate::net::ParseError| Error::failed(cause.to_string()))
}
