//! Who is at work for an attachment that has leases.
//!
//! A program that an ADD has started lives on when the ADD is killed, and may do its work after the DEL. So it inherits
//! a lock on the lease, which is free when the last who has it has ended; DEL waits for that.

use std::fs::File;
use std::net::IpAddr;

use crate::error::Error;
use crate::ipam::store::{Store, is_absence};
use crate::kernel::locks::open_plain;
use crate::kernel::process::inherit_fd;

/// Leases that are locked as long as this or a program that was started meanwhile lives.
#[derive(Debug)]
pub struct LeaseLock {
    _leases: Vec<File>,
}

impl Store {
    /// Waits until nobody works for the attachment that has these leases. Those that are gone are none.
    ///
    /// # Errors
    /// Code 11 when somebody works for too long.
    pub fn lock_leases(&self, addresses: &[IpAddr]) -> Result<LeaseLock, Error> {
        let mut leases = Vec::with_capacity(addresses.len());
        for address in addresses {
            let name = address.to_string();
            let file = match open_plain(&self.path(&name)) {
                Err(cause) if is_absence(&cause) => continue,
                opened => opened.map_err(|cause| self.failed("open", &name, &cause))?,
            };
            let locked = self.lock_file(file, &name)?;
            inherit_fd(&locked).map_err(|cause| self.failed("lock", &name, &cause))?;
            leases.push(locked);
        }
        Ok(LeaseLock { _leases: leases })
    }
}
