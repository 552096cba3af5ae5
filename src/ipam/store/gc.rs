//! Stale leases.

use std::fs::DirEntry;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::ContainerId;
use crate::error::Error;
use crate::ipam::lease_file::parse_owner;
use crate::ipam::store::{LeaseFile, Store, address_of, is_not_found};

impl Store {
    /// The leases of valid and of other attachments. Read without the lock; leases that are unreadable or name no owner
    /// are in neither list.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn by_validity(
        &self,
        valid: &ValidAttachments,
    ) -> Result<(Vec<LeaseFile>, Vec<LeaseFile>), Error> {
        let leases = self.all_readable()?.into_iter();
        let with_owner = leases.filter(|lease| lease.owner.is_some());
        let has_valid_owner = |lease: &LeaseFile| {
            let owner = lease.owner.as_ref();
            owner.is_some_and(|owner| is_valid(owner, valid))
        };
        Ok(with_owner.partition(has_valid_owner))
    }

    /// Whether another network's directory has a lease of this address; also true if it cannot be read.
    pub fn is_leased_elsewhere(&self, address: IpAddr) -> bool {
        let Some(Ok(networks)) = self.directory.parent().map(std::fs::read_dir) else {
            return true;
        };
        let name = address.to_string();
        let own = self.directory.file_name();
        networks.into_iter().any(|network| {
            network.map_or(true, |network| {
                let lease = network.path().join(&name).symlink_metadata();
                let is_other = Some(&*network.file_name()) != own;
                is_other && !lease.is_err_and(|cause| is_not_found(&cause))
            })
        })
    }

    pub(super) fn lease_files(&self) -> Result<impl Iterator<Item = (DirEntry, IpAddr)>, Error> {
        let entries = self.entries()?.into_iter();
        // A file of unknown type is rejected when it is read.
        let is_other = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_file());
        let files = entries.filter(move |entry| !is_other(entry));
        Ok(files.filter_map(|entry| address_of(&entry).map(|address| (entry, address))))
    }
}

/// Whether a lease with this content has a valid owner.
pub fn is_kept(content: &[u8], valid: &ValidAttachments) -> bool {
    parse_owner(content).is_some_and(|owner| is_valid(&owner, valid))
}

/// A legacy lease, without an interface, is valid if any interface of its container is.
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
    use std::collections::HashSet;

    #[test]
    fn gc_keeps_the_leases_of_valid_attachments() {
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
        store.gc(&valid, &in_use).unwrap();
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
