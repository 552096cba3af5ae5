//! Leases do not outlive a boot: no container does.
//!
//! The directory remembers the boot in which we last gave an address. When it is another one now, leases are nobody's
//! that were there before this boot. There may be younger ones, for the reference may have been at work since. It
//! rewrites the cursor with each lease, and ours carry a mark in their time of modification that such a write takes
//! away. So where all cursors are marked, no lease is younger than the boot; this needs no clock. Elsewhere the clock
//! decides, and what is in doubt is kept. Where no boot is remembered, the reference was here before us: all is kept.

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::host::boot;
use crate::ipam::lease_file::read_small;
use crate::ipam::store::{CURSOR, Locked, Store, address_of};

/// The file that remembers the boot.
const REMEMBERED: &str = ".gangplank.boot";

/// What stands before the id, with a space: so the file never looks like the lease of a container.
const PREFIX: &str = "boot ";

/// The nanoseconds of a marked time. Any number would do; a write has it once in a billion times.
const MARK: u32 = 271_828_183;

impl Store {
    /// The addresses whose leases are older than this boot; reads one small file where it is the boot remembered.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn outlived(&self) -> Result<HashSet<IpAddr>, Error> {
        match (self.remembered_boot(), boot::id()) {
            (Some(remembered), Some(current)) if remembered != current => self.older_than_boot(),
            _ => Ok(HashSet::new()),
        }
    }

    fn remembered_boot(&self) -> Option<String> {
        let content = String::from_utf8(read_small(&self.path(REMEMBERED)).ok()?).ok()?;
        let id = content.strip_prefix(PREFIX)?.trim();
        (!id.is_empty()).then(|| id.to_owned())
    }

    fn older_than_boot(&self) -> Result<HashSet<IpAddr>, Error> {
        let entries = self.entries()?;
        let is_cursor = |entry: &&DirEntry| entry.file_name().to_string_lossy().starts_with(CURSOR);
        let mut cursors = entries.iter().filter(is_cursor).peekable();
        let only_ours =
            cursors.peek().is_some() && cursors.all(|entry| written(entry).is_some_and(is_marked));
        let limit = boot::earliest_write();
        let is_older = |entry: &&DirEntry| {
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            is_file
                && (only_ours
                    || written(entry)
                        .zip(limit)
                        .is_some_and(|(then, limit)| then < limit))
        };
        Ok(entries
            .iter()
            .filter(is_older)
            .filter_map(address_of)
            .collect())
    }
}

impl Locked<'_> {
    /// Removes the leases of earlier boots and remembers this one.
    ///
    /// # Errors
    /// When a file cannot be removed or written.
    pub fn enter_boot(&self) -> Result<(), Error> {
        let Some(current) = boot::id() else {
            return Ok(());
        };
        let remembered = self.store.remembered_boot();
        if remembered.as_ref() == Some(&current) {
            return Ok(());
        }
        if remembered.is_some() {
            for address in self.store.older_than_boot()? {
                self.take_back(address)?;
            }
        }
        // Once per boot; torn by a crash it would be no memory, and the leases of this boot would stay.
        self.replace(REMEMBERED, &format!("{PREFIX}{current}\n"), File::sync_all)
    }
}

/// Marks a cursor as written by us.
pub(super) fn mark(cursor: &File) -> io::Result<()> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    // Where it cannot be marked the clock decides.
    let _ = cursor.set_modified(UNIX_EPOCH + Duration::new(seconds, MARK));
    Ok(())
}

fn is_marked(time: SystemTime) -> bool {
    time.duration_since(UNIX_EPOCH)
        .is_ok_and(|since| since.subsec_nanos() == MARK)
}

fn written(entry: &DirEntry) -> Option<SystemTime> {
    entry.metadata().and_then(|file| file.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::{Scratch, attachment};

    const LONG_AGO: SystemTime = UNIX_EPOCH;

    fn enter(scratch: &Scratch) -> Vec<String> {
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        let older = store.outlived().unwrap();
        let locked = store.lock_or_create().unwrap();
        let before = scratch.names("net").len();
        locked.enter_boot().unwrap();
        assert_eq!(before - scratch.names("net").len(), older.len());
        assert!(store.outlived().unwrap().is_empty());
        let remembered = scratch.read("net/.gangplank.boot");
        assert_eq!(remembered, format!("boot {}\n", boot::id().unwrap()));
        let mut names = scratch.names("net");
        names.retain(|name| name != "lock");
        names
    }

    fn write(scratch: &Scratch, name: &str, when: SystemTime) {
        scratch.write(name, "c1\r\neth0");
        let file = File::options()
            .write(true)
            .open(scratch.path().join(name))
            .unwrap();
        file.set_modified(when).unwrap();
    }

    #[test]
    fn where_no_boot_is_remembered_all_leases_stay() {
        let scratch = Scratch::new();
        write(&scratch, "net/10.1.0.2", LONG_AGO);
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
        scratch.write("net/.gangplank.boot", "\0\0");
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
    }

    #[test]
    fn leases_before_marked_cursors_go_whatever_the_clock_says() {
        let scratch = Scratch::new();
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        let locked = store.lock_or_create().unwrap();
        locked.remember(0, "10.1.0.2".parse().unwrap()).unwrap();
        drop(locked);
        write(
            &scratch,
            "net/10.1.0.2",
            SystemTime::now() + Duration::from_secs(9999),
        );
        write(&scratch, "net/notes", LONG_AGO);
        scratch.write("net/.gangplank.boot", "boot 1-2-3\n");
        assert_eq!(enter(&scratch), ["last_reserved_ip.0", "notes"]);
    }

    #[test]
    fn where_others_gave_addresses_the_clock_decides() {
        let scratch = Scratch::new();
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        let locked = store.lock_or_create().unwrap();
        locked.remember(0, "10.1.0.2".parse().unwrap()).unwrap();
        drop(locked);
        write(&scratch, "net/last_reserved_ip.1", LONG_AGO);
        write(&scratch, "net/10.1.0.2", LONG_AGO);
        write(&scratch, "net/10.1.0.3", SystemTime::now());
        scratch.write("net/.gangplank.boot", "boot 1-2-3\n");
        let left = ["10.1.0.3", "last_reserved_ip.0", "last_reserved_ip.1"];
        assert_eq!(enter(&scratch), left);
    }

    #[test]
    fn the_memory_of_a_boot_is_nobodys_lease() {
        let scratch = Scratch::new();
        scratch.write("net/.gangplank.boot", "boot c1\n");
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        let leases = store.scan(&attachment("c1", "eth0")).unwrap();
        assert!(leases.mine.is_empty());
        assert!("boot c1".parse::<crate::cni::request::Id>().is_err());
    }
}
