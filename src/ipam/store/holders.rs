//! Who holds what: for a release, and for messages.

use std::fmt;
use std::fs::DirEntry;
use std::io;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::cni::names::{Attachment, ContainerId};
use crate::error::Error;
use crate::ipam::lease_file::{Holder, parse_owner, read_small};
use crate::ipam::store::{Store, address_of, is_absence};

/// The addresses that an attachment was found to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) siblings: bool,
    pub(super) stale_temp_file: bool,
    /// A lease that cannot be read, so that it may be the attachment's.
    pub(super) unreadable: Option<Error>,
}

impl Held {
    /// Exactly these.
    pub(in crate::ipam) fn exactly(addresses: Vec<IpAddr>) -> Held {
        Held {
            addresses,
            siblings: false,
            stale_temp_file: false,
            unreadable: None,
        }
    }

    /// The addresses, in no order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether another interface of the same container has an address on this network.
    pub fn has_siblings(&self) -> bool {
        self.siblings
    }

    /// Whether there is nothing to release.
    pub(in crate::ipam) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && !self.stale_temp_file && self.unreadable.is_none()
    }
}

/// A file that is named after an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFile {
    /// The address.
    pub address: IpAddr,
    /// Container and interface; the latter is empty in the legacy form. `None` when it names nobody.
    pub owner: Option<(ContainerId, String)>,
    /// When it was written.
    pub since: SystemTime,
}

impl LeaseFile {
    /// The error to report when GC does not free it.
    pub fn kept(&self, cause: impl fmt::Display) -> Error {
        let owner = self.owner.iter().map(|(container, _)| container.as_str());
        let owner = owner.collect::<String>();
        Error::failed(format!(
            "did not free {} of container {owner}, which is not valid any more: {cause}",
            self.address
        ))
        .details("another container could be given the address: delete that interface, then run GC again")
    }

    /// Whose it is, as far as it tells. Leases of the legacy form name no interface; there was only one then.
    pub fn attachment(&self) -> Option<Attachment> {
        let (container, interface) = self.owner.as_ref()?;
        let interface = match interface.trim() {
            "" => "eth0",
            interface => interface,
        };
        Some(Attachment {
            container: container.clone(),
            interface: interface.parse().ok()?,
        })
    }
}

impl Store {
    /// All files that are named after an address, in the order of the addresses. Waits for nobody.
    ///
    /// # Errors
    /// When the directory or one of them cannot be read.
    pub fn all(&self) -> Result<Vec<LeaseFile>, Error> {
        let mut all = Vec::new();
        for (address, read) in self.read_leases()? {
            match read {
                Ok(lease) => all.push(lease),
                Err(cause) if is_absence(&cause) => {}
                Err(cause) => return Err(self.failed("read", &address.to_string(), &cause)),
            }
        }
        all.sort_by_key(|lease| lease.address);
        Ok(all)
    }

    /// Those of all leases that can be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn all_readable(&self) -> Result<Vec<LeaseFile>, Error> {
        Ok(self
            .read_leases()?
            .filter_map(|(_, read)| read.ok())
            .collect())
    }

    fn read_leases(&self) -> Result<impl Iterator<Item = (IpAddr, io::Result<LeaseFile>)>, Error> {
        let read = |(entry, address): (DirEntry, IpAddr)| {
            let content = read_small(&entry.path());
            let lease = content.and_then(|content| {
                Ok(LeaseFile {
                    address,
                    owner: parse_owner(&content),
                    since: entry.metadata()?.modified()?,
                })
            });
            (address, lease)
        };
        Ok(self.lease_files()?.map(read))
    }

    /// Who has this address.
    pub fn holder(&self, address: IpAddr) -> Option<Holder> {
        Holder::read(&self.path(&address.to_string()), address)
    }

    /// The oldest leases among those wanted, oldest first.
    pub fn oldest(&self, count: usize, is_wanted: impl Fn(IpAddr) -> bool) -> Vec<Holder> {
        let mut leases: Vec<(SystemTime, IpAddr)> = Vec::new();
        for entry in self.entries().into_iter().flatten() {
            let address = address_of(&entry).filter(|address| is_wanted(*address));
            let since = entry.metadata().and_then(|file| file.modified());
            leases.extend(since.ok().zip(address));
        }
        leases.sort();
        let holders = leases
            .iter()
            .filter_map(|(_, address)| self.holder(*address));
        holders.take(count).collect()
    }
}
