//! Leases from before a boot of the machine are given up, for its containers are gone.
//!
//! The directory records the boot ID and the machine, by its first ADD. At the first ADD after a boot, those leases go
//! whose attachment does not live any more ([`LiveAttachments`]). The leases of a directory without a record are kept,
//! for the Go plugins may have written them at any time; so are all leases if another machine was recorded, whose
//! containers cannot be seen from here, and if boot, machine or attachments cannot be told.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::IpAddr;

use crate::cni::names::ContainerId;
use crate::error::Error;
use crate::ipam::lease_file::read_small;
use crate::ipam::live::LiveAttachments;
use crate::ipam::store::{Locked, Store, remove};
use crate::kernel::boot;
use crate::kernel::files;
use crate::kernel::locks;
use crate::kernel::log;

/// The file that holds the record.
const RECORD: &str = ".gangplank.boot";

/// What its lines begin with. There is a space in it, so the file never looks like the lease of a container.
const BOOT: &str = "boot ";
const MACHINE: &str = "machine ";

/// Stands for a machine that could not be identified.
const UNKNOWN_MACHINE: &str = "unknown";

/// The boot in which the leases were made, and all machines that made any.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    boot: String,
    /// Empty in records of old versions: then it was this one.
    machines: Vec<String>,
}

/// What a record says to this boot of this machine.
#[derive(Debug, PartialEq, Eq)]
enum Epoch {
    /// Nothing is recorded.
    Unrecorded,
    /// It is the boot recorded, or the directory is shared with other machines, this one among them.
    Recorded,
    /// Another machine uses the directory too.
    Shared(Record),
    /// It is a later boot of the machine recorded.
    Later,
    /// The boot cannot be told.
    Unknown,
}

impl Record {
    fn parse(content: &[u8]) -> Option<Record> {
        let text = str::from_utf8(content).ok()?;
        let mut lines = text.lines();
        let boot = lines.next()?.strip_prefix(BOOT)?.trim().to_owned();
        let machines = lines.filter_map(|line| Some(line.strip_prefix(MACHINE)?.trim().to_owned()));
        let machines = machines.collect();
        (!boot.is_empty()).then_some(Record { boot, machines })
    }

    fn text(&self) -> String {
        let machines = self.machines.iter().map(|it| format!("{MACHINE}{it}\n"));
        format!("{BOOT}{}\n{}", self.boot, machines.collect::<String>())
    }

    fn epoch(self, boot: Option<&str>, machine: impl FnOnce() -> String) -> Epoch {
        if boot == Some(&*self.boot) {
            return Epoch::Recorded;
        }
        let machine = machine();
        let is_this = self.machines.contains(&machine);
        match self.machines.len() {
            2.. if is_this => Epoch::Recorded,
            1.. if !is_this => Epoch::Shared(Record {
                machines: [self.machines, vec![machine]].concat(),
                ..self
            }),
            _ if machine == UNKNOWN_MACHINE => Epoch::Unknown,
            _ if boot.is_none() => Epoch::Unknown,
            _ => Epoch::Later,
        }
    }
}

