//! Putting back what others took from living containers: a firewall reload the rules, a network manager the bridge's
//! address or its ports.
//!
//! [`plan`] compares what there is with what the configuration asks for, without touching anything; [`Repair::carry_out`]
//! does one thing of it. Nothing is restored for containers that are gone.

use std::fmt;

use crate::bridge::attach::failed;
use crate::bridge::config::{AddressConflict, BridgeConfig};
use crate::bridge::ensure::ensure_bridge;
use crate::bridge::spoof::Guard;
use crate::bridge::{gateway, passage, ports};
use crate::cni::request::{Attachment, Id};
use crate::error::Error;
use crate::forward::Forwarding;
use crate::host::netlink::{Link, Netlink, PortFlags};
use crate::host::sysctl::Parameter;
use crate::masquerade::Masquerade;
use crate::net::{Cidr, Family, IfName, Mac};

/// A container that has its link.
#[derive(Clone, Debug)]
pub struct Living {
    /// Which one.
    pub who: Attachment,
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

impl Living {
    /// The flags that its port should have. Where the configuration has changed since the ADD, those that a port of the
    /// bridge has: portIsolation would separate it from containers that it talks with.
    pub fn wanted_flags(&self, config: &BridgeConfig) -> PortFlags {
        let present = self.link.port.filter(|_| self.is_outdated);
        present.unwrap_or(PortFlags {
            hairpin: config.hairpin,
            isolated: config.isolated,
        })
    }
}

/// The bridge as it is.
#[derive(Clone, Debug)]
pub struct Present {
    /// The link of the bridge's name.
    pub bridge: Option<Link>,
    /// Whether its MAC address was set; see [`crate::bridge::is_mac_fixed`].
    pub is_mac_fixed: Option<bool>,
    /// The links of the network by which the host takes router advertisements.
    pub advertised: Vec<IfName>,
    /// The addresses of the link that should have the gateways'.
    pub addresses: Vec<Cidr>,
    /// The families that the host does not forward.
    pub not_forwarded: Vec<Family>,
}

impl Present {
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
    Port(Living),
    /// Rules that keep a container from using another MAC address.
    Guard(Living, Mac),
    /// Rules that masquerade a container.
    Masquerade(Living),
    /// Rules that let packets of the bridge pass FORWARD (`forwardAccept`).
    Passage(Forwarding, Vec<Family>),
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
            Repair::Port(living) => write!(
                f,
                "port {} on the bridge, for {}",
                living.link.title(),
                living.who
            ),
            Repair::Guard(living, mac) => write!(f, "MAC address check for {} ({mac})", living.who),
            Repair::Masquerade(living) => write!(f, "masquerading of {}", living.who),
            Repair::Passage(..) => f.write_str("the bridge's rules in FORWARD"),
        }
    }
}

/// What is to be put back, in the order in which it must be. `gateways` are the addresses that the bridge should have. Of
/// a container that is elsewhere (see [`Present::is_elsewhere`]) only the rules are.
///
/// # Errors
/// When the rules of guards cannot be listed.
pub fn plan(
    config: &BridgeConfig,
    present: &Present,
    gateways: &[Cidr],
    living: Vec<Living>,
) -> Result<Vec<Repair>, Error> {
    let mut repairs = Vec::new();
    let here: Vec<&Living> = living
        .iter()
        .filter(|living| !present.is_elsewhere(&living.link))
        .collect();
    if !here.is_empty() {
        repairs.extend(plan_bridge(config, present, gateways, &here));
    }
    for living in living {
        if let Some(mac) = living.mac.filter(|_| config.guarded)
            && let Ok(name) = living.link.name.parse()
            && Guard::of(&living.who)?.differing(&name, mac)?.is_some()
        {
            repairs.push(Repair::Guard(living.clone(), mac));
        }
        if config.masquerade.is_some() && !living.is_masqueraded {
            repairs.push(Repair::Masquerade(living));
        }
    }
    Ok(repairs)
}

