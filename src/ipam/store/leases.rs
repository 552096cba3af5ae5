//! The leases of a network: from the index if it is valid, otherwise from the lease files.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::DirEntry;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::cni::names::Attachment;
use crate::error::Error;
use crate::ipam::lease_file::{LeaseOwner, parse_owner, read_owner_for, read_small};
use crate::ipam::store::index::{self, Index};
use crate::ipam::store::scan::{LeaseScan, OwnedAddress, not_a_lease};
use crate::ipam::store::{HeldLeases, Locked, Store, TEMP_FILE, is_not_found};

/// The leases of a network, and those of one attachment among them.
#[derive(Debug)]
pub struct Leases<'a> {
    store: &'a Store,
    pub held: HeldLeases,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// All lease files were read.
    Files(Vec<OwnedAddress>, HashSet<IpAddr>),
    /// The set is built on demand: the next address is nearly always free.
    Index(Index, OnceCell<HashSet<IpAddr>>),
}

impl Leases<'_> {
    /// Whether a container has an address. A lease without an owner does not count.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        match &self.source {
            Source::Files(_, taken) => taken.contains(&address),
            Source::Index(index, taken) => {
                let path = self.store.path(&address.to_string());
                match path.symlink_metadata() {
                    Err(cause) if is_not_found(&cause) => false,
                    // A file that is not in the index may be an invalid lease.
                    _ => {
                        let taken = taken.get_or_init(|| index.addresses());
                        taken.contains(&address) || !is_invalid(&path)
                    }
                }
            }
        }
    }

    pub(super) fn is_from_index(&self) -> bool {
        matches!(self.source, Source::Index(..))
    }
}

impl Store {
    /// Reads the leases; a missing directory contains none. Without the lock, leases that are created or removed at the
    /// same time may be missed.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn scan(&self, attachment: &Attachment) -> Result<Leases<'_>, Error> {
        let index = Index::load(self).and_then(|index| self.scan_index(index, attachment));
        index.map_or_else(|| self.scan_files(attachment), Ok)
    }

    /// `None` if a lease differs from the index: it was modified in place.
    fn scan_index(&self, index: Index, attachment: &Attachment) -> Option<Leases<'_>> {
        let indexed = index.leases_of(attachment);
        let all_are = |addresses: &[IpAddr], owner: LeaseOwner| {
            addresses.iter().all(|address| {
                let path = self.path(&address.to_string());
                read_owner_for(&path, attachment).is_ok_and(|found| found == owner)
            })
        };
        if !all_are(&indexed.of_attachment, LeaseOwner::Attachment)
            || !all_are(&indexed.of_container, LeaseOwner::Container)
        {
            return None;
        }
        let addresses = if indexed.of_attachment.is_empty() {
            indexed.of_container
        } else {
            indexed.of_attachment
        };
        Some(Leases {
            store: self,
            held: HeldLeases {
                addresses,
                other_interfaces: indexed.other_interfaces,
                temp_file: self.path(TEMP_FILE).symlink_metadata().is_ok(),
                unreadable: None,
            },
            source: Source::Index(index, OnceCell::new()),
        })
    }

    pub(super) fn scan_files(&self, attachment: &Attachment) -> Result<Leases<'_>, Error> {
        let entries = self.entries()?;
        let files = entries
            .iter()
            .map(|entry| (entry.file_name(), || read_lease(entry)));
        let scan = LeaseScan::of(files, attachment);
        let taken = scan.taken();
        let unreadable = scan.unreadable.map(|(address, cause)| {
            let path = self.path(&address.to_string());
            Error::failed(format!("cannot read the lease {}: {cause}", path.display()))
                .details("it may be this attachment's: repair its file system, or remove it if no container has the address")
        });
        Ok(Leases {
            store: self,
            held: HeldLeases {
                addresses: scan.of_attachment,
                other_interfaces: scan.other_interfaces,
                temp_file: scan.temp_file,
                unreadable,
            },
            source: Source::Files(scan.owned, taken),
        })
    }
}

impl Locked<'_> {
    /// Adds new leases of the attachment to the index. Errors are ignored: an outdated index is not used.
    pub fn index_added(&self, leases: Leases, attachment: &Attachment, added: &[IpAddr]) {
        let _ = match leases.source {
            Source::Index(index, _) => index.update(self.store, attachment, added, &[]),
            Source::Files(mut owned, _) => {
                owned.extend(added.iter().map(|address| OwnedAddress {
                    address: *address,
                    container: attachment.container.to_string(),
                    interface: attachment.interface.to_string(),
                }));
                index::build(self.store, &owned)
            }
        };
    }
}

fn read_lease(entry: &DirEntry) -> io::Result<Vec<u8>> {
    if entry.file_type()?.is_file() {
        return read_small(&entry.path());
    }
    // Not removed, but the name is taken: the address cannot be allocated.
    Err(not_a_lease())
}

/// Whether a file can be read and names no owner.
fn is_invalid(path: &Path) -> bool {
    read_small(path).is_ok_and(|content| parse_owner(&content).is_none())
}
