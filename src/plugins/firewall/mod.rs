//! The `firewall` plugin: accepts the packets of a container that the host forwards, and isolates bridges.

pub mod config;

use std::net::IpAddr;

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::NetworkName;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::kernel::log;
use crate::kernel::netlink::{Kind, Link, Netlink, PortFlags};
use crate::link::namespace::host_netlink;
use crate::net::{Family, IfName};
use crate::netfilter::firewall::{self, Firewall, Ingress, Settings, firewalld, iptables};
use crate::plugins::firewall::config::{Backend, FirewallConfig, FirewallKeys, IngressPolicy};
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct FirewallPlugin {
    network: NetworkName,
    config: FirewallConfig,
    previous: Option<AddResult>,
}

impl Plugin for FirewallPlugin {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<FirewallKeys>];

    fn parse(request: &Request) -> Result<FirewallPlugin, Error> {
        let conf = &request.conf;
        Ok(FirewallPlugin {
            network: conf.name.clone(),
            previous: conf.prev_result()?,
            config: FirewallConfig::parse(&conf.root())?,
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let previous = self.previous()?;
        let settings = self.settings(previous)?;
        let firewall = Firewall::of(&self.network, &target.attachment);
        let addresses = addresses(previous);
        let (installed, known) = (firewall.clone(), addresses.clone());
        undo.push(move || installed.remove(&known, &leads_to, &self.config.zone));
        log::timed_span("firewall", || firewall.install(&addresses, &settings))?;
        for port in ports(previous, &settings.ingress)? {
            let flags = port.port.unwrap_or_default();
            set_flags(
                &port,
                PortFlags {
                    isolated: true,
                    ..flags
                },
            )?;
            undo.push(move || set_flags(&port, flags));
        }
        Ok(previous.clone())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        // Reads only what names resources: an invalid key or prevResult does not prevent the removal.
        let previous = request.conf.prev_result().ok().flatten();
        let known = previous.as_ref().map(addresses).unwrap_or_default();
        let firewall = Firewall::of(&request.conf.name, &target.attachment);
        let zone = config::zone_of(&request.conf.root());
        log::timed_span("firewall", || firewall.remove(&known, &leads_to, &zone))
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let previous = self.previous()?;
        let settings = self.settings(previous)?;
        let firewall = Firewall::of(&self.network, &target.attachment);
        firewall.check(&addresses(previous), &settings)?;
        let is_open = |port: &Link| !port.port.unwrap_or_default().isolated;
        let mut ports = ports(previous, &settings.ingress)?.into_iter();
        match ports.find(is_open) {
            // The Go plugin does not isolate ports.
            Some(port) if firewall.is_recorded()? => {
                let what = format!("check: bridge port {} is not isolated", port.name);
                Err(Error::failed(what))
            }
            _ => Ok(()),
        }
    }

    fn status(&self) -> Result<(), Error> {
        let uses_firewalld = match self.config.backend {
            Some(backend) => backend == Backend::Firewalld,
            None => firewalld::is_running(),
        };
        match uses_firewalld {
            true => firewalld::status(&self.config.zone).map_err(Error::into_not_available),
            false => Ok(()),
        }
    }

    fn gc(request: &Request) -> Result<(), Error> {
        match request.conf.valid_attachments()? {
            Some(valid) => {
                let zone = config::zone_of(&request.conf.root());
                firewall::gc(&request.conf.name, &valid, &leads_to, &zone)
            }
            None => Ok(()),
        }
    }
}

impl FirewallPlugin {
    fn previous(&self) -> Result<&AddResult, Error> {
        let missing = "firewall: missing prevResult from earlier plugin";
        self.previous.as_ref().ok_or_else(|| Error::failed(missing))
    }

    /// The configured backend; or else firewalld if it is running, or iptables if it is installed for the families of all
    /// addresses.
    fn backend(&self, previous: &AddResult) -> firewall::Backend {
        let families = addresses(previous).into_iter().map(Family::of);
        match self.config.backend {
            Some(Backend::Nftables) => firewall::Backend::Nftables,
            Some(Backend::Firewalld) => firewall::Backend::Firewalld,
            None if firewalld::is_running() => firewall::Backend::Firewalld,
            None if !families.into_iter().all(iptables::is_installed) => {
                firewall::Backend::Nftables
            }
            _ => firewall::Backend::Iptables,
        }
    }

    fn settings(&self, previous: &AddResult) -> Result<Settings, Error> {
        Ok(Settings {
            backend: self.backend(previous),
            admin_chain: self.config.admin_chain.clone(),
            zone: self.config.zone.clone(),
            ingress: match self.config.policy {
                IngressPolicy::Open => Ingress::Open,
                IngressPolicy::SameBridge => Ingress::SameBridge(bridge_of(previous)?),
                IngressPolicy::Isolated => Ingress::Isolated(bridge_of(previous)?),
            },
        })
    }
}

/// All addresses of prevResult, as with the Go plugin.
fn addresses(previous: &AddResult) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in &previous.ips {
        if !addresses.contains(&ip.address.address()) {
            addresses.push(ip.address.address());
        }
    }
    addresses
}

/// The bridge of the host that prevResult lists first.
fn bridge_of(previous: &AddResult) -> Result<IfName, Error> {
    let invalid = |what: String| {
        let error = Error::failed(format!(
            "firewall: interface needs to be set for ingress policy: {what}"
        ));
        Err(error.details(
            "a plugin such as bridge, which lists its bridge first, must precede in the chain",
        ))
    };
    let Some(first) = previous.interfaces.first() else {
        return invalid("prevResult has no interfaces".to_owned());
    };
    let Ok(name) = first.name.parse::<IfName>() else {
        return invalid(format!("{:?} is no interface name", first.name));
    };
    let link = host_netlink()?.link(&name);
    let link =
        link.map_err(|cause| Error::failed(format!("firewall: cannot look up {name}: {cause}")))?;
    match link {
        Some(link) if link.kind == Kind::Bridge && first.sandbox.is_empty() => Ok(name),
        _ => invalid(format!(
            "interfaces[0] of prevResult is {name}, which is no bridge of the host"
        )),
    }
}

/// The container's ports of the isolated bridge. The rules of iptables only see frames between ports with the module
/// br_netfilter.
fn ports(previous: &AddResult, ingress: &Ingress) -> Result<Vec<Link>, Error> {
    let Ingress::Isolated(bridge) = ingress else {
        return Ok(Vec::new());
    };
    let failed = |cause| {
        Error::failed(format!(
            "firewall: cannot look up ports of {bridge}: {cause}"
        ))
    };
    let host = host_netlink()?;
    let Some(bridge) = host.link(bridge).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let mut ports = Vec::new();
    for interface in previous
        .interfaces
        .iter()
        .filter(|it| it.sandbox.is_empty())
    {
        if let Ok(name) = interface.name.parse() {
            let link = host.link(&name).map_err(failed)?;
            ports.extend(link.filter(|it| it.master == Some(bridge.index)));
        }
    }
    Ok(ports)
}

fn set_flags(port: &Link, flags: PortFlags) -> Result<(), Error> {
    let set = host_netlink()?.set_port_flags(port.index, flags);
    set.map_err(|cause| {
        let what = format!(
            "firewall: cannot change the isolation of port {}",
            port.name
        );
        Error::failed(format!("{what}: {cause}"))
    })
}

fn leads_to(address: IpAddr) -> Option<String> {
    let host = Netlink::open().ok()?;
    let link = host.route_to(address, None).ok()?.link?;
    Some(host.link_at(link).ok()??.name)
}