impl Store {
    /// The addresses whose leases the next ADD gives up, for they are from before the boot and their attachments do not
    /// live. Reads one small file where it is the boot recorded.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn from_before_boot(&self) -> Result<HashSet<IpAddr>, Error> {
        match self.epoch()? {
            Epoch::Later => Ok(self.dead(None)?.unwrap_or_default()),
            _ => Ok(HashSet::new()),
        }
    }

    /// Whether several machines have made leases here, so that none is given up after a boot.
    pub fn is_shared(&self) -> bool {
        let record = read_small(&self.path(RECORD)).ok();
        let record = record.and_then(|content| Record::parse(&content));
        record.is_some_and(|record| record.machines.len() > 1)
    }

    fn epoch(&self) -> Result<Epoch, Error> {
        let content = match read_small(&self.path(RECORD)) {
            Ok(content) => content,
            // A link is replaced by a record, and not followed.
            Err(cause) if cause.kind() == ErrorKind::NotFound || files::is_link(&cause) => {
                return Ok(Epoch::Unrecorded);
            }
            // It may say that other machines use the directory.
            Err(cause) => return Err(self.failed("read", RECORD, &cause)),
        };
        let machine = || boot::machine().unwrap_or_else(|| UNKNOWN_MACHINE.to_owned());
        Ok(match Record::parse(&content) {
            Some(record) => record.epoch(boot::id().as_deref(), machine),
            None => Epoch::Unrecorded,
        })
    }

    /// The addresses whose leases belong to no living attachment; `None` if that cannot be told. The container that is
    /// being added has a process at work for it, but its leases from before the boot are no less dead.
    fn dead(&self, adding: Option<&ContainerId>) -> Result<Option<HashSet<IpAddr>>, Error> {
        let leases = self.all_readable()?;
        if leases.is_empty() {
            return Ok(Some(HashSet::new()));
        }
        let began = log::step_start();
        let mut live = match LiveAttachments::observe() {
            Ok(live) => live,
            Err(unknown) => {
                log::step(began, || unknown.to_string());
                return Ok(None);
            }
        };
        if let Some(container) = adding {
            live = live.without_work_for(container);
        }
        let is_dead = |address: IpAddr, owner: &Option<(ContainerId, String)>| {
            let owner = owner.as_ref();
            !owner.map_or_else(
                || live.has_address(address),
                |owner| live.has(&self.network, owner, address),
            ) && !self.is_locked(address)
        };
        let dead = leases.iter().filter(|it| is_dead(it.address, &it.owner));
        Ok(Some(dead.map(|lease| lease.address).collect()))
    }

    /// Whether a process holds the lock on a lease; also if that cannot be told.
    fn is_locked(&self, address: IpAddr) -> bool {
        let opened = locks::open_plain(&self.path(&address.to_string()));
        !opened.is_ok_and(|file| file.try_lock().is_ok())
    }
}

