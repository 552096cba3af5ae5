//! Serializes changes of chains that containers share in tables of iptables. Transactions of iptables-restore do not
//! depend on the ruleset from which they were derived: of two that add a shared rule, both succeed.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error};
use crate::kernel::locks::{LockError, lock_within, open_plain};
use crate::kernel::process::inherit_fd;
use crate::netfilter::iptables;

/// On a file system that is empty after a reboot (hier(7)).
const DIRECTORY: &str = "/run/gangplank";

fn path() -> PathBuf {
    Path::new(DIRECTORY).join("iptables.lock")
}

/// Runs a change while no other process of this program changes shared chains.
///
/// # Errors
/// Code 11 if another process holds the lock for too long; the error names it.
pub fn serialized<T>(feature: &str, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let path = path();
    let open = || {
        fs::create_dir_all(DIRECTORY)?;
        // With read permission, any user could hold the lock.
        let mut options = File::options();
        match options.write(true).create_new(true).mode(0o600).open(&path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => Err(cause),
            _ => open_plain(&path),
        }
    };
    let failed = |cause: &dyn std::fmt::Display| {
        format!("{feature}: cannot lock {}: {cause}", path.display())
    };
    let file = open().map_err(|cause| Error::failed(failed(&cause)))?;
    let locked = lock_within(file, iptables::LIMIT).map_err(|cause| match cause {
        LockError::Io(cause) => Error::failed(failed(&cause)),
        cause => Error::new(Code::TRY_AGAIN, failed(&cause)),
    })?;
    // If this process is killed, its iptables-restore continues, and holds the lock.
    inherit_fd(&locked).map_err(|cause| Error::failed(failed(&cause)))?;
    change()
}

/// Waits for changes in progress. A removal over netlink needs no lock, but iptables-restore of a killed ADD would add the
/// rules after their removal.
///
/// # Errors
/// See [`serialized`].
pub fn wait_for_changes(feature: &str) -> Result<(), Error> {
    match path().exists() {
        true => serialized(feature, || Ok(())),
        false => Ok(()),
    }
}
