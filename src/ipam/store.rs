//! The directory of one network's leases, shared with the reference's host-local.
//!
//! `<ip>` holds `<container id>\r\n<interface>`, `last_reserved_ip.<set>` an address, `lock` is what every writer
//! locks. `.gangplank.boot` holds the boot they are of ([`boot`]), `.gangplank.index` who has which ([`index`]). Knows
//! nothing of ranges. Whatever else lies in the directory is not ours and is not touched.

mod boot;
mod gc;
mod holders;
pub mod index;
mod lease_lock;
mod leases;
mod release;
pub mod scan;

use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Code, Error, Failures};
use crate::ipam::lease_file::{LeaseOwner, read_owner_for, read_small};
use crate::ipam::store::scan::{TEMP_FILE, address_named, is_absence, parse_cursor};
use crate::kernel::files;
use crate::kernel::locks::{LockError, lock_within};
use crate::kernel::retry::retry_on_eintr;

pub use gc::is_kept;
pub use holders::{Held, LeaseFile};
pub use lease_lock::LeaseLock;
pub use leases::Leases;

/// How long to wait for others. Who has the lock works for milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What the files that hold the address reserved last begin with; the number of the range set follows.
const CURSOR: &str = "last_reserved_ip.";

/// What to do about a directory that cannot be written.
const REMEDY: &str = "leases need a writable directory: see ipam.dataDir";

/// The leases of one network.
#[derive(Clone, Debug)]
pub struct Store {
    network: NetworkName,
    directory: PathBuf,
}

impl Store {
    pub fn network(&self) -> &NetworkName {
        &self.network
    }

    /// The store of a network below `data_dir`; nothing is created.
    pub fn new(data_dir: &Path, network: &NetworkName) -> Store {
        Store {
            network: network.clone(),
            directory: data_dir.join(network.as_str()),
        }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether leases could be written; nothing is.
    ///
    /// # Errors
    /// When they could not.
    pub fn writable(&self) -> Result<(), Error> {
        files::check_writable(&self.directory).map_err(|why| {
            let directory = self.directory.display();
            Error::failed(format!("cannot write leases to {directory}: {why}")).details(REMEDY)
        })
    }

    /// Takes the lock, making the directory where it is missing.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock, 999 when the directory cannot be made.
    pub fn lock_or_create(&self) -> Result<Locked<'_>, Error> {
        if let Some(locked) = self.lock()? {
            return Ok(locked);
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755);
        retry_on_eintr(|| builder.create(&self.directory))
            .map_err(|cause| self.failed("create the directory", "", &cause))?;
        self.lock()?.ok_or_else(|| {
            let gone = io::Error::from(ErrorKind::NotFound);
            self.failed("open", "lock", &gone)
        })
    }

    /// Takes the lock; `None` when there is no directory.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock.
    pub fn lock(&self) -> Result<Option<Locked<'_>>, Error> {
        // Writable, because NFS gives an exclusive lock on nothing else; the mode is the reference's.
        let opened = files::no_follow()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o750)
            .open(self.path("lock"));
        let file = match opened {
            Ok(file) => file,
            Err(cause) if is_absence(&cause) => return Ok(None),
            Err(cause) => return Err(self.failed("open", "lock", &cause)),
        };
        let lock = self.lock_file(file, "lock")?;
        // A restored backup may have replaced it while we waited: then others lock the new one.
        let is_named = match (lock.metadata(), self.path("lock").symlink_metadata()) {
            (Ok(locked), Ok(named)) => (locked.dev(), locked.ino()) == (named.dev(), named.ino()),
            (_, Err(cause)) => !is_absence(&cause),
            _ => true,
        };
        if !is_named {
            drop(lock);
            return self.lock();
        }
        Ok(Some(Locked {
            store: self,
            _lock: lock,
        }))
    }

    fn lock_file(&self, file: File, name: &str) -> Result<File, Error> {
        lock_within(file, LOCK_LIMIT).map_err(|refused| {
            let what = format!("cannot lock {}", self.path(name).display());
            match refused {
                LockError::Held { .. } => {
                    Error::new(Code::TRY_AGAIN, refused.to_string()).context(what)
                }
                LockError::Terminated(stopped) => Error::from(stopped).context(what),
                LockError::Io(cause) => self.failed("lock", name, &cause),
            }
        })
    }

    /// The addresses `who` holds, read without the lock.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn held(&self, attachment: &Attachment) -> Result<Held, Error> {
        let mut leases = self.scan(attachment)?;
        if leases.mine.is_empty() && leases.is_from_index() {
            // Somebody may have written into a lease, which does not show in the index.
            leases = self.scan_files(attachment)?;
        }
        Ok(Held {
            addresses: leases.mine,
            siblings: leases.siblings,
            stale_temp_file: leases.temp_file,
            unreadable: leases.unreadable,
        })
    }

    fn entries(&self) -> Result<Vec<DirEntry>, Error> {
        let list = || fs::read_dir(&self.directory).and_then(Iterator::collect);
        let listed = retry_on_eintr(list);
        match listed {
            Err(cause) if is_absence(&cause) => Ok(Vec::new()),
            listed => listed.map_err(|cause| self.failed("read", "", &cause)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn failed(&self, verb: &str, name: &str, cause: &io::Error) -> Error {
        let path = match name {
            "" => self.directory.clone(),
            name => self.path(name),
        };
        let error = Error::failed(format!("cannot {verb} {}: {cause}", path.display()));
        match cause.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => error.details(REMEDY),
            ErrorKind::StorageFull => {
                error.details("its file system has no space or no inodes left: free some")
            }
            ErrorKind::IsADirectory => error.details("no plugin makes a directory here: remove it"),
            _ if files::is_link(cause) => {
                error.details("it is a symbolic link, which is not followed here: remove it")
            }
            _ => error,
        }
    }
}

/// The store while nobody else changes it.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: File,
}

