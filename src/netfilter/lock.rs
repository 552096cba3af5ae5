//! Serializes changes of chains that containers share in tables of iptables. Transactions of iptables-restore do not
//! depend on the ruleset from which they were derived: of two that add a shared rule, both succeed.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Code, Error};
use crate::kernel::locks::{LockError, lock_within, open_plain};
use crate::netfilter::iptables;

/// On a file system that is empty after a reboot (hier(7)).
const DIRECTORY: &str = "/run/gangplank";

/// Runs a change while no other process of this program changes shared chains.
///
/// # Errors
/// Code 11 if another process holds the lock for too long; the error names it.
pub fn serialized<T>(feature: &str, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let path = Path::new(DIRECTORY).join("iptables.lock");
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
    let _locked = lock_within(file, iptables::LIMIT).map_err(|cause| match cause {
        LockError::Io(cause) => Error::failed(failed(&cause)),
        cause => Error::new(Code::TRY_AGAIN, failed(&cause)),
    })?;
    change()
}
