//! The lease directory of a network, shared with the Go plugin host-local.
//!
//! Files: `<address>` contains `<container ID>\r\n<interface>`; `last_reserved_ip.N` contains the last address reserved
//! from range set N; `lock` is locked by all writers; `.gangplank.boot` identifies the boot in which the leases were
//! made ([`boot`]); `.gangplank.index` lists all leases ([`index`]). Other files are not touched. Knows no ranges.

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
use crate::error::{Code, Error};
use crate::ipam::lease_file::{LeaseOwner, read_owner_for, read_small};
use crate::ipam::store::scan::{TEMP_FILE, address_named, is_not_found, parse_last_reserved};
use crate::kernel::files;
use crate::kernel::locks::{LockError, lock_within};
use crate::kernel::retry::retry_on_eintr;

pub use gc::is_kept;
pub use holders::{HeldLeases, LeaseFile, age};
pub use lease_lock::LeaseLock;
pub use leases::Leases;

/// Writers hold the lock for milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Followed by the number of the range set.
const LAST_RESERVED: &str = "last_reserved_ip.";

const NOT_WRITABLE: &str = "leases need a writable directory: see ipam.dataDir";

#[derive(Clone, Debug)]
pub struct Store {
    network: NetworkName,
    directory: PathBuf,
}

impl Store {
    pub fn network(&self) -> &NetworkName {
        &self.network
    }

    /// The store of a network in `data_dir`. Creates nothing.
    pub fn new(data_dir: &Path, network: &NetworkName) -> Store {
        Store {
            network: network.clone(),
            directory: data_dir.join(network.as_str()),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether leases can be written. Writes nothing.
    ///
    /// # Errors
    /// If not.
    pub fn writable(&self) -> Result<(), Error> {
        files::check_writable(&self.directory).map_err(|cause| {
            let directory = self.directory.display();
            Error::failed(format!("cannot write leases to {directory}: {cause}"))
                .details(NOT_WRITABLE)
        })
    }

    /// Takes the lock; creates the directory if it does not exist.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock for too long, 999 if the directory cannot be created.
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

    /// Takes the lock; `None` if the directory does not exist.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock for too long.
    pub fn lock(&self) -> Result<Option<Locked<'_>>, Error> {
        // Opened for writing, because NFS requires it for an exclusive lock; the mode is that of the Go plugin.
        let opened = files::no_follow()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o750)
            .open(self.path("lock"));
        let file = match opened {
            Ok(file) => file,
            Err(cause) if is_not_found(&cause) => return Ok(None),
            Err(cause) => return Err(self.failed("open", "lock", &cause)),
        };
        let lock = self.lock_file(file, "lock")?;
        // A restored backup may have replaced the file in the meantime: other processes lock the new one.
        let is_named = match (lock.metadata(), self.path("lock").symlink_metadata()) {
            (Ok(locked), Ok(named)) => (locked.dev(), locked.ino()) == (named.dev(), named.ino()),
            (_, Err(cause)) => !is_not_found(&cause),
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
        lock_within(file, LOCK_LIMIT).map_err(|error| {
            let what = format!("cannot lock {}", self.path(name).display());
            match error {
                LockError::Held { .. } => {
                    Error::new(Code::TRY_AGAIN, error.to_string()).context(what)
                }
                LockError::Terminated(signal) => Error::from(signal).context(what),
                LockError::Io(cause) => self.failed("lock", name, &cause),
            }
        })
    }

    /// The leases of an attachment, read without the lock.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn held(&self, attachment: &Attachment) -> Result<HeldLeases, Error> {
        let mut leases = self.scan(attachment)?;
        if leases.held.addresses.is_empty() && leases.is_from_index() {
            // A lease may have been modified in place, which does not invalidate the index.
            leases = self.scan_files(attachment)?;
        }
        Ok(leases.held)
    }

    fn entries(&self) -> Result<Vec<DirEntry>, Error> {
        let list = || fs::read_dir(&self.directory).and_then(Iterator::collect);
        let listed = retry_on_eintr(list);
        match listed {
            Err(cause) if is_not_found(&cause) => Ok(Vec::new()),
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
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                error.details(NOT_WRITABLE)
            }
            ErrorKind::StorageFull => {
                error.details("its file system has no space or no inodes left: free some")
            }
            ErrorKind::IsADirectory => error.details("plugins create no directory here: remove it"),
            _ if files::is_link(cause) => {
                error.details("it is a symbolic link, which is not followed here: remove it")
            }
            _ => error,
        }
    }
}

/// The lease directory while this process holds its lock.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: File,
}

impl Locked<'_> {
    /// The last address reserved from a range set. It is a hint: unreadable content is ignored.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        parse_last_reserved(&read_small(&self.store.path(&last_reserved_name(set))).ok()?)
    }

    /// # Errors
    /// If it cannot be written.
    pub fn set_last_reserved(&self, set: usize, address: IpAddr) -> Result<(), Error> {
        self.replace(&last_reserved_name(set), &address.to_string(), |_| Ok(()))
    }

    /// Replaces a file atomically. `finish` runs before the rename.
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

    /// Creates a lease atomically. Replaces an invalid lease, but no other.
    ///
    /// # Errors
    /// If it cannot be written or exists.
    pub fn create_lease(&self, address: IpAddr, attachment: &Attachment) -> Result<(), Error> {
        let name = address.to_string();
        let (temp_file, path) = (self.store.path(TEMP_FILE), self.store.path(&name));
        let content = format!("{}\r\n{}", attachment.container, attachment.interface);
        let link = || files::name_new(&temp_file, &path, content.as_bytes());
        let created = self.write_temp_file(&content).and_then(|_| match link() {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                if read_owner_for(&path, attachment)? != LeaseOwner::Invalid {
                    return Err(cause);
                }
                remove(&path)?;
                link()
            }
            linked => linked,
        });
        // A remaining temporary file would be a hard link to the lease.
        let removed = remove(&temp_file);
        created.map_err(|cause| self.store.failed("write the lease", &name, &cause))?;
        removed.map_err(|cause| {
            let _ = remove(&path).and_then(|()| remove(&temp_file));
            self.store.failed("remove", TEMP_FILE, &cause)
        })
    }

    pub fn remove_lease(&self, address: IpAddr) -> Result<(), Error> {
        let name = address.to_string();
        remove(&self.store.path(&name)).map_err(|cause| self.store.failed("remove", &name, &cause))
    }

    fn remove_temp_file(&self) -> Result<(), Error> {
        remove(&self.store.path(TEMP_FILE))
            .map_err(|cause| self.store.failed("remove", TEMP_FILE, &cause))
    }

    fn write_temp_file(&self, content: &str) -> io::Result<File> {
        let path = self.store.path(TEMP_FILE);
        let mut file = match create_new(&path) {
            // A stale temporary file may be a hard link to a lease: not written to.
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
    format!("{LAST_RESERVED}{set}")
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Removes a file, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match retry_on_eintr(|| fs::remove_file(path)) {
        Err(cause) if is_not_found(&cause) => Ok(()),
        outcome => outcome,
    }
}

fn address_of(entry: &DirEntry) -> Option<IpAddr> {
    address_named(&entry.file_name())
}

#[cfg(test)]
mod tests;
