//! Releases leases from before a reboot, because their containers are gone.
//!
//! The first ADD records boot ID and machine ID in the directory. The first ADD after a reboot releases the leases
//! whose attachment no longer exists ([`LiveAttachments`]). All leases are kept if there is no record, because the Go
//! plugins may have written them at any time; if another machine is recorded, because its containers are not visible;
//! and if boot, machine or attachments cannot be determined.

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

const RECORD: &str = ".gangplank.boot";

/// Line prefixes. Because of the space, the file is not mistaken for a lease.
const BOOT: &str = "boot ";
const MACHINE: &str = "machine ";

const UNKNOWN_MACHINE: &str = "unknown";

/// The boot in which the leases were made, and all machines that made leases.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    boot: String,
    /// Empty in records of old versions, which means this machine.
    machines: Vec<String>,
}

/// The record compared with the current boot and machine.
#[derive(Debug, PartialEq, Eq)]
enum BootState {
    Unrecorded,
    /// The current boot is recorded, or the directory is shared and lists this machine.
    Current,
    /// The directory is used by another machine, too. Contains the new record.
    NewMachine(Record),
    /// The recorded machine has rebooted.
    Rebooted,
    /// The boot cannot be determined.
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

    fn boot_state(self, boot: Option<&str>, machine: impl FnOnce() -> String) -> BootState {
        if boot == Some(&*self.boot) {
            return BootState::Current;
        }
        let machine = machine();
        let lists_this = self.machines.contains(&machine);
        match self.machines.len() {
            2.. if lists_this => BootState::Current,
            1.. if !lists_this => BootState::NewMachine(Record {
                machines: [self.machines, vec![machine]].concat(),
                ..self
            }),
            _ if machine == UNKNOWN_MACHINE => BootState::Unknown,
            _ if boot.is_none() => BootState::Unknown,
            _ => BootState::Rebooted,
        }
    }
}

impl Store {
    /// The addresses that the next ADD releases because they are from before the boot and their attachments no longer
    /// exist. Reads one small file if the boot is recorded.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn from_before_boot(&self) -> Result<HashSet<IpAddr>, Error> {
        match self.boot_state()? {
            BootState::Rebooted => Ok(self.stale(None)?.unwrap_or_default()),
            _ => Ok(HashSet::new()),
        }
    }

    /// Whether several machines share the directory, so that a boot releases no leases.
    pub fn is_shared(&self) -> bool {
        let record = read_small(&self.path(RECORD)).ok();
        let record = record.and_then(|content| Record::parse(&content));
        record.is_some_and(|record| record.machines.len() > 1)
    }

    fn boot_state(&self) -> Result<BootState, Error> {
        let content = match read_small(&self.path(RECORD)) {
            Ok(content) => content,
            // A symbolic link is replaced by a record, not followed.
            Err(cause) if cause.kind() == ErrorKind::NotFound || files::is_link(&cause) => {
                return Ok(BootState::Unrecorded);
            }
            // The record may list other machines.
            Err(cause) => return Err(self.failed("read", RECORD, &cause)),
        };
        let machine = || boot::machine().unwrap_or_else(|| UNKNOWN_MACHINE.to_owned());
        Ok(match Record::parse(&content) {
            Some(record) => record.boot_state(boot::id().as_deref(), machine),
            None => BootState::Unrecorded,
        })
    }

    /// The addresses whose leases belong to no existing attachment; `None` if that cannot be determined. The plugin
    /// that is running for `adding` is not a trace of its older leases.
    fn stale(&self, adding: Option<&ContainerId>) -> Result<Option<HashSet<IpAddr>>, Error> {
        let leases = self.all_readable()?;
        if leases.is_empty() {
            return Ok(Some(HashSet::new()));
        }
        let began = log::step_start();
        let mut live = match LiveAttachments::observe() {
            Ok(live) => live,
            Err(error) => {
                log::step(began, || error.to_string());
                return Ok(None);
            }
        };
        if let Some(container) = adding {
            live = live.without_plugins_of(container);
        }
        let is_stale = |address: IpAddr, owner: &Option<(ContainerId, String)>| {
            let owner = owner.as_ref();
            !owner.map_or_else(
                || live.has_address(address),
                |owner| live.has(&self.network, owner, address),
            ) && !self.is_locked(address)
        };
        let stale = leases
            .iter()
            .filter(|lease| is_stale(lease.address, &lease.owner));
        Ok(Some(stale.map(|lease| lease.address).collect()))
    }

    /// Whether a process locks a lease; also true if that cannot be determined.
    fn is_locked(&self, address: IpAddr) -> bool {
        let opened = locks::open_plain(&self.path(&address.to_string()));
        !opened.is_ok_and(|file| file.try_lock().is_ok())
    }
}

