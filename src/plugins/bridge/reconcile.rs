//! Putting back what others took from live containers: a firewall reload the rules, a network manager the bridge's
//! address or its ports.
//!
//! [`plan`] compares what there is with what the configuration asks for, without touching anything; [`Repair::apply`]
//! does one thing of it. Nothing is restored for containers that are gone.

use std::fmt;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::{Link, Netlink, PortFlags};
use crate::kernel::sysctl::Parameter;
use crate::net::{Cidr, Family, IfName, Mac};
use crate::netfilter::forward::Forwarding;
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::Masquerade;
use crate::plugins::bridge::config::{AddressConflict, BridgeConfig};
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::link::failed;
use crate::state::{self, BridgeDifference};
use crate::plugins::bridge::{forward_accept, gateway, uplink, vlan_ports};

/// A container that has its link.
#[derive(Clone, Debug)]
pub struct LiveAttachment {
    /// Which one.
    pub attachment: Attachment,
    /// The end of its link on the host.
    pub link: Link,
    /// Its addresses with the prefix length of their subnets.
    pub addresses: Vec<Cidr>,
    /// The MAC address of its own end, where it is known.
    pub mac: Option<Mac>,
    /// Whether all its addresses are masqueraded.
    pub is_masqueraded: bool,
    /// Whether the configuration may have changed since its ADD.
    pub is_outdated: bool,
}

impl LiveAttachment {
    /// The flags that its port should have. Where the configuration has changed since the ADD, those that a port of the
    /// bridge has: portIsolation would separate it from containers that it talks with.
    pub fn wanted_flags(&self, config: &BridgeConfig) -> PortFlags {
        let present = self.link.port.filter(|_| self.is_outdated);
        present.unwrap_or(config.port_flags())
    }
}

/// The bridge as it is.
#[derive(Clone, Debug)]
pub struct ObservedBridge {
    /// The link of the bridge's name.
    pub bridge: Option<Link>,
    /// Whether its MAC address was set; see [`crate::plugins::bridge::is_mac_fixed`].
    pub is_mac_fixed: Option<bool>,
    /// The links of the network by which the host takes router advertisements.
    pub advertised: Vec<IfName>,
    /// The addresses of the link that should have the gateways'.
    pub addresses: Vec<Cidr>,
    /// The families that the host does not forward.
    pub not_forwarded: Vec<Family>,
}

impl ObservedBridge {
    /// Whether a link is a port of another bridge than this one: the configuration named that one when the container was
    /// attached, or an administrator has moved it. The container works there, and would lose its neighbours here.
    pub fn is_elsewhere(&self, link: &Link) -> bool {
        let bridge = self.bridge.as_ref().map(|bridge| bridge.index);
        link.master.is_some() && link.master != bridge
    }
}

/// One thing to put back.
#[derive(Clone, Debug)]
pub enum Repair {
    /// The bridge is missing, down or not promiscuous though it should be.
    Bridge,
    /// The bridge's MAC address is not set, and changes with the ports.
    BridgeMac,
    /// The host takes router advertisements by a link of the network.
    Advertisements(IfName),
    /// The bridge lacks addresses of gateways.
    Gateways(Vec<Cidr>),
    /// The host does not forward packets of a family.
    Forwarding(Family),
    /// A port is on no bridge, down, or has other flags than is asked for.
    Port(LiveAttachment),
    /// Rules that keep a container from using another MAC address.
    MacSpoofCheck(LiveAttachment, Mac),
    /// Rules that masquerade a container.
    Masquerade(LiveAttachment),
    /// Rules that let packets of the bridge pass FORWARD (`forwardAccept`).
    ForwardAccept(Forwarding, Vec<Family>),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::Bridge => f.write_str("the bridge itself, up and with its flags"),
            Repair::BridgeMac => f.write_str("a MAC address of the bridge that does not change"),
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
            Repair::Forwarding(family) => write!(f, "forwarding of {family}"),
            Repair::Port(live) => write!(
                f,
                "port {} on the bridge, for {}",
                live.link.display_name(),
                live.attachment
            ),
            Repair::MacSpoofCheck(live, mac) => {
                write!(f, "MAC address check for {} ({mac})", live.attachment)
            }
            Repair::Masquerade(live) => write!(f, "masquerading of {}", live.attachment),
            Repair::ForwardAccept(..) => f.write_str("the bridge's rules in FORWARD"),
        }
    }
}

