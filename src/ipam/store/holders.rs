//! Leases and their owners, read without the lock.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use crate::cni::names::{Attachment, ContainerId};
use crate::error::Error;
use crate::ipam::lease_file::{parse_owner, read_small};
use crate::ipam::store::{Store, address_of, is_not_found};

/// The leases of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldLeases {
    pub(in crate::ipam) addresses: Vec<IpAddr>,
    /// Another interface of the container has an address.
    pub(super) other_interfaces: bool,
    /// A writer crashed, or is running.
    pub(super) temp_file: bool,
    /// A lease that cannot be read and may belong to the attachment.
    pub(super) unreadable: Option<Error>,
}

impl HeldLeases {
    pub(in crate::ipam) fn of(addresses: Vec<IpAddr>) -> HeldLeases {
        HeldLeases {
            addresses,
            ..HeldLeases::default()
        }
    }

    /// The addresses, in no particular order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether another interface of the same container has an address on this network.
    pub fn has_other_interfaces(&self) -> bool {
        self.other_interfaces
    }

    /// Whether there is nothing to release.
    pub(in crate::ipam) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && !self.temp_file && self.unreadable.is_none()
    }
}

/// A file that is named after an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFile {
    pub address: IpAddr,
    /// Container and interface; the interface is empty in the legacy format. `None` if the file names no owner.
    pub owner: Option<(ContainerId, String)>,
    /// When it was written.
    pub since: SystemTime,
}

impl LeaseFile {
    fn read(path: &Path, address: IpAddr) -> io::Result<LeaseFile> {
        Ok(LeaseFile {
            address,
            owner: parse_owner(&read_small(path)?),
            since: path.symlink_metadata()?.modified()?,
        })
    }

    /// The error of a GC that does not release this lease.
    pub fn kept(&self, cause: impl fmt::Display) -> Error {
        let owner = self.owner.iter().map(|(container, _)| container.as_str());
        let owner = owner.collect::<String>();
        Error::failed(format!(
            "did not free {} of container {owner}, which is no longer valid: {cause}",
            self.address
        ))
        .details("the address may be reassigned: delete that interface, then run GC again")
    }

    /// The owner, if the file names one. Legacy leases have no interface; it is eth0.
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

/// `10.1.0.2 by container c1 interface eth0 for 5 min`.
impl fmt::Display for LeaseFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if let Some((container, interface)) = &self.owner {
            write!(f, " by container {container}")?;
            if !interface.is_empty() {
                write!(f, " interface {interface}")?;
            }
        }
        write!(f, " for {}", age(self.since))
    }
}

/// The time since then, in the largest suitable unit.
pub fn age(since: SystemTime) -> String {
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

impl Store {
    /// All files that are named after an address, in the order of the addresses.
    ///
    /// # Errors
    /// If the directory or one of them cannot be read.
    pub fn all(&self) -> Result<Vec<LeaseFile>, Error> {
        let mut all = Vec::new();
        for (address, lease) in self.read_leases()? {
            match lease {
                Ok(lease) => all.push(lease),
                Err(cause) if is_not_found(&cause) => {}
                Err(cause) => return Err(self.failed("read", &address.to_string(), &cause)),
            }
        }
        all.sort_by_key(|lease| lease.address);
        Ok(all)
    }

    /// All leases that can be read.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn all_readable(&self) -> Result<Vec<LeaseFile>, Error> {
        let leases = self.read_leases()?;
        Ok(leases.filter_map(|(_, lease)| lease.ok()).collect())
    }

    fn read_leases(&self) -> Result<impl Iterator<Item = (IpAddr, io::Result<LeaseFile>)>, Error> {
        let files = self.lease_files()?;
        Ok(files.map(|(entry, address)| (address, LeaseFile::read(&entry.path(), address))))
    }

    /// The lease of this address, if it has an owner.
    pub fn holder(&self, address: IpAddr) -> Option<LeaseFile> {
        let lease = LeaseFile::read(&self.path(&address.to_string()), address);
        lease.ok().filter(|lease| lease.owner.is_some())
    }

    /// The oldest leases of the selected addresses, oldest first.
    pub fn oldest(&self, count: usize, is_selected: impl Fn(IpAddr) -> bool) -> Vec<LeaseFile> {
        let mut leases: Vec<(SystemTime, IpAddr)> = Vec::new();
        for entry in self.entries().into_iter().flatten() {
            let address = address_of(&entry).filter(|address| is_selected(*address));
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
