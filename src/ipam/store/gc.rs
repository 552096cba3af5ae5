//! What of the directory is nobody's: leases whose attachment is gone, and what crashes have left.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::ContainerId;
use crate::error::{Error, Failures};
use crate::ipam::lease_file::{parse_owner, read_small};
use crate::ipam::store::{LeaseFile, Locked, Store, address_of, is_absence};

impl Store {
    /// The leases of valid attachments, and those of others. Read without the lock; those that cannot be read, and those
    /// that name nobody, are not among them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn by_validity(
        &self,
        valid: &ValidAttachments,
    ) -> Result<(Vec<LeaseFile>, Vec<LeaseFile>), Error> {
        let leases = self.all_readable()?.into_iter();
        let named = leases.filter(|lease| lease.owner.is_some());
        let is_of_valid = |lease: &LeaseFile| {
            let owner = lease.owner.as_ref();
            owner.is_some_and(|owner| is_valid(owner, valid))
        };
        Ok(named.partition(is_of_valid))
    }

    /// Whether a directory beside this one, of another network, has a file that is named after an address; also if that
    /// cannot be told.
    pub fn has_neighbour(&self, address: IpAddr) -> bool {
        let Some(Ok(networks)) = self.directory.parent().map(std::fs::read_dir) else {
            return true;
        };
        let name = address.to_string();
        let own = self.directory.file_name();
        networks.into_iter().any(|network| {
            network.map_or(true, |network| {
                let lease = network.path().join(&name).symlink_metadata();
                let is_other = Some(&*network.file_name()) != own;
                is_other && !lease.is_err_and(|cause| is_absence(&cause))
            })
        })
    }

    pub(super) fn lease_files(&self) -> Result<impl Iterator<Item = (DirEntry, IpAddr)>, Error> {
        let entries = self.entries()?.into_iter();
        // What cannot be told from a file shows when it is read.
        let is_other = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_file());
        let files = entries.filter(move |entry| !is_other(entry));
        Ok(files.filter_map(|entry| address_of(&entry).map(|address| (entry, address))))
    }
}

impl Locked<'_> {
    /// Removes the files that are named after an address but name nobody. Tells the addresses.
    ///
    /// # Errors
    /// When one cannot be read or removed.
    pub fn clear_garbled(&self) -> Result<Vec<IpAddr>, Error> {
        let all = self.store.all()?.into_iter();
        let garbled = all.filter(|lease| lease.owner.is_none());
        garbled
            .map(|lease| self.take_back(lease.address).map(|()| lease.address))
            .collect()
    }

    /// Removes all leases that no valid attachment holds, whoever wrote them, but for those of the addresses `in_use`, and
    /// what crashed writers left.
    ///
    /// # Errors
    /// When something could not be read or removed; all else is removed.
    pub fn gc(&self, valid: &ValidAttachments, in_use: &HashSet<IpAddr>) -> Result<(), Error> {
        let mut failures = Failures::default();
        for (entry, address) in self.store.lease_files()? {
            match read_small(&entry.path()) {
                Ok(content) if is_kept(&content, valid) || in_use.contains(&address) => {}
                Ok(_) => {
                    failures.note(self.take_back(address));
                }
                Err(cause) if is_absence(&cause) => {}
                // It may well be somebody's.
                Err(cause) => {
                    let name = address.to_string();
                    failures.note::<()>(Err(self.store.failed("read", &name, &cause)));
                }
            }
        }
        failures.note(self.remove_temp_file());
        failures.into_result()
    }
}

/// Whether GC leaves a lease with that content where it is.
pub fn is_kept(content: &[u8], valid: &ValidAttachments) -> bool {
    parse_owner(content).is_some_and(|owner| is_valid(&owner, valid))
}

/// A lease of the legacy form, without an interface, may be of any interface of its container.
fn is_valid((container, interface): &(ContainerId, String), valid: &ValidAttachments) -> bool {
    match interface.trim() {
        "" => valid.has_container(container),
        interface => valid.contains(container, interface),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::{Scratch, attachment_of};

    #[test]
    fn only_what_valid_attachments_hold_stays() {
        let scratch = Scratch::new();
        for (name, content) in [
            ("10.1.0.2", "a\r\neth0"),
            ("10.1.0.3", "a\r\nnet1"),
            ("10.1.0.4", "a"),
            ("10.1.0.5", "b"),
            ("10.1.0.6", ""),
            ("10.1.0.7", "\0\0\0"),
            ("fd00::2", "c\r\neth0"),
            (".gangplank.new", "c"),
            ("last_reserved_ip.0", "10.1.0.9"),
            ("notes", "c\r\neth0"),
            ("10.1.0.8/notes", "c\r\neth0"),
        ] {
            scratch.write(&format!("net/{name}"), content);
        }
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        let valid: ValidAttachments = [attachment_of("a", "eth0")].into_iter().collect();
        let (of_valid, stale) = store.by_validity(&valid).unwrap();
        let mut stale: Vec<String> = stale.iter().map(|it| it.address.to_string()).collect();
        stale.sort();
        assert_eq!(stale, ["10.1.0.3", "10.1.0.5", "fd00::2"]);
        assert_eq!(of_valid.len(), 2);
        let in_use = HashSet::from(["fd00::2".parse().unwrap()]);
        let locked = store.lock().unwrap().unwrap();
        locked.gc(&valid, &in_use).unwrap();
        drop(locked);
        let left = [
            "10.1.0.2",
            "10.1.0.4",
            "10.1.0.8",
            "fd00::2",
            "last_reserved_ip.0",
            "lock",
            "notes",
        ];
        assert_eq!(scratch.names("net"), left);
    }
}
