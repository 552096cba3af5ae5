//! What hangs on a lease outside the store: programs at work for its attachment, and whether rules were made for it.
//!
//! A program that an ADD has started lives on when the ADD is killed, and may do its work after the DEL. So it inherits
//! a lock on the lease, which is free when the last who has it has ended; DEL waits for that. That rules were made is
//! remembered as the lease's sticky bit, which says nothing else on a file: the configuration may have changed by then.

use std::fs::{File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use crate::error::Error;
use crate::host::locks::open_plain;
use crate::host::process::bequeath;
use crate::ipam::store::{Store, is_absence};

const STICKY: u32 = 0o1000;

/// The leases of an attachment, locked as long as this or a program that was started meanwhile lives.
#[derive(Debug)]
pub struct Guard {
    leases: Vec<File>,
}

impl Store {
    /// Waits until nobody works for the attachment that has these leases. Those that are gone are none.
    ///
    /// # Errors
    /// Code 11 when somebody works for too long.
    pub fn guard(&self, addresses: &[IpAddr]) -> Result<Guard, Error> {
        let mut leases = Vec::with_capacity(addresses.len());
        for address in addresses {
            let name = address.to_string();
            let file = match open_plain(&self.path(&name)) {
                Err(cause) if is_absence(&cause) => continue,
                opened => opened.map_err(|cause| self.failed("open", &name, &cause))?,
            };
            let locked = self.lock_file(file, &name)?;
            bequeath(&locked).map_err(|cause| self.failed("lock", &name, &cause))?;
            leases.push(locked);
        }
        Ok(Guard { leases })
    }
}

impl Guard {
    /// Remembers that rules are made.
    ///
    /// # Errors
    /// When a lease cannot be marked.
    pub fn mark(&self) -> Result<(), Error> {
        let mark = |lease: &File| {
            let mode = lease.metadata()?.permissions().mode();
            lease.set_permissions(Permissions::from_mode(mode | STICKY))
        };
        let marked: io::Result<()> = self.leases.iter().try_for_each(mark);
        marked.map_err(|cause| Error::failed(format!("cannot change the mode of a lease: {cause}")))
    }

    /// Whether rules may have been made.
    pub fn is_marked(&self) -> bool {
        let is_marked = |lease: &File| lease.metadata().map(|file| file.permissions().mode());
        let modes = self.leases.iter().map(is_marked);
        modes.flatten().any(|mode| mode & STICKY != 0)
    }
}
