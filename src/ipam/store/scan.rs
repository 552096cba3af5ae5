//! What the files of a directory say, worked out of names and contents alone: who has which address, and which are
//! nobody's. Reads no file itself.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;

use crate::cni::names::Attachment;
use crate::ipam::lease_file::{LeaseOwner, owner_for, parse_owner};
use crate::kernel::files;
use crate::net::parse_ip;

/// Where a file is written before it gets its name. One name is enough for all writers: it is used under the lock.
pub const TEMP_FILE: &str = ".gangplank.new";

/// Stands for what is not an owner of the usual form; no container and no interface is called that.
pub const UNKNOWN: &str = "/";

/// An address that is somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The address.
    pub address: IpAddr,
    /// Whose it is, as far as that is known ([`UNKNOWN`]).
    pub container: String,
    /// Its interface; empty in the legacy form of a lease.
    pub interface: String,
}

/// What a directory holds, as far as an attachment is concerned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeaseScan {
    /// The addresses of the attachment.
    pub mine: Vec<IpAddr>,
    /// Whether another interface of its container has an address.
    pub siblings: bool,
    /// Whether a writer crashed, or one is at work.
    pub temp_file: bool,
    /// All that nobody else can be given.
    pub owned: Vec<Owned>,
    /// The first lease that could not be read, and why.
    pub unreadable: Option<(IpAddr, String)>,
}

impl LeaseScan {
    /// Of the names in a directory, each with how to read what it holds. Only leases are read.
    pub fn of<N, R>(files: impl IntoIterator<Item = (N, R)>, attachment: &Attachment) -> LeaseScan
    where
        N: AsRef<OsStr>,
        R: FnOnce() -> io::Result<Vec<u8>>,
    {
        let mut scan = LeaseScan::default();
        let mut of_container = Vec::new();
        for (name, read) in files {
            let Some(address) = address_named(name.as_ref()) else {
                scan.temp_file |= name.as_ref() == TEMP_FILE;
                continue;
            };
            let owner = match read() {
                Ok(content) => {
                    match owner_for(&content, attachment) {
                        LeaseOwner::Mine => scan.mine.push(address),
                        LeaseOwner::Containers => of_container.push(address),
                        LeaseOwner::Siblings => scan.siblings = true,
                        LeaseOwner::Foreign => {}
                        LeaseOwner::Garbled => continue,
                    }
                    parse_owner(&content)
                }
                Err(cause) if is_absence(&cause) => continue,
                // What cannot be read may well be somebody's.
                Err(cause) => {
                    if !is_no_lease(&cause) {
                        scan.unreadable.get_or_insert((address, cause.to_string()));
                    }
                    None
                }
            };
            let unknown = || (UNKNOWN.to_owned(), UNKNOWN.to_owned());
            let (container, interface) = owner.map_or_else(unknown, |(container, interface)| {
                (container.to_string(), interface)
            });
            scan.owned.push(Owned {
                address,
                container,
                interface,
            });
        }
        if scan.mine.is_empty() {
            scan.mine = of_container;
        }
        scan
    }

    /// The addresses that are somebody's.
    pub fn taken(&self) -> HashSet<IpAddr> {
        self.owned.iter().map(|owned| owned.address).collect()
    }
}

/// The error that stands for a directory, a symbolic link or the like, which no plugin makes.
pub fn no_lease() -> io::Error {
    io::Error::from(io::ErrorKind::IsADirectory)
}

fn is_no_lease(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::IsADirectory || files::is_link(cause)
}

/// The address that a file is named after, in canonical text.
pub fn address_named(name: &OsStr) -> Option<IpAddr> {
    let name = name.to_str()?;
    parse_ip(name)
        .ok()
        .filter(|address| address.to_string() == name)
}

/// The address that a cursor holds. It is a hint: what is anything else is none.
pub fn parse_cursor(content: &[u8]) -> Option<IpAddr> {
    parse_ip(std::str::from_utf8(content).ok()?).ok()
}

/// Whether the error proves that nothing of that name exists: no such file (ENOENT), a file where the path needs a
/// directory (ENOTDIR), a name longer than any file's (ENAMETOOLONG), or one with a NUL byte, of which the kernel is not
/// asked. Anything else, EINVAL among it, says nothing about the file.
pub fn is_absence(cause: &io::Error) -> bool {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
            true
        }
        io::ErrorKind::InvalidInput => cause.raw_os_error().is_none(),
        _ => false,
    }
}
