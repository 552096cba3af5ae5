//! Attachments that still exist, for leases from before a boot.
//!
//! A changed boot ID does not prove that the containers are gone: a container manager may mount its own boot ID, and
//! the Go plugins may have run since the boot. A lease is released only if its attachment has no trace on the host.
//! Lists all links and processes: only for rare events.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::{Kind, Netlink, NetlinkError, NetnsId};
use crate::kernel::netns::{Netns, NetnsError, OwnNetns};
use crate::kernel::procfs;

/// Traces of attachments.
#[derive(Debug, Default)]
pub struct LiveAttachments {
    /// Names of the links on the host.
    links: HashSet<String>,
    /// The addresses in all network namespaces that are connected with the host by a link.
    addresses: HashSet<IpAddr>,
    /// The containers for which a CNI plugin, of any implementation, is running.
    containers: HashSet<String>,
}

impl LiveAttachments {
    /// Lists links, network namespaces and processes of the host.
    ///
    /// # Errors
    /// If one of them cannot be listed: any attachment may exist.
    pub fn observe() -> Result<LiveAttachments, Error> {
        let failed = |what: &str, cause: &dyn std::fmt::Display| {
            Error::failed(format!(
                "cannot determine which attachments exist: {what}: {cause}"
            ))
        };
        let host = Netlink::open().map_err(|cause| failed("open a netlink socket", &cause))?;
        let links = host
            .links()
            .map_err(|cause| failed("list the links", &cause))?;
        let mut live = LiveAttachments {
            links: links.into_iter().map(|link| link.name).collect(),
            ..LiveAttachments::default()
        };
        let seen = live
            .add_peer_namespaces(&host)
            .map_err(|cause| failed("list addresses of another network namespace", &cause))?;
        live.add_other_namespaces(&host, &seen)
            .map_err(|cause| failed("inspect a network namespace", &cause))?;
        live.containers = procfs::environment_values("CNI_CONTAINERID")
            .map_err(|cause| failed("list the processes", &cause))?;
        Ok(live)
    }

    /// Whether the owner of this lease may exist. In the legacy format, the interface is eth0.
    pub fn has(
        &self,
        network: &NetworkName,
        owner: &(ContainerId, String),
        address: IpAddr,
    ) -> bool {
        let (container, interface) = owner;
        let interface = match interface.trim() {
            "" => "eth0",
            interface => interface,
        };
        let link = interface.parse().map(|interface| {
            let container = container.clone();
            Attachment {
                container,
                interface,
            }
            .host_interface(network)
        });
        self.has_address(address)
            || link.is_ok_and(|link| self.links.contains(link.as_str()))
            || self.containers.contains(container.as_str())
    }

    /// Whether an interface in a connected network namespace has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Ignores the running plugin itself and its parents.
    pub fn without_plugins_of(mut self, container: &ContainerId) -> LiveAttachments {
        self.containers.remove(container.as_str());
        self
    }

    /// Network namespaces of the peers of the host's veths, even if they have no file.
    fn add_peer_namespaces(&mut self, host: &Netlink) -> Result<BTreeSet<NetnsId>, NetlinkError> {
        let links = host.cross_links()?;
        let linked: BTreeSet<NetnsId> = links.iter().map(|link| link.netns).collect();
        for netns in &linked {
            match host.addresses_in(*netns)? {
                Some(addresses) => {
                    let addresses = addresses.iter().map(|address| address.cidr.address());
                    self.addresses.extend(addresses);
                }
                // The namespace is being deleted, and the veth with it.
                None => {
                    let stale = links.iter().filter(|link| link.netns == *netns);
                    for link in stale {
                        self.links.remove(&link.link.name);
                    }
                }
            }
        }
        Ok(linked)
    }

    /// Network namespaces of processes and mounts with a link that is based on a link of the host (macvlan, ipvlan,
    /// vlan), which the host's links do not show.
    fn add_other_namespaces(
        &mut self,
        host: &Netlink,
        seen: &BTreeSet<NetnsId>,
    ) -> Result<(), NetnsError> {
        let host_netns = Netns::own()?;
        for path in procfs::network_namespaces()? {
            let netns = match Netns::open(&path, OwnNetns::Refused) {
                Ok(netns) => netns,
                Err(cause) if is_inaccessible(&cause) => continue,
                Err(cause) => return Err(cause),
            };
            let number = host.id_of(&netns).map_err(std::io::Error::other)?;
            if number.is_some_and(|number| seen.contains(&number)) {
                continue;
            }
            match Netlink::open_in(&netns) {
                Ok(inside) => self
                    .add_if_connected(&inside, &host_netns)
                    .map_err(std::io::Error::other)?,
                Err(cause) if is_inaccessible(&cause) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn add_if_connected(&mut self, inside: &Netlink, host: &Netns) -> Result<(), NetlinkError> {
        let links = inside.cross_links()?;
        let host_id = if links.is_empty() {
            None
        } else {
            inside.id_of(host)?
        };
        let is_connected =
            host_id.is_some() && links.iter().any(|link| Some(link.netns) == host_id);
        // A moved device (host-device, SR-IOV) has no peer.
        let is_hardware = |kind: &Kind| *kind == Kind::Other("device".to_owned());
        let hardware: HashSet<u32> = inside
            .links()?
            .iter()
            .filter(|link| is_hardware(&link.kind) && link.name != "lo")
            .map(|link| link.index)
            .collect();
        if !is_connected && hardware.is_empty() {
            return Ok(());
        }
        let addresses = inside.all_addresses()?.into_iter();
        let connected =
            addresses.filter(|address| is_connected || hardware.contains(&address.link));
        self.addresses
            .extend(connected.map(|address| address.cidr.address()));
        Ok(())
    }
}

/// The namespace is the host's own, has ended, or belongs to a parent user namespace, where no plugin can have created
/// an interface, because that needs the same capability (setns(2), EPERM).
fn is_inaccessible(cause: &NetnsError) -> bool {
    match cause {
        NetnsError::Own | NetnsError::Missing | NetnsError::NotANamespace => true,
        NetnsError::Refused(cause) => cause.kind() == std::io::ErrorKind::PermissionDenied,
    }
}
