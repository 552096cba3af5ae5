//! Locks on the leases of an attachment, inherited by the programs that ADD starts.
//!
//! A program that ADD started may outlive a killed ADD and act after DEL. It inherits a lock on the lease; DEL waits
//! until all processes that hold the lock have ended.

use std::fs::File;
use std::net::IpAddr;

use crate::error::Error;
use crate::ipam::store::{Store, is_not_found};
use crate::kernel::locks::open_plain;
use crate::kernel::process::inherit_fd;

/// Locked leases, until this value is dropped and all programs started in the meantime have ended.
#[derive(Debug)]
pub struct LeaseLock {
    _leases: Vec<File>,
}

impl Store {
    /// Waits until no program is running for the attachment that has these leases. Leases that do not exist are
    /// ignored.
    ///
    /// # Errors
    /// Code 11 if a program runs for too long.
    pub fn lock_leases(&self, addresses: &[IpAddr]) -> Result<LeaseLock, Error> {
        let mut leases = Vec::with_capacity(addresses.len());
        for address in addresses {
            let name = address.to_string();
            let file = match open_plain(&self.path(&name)) {
                Err(cause) if is_not_found(&cause) => continue,
                opened => opened.map_err(|cause| self.failed("open", &name, &cause))?,
            };
            let locked = self.lock_file(file, &name)?;
            inherit_fd(&locked).map_err(|cause| self.failed("lock", &name, &cause))?;
            leases.push(locked);
        }
        Ok(LeaseLock { _leases: leases })
    }
}