/// What the bridge and its containers lack.
fn plan_bridge(
    config: &BridgeConfig,
    present: &Present,
    gateways: &[Cidr],
    here: &[&Living],
) -> Vec<Repair> {
    let mut repairs = Vec::new();
    let bridge = present.bridge.as_ref();
    if bridge.is_none_or(|bridge| !bridge.is_up || (config.promiscuous && !bridge.is_promiscuous)) {
        repairs.push(Repair::Bridge);
    }
    if present.is_mac_fixed == Some(false) {
        repairs.push(Repair::BridgeMac);
    }
    let advertised = present.advertised.iter().cloned();
    repairs.extend(advertised.map(Repair::Advertisements));
    let is_right = |living: &Living| {
        let link = &living.link;
        let is_port = link.master.is_some() && link.master == bridge.map(|bridge| bridge.index);
        let has_flags = link.port == Some(living.wanted_flags(config));
        is_port && (link.is_up || config.leave_down) && has_flags
    };
    let loose = here.iter().filter(|living| !is_right(living));
    repairs.extend(loose.map(|living| Repair::Port((*living).clone())));
    // Behind the ports, for these are told.
    let lacks = |gateway: &&Cidr| !present.addresses.contains(gateway);
    if gateways.iter().any(|gateway| lacks(&gateway)) {
        repairs.push(Repair::Gateways(
            gateways.iter().filter(lacks).copied().collect(),
        ));
    }
    let off = present.not_forwarded.iter().copied();
    let is_needed = |family: &Family| gateways.iter().any(|gateway| gateway.family() == *family);
    repairs.extend(off.filter(is_needed).map(Repair::Forwarding));
    let addresses = here.iter().flat_map(|it| it.addresses.clone());
    let families = passage::families(&addresses.collect::<Vec<Cidr>>());
    if let Some(forwarding) = &config.forwarding
        && forwarding.check(&families).is_err()
    {
        repairs.push(Repair::Passage(forwarding.clone(), families));
    }
    repairs
}

impl Repair {
    /// The container that it is for, if it is for one.
    pub fn of(&self) -> Option<&Living> {
        match self {
            Repair::Port(living) | Repair::Guard(living, _) | Repair::Masquerade(living) => {
                Some(living)
            }
            Repair::Bridge
            | Repair::BridgeMac
            | Repair::Advertisements(_)
            | Repair::Gateways(_)
            | Repair::Forwarding(_)
            | Repair::Passage(..) => None,
        }
    }

    /// Puts it back. Doing it again changes nothing.
    ///
    /// # Errors
    /// When the kernel or a program refuses; when the bridge has another address in a gateway's place.
    pub fn carry_out(
        &self,
        host: &Netlink,
        network: &Id,
        config: &BridgeConfig,
    ) -> Result<(), Error> {
        match self {
            Repair::Bridge | Repair::BridgeMac => ensure_bridge(host, config).map(drop),
            Repair::Advertisements(link) => Parameter::AcceptRa.set(link, 0).map_err(|cause| {
                Error::failed(format!(
                    "cannot set net.ipv6.conf.{link}.accept_ra to 0: {cause}"
                ))
            }),
            Repair::Gateways(gateways) => {
                let bridge = ensure_bridge(host, config)?;
                // forceAddress is for an ADD: the other address may be the gateway of containers that run.
                let config = BridgeConfig {
                    conflict: AddressConflict::Refuse,
                    ..config.clone()
                };
                let interface = gateway::ensure(host, &bridge, gateways, &config)?;
                announce(host, &interface.unwrap_or(bridge))
            }
            Repair::Forwarding(family) => gateway::forward(*family),
            Repair::Port(living) => put_port(host, living, config),
            Repair::Guard(living, mac) => {
                Guard::of(&living.who)?.install(&name_of(&living.link)?, *mac)
            }
            Repair::Masquerade(living) => {
                let masquerade = Masquerade::of(network, &living.who);
                let policy = config.masquerade.clone().unwrap_or_default();
                masquerade.install(&living.addresses, &policy)?.finish()
            }
            Repair::Passage(forwarding, families) => forwarding.install(families),
        }
    }
}

fn put_port(host: &Netlink, living: &Living, config: &BridgeConfig) -> Result<(), Error> {
    let link = &living.link;
    let bridge = ensure_bridge(host, config)?;
    let name = name_of(link)?;
    if link.master.is_none() {
        let put = host.set_bridge(link.index, bridge.index);
        put.map_err(|cause| failed(&format!("attach to bridge {}", bridge.name), &name, cause))?;
        if let Some(vlans) = &config.vlans {
            ports::join_container_port(host, &name, &bridge, vlans)?;
        }
    }
    let started = host.start_port(&name, living.wanted_flags(config), &link.alias);
    started.map_err(|cause| failed("start port", &name, cause))
}

/// Tells the containers the MAC address of their gateway, which is another one when the bridge was made again (see
/// [`crate::bridge::attach`]).
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