/// What is to be put back, in the order in which it must be. `gateways` are the addresses that the bridge should have. Of
/// a container that is elsewhere (see [`ObservedBridge::is_elsewhere`]) only the rules are.
///
/// # Errors
/// When the rules of MAC spoof checks cannot be listed.
pub fn plan(
    (network, config): (&NetworkName, &BridgeConfig),
    present: &ObservedBridge,
    gateways: &[Cidr],
    live: Vec<LiveAttachment>,
) -> Result<Vec<Repair>, Error> {
    let mut repairs = Vec::new();
    let here: Vec<&LiveAttachment> = live
        .iter()
        .filter(|live| !present.is_elsewhere(&live.link))
        .collect();
    if !here.is_empty() {
        repairs.extend(plan_bridge(config, present, gateways, &here));
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

/// What the bridge and its containers lack.
fn plan_bridge(
    config: &BridgeConfig,
    present: &ObservedBridge,
    gateways: &[Cidr],
    here: &[&LiveAttachment],
) -> Vec<Repair> {
    let mut repairs = Vec::new();
    let bridge = present.bridge.as_ref();
    let differences = config.desired_bridge().differences(bridge);
    if differences.iter().any(is_repaired_by_add) {
        repairs.push(Repair::Bridge);
    }
    if present.is_mac_fixed == Some(false) {
        repairs.push(Repair::BridgeMac);
    }
    let advertised = present.advertised.iter().cloned();
    repairs.extend(advertised.map(Repair::Advertisements));
    let is_right = |live: &LiveAttachment| {
        let desired = live.wanted_flags(config);
        state::port_differences(&live.link, bridge, Some(desired)).is_empty()
    };
    let loose = here.iter().filter(|live| !is_right(live));
    repairs.extend(loose.map(|live| Repair::Port((*live).clone())));
    // Behind the vlan_ports, for these are told.
    let missing = state::missing_addresses(gateways, &present.addresses);
    if !missing.is_empty() {
        repairs.push(Repair::Gateways(missing));
    }
    let off = present.not_forwarded.iter().copied();
    let is_needed = |family: &Family| gateways.iter().any(|gateway| gateway.family() == *family);
    repairs.extend(off.filter(is_needed).map(Repair::Forwarding));
    let addresses = here.iter().flat_map(|it| it.addresses.clone());
    let families = forward_accept::families(&addresses.collect::<Vec<Cidr>>());
    if let Some(forwarding) = &config.forwarding
        && forwarding.check(&families).is_err()
    {
        repairs.push(Repair::ForwardAccept(forwarding.clone(), families));
    }
    repairs
}

/// An ADD creates and starts the bridge; it does not replace other interfaces and does not enable VLAN filtering.
fn is_repaired_by_add(difference: &BridgeDifference) -> bool {
    match difference {
        BridgeDifference::Missing | BridgeDifference::Down | BridgeDifference::NotPromiscuous => true,
        BridgeDifference::OtherKind(_) | BridgeDifference::VlanFilteringDisabled => false,
    }
}

impl Repair {
    /// The container that it is for, if it is for one.
    pub fn of(&self) -> Option<&LiveAttachment> {
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

    /// Puts it back. Doing it again changes nothing.
    ///
    /// # Errors
    /// When the kernel or a program refuses; when the bridge has another address in a gateway's place.
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
                // forceAddress is for an ADD: the other address may be the gateway of containers that run.
                let config = BridgeConfig {
                    conflict: AddressConflict::Refuse,
                    ..config.clone()
                };
                let interface = gateway::ensure(host, &bridge, gateways, &config)?;
                announce(host, &interface.unwrap_or(bridge))
            }
            Repair::Forwarding(family) => gateway::forward(*family),
            Repair::Port(live) => put_port(host, live, config),
            Repair::MacSpoofCheck(live, mac) => {
                let spoof_check = MacSpoofCheck::of(network, &live.attachment)?;
                spoof_check.install(&name_of(&live.link)?, *mac, host)
            }
            Repair::Masquerade(live) => {
                let masquerade = Masquerade::of(network, &live.attachment);
                let policy = config.masquerade.clone().unwrap_or_default();
                masquerade.install(&live.addresses, &policy)?.finish()
            }
            Repair::ForwardAccept(forwarding, families) => forwarding.install(families),
        }
    }
}

fn ensure_configured_bridge(host: &Netlink, config: &BridgeConfig) -> Result<Link, Error> {
    ensure_bridge(host, config, uplink::resolve_mtu(host, config)?)
}

fn put_port(host: &Netlink, live: &LiveAttachment, config: &BridgeConfig) -> Result<(), Error> {
    let link = &live.link;
    let bridge = ensure_configured_bridge(host, config)?;
    let name = name_of(link)?;
    if link.master.is_none() {
        let put = host.set_bridge(link.index, bridge.index);
        put.map_err(|cause| failed(&format!("attach to bridge {}", bridge.name), &name, cause))?;
        if let Some(vlans) = &config.vlans {
            vlan_ports::join_container_port(host, &name, &bridge, vlans)?;
        }
    }
    let started = host.start_port(&name, live.wanted_flags(config), &link.alias);
    started.map_err(|cause| failed("start port", &name, cause))
}

/// Tells the containers the MAC address of their gateway, which is another one when the bridge was made again (see
/// [`crate::plugins::bridge::add`]).
fn announce(host: &Netlink, link: &Link) -> Result<(), Error> {
    let name = name_of(link)?;
    // Where the kernel has no such parameter it is found out by asking.
    let _ = Parameter::ArpNotify.set(&name, 1);
    let _ = Parameter::NdiscNotify.set(&name, 1);
    let Some(mac) = link.mac else { return Ok(()) };
    let told = host.set_mac(link.index, mac);
    told.map_err(|cause| failed("announce the addresses of", &name, cause))
}

fn name_of(link: &Link) -> Result<IfName, Error> {
    let parsed = link.name.parse();
    parsed.map_err(|wrong: crate::net::ParseError| Error::failed(wrong.to_string()))
}
