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
use crate::kernel::netlink::NetlinkError;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::portmap::ports::{self, Ports};
use crate::netfilter::portmap::{
    Backend, Forwarded, PortMapping, SourceNat, iptables, localnet, nftables,
};
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
        let known = all_addresses(previous);
        let ports = Ports::of(&self.network, &target.attachment, known, &is_alive);
        if self.config.mappings.is_empty() {
            // Of an earlier ADD with ports.
            ports.remove()?;
            return Ok(previous.clone());
        }
        let addresses = addresses(previous, &target.attachment.interface)?;
        let forwarded = self.forwarded(&addresses);
        let removed = ports.clone();
        undo.push(move || removed.remove());
        log::timed_span("portmap", || {
            ports.install(self.backend(&addresses), &forwarded)
        })?;
        self.enable_loopback(&addresses)?;
        Ok(previous.clone())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        // Reads only what names resources: an invalid key or prevResult does not prevent the removal.
        let previous = request.conf.prev_result().ok().flatten();
        let known = previous.as_ref().map(all_addresses).unwrap_or_default();
        let ports = Ports::of(&request.conf.name, &target.attachment, known, &is_alive);
        log::timed_span("portmap", || ports.remove())
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let previous = self.previous("Required prevResult missing")?;
        if self.config.mappings.is_empty() {
            return Ok(());
        }
        let known = all_addresses(previous);
        let ports = Ports::of(&self.network, &target.attachment, known, &is_alive);
        let addresses = addresses(previous, &target.attachment.interface)?;
        ports.check(self.backend(&addresses), &self.forwarded(&addresses))
    }

    fn status(&self) -> Result<(), Error> {
        let settings = &self.config.settings;
        match self.config.backend {
            Some(Backend::Iptables) => iptables::require(Family::V4),
            Some(Backend::Nftables) => nftables::require(settings),
            None => Ok(()),
        }
        .map_err(Error::into_not_available)
    }

    fn gc(request: &Request) -> Result<(), Error> {
        match request.conf.valid_attachments()? {
            Some(valid) => ports::gc(&request.conf.name, &valid),
            None => Ok(()),
        }
    }
}

impl Portmap {
    /// The configured backend, or else iptables if it is installed for the families of all addresses.
    fn backend(&self, addresses: &[Cidr]) -> Backend {
        let has_iptables = |address: &Cidr| iptables::is_installed(address.family());
        self.config
            .backend
            .unwrap_or_else(|| match addresses.iter().all(has_iptables) {
                true => Backend::Iptables,
                false => Backend::Nftables,
            })
    }

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
        let route = match host.route_to(address.address(), None) {
            Ok(route) => route,
            // Without a route, as with the Go plugin.
            Err(NetlinkError::Unreachable) => return Ok(()),
            Err(cause) => {
                let what = format!("portmap: cannot look up the route to {address}: {cause}");
                return Err(Error::failed(what));
            }
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

/// The addresses of all interfaces in prevResult.
fn all_addresses(previous: &AddResult) -> Vec<IpAddr> {
    previous.ips.iter().map(|it| it.address.address()).collect()
}

/// Whether a container has an address. Lists the network namespaces of the host.
fn is_alive(address: IpAddr) -> Result<bool, Error> {
    Ok(LiveAttachments::observe()?.has_address(address))
}