impl Locked<'_> {
    /// Gives up the leases from before the boot, and records the boot.
    ///
    /// # Errors
    /// When a file cannot be removed or written.
    pub fn enter_boot(&self, adding: &ContainerId) -> Result<(), Error> {
        match self.store.epoch()? {
            Epoch::Recorded => return Ok(()),
            Epoch::Shared(record) => return self.record(&record),
            Epoch::Unrecorded => {}
            Epoch::Unknown => return self.forget_boot(),
            Epoch::Later => match self.store.dead(Some(adding))? {
                Some(dead) => {
                    for address in dead {
                        self.take_back(address)?;
                    }
                }
                // A later ADD may see them.
                None => return Ok(()),
            },
        }
        match (boot::id(), boot::machine()) {
            (Some(boot), Some(machine)) => self.record(&Record {
                boot,
                machines: vec![machine],
            }),
            _ => Ok(()),
        }
    }

    /// The lease that is about to be made is of a boot that nobody knows: a later ADD must not take it for one from
    /// before the boot that is recorded.
    fn forget_boot(&self) -> Result<(), Error> {
        let removed = remove(&self.store.path(RECORD));
        removed.map_err(|cause| self.store.failed("remove", RECORD, &cause))
    }

    /// Once for each boot. Torn by a crash it would be no record, and the leases of this boot would stay.
    fn record(&self, record: &Record) -> Result<(), Error> {
        self.replace(RECORD, &record.text(), File::sync_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::{Scratch, attachment_of};

    fn store(scratch: &Scratch) -> Store {
        Store::new(scratch.path(), &"net".parse().unwrap())
    }

    fn enter(scratch: &Scratch) -> Vec<String> {
        let store = store(scratch);
        let from_before_boot = store.from_before_boot().unwrap();
        let locked = store.lock_or_create().unwrap();
        let before = scratch.names("net").len();
        locked.enter_boot(&"new".parse().unwrap()).unwrap();
        assert_eq!(before - scratch.names("net").len(), from_before_boot.len());
        assert!(store.from_before_boot().unwrap().is_empty());
        let mut names = scratch.names("net");
        names.retain(|name| name != "lock");
        names
    }

    fn this_machine() -> String {
        boot::machine().expect("the tests run on a machine that has an ID")
    }

    #[test]
    fn the_leases_of_a_directory_without_a_record_stay() {
        let scratch = Scratch::new();
        scratch.write("net/10.1.0.2", "c1\r\neth0");
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
        scratch.write("net/.gangplank.boot", "\0\0");
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
        let recorded = scratch.read("net/.gangplank.boot");
        let (boot, machine) = (boot::id().unwrap(), this_machine());
        assert_eq!(recorded, format!("boot {boot}\nmachine {machine}\n"));
    }

    #[test]
    fn leases_without_living_attachments_do_not_outlive_a_boot() {
        let machine = format!("machine {}\n", this_machine());
        for of_machine in ["", machine.as_str()] {
            let scratch = Scratch::new();
            scratch.write("net/10.1.0.2", "c1\r\neth0");
            scratch.write("net/10.1.0.3", "c2\r\neth0");
            scratch.write("net/notes", "");
            scratch.write("net/.gangplank.boot", &format!("boot 1-2-3\n{of_machine}"));
            let held = store(&scratch)
                .lock_leases(&["10.1.0.3".parse().unwrap()])
                .unwrap();
            assert_eq!(enter(&scratch), ["10.1.0.3", "notes"]);
            drop(held);
            assert_eq!(enter(&scratch), ["10.1.0.3", "notes"]);
        }
    }

    #[test]
    fn leases_of_a_directory_that_machines_share_stay() {
        let scratch = Scratch::new();
        scratch.write("net/10.1.0.2", "c1\r\neth0");
        scratch.write("net/.gangplank.boot", "boot 1-2-3\nmachine other\n");
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
        let expected = format!("boot 1-2-3\nmachine other\nmachine {}\n", this_machine());
        assert_eq!(scratch.read("net/.gangplank.boot"), expected);
        assert!(store(&scratch).is_shared());
        assert_eq!(enter(&scratch), ["10.1.0.2"]);
        assert_eq!(scratch.read("net/.gangplank.boot"), expected);
    }

    #[test]
    fn what_cannot_be_told_is_not_decided() {
        let record = |machines: &[&str]| Record {
            boot: "1".to_owned(),
            machines: machines.iter().map(|it| (*it).to_owned()).collect(),
        };
        let unknown = || UNKNOWN_MACHINE.to_owned();
        let this = || "a".to_owned();
        assert_eq!(record(&["a"]).epoch(Some("1"), unknown), Epoch::Recorded);
        assert_eq!(record(&["a"]).epoch(Some("2"), this), Epoch::Later);
        assert_eq!(record(&[]).epoch(Some("2"), this), Epoch::Later);
        assert_eq!(record(&["a"]).epoch(None, this), Epoch::Unknown);
        assert_eq!(record(&[]).epoch(Some("2"), unknown), Epoch::Unknown);
        let shared = Epoch::Shared(record(&["a", UNKNOWN_MACHINE]));
        assert_eq!(record(&["a"]).epoch(Some("2"), unknown), shared);
        assert_eq!(record(&["a", "b"]).epoch(None, this), Epoch::Recorded);
        let shared = Epoch::Shared(record(&["b", "a"]));
        assert_eq!(record(&["b"]).epoch(None, this), shared);
    }

    #[test]
    fn the_record_of_a_boot_is_nobodys_lease() {
        let scratch = Scratch::new();
        scratch.write("net/.gangplank.boot", "boot c1\n");
        let store = store(&scratch);
        let leases = store.scan(&attachment_of("c1", "eth0")).unwrap();
        assert!(leases.mine.is_empty());
        assert!("boot c1".parse::<ContainerId>().is_err());
    }
}
