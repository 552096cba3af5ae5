//! The `portmap` plugin: forwards ports of the host to the container of the previous plugins in the chain.

pub mod config;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::{Error, Failures};
use crate::ipam::live::LiveAttachments;
use crate::kernel::log;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::portmap::iptables::{self, HostPorts};
use crate::netfilter::portmap::nftables::{self, MapEntries};
use crate::netfilter::portmap::{
    Forwarded, Mapped, PortMapping, Protocol, SourceNat, flows, go_nftables, localnet, stale_among,
};
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
            ports.remove(&all_addresses(previous))?;
            return Ok(previous.clone());
        }
        let addresses = addresses(previous, &target.attachment.interface)?;
        let forwarded = self.forwarded(&addresses);
        let removed = ports.clone();
        undo.push(move || removed.remove(&[]));
        log::timed_span("portmap", || self.install(&ports, &addresses, &forwarded))?;
        self.enable_loopback(&addresses)?;
        Ok(previous.clone())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let ports = Ports::of(&request.conf.name, &target.attachment);
        // Reads only what names resources: an invalid key or prevResult does not prevent the removal.
        let previous = request.conf.prev_result().ok().flatten();
        let known = previous.as_ref().map(all_addresses).unwrap_or_default();
        log::timed_span("portmap", || ports.remove(&known))
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
            Backend::Nftables if ports.in_nftables.exist()? => ports.in_nftables.check(&forwarded),
            Backend::Nftables => {
                for forwarded in &forwarded {
                    // The Go plugin may have added them.
                    if go_nftables::forwards(&ports.container, forwarded)? != Some(true) {
                        return ports.in_nftables.check(&[*forwarded]);
                    }
                }
                Ok(())
            }
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
    container: ContainerId,
    in_iptables: HostPorts,
    in_nftables: MapEntries,
}

impl Ports {
    fn of(network: &NetworkName, attachment: &Attachment) -> Ports {
        Ports {
            container: attachment.container.clone(),
            in_iptables: HostPorts::of(network, attachment),
            in_nftables: MapEntries::of(network, attachment),
        }
    }

    /// Removes the mapped ports and the connection tracking entries that forward to them, and with the last one of the
    /// host route_localnet. `known` are the addresses of prevResult.
    fn remove(&self, known: &[IpAddr]) -> Result<(), Error> {
        let (mut failures, mut addresses) = (Failures::default(), BTreeSet::new());
        for removed in [
            self.in_nftables.remove(),
            self.in_iptables.remove(known, &is_alive),
            go_nftables::remove(&self.container, known, &is_alive),
        ] {
            addresses.extend(failures.note(removed).unwrap_or_default());
        }
        failures.note(flows::delete_forwarded_to(&addresses));
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
    /// Forwards the ports, unless another container has one of them, with any backend or implementation.
    fn install(
        &self,
        ports: &Ports,
        addresses: &[Cidr],
        forwarded: &[Forwarded],
    ) -> Result<(), Error> {
        let backend = self.backend(addresses);
        let (container, known) = (&ports.container, all(addresses));
        for forwarded in forwarded {
            let stale = |mapped: &[Mapped], remove: fn(&[&Mapped]) -> Result<(), Error>| {
                let stale = stale_among(forwarded, container, mapped, &is_alive)?;
                match stale.is_empty() {
                    true => Ok(()),
                    false => remove(&stale),
                }
            };
            let family = forwarded.address.family();
            stale(&go_nftables::mapped(family)?, go_nftables::remove_stale)?;
            go_nftables::restrict_to_host(family)?;
            match backend {
                Backend::Iptables => {
                    stale(&nftables::mapped_like(forwarded)?, nftables::remove_stale)?;
                }
                Backend::Nftables => {
                    stale(&iptables::mapped_like(forwarded)?, iptables::remove_stale)?;
                }
            }
        }
        // Of an earlier ADD with another backend, or of the Go plugin.
        go_nftables::remove(container, &known, &is_alive)?;
        match backend {
            Backend::Iptables => {
                ports.in_nftables.remove()?;
                ports.in_iptables.install(forwarded, &is_alive)?;
            }
            Backend::Nftables => {
                ports.in_iptables.remove(&known, &is_alive)?;
                ports.in_nftables.install(forwarded, &is_alive)?;
            }
        }
        let has_udp = self
            .config
            .mappings
            .iter()
            .any(|it| it.protocol == Protocol::Udp);
        if has_udp {
            let local = local_addresses()?;
            forwarded
                .iter()
                .try_for_each(|it| flows::delete_stale(it, &local))?;
        }
        Ok(())
    }

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

fn all(addresses: &[Cidr]) -> Vec<IpAddr> {
    addresses.iter().map(|it| it.address()).collect()
}

/// The addresses of all interfaces in prevResult.
fn all_addresses(previous: &AddResult) -> Vec<IpAddr> {
    previous.ips.iter().map(|it| it.address.address()).collect()
}

/// The addresses of the host.
fn local_addresses() -> Result<Vec<IpAddr>, Error> {
    let listed = host_netlink()?.all_addresses();
    let listed = listed
        .map_err(|cause| Error::failed(format!("portmap: cannot list addresses: {cause}")))?;
    Ok(listed.iter().map(|it| it.cidr.address()).collect())
}

/// Whether a container has an address. Lists the network namespaces of the host.
fn is_alive(address: IpAddr) -> Result<bool, Error> {
    Ok(LiveAttachments::observe()?.has_address(address))
}
