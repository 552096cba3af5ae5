//! Which leases belong to attachments that still exist.
//!
//! A boot ID that differs from the recorded one does not prove that the containers are gone: a container manager may lay
//! a file of its own over it, and the Go plugins may have been at work since the boot. So a lease is given up only when
//! nothing shows that its attachment lives. Takes a look at all links and processes of the host: only for rare events.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::{Kind, Netlink, NetlinkError, NetnsId};
use crate::kernel::netns::{Netns, NetnsError, OwnNetns};
use crate::kernel::procfs;

/// What shows that attachments live.
#[derive(Debug, Default)]
pub struct LiveAttachments {
    /// The links of the host.
    links: HashSet<String>,
    /// The addresses in all other network namespaces that a link connects with the host's.
    addresses: HashSet<IpAddr>,
    /// The containers for which a plugin, of any implementation, is at work.
    containers: HashSet<String>,
}

impl LiveAttachments {
    /// Looks at the links, the namespaces and the processes of this host.
    ///
    /// # Errors
    /// When one of them cannot be seen: then every attachment may be alive.
    pub fn observe() -> Result<LiveAttachments, Error> {
        let unknown = |what: &str, cause: &dyn std::fmt::Display| {
            Error::failed(format!(
                "cannot see which attachments live: {what}: {cause}"
            ))
        };
        let host = Netlink::open().map_err(|cause| unknown("open a netlink socket", &cause))?;
        let links = host
            .links()
            .map_err(|cause| unknown("list the links", &cause))?;
        let mut live = LiveAttachments {
            links: links.into_iter().map(|link| link.name).collect(),
            ..LiveAttachments::default()
        };
        let seen = live
            .add_linked(&host)
            .map_err(|cause| unknown("list addresses of another network namespace", &cause))?;
        live.add_visible(&host, &seen)
            .map_err(|cause| unknown("look into a network namespace", &cause))?;
        live.containers = procfs::environment_values("CNI_CONTAINERID")
            .map_err(|cause| unknown("list the processes", &cause))?;
        Ok(live)
    }

    /// Whether the attachment with this lease may be alive. Without an interface, in the legacy form of a lease, it is
    /// the container's only one.
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

    /// Whether an interface of a container, or of anything else that is connected with this host, has an address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Passes over the process that asks, and those that started it.
    pub fn without_work_for(mut self, container: &ContainerId) -> LiveAttachments {
        self.containers.remove(container.as_str());
        self
    }

    /// The namespaces that veths of the host lead to, wherever their files are.
    fn add_linked(&mut self, host: &Netlink) -> Result<BTreeSet<NetnsId>, NetlinkError> {
        let links = host.cross_links()?;
        let linked: BTreeSet<NetnsId> = links.iter().map(|link| link.netns).collect();
        for netns in &linked {
            match host.addresses_in(*netns)? {
                Some(addresses) => {
                    let addresses = addresses.iter().map(|address| address.cidr.address());
                    self.addresses.extend(addresses);
                }
                // The kernel deletes them with their peers, which takes it a while.
                None => {
                    let dead = links.iter().filter(|link| link.netns == *netns);
                    for link in dead {
                        self.links.remove(&link.link.name);
                    }
                }
            }
        }
        Ok(linked)
    }

    /// The namespaces that processes or mounts keep and that have a link which is based on one of the host's, as those
    /// of the types macvlan, ipvlan and vlan are: it does not show from the host.
    fn add_visible(&mut self, host: &Netlink, seen: &BTreeSet<NetnsId>) -> Result<(), NetnsError> {
        let home = Netns::own()?;
        for path in procfs::network_namespaces()? {
            let netns = match Netns::open(&path, OwnNetns::Refused) {
                Ok(netns) => netns,
                Err(cause) if is_elsewhere(&cause) => continue,
                Err(cause) => return Err(cause),
            };
            let number = host.id_of(&netns).map_err(std::io::Error::other)?;
            if number.is_some_and(|number| seen.contains(&number)) {
                continue;
            }
            match Netlink::open_in(&netns) {
                Ok(inside) => self
                    .add_connected(&inside, &home)
                    .map_err(std::io::Error::other)?,
                Err(cause) if is_elsewhere(&cause) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn add_connected(&mut self, inside: &Netlink, home: &Netns) -> Result<(), NetlinkError> {
        let links = inside.cross_links()?;
        let home = if links.is_empty() {
            None
        } else {
            inside.id_of(home)?
        };
        let is_connected = home.is_some() && links.iter().any(|link| Some(link.netns) == home);
        // A device that was moved there, of the type host-device or SR-IOV, leads nowhere.
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
        let there = addresses.filter(|address| is_connected || hardware.contains(&address.link));
        self.addresses
            .extend(there.map(|address| address.cidr.address()));
        Ok(())
    }
}

/// The namespace is this host's own, has ended, or is of a user namespace above ours: no plugin could have made an
/// interface there, for that needs the same right (setns(2), EPERM).
fn is_elsewhere(cause: &NetnsError) -> bool {
    match cause {
        NetnsError::Own | NetnsError::Missing | NetnsError::NotANamespace => true,
        NetnsError::Refused(cause) => cause.kind() == std::io::ErrorKind::PermissionDenied,
    }
}