impl Locked<'_> {
    /// What there is; see [`Store::scan`].
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn scan(&self, attachment: &Attachment) -> Result<Leases<'_>, Error> {
        self.store.scan(attachment)
    }

    /// The address reserved last in the range set of that index. It is a hint: what cannot be read is none.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        parse_cursor(&read_small(&self.store.path(&last_reserved_name(set))).ok()?)
    }

    /// Remembers the address reserved last.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, set: usize, address: IpAddr) -> Result<(), Error> {
        self.replace(&last_reserved_name(set), &address.to_string(), |_| Ok(()))
    }

    /// Puts a file in place of whatever has its name: whole or not at all. `finish` is done to it before.
    fn replace(
        &self,
        name: &str,
        content: &str,
        finish: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), Error> {
        let temp_file = self.store.path(TEMP_FILE);
        self.write_temp_file(content)
            .and_then(|file| finish(&file))
            .and_then(|()| retry_on_eintr(|| fs::rename(&temp_file, self.store.path(name))))
            .map_err(|cause| {
                let _ = remove(&temp_file);
                self.store.failed("write", name, &cause)
            })
    }

    /// Makes a lease: whole or not at all, and never over somebody's. A garbled file in its place is replaced.
    ///
    /// # Errors
    /// When it cannot be written, or appeared meanwhile.
    pub fn put(&self, address: IpAddr, attachment: &Attachment) -> Result<(), Error> {
        let name = address.to_string();
        let (temp_file, place) = (self.store.path(TEMP_FILE), self.store.path(&name));
        let content = format!("{}\r\n{}", attachment.container, attachment.interface);
        let name_it = || files::name_new(&temp_file, &place, content.as_bytes());
        let made = self
            .write_temp_file(&content)
            .and_then(|_| match name_it() {
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                    if read_owner_for(&place, attachment)? != LeaseOwner::Garbled {
                        return Err(cause);
                    }
                    remove(&place)?;
                    name_it()
                }
                made => made,
            });
        // Kept, it would be a second name of the lease.
        let cleared = remove(&temp_file);
        made.map_err(|cause| self.store.failed("write the lease", &name, &cause))?;
        cleared.map_err(|cause| {
            let _ = remove(&place).and_then(|()| remove(&temp_file));
            self.store.failed("remove", TEMP_FILE, &cause)
        })
    }

    /// Removes a lease that this very lock has made.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn take_back(&self, address: IpAddr) -> Result<(), Error> {
        let name = address.to_string();
        remove(&self.store.path(&name)).map_err(|cause| self.store.failed("remove", &name, &cause))
    }

    /// Removes what was found, as far as it still belongs to `who`, and what a crashed writer left.
    ///
    /// # Errors
    /// When something cannot be read or removed; the rest is removed.
    pub fn release(&self, held: &Held, attachment: &Attachment) -> Result<(), Error> {
        if let Some(unreadable) = &held.unreadable {
            return Err(unreadable.clone());
        }
        let index = self.index();
        let mut failures = Failures::default();
        for address in held.addresses() {
            failures.note(self.release_one(*address, attachment));
        }
        if held.stale_temp_file {
            failures.note(self.remove_temp_file());
        }
        failures.into_result()?;
        self.index_removed(index, held.addresses());
        Ok(())
    }

    fn release_one(&self, address: IpAddr, attachment: &Attachment) -> Result<(), Error> {
        let name = address.to_string();
        match read_owner_for(&self.store.path(&name), attachment) {
            Ok(LeaseOwner::Mine | LeaseOwner::Containers) => self.take_back(address),
            Ok(LeaseOwner::Siblings | LeaseOwner::Foreign | LeaseOwner::Garbled) => Ok(()),
            Err(cause) if is_absence(&cause) => Ok(()),
            Err(cause) => Err(self.store.failed("read", &name, &cause)),
        }
    }

    fn remove_temp_file(&self) -> Result<(), Error> {
        remove(&self.store.path(TEMP_FILE))
            .map_err(|cause| self.store.failed("remove", TEMP_FILE, &cause))
    }

    fn write_temp_file(&self, content: &str) -> io::Result<File> {
        let path = self.store.path(TEMP_FILE);
        let mut file = match create_new(&path) {
            // One that a crash left may be a second name of a lease: it is not to be written to.
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                remove(&path)?;
                create_new(&path)?
            }
            created => created?,
        };
        match file.write_all(content.as_bytes()) {
            Ok(()) => Ok(file),
            Err(cause) => {
                let _ = remove(&path);
                Err(cause)
            }
        }
    }
}

fn last_reserved_name(set: usize) -> String {
    format!("{CURSOR}{set}")
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Removes a file; one that is gone already is fine.
fn remove(path: &Path) -> io::Result<()> {
    match retry_on_eintr(|| fs::remove_file(path)) {
        Err(cause) if is_absence(&cause) => Ok(()),
        outcome => outcome,
    }
}

/// The address that a file is named after.
fn address_of(entry: &DirEntry) -> Option<IpAddr> {
    address_named(&entry.file_name())
}

#[cfg(test)]
mod tests;
