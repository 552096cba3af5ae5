//! What of the directory is nobody's: leases whose attachment is gone, and what crashes have left.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::request::{Attachment, Id};
use crate::error::{Error, Failures};
use crate::ipam::lease_file::{parse_owner, read_small};
use crate::ipam::store::{Locked, Store, address_of, is_absence};

impl Store {
    /// The attachments that hold an address though they are not valid any more. Read without the lock.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn strays(&self, valid: &ValidAttachments) -> Result<Vec<Attachment>, Error> {
        let contents = self
            .lease_files()?
            .filter_map(|(entry, _)| read_small(&entry.path()).ok());
        let owners = contents.filter_map(|content| parse_owner(&content));
        let strays = owners.filter(|owner| !is_valid(owner, valid));
        let named = strays.filter_map(|(container, interface)| {
            let interface = interface.trim().parse().ok()?;
            Some(Attachment {
                container,
                interface,
            })
        });
        Ok(named.collect())
    }

    /// All addresses that have a file. That is cheap: no file is opened.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn named(&self) -> Result<HashSet<IpAddr>, Error> {
        Ok(self.entries()?.iter().filter_map(address_of).collect())
    }

    /// Of these addresses, those that an ADD could give all the same: their files are torn, or older than this boot.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn reclaimable(&self) -> Result<HashSet<IpAddr>, Error> {
        let mut reclaimable = self.outlived()?;
        for (entry, address) in self.lease_files()? {
            let content = read_small(&entry.path());
            if content.is_ok_and(|content| parse_owner(&content).is_none()) {
                reclaimable.insert(address);
            }
        }
        Ok(reclaimable)
    }

    pub(super) fn lease_files(&self) -> Result<impl Iterator<Item = (DirEntry, IpAddr)>, Error> {
        let entries = self.entries()?.into_iter();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
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

    /// Removes all leases that no valid attachment holds, whoever wrote them, and what crashed writers left.
    ///
    /// # Errors
    /// When something could not be read or removed; all else is removed.
    pub fn sweep(&self, valid: &ValidAttachments) -> Result<(), Error> {
        let mut failures = Failures::default();
        for (entry, address) in self.store.lease_files()? {
            match read_small(&entry.path()) {
                Ok(content) if is_kept(&content, valid) => {}
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
        failures.note(self.clear_aside());
        failures.into_result()
    }
}

/// Whether GC leaves a lease with that content where it is.
pub fn is_kept(content: &[u8], valid: &ValidAttachments) -> bool {
    parse_owner(content).is_some_and(|owner| is_valid(&owner, valid))
}

/// A lease of the legacy form, without an interface, may be of any interface of its container.
fn is_valid((container, interface): &(Id, String), valid: &ValidAttachments) -> bool {
    match interface.trim() {
        "" => valid.has_container(container),
        interface => valid.contains(container, interface),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::{Scratch, attachment};

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
        let valid: ValidAttachments = [attachment("a", "eth0")].into_iter().collect();
        let mut strays = store.strays(&valid).unwrap();
        strays.sort();
        assert_eq!(strays, [attachment("a", "net1"), attachment("c", "eth0")]);
        store.lock().unwrap().unwrap().sweep(&valid).unwrap();
        let left = [
            "10.1.0.2",
            "10.1.0.4",
            "10.1.0.8",
            "last_reserved_ip.0",
            "lock",
            "notes",
        ];
        assert_eq!(scratch.names("net"), left);
    }
}
