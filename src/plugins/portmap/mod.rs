//! The `portmap` plugin: forwards ports of the host to the container of the previous plugins in the chain.

pub mod config;

use std::net::IpAddr;

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::NetworkName;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::ipam::live::LiveAttachments;
use crate::kernel::log;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::portmap::iptables::{self, HostPorts};
use crate::netfilter::portmap::{Forwarded, PortMapping, SourceNat, localnet};
use crate::plugins::plugin::Plugin;
use crate::plugins::portmap::config::{PortmapConfig, PortmapKeys};
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct Portmap {
    network: NetworkName,
    config: PortmapConfig,
    previous: Option<AddResult>,
}

impl Plugin for Portmap {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<PortmapKeys>];

    fn parse(request: &Request) -> Result<Portmap, Error> {
        let conf = &request.conf;
        Ok(Portmap {
            network: conf.name.clone(),
            previous: conf.prev_result()?,
            config: PortmapConfig::parse(&conf.root())?,
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let previous = self.previous("must be called as chained plugin")?;
        let ports = HostPorts::of(&self.network, &target.attachment);
        if self.config.mappings.is_empty() {
            // Of an earlier ADD with ports.
            remove(&ports)?;
            return Ok(previous.clone());
        }
        let addresses = addresses(previous, &target.attachment.interface)?;
        let forwarded = self.forwarded(&addresses);
        let removed = ports.clone();
        undo.push(move || remove(&removed));
        log::timed_span("portmap", || ports.install(&forwarded, &is_alive))?;
        self.enable_loopback(&addresses)?;
        Ok(previous.clone())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let ports = HostPorts::of(&request.conf.name, &target.attachment);
        log::timed_span("portmap", || remove(&ports))
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let previous = self.previous("Required prevResult missing")?;
        if self.config.mappings.is_empty() {
            return Ok(());
        }
        let ports = HostPorts::of(&self.network, &target.attachment);
        let addresses = addresses(previous, &target.attachment.interface)?;
        let mut forwarded = self.forwarded(&addresses).into_iter();
        forwarded.try_for_each(|forwarded| ports.check(&forwarded))
    }

    fn gc(request: &Request) -> Result<(), Error> {
        match request.conf.valid_attachments()? {
            Some(valid) => iptables::gc(&request.conf.name, &valid),
            None => Ok(()),
        }
    }
}

impl Portmap {
    /// Lets connections from 127.0.0.1 leave by the interface that leads to the container.
    fn enable_loopback(&self, addresses: &[Cidr]) -> Result<(), Error> {
        let mut mappings = self.config.mappings.iter();
        let is_needed = mappings.any(PortMapping::applies_to_loopback)
            && self.config.settings.source_nat != SourceNat::None;
        let address = addresses.iter().find(|it| it.family() == Family::V4);
        let Some(address) = address.filter(|_| is_needed) else {
            return Ok(());
        };
        let host = host_netlink()?;
        // Without a route, other clients may still reach the container.
        let Ok(route) = host.route_to(address.address(), None) else {
            return Ok(());
        };
        let link = route.link.map(|index| host.link_at(index));
        let link = link.transpose().map_err(|cause| {
            Error::failed(format!(
                "portmap: cannot look up the interface of {address}: {cause}"
            ))
        })?;
        match link.flatten().and_then(|link| link.name.parse().ok()) {
            Some(name) => localnet::enable(&name),
            None => Ok(()),
        }
    }

    fn previous(&self, missing: &str) -> Result<&AddResult, Error> {
        self.previous
            .as_ref()
            .ok_or_else(|| Error::failed(format!("portmap: {missing}: prevResult is missing")))
    }

    fn forwarded(&self, addresses: &[Cidr]) -> Vec<Forwarded<'_>> {
        let forwarded = addresses.iter().map(|address| Forwarded {
            address: *address,
            mappings: &self.config.mappings,
            settings: &self.config.settings,
        });
        forwarded.collect()
    }
}

/// Removes the mapped ports of a container, and with the last one route_localnet.
fn remove(ports: &HostPorts) -> Result<(), Error> {
    ports.remove()?;
    match localnet::enabled()?.is_empty() || iptables::is_used(Family::V4)? {
        true => Ok(()),
        false => localnet::disable_all(),
    }
}

/// The first address of each family that the container's interface has.
///
/// # Errors
/// If it has none.
fn addresses(previous: &AddResult, interface: &IfName) -> Result<Vec<Cidr>, Error> {
    let is_other = |index: usize| {
        let named = previous.interfaces.get(index);
        named.is_some_and(|it| it.name != interface.as_str() || it.sandbox.is_empty())
    };
    let own = previous
        .ips
        .iter()
        .filter(|ip| !ip.interface.is_some_and(is_other));
    let own: Vec<Cidr> = own.map(|ip| ip.address).collect();
    let first = |family: Family| own.iter().find(|it| it.family() == family).copied();
    let found: Vec<Cidr> = Family::BOTH.into_iter().filter_map(first).collect();
    match found.is_empty() {
        true => {
            let what = format!("portmap: prevResult has no address of {interface}");
            Err(Error::failed(what)
                .details("ports can only be forwarded to an address of the container"))
        }
        false => Ok(found),
    }
}

/// Whether a container has an address. Lists the network namespaces of the host.
fn is_alive(address: IpAddr) -> Result<bool, Error> {
    Ok(LiveAttachments::observe()?.has_address(address))
}
