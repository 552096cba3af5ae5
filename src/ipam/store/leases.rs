//! What the directory holds: from the index where it can be believed, else from the leases themselves.

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
use crate::ipam::store::scan::{LeaseScan, Owned, no_lease};
use crate::ipam::store::{Locked, Store, TEMP_FILE, is_absence};

/// The leases of a network, as far as an attachment is concerned.
#[derive(Debug)]
pub struct Leases<'a> {
    store: &'a Store,
    /// The addresses of the attachment.
    pub mine: Vec<IpAddr>,
    /// Whether another interface of the container has an address.
    pub siblings: bool,
    /// A writer crashed, or one is at work.
    pub(super) temp_file: bool,
    /// A lease that cannot be read, so that it may be the attachment's.
    pub(super) unreadable: Option<Error>,
    source: Source,
}

/// How the leases are known.
#[derive(Debug)]
enum Source {
    /// By reading each of them.
    Files(Vec<Owned>, HashSet<IpAddr>),
    /// The set is made when it is needed: the next address is nearly always free.
    Index(Index, OnceCell<HashSet<IpAddr>>),
}

impl Leases<'_> {
    /// Whether somebody has an address. A file that names no owner is nobody's.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        match &self.source {
            Source::Files(_, taken) => taken.contains(&address),
            Source::Index(index, taken) => {
                let path = self.store.path(&address.to_string());
                match path.symlink_metadata() {
                    Err(cause) if is_absence(&cause) => false,
                    // Of a file that the index does not know, the file itself tells whether it is a lease.
                    _ => {
                        let known = taken.get_or_init(|| index.addresses());
                        known.contains(&address) || !is_garbled(&path)
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
    /// Reads what there is; a missing directory holds nothing. Without the lock a lease that comes or goes meanwhile may
    /// be missed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn scan(&self, attachment: &Attachment) -> Result<Leases<'_>, Error> {
        let index = Index::load(self).and_then(|index| self.scan_index(index, attachment));
        index.map_or_else(|| self.scan_files(attachment), Ok)
    }

    /// `None` when the index says of a lease what the lease does not: somebody wrote into it.
    fn scan_index(&self, index: Index, attachment: &Attachment) -> Option<Leases<'_>> {
        let claims = index.claims(attachment);
        let is_so = |(address, expected): (&IpAddr, LeaseOwner)| {
            read_owner_for(&self.path(&address.to_string()), attachment)
                .is_ok_and(|claim| claim == expected)
        };
        let mine = claims
            .mine
            .iter()
            .map(|address| (address, LeaseOwner::Mine));
        let legacy = claims
            .of_container
            .iter()
            .map(|address| (address, LeaseOwner::Containers));
        if !mine.chain(legacy).all(is_so) {
            return None;
        }
        Some(Leases {
            store: self,
            mine: or_else(claims.mine, claims.of_container),
            siblings: claims.siblings,
            temp_file: self.path(TEMP_FILE).symlink_metadata().is_ok(),
            unreadable: None,
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
        Ok(Leases {
            store: self,
            mine: scan.mine,
            siblings: scan.siblings,
            temp_file: scan.temp_file,
            unreadable: scan.unreadable.map(|(address, cause)| {
                let path = self.path(&address.to_string());
                Error::failed(format!("cannot read the lease {}: {cause}", path.display()))
                    .details("it may be this attachment's: repair its file system, or remove it if no container has the address")
            }),
            source: Source::Files(scan.owned, taken),
        })
    }
}

impl Locked<'_> {
    /// Brings the index up to date with what was added for `who` since the leases were read. It is only a hint: that it
    /// could not be written is no failure.
    pub fn index_added(&self, leases: Leases, attachment: &Attachment, added: &[IpAddr]) {
        let _ = match leases.source {
            Source::Index(index, _) => {
                let added: Vec<_> = added
                    .iter()
                    .map(|address| (*address, attachment.clone()))
                    .collect();
                index.amend(self.store, &added, &[])
            }
            Source::Files(mut owned, _) => {
                let (container, interface) = (
                    attachment.container.to_string(),
                    attachment.interface.to_string(),
                );
                let new = added.iter().map(|address| Owned {
                    address: *address,
                    container: container.clone(),
                    interface: interface.clone(),
                });
                owned.extend(new);
                index::build(self.store, &owned)
            }
        };
    }

    /// The index before leases are removed, to be brought up to date with [`Locked::index_removed`].
    pub(super) fn index(&self) -> Option<Index> {
        Index::load(self.store)
    }

    /// The counterpart of [`Locked::index_added`].
    pub(super) fn index_removed(&self, index: Option<Index>, removed: &[IpAddr]) {
        let _ = index.map(|index| index.amend(self.store, &[], removed));
    }
}

fn read_lease(entry: &DirEntry) -> io::Result<Vec<u8>> {
    if entry.file_type()?.is_file() {
        return read_small(&entry.path());
    }
    // Not a lease and not ours to remove, but the address cannot have a file.
    Err(no_lease())
}

/// Whether a file can be read and names nobody.
fn is_garbled(path: &Path) -> bool {
    read_small(path).is_ok_and(|content| parse_owner(&content).is_none())
}

fn or_else(mine: Vec<IpAddr>, of_container: Vec<IpAddr>) -> Vec<IpAddr> {
    if mine.is_empty() { of_container } else { mine }
}
