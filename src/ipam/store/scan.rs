//! Leases by names and contents of the files in a directory. Reads no files itself.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;

use crate::cni::names::Attachment;
use crate::ipam::lease_file::{LeaseOwner, owner_for, parse_owner};
use crate::kernel::files;
use crate::net::parse_ip;

/// Files are written under this name, then renamed. One name is enough: it is used under the lock.
pub const TEMP_FILE: &str = ".gangplank.new";

/// Replaces an unknown owner; not a valid container ID or interface name.
pub const UNKNOWN: &str = "/";

/// An address that cannot be allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedAddress {
    /// The address.
    pub address: IpAddr,
    /// [`UNKNOWN`] if the lease is unreadable.
    pub container: String,
    /// Empty in the legacy format.
    pub interface: String,
}

/// The leases in a directory, and those of one attachment among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeaseScan {
    pub of_attachment: Vec<IpAddr>,
    /// Another interface of the container has an address.
    pub other_interfaces: bool,
    /// A writer crashed, or is running.
    pub temp_file: bool,
    /// All addresses that cannot be allocated.
    pub owned: Vec<OwnedAddress>,
    /// The first lease that could not be read, and why.
    pub unreadable: Option<(IpAddr, String)>,
}

impl LeaseScan {
    /// From file names and functions that read the files. Only leases are read.
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
                        LeaseOwner::Attachment => scan.of_attachment.push(address),
                        LeaseOwner::Container => of_container.push(address),
                        LeaseOwner::OtherInterface => scan.other_interfaces = true,
                        LeaseOwner::OtherContainer => {}
                        LeaseOwner::Invalid => continue,
                    }
                    parse_owner(&content)
                }
                Err(cause) if is_not_found(&cause) => continue,
                // An unreadable lease may belong to any container.
                Err(cause) => {
                    if !is_not_a_lease(&cause) {
                        scan.unreadable.get_or_insert((address, cause.to_string()));
                    }
                    None
                }
            };
            let unknown = || (UNKNOWN.to_owned(), UNKNOWN.to_owned());
            let (container, interface) = owner.map_or_else(unknown, |(container, interface)| {
                (container.to_string(), interface)
            });
            scan.owned.push(OwnedAddress {
                address,
                container,
                interface,
            });
        }
        if scan.of_attachment.is_empty() {
            scan.of_attachment = of_container;
        }
        scan
    }

    pub fn taken(&self) -> HashSet<IpAddr> {
        self.owned.iter().map(|owned| owned.address).collect()
    }
}

/// The error for a directory or special file, which plugins do not create.
pub fn not_a_lease() -> io::Error {
    io::Error::from(io::ErrorKind::IsADirectory)
}

fn is_not_a_lease(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::IsADirectory || files::is_link(cause)
}

/// The address that a file is named after, if the name is its canonical form.
pub fn address_named(name: &OsStr) -> Option<IpAddr> {
    let name = name.to_str()?;
    parse_ip(name)
        .ok()
        .filter(|address| address.to_string() == name)
}

/// The address in a `last_reserved_ip.N` file. It is a hint: invalid content is ignored.
pub fn parse_last_reserved(content: &[u8]) -> Option<IpAddr> {
    parse_ip(std::str::from_utf8(content).ok()?).ok()
}

/// Whether the error proves that the file does not exist: ENOENT, ENOTDIR, ENAMETOOLONG, or a name with a NUL byte,
/// which is not passed to the kernel. Other errors, including EINVAL, prove nothing.
pub fn is_not_found(cause: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    match cause.kind() {
        NotFound | NotADirectory | InvalidFilename => true,
        InvalidInput => cause.raw_os_error().is_none(),
        _ => false,
    }
}
