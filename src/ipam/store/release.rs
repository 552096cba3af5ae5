//! Releasing leases: for DEL and GC, which need only the directory, not the ranges.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::ValidAttachments;
use crate::cni::conf::NetConf;
use crate::cni::names::Attachment;
use crate::error::{Error, Failures};
use crate::ipam::config::DEFAULT_DATA_DIR;
use crate::ipam::live::LiveAttachments;
use crate::ipam::store::{Held, LeaseFile, Store};

impl Store {
    /// The leases of a configuration. Reads only the network's name and `ipam.dataDir`, so that DEL releases addresses
    /// also if another key became invalid since the ADD.
    ///
    /// # Errors
    /// Code 6 when `ipam` or `dataDir` has the wrong type.
    pub fn of(conf: &NetConf) -> Result<Store, Error> {
        let ipam = conf.root().object("ipam")?;
        let data_dir = ipam
            .map(|ipam| ipam.non_empty_text("dataDir"))
            .transpose()?;
        let data_dir = PathBuf::from(data_dir.flatten().unwrap_or(DEFAULT_DATA_DIR));
        Ok(Store::new(&data_dir, &conf.name))
    }

    /// Releases the found addresses that the attachment still holds. Creates nothing.
    ///
    /// # Errors
    /// Code 11 when another process holds the lock; 999 when a file cannot be removed.
    pub fn release(&self, attachment: &Attachment, held: &Held) -> Result<(), Error> {
        if held.is_empty() {
            return Ok(());
        }
        let Some(locked) = self.lock()? else {
            return Ok(());
        };
        locked.release(held, attachment)
    }

    /// Releases all addresses that no valid attachment holds, also those that the Go plugin reserved, except those
    /// `in_use`. Creates nothing.
    ///
    /// # Errors
    /// Code 11 when another process holds the lock; 999 when a file cannot be read or removed.
    pub fn gc(&self, valid: &ValidAttachments, in_use: &HashSet<IpAddr>) -> Result<(), Error> {
        match self.lock()? {
            Some(locked) => locked.gc(valid, in_use),
            None => Ok(()),
        }
    }

    /// As [`Store::gc`], for host-local as a plugin of its own, which deletes no links: an address that a container still
    /// has is not released.
    ///
    /// # Errors
    /// As [`Store::gc`]; when an address is not released.
    pub fn gc_without_links(&self, valid: &ValidAttachments) -> Result<(), Error> {
        let (_, stale) = self.by_validity(valid)?;
        let mut failures = Failures::default();
        let mut in_use = HashSet::new();
        if !stale.is_empty() {
            let live = LiveAttachments::observe();
            let is_live = |lease: &&LeaseFile| {
                live.as_ref()
                    .is_ok_and(|live| live.has_address(lease.address))
            };
            for lease in stale.iter().filter(is_live) {
                let cause = "an interface in another network namespace still has it";
                failures.note::<()>(Err(lease.kept(cause)));
                in_use.insert(lease.address);
            }
            if failures.note(live).is_none() {
                in_use = stale.iter().map(|lease| lease.address).collect();
            }
        }
        failures.note(self.gc(valid, &in_use));
        failures.into_result()
    }

    /// Removes the files that are named after an address and name no attachment. Returns the addresses.
    ///
    /// # Errors
    /// Code 11 when another process holds the lock; 999 when a file cannot be read or removed.
    pub fn clear_garbled(&self) -> Result<Vec<IpAddr>, Error> {
        match self.lock()? {
            Some(locked) => locked.clear_garbled(),
            None => Ok(Vec::new()),
        }
    }
}
