//! The `portmap` plugin: forwards ports of the host to the container of the previous plugins in the chain.

pub mod config;

use std::net::IpAddr;

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::{Error, Failures};
use crate::ipam::live::LiveAttachments;
use crate::kernel::log;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::portmap::iptables::{self, HostPorts};
use crate::netfilter::portmap::nftables::{self, MapEntries};
use crate::netfilter::portmap::{Forwarded, PortMapping, SourceNat, localnet};
use crate::plugins::plugin::Plugin;
use crate::plugins::portmap::config::{Backend, PortmapConfig, PortmapKeys};
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
        let ports = Ports::of(&self.network, &target.attachment);
        if self.config.mappings.is_empty() {
            // Of an earlier ADD with ports.
            ports.remove()?;
            return Ok(previous.clone());
        }
        let addresses = addresses(previous, &target.attachment.interface)?;
        let forwarded = self.forwarded(&addresses);
        let removed = ports.clone();
        undo.push(move || removed.remove());
        log::timed_span("portmap", || match self.backend(&addresses) {
            Backend::Iptables => {
                ports.in_nftables.remove()?;
                ports.in_iptables.install(&forwarded, &is_alive)
            }
            Backend::Nftables => {
                ports.in_iptables.remove()?;
                ports.in_nftables.install(&forwarded, &is_alive)
            }
        })?;
        self.enable_loopback(&addresses)?;
        Ok(previous.clone())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let ports = Ports::of(&request.conf.name, &target.attachment);
        log::timed_span("portmap", || ports.remove())
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let previous = self.previous("Required prevResult missing")?;
        if self.config.mappings.is_empty() {
            return Ok(());
        }
        let ports = Ports::of(&self.network, &target.attachment);
        let addresses = addresses(previous, &target.attachment.interface)?;
        let forwarded = self.forwarded(&addresses);
        let mut families = forwarded.iter();
        match self.backend(&addresses) {
            Backend::Iptables => families.try_for_each(|it| ports.in_iptables.check(it)),
            Backend::Nftables => ports.in_nftables.check(&forwarded),
        }
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let Some(valid) = request.conf.valid_attachments()? else {
            return Ok(());
        };
        let mut failures = Failures::default();
        failures.note(iptables::gc(&request.conf.name, &valid));
        failures.note(nftables::gc(&request.conf.name, &valid));
        failures.into_result()
    }
}

/// The mapped ports of an attachment, which another configuration may have added with another backend.
#[derive(Clone)]
struct Ports {
    in_iptables: HostPorts,
    in_nftables: MapEntries,
}

impl Ports {
    fn of(network: &NetworkName, attachment: &Attachment) -> Ports {
        Ports {
            in_iptables: HostPorts::of(network, attachment),
            in_nftables: MapEntries::of(network, attachment),
        }
    }

    /// Removes the mapped ports, and with the last one of the host route_localnet.
    fn remove(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        failures.note(self.in_nftables.remove());
        failures.note(self.in_iptables.remove());
        failures.into_result()?;
        let is_needed = localnet::enabled()?.is_empty()
            || nftables::is_used()?
            || iptables::is_used(Family::V4)?;
        match is_needed {
            true => Ok(()),
            false => localnet::disable_all(),
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
