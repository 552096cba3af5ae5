//! Releases leases for DEL and GC, which need only the directory, not the ranges.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::ValidAttachments;
use crate::cni::conf::NetConf;
use crate::cni::names::Attachment;
use crate::error::{Error, Failures};
use crate::ipam::config::DEFAULT_DATA_DIR;
use crate::ipam::lease_file::{LeaseOwner, read_owner_for, read_small};
use crate::ipam::live::LiveAttachments;
use crate::ipam::store::index::Index;
use crate::ipam::store::{HeldLeases, LeaseFile, Locked, Store, is_kept, is_not_found};

impl Store {
    /// The lease directory of a configuration. Reads only the network's name and `ipam.dataDir`, so that DEL releases
    /// addresses even if another key became invalid since the ADD.
    ///
    /// # Errors
    /// Code 6 if `ipam` or `dataDir` has the wrong type.
    pub fn of(conf: &NetConf) -> Result<Store, Error> {
        let ipam = conf.root().object("ipam")?;
        let data_dir = ipam
            .map(|ipam| ipam.non_empty_text("dataDir"))
            .transpose()?;
        let data_dir = PathBuf::from(data_dir.flatten().unwrap_or(DEFAULT_DATA_DIR));
        Ok(Store::new(&data_dir, &conf.name))
    }

    /// Releases those addresses that the attachment still holds, and removes a stale temporary file. Creates nothing.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock; 999 if a file cannot be read or removed; the others are removed.
    pub fn release(&self, attachment: &Attachment, held: &HeldLeases) -> Result<(), Error> {
        if held.is_empty() {
            return Ok(());
        }
        let Some(locked) = self.lock()? else {
            return Ok(());
        };
        if let Some(unreadable) = &held.unreadable {
            return Err(unreadable.clone());
        }
        let index = Index::load(self);
        let mut failures = Failures::default();
        for address in held.addresses() {
            failures.note(locked.release_one(*address, attachment));
        }
        if held.temp_file {
            failures.note(locked.remove_temp_file());
        }
        failures.into_result()?;
        // An outdated index is not used.
        let _ = index.map(|index| index.update(self, attachment, &[], held.addresses()));
        Ok(())
    }

    /// Releases all addresses that no valid attachment holds, including those reserved by the Go plugin, except those
    /// `in_use`, and a stale temporary file.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock; 999 if a file cannot be read or removed.
    pub fn gc(&self, valid: &ValidAttachments, in_use: &HashSet<IpAddr>) -> Result<(), Error> {
        let Some(locked) = self.lock()? else {
            return Ok(());
        };
        let mut failures = Failures::default();
        for (entry, address) in self.lease_files()? {
            match read_small(&entry.path()) {
                Ok(content) if is_kept(&content, valid) || in_use.contains(&address) => {}
                Ok(_) => {
                    failures.note(locked.remove_lease(address));
                }
                Err(cause) if is_not_found(&cause) => {}
                // An unreadable lease may belong to any container.
                Err(cause) => {
                    let name = address.to_string();
                    failures.note::<()>(Err(self.failed("read", &name, &cause)));
                }
            }
        }
        failures.note(locked.remove_temp_file());
        failures.into_result()
    }

    /// Like [`Store::gc`], for the plugin host-local, which deletes no links: an address that an interface still has is
    /// not released.
    ///
    /// # Errors
    /// Like [`Store::gc`]; if an address is not released.
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

    /// Removes lease files without an owner. Returns their addresses.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock; 999 if a file cannot be read or removed.
    pub fn remove_invalid(&self) -> Result<Vec<IpAddr>, Error> {
        let Some(locked) = self.lock()? else {
            return Ok(Vec::new());
        };
        let invalid = self
            .all()?
            .into_iter()
            .filter(|lease| lease.owner.is_none());
        invalid
            .map(|lease| locked.remove_lease(lease.address).map(|()| lease.address))
            .collect()
    }
}

impl Locked<'_> {
    fn release_one(&self, address: IpAddr, attachment: &Attachment) -> Result<(), Error> {
        let name = address.to_string();
        match read_owner_for(&self.store.path(&name), attachment) {
            Ok(LeaseOwner::Attachment | LeaseOwner::Container) => self.remove_lease(address),
            Ok(LeaseOwner::OtherInterface | LeaseOwner::OtherContainer | LeaseOwner::Invalid) => {
                Ok(())
            }
            Err(cause) if is_not_found(&cause) => Ok(()),
            Err(cause) => Err(self.store.failed("read", &name, &cause)),
        }
    }
}