impl Locked<'_> {
    /// Releases the leases from before the boot, and records the boot.
    ///
    /// # Errors
    /// If a file cannot be removed or written.
    pub fn update_boot_record(&self, adding: &ContainerId) -> Result<(), Error> {
        match self.store.boot_state()? {
            BootState::Current => return Ok(()),
            BootState::NewMachine(record) => return self.record(&record),
            BootState::Unrecorded => {}
            BootState::Unknown => return self.remove_record(),
            BootState::Rebooted => match self.store.stale(Some(adding))? {
                Some(stale) => {
                    for address in stale {
                        self.remove_lease(address)?;
                    }
                }
                // A later ADD tries again.
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

    /// The next lease belongs to an unknown boot: without a record, no ADD releases it as older than the boot.
    fn remove_record(&self) -> Result<(), Error> {
        let removed = remove(&self.store.path(RECORD));
        removed.map_err(|cause| self.store.failed("remove", RECORD, &cause))
    }

    /// Synced, because a truncated record would keep the leases of this boot. Happens once per boot.
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

    fn update(scratch: &Scratch) -> Vec<String> {
        let store = store(scratch);
        let from_before_boot = store.from_before_boot().unwrap();
        let locked = store.lock_or_create().unwrap();
        let before = scratch.names("net").len();
        locked.update_boot_record(&"new".parse().unwrap()).unwrap();
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
    fn leases_without_a_boot_record_are_kept() {
        let scratch = Scratch::new();
        scratch.write("net/10.1.0.2", "c1\r\neth0");
        assert_eq!(update(&scratch), ["10.1.0.2"]);
        scratch.write("net/.gangplank.boot", "\0\0");
        assert_eq!(update(&scratch), ["10.1.0.2"]);
        let recorded = scratch.read("net/.gangplank.boot");
        let (boot, machine) = (boot::id().unwrap(), this_machine());
        assert_eq!(recorded, format!("boot {boot}\nmachine {machine}\n"));
    }

    #[test]
    fn a_reboot_releases_leases_without_existing_attachment() {
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
            assert_eq!(update(&scratch), ["10.1.0.3", "notes"]);
            drop(held);
            assert_eq!(update(&scratch), ["10.1.0.3", "notes"]);
        }
    }

    #[test]
    fn leases_of_a_shared_directory_are_kept() {
        let scratch = Scratch::new();
        scratch.write("net/10.1.0.2", "c1\r\neth0");
        scratch.write("net/.gangplank.boot", "boot 1-2-3\nmachine other\n");
        assert_eq!(update(&scratch), ["10.1.0.2"]);
        let expected = format!("boot 1-2-3\nmachine other\nmachine {}\n", this_machine());
        assert_eq!(scratch.read("net/.gangplank.boot"), expected);
        assert!(store(&scratch).is_shared());
        assert_eq!(update(&scratch), ["10.1.0.2"]);
        assert_eq!(scratch.read("net/.gangplank.boot"), expected);
    }

    #[test]
    fn without_boot_or_machine_id_no_lease_is_released() {
        let record = |machines: &[&str]| Record {
            boot: "1".to_owned(),
            machines: machines.iter().map(|it| (*it).to_owned()).collect(),
        };
        let unknown = || UNKNOWN_MACHINE.to_owned();
        let this = || "a".to_owned();
        assert_eq!(
            record(&["a"]).boot_state(Some("1"), unknown),
            BootState::Current
        );
        assert_eq!(
            record(&["a"]).boot_state(Some("2"), this),
            BootState::Rebooted
        );
        assert_eq!(record(&[]).boot_state(Some("2"), this), BootState::Rebooted);
        assert_eq!(record(&["a"]).boot_state(None, this), BootState::Unknown);
        assert_eq!(
            record(&[]).boot_state(Some("2"), unknown),
            BootState::Unknown
        );
        let expected = BootState::NewMachine(record(&["a", UNKNOWN_MACHINE]));
        assert_eq!(record(&["a"]).boot_state(Some("2"), unknown), expected);
        assert_eq!(
            record(&["a", "b"]).boot_state(None, this),
            BootState::Current
        );
        let expected = BootState::NewMachine(record(&["b", "a"]));
        assert_eq!(record(&["b"]).boot_state(None, this), expected);
    }

    #[test]
    fn a_boot_record_is_not_a_lease() {
        let scratch = Scratch::new();
        scratch.write("net/.gangplank.boot", "boot c1\n");
        let store = store(&scratch);
        let leases = store.scan(&attachment_of("c1", "eth0")).unwrap();
        assert!(leases.held.addresses.is_empty());
        assert!("boot c1".parse::<ContainerId>().is_err());
    }
}
