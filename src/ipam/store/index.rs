//! The index: all leases in one file, so that ADD and DEL need not open the lease files.
//!
//! The index is only a cache. Each update, under the lock, ends by setting the directory's mtime to a time in the past
//! and recording it in the first line. Creating or removing a lease changes the mtime, also if the Go plugin does it;
//! the index is valid exactly while recorded and actual mtime are equal. A restored backup has the recorded mtime, but
//! not the recorded ctime, which cannot be set (utimensat(2)). Small directories have no index, because reading their
//! leases is faster.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha512};

use crate::cni::names::Attachment;
use crate::ipam::store::scan::{OwnedAddress, UNKNOWN};
use crate::ipam::store::{Store, create_new, remove};
use crate::kernel::files;
use crate::net::parse_ip;

const FILE: &str = ".gangplank.index";

/// Minimum number of leases: reading a lease takes three system calls, using the index ten.
const MIN_LEASES: usize = 8;

/// Longer files are ignored; 100,000 leases fit.
const MAX_BYTES: u64 = 16 << 20;

/// A valid index. A line is ` ADDRESS CONTAINER INTERFACE`, with a hash of the container ID to keep the file short. `-`
/// instead of the leading space marks a removed lease.
#[derive(Debug)]
pub struct Index {
    text: String,
}

/// The indexed leases of an attachment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IndexedLeases {
    pub of_attachment: Vec<IpAddr>,
    /// Legacy leases, without an interface.
    pub of_container: Vec<IpAddr>,
    /// Other interfaces of the container have leases.
    pub other_interfaces: bool,
}

impl Index {
    /// `None` if there is no index or the directory has changed since it was written.
    pub fn load(store: &Store) -> Option<Index> {
        let file = files::no_follow().read(true).open(store.path(FILE)).ok()?;
        let length = file.metadata().ok()?.len().min(MAX_BYTES);
        let mut text = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut text, 0).ok()?;
        let text = String::from_utf8(text).ok()?;
        // Read after the index: a concurrent writer of leases changes the directory first.
        let directory = fs::metadata(store.directory()).ok()?;
        Index::validate(text, directory.modified().ok()?, ctime(&directory))
    }

    /// `None` if the text is not the index of a directory with these times.
    pub fn validate(text: String, modified: SystemTime, ctime: Ctime) -> Option<Index> {
        let is_whole = (text.len() as u64) < MAX_BYTES;
        (is_whole && text.starts_with(&header(modified, ctime)?)).then_some(Index { text })
    }

    pub fn leases_of(&self, attachment: &Attachment) -> IndexedLeases {
        let mut leases = IndexedLeases::default();
        let hash = container_hash(attachment.container.as_str());
        let named = format!(" {hash} ");
        // New containers are in no line; a substring search is the fastest test.
        if !self.text.contains(&named) {
            return leases;
        }
        for (at, _) in self.text.match_indices(&named) {
            match self.line_around(at) {
                Some((address, container, interface)) if container == hash => match interface {
                    "" => leases.of_container.push(address),
                    _ if interface == attachment.interface.as_str() => {
                        leases.of_attachment.push(address)
                    }
                    _ => leases.other_interfaces = true,
                },
                _ => {}
            }
        }
        leases
    }

    pub fn addresses(&self) -> HashSet<IpAddr> {
        self.text
            .lines()
            .skip(1)
            .filter_map(parse_line)
            .map(|(address, ..)| address)
            .collect()
    }

    fn line_around(&self, at: usize) -> Option<(IpAddr, &str, &str)> {
        let start = self.text[..at].rfind('\n')? + 1;
        let length = self.text[at..].find('\n')? + at - start;
        parse_line(&self.text[start..start + length])
    }

    /// Adds leases of the attachment, marks removed ones. Deletes an index of mostly removed lines; it is rebuilt when
    /// needed.
    pub fn update(
        &self,
        store: &Store,
        attachment: &Attachment,
        added: &[IpAddr],
        removed: &[IpAddr],
    ) -> io::Result<()> {
        let path = store.path(FILE);
        if !removed.is_empty() {
            let removed_lines = self.text.matches("\n-").count() + removed.len();
            if removed_lines > MIN_LEASES && removed_lines * 2 > self.text.lines().count() {
                return remove(&path);
            }
        }
        let file = files::no_follow().write(true).open(&path)?;
        for address in removed {
            if let Some(at) = self.text.find(&format!("\n {address} ")) {
                file.write_all_at(b"-", at as u64 + 1)?;
            }
        }
        let mut lines = String::new();
        for address in added {
            push_line(
                &mut lines,
                *address,
                attachment.container.as_str(),
                attachment.interface.as_str(),
            );
        }
        file.write_all_at(lines.as_bytes(), self.text.len() as u64)?;
        set_times(store, &file)
    }
}

/// Writes an index of all leases, unless there are few.
pub(super) fn build(store: &Store, leases: &[OwnedAddress]) -> io::Result<()> {
    if leases.len() < MIN_LEASES {
        return Ok(());
    }
    let text = text_of(leases, UNIX_EPOCH, (0, 0));
    remove(&store.path(FILE))?;
    let file = create_new(&store.path(FILE))?;
    file.write_all_at(text.as_bytes(), 0)?;
    set_times(store, &file)
}

pub fn text_of(leases: &[OwnedAddress], modified: SystemTime, ctime: Ctime) -> String {
    let mut text = header(modified, ctime).unwrap_or_default();
    for lease in leases {
        push_line(&mut text, lease.address, &lease.container, &lease.interface);
    }
    text
}

/// Validates the index. Writing to an existing file does not change the directory's times.
fn set_times(store: &Store, index: &File) -> io::Result<()> {
    // A time in the past: no later change sets the same one.
    let time = SystemTime::now() - Duration::from_secs(1);
    let directory = File::open(store.directory())?;
    directory.set_modified(time)?;
    let header = header(time, ctime(&directory.metadata()?));
    let header = header.ok_or_else(|| io::Error::other("the clock is before 1970"))?;
    index.write_all_at(header.as_bytes(), 0)
}

/// Seconds and nanoseconds.
type Ctime = (i64, i64);

fn ctime(directory: &Metadata) -> Ctime {
    (directory.ctime(), directory.ctime_nsec())
}

/// The first line, of constant length.
fn header(modified: SystemTime, (seconds, nanoseconds): Ctime) -> Option<String> {
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    Some(format!(
        "gangplank leases {:020}.{:09} {seconds:020}.{nanoseconds:09}\n",
        since.as_secs(),
        since.subsec_nanos()
    ))
}

fn push_line(text: &mut String, address: IpAddr, container: &str, interface: &str) {
    // White space separates fields; CNI_IFNAME contains none.
    let interface = if interface.contains(char::is_whitespace) {
        UNKNOWN
    } else {
        interface
    };
    let hash = container_hash(container);
    let _ = writeln!(text, " {address} {hash} {interface}");
}

/// A hash of the container ID. A collision costs only time: each indexed lease is verified.
fn container_hash(container: &str) -> String {
    if container == UNKNOWN {
        return UNKNOWN.to_owned();
    }
    let digest = Sha512::digest(container);
    let digits = digest[..8].iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// The fields of a line that is not marked as removed.
fn parse_line(line: &str) -> Option<(IpAddr, &str, &str)> {
    let mut fields = line.strip_prefix(' ')?.split(' ');
    let address = parse_ip(fields.next()?).ok()?;
    Some((address, fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::{Scratch, attachment_of};

    fn ip(last: usize) -> IpAddr {
        format!("10.1.{}.{}", last / 200, last % 200)
            .parse()
            .unwrap()
    }

    fn lease(n: usize) -> OwnedAddress {
        OwnedAddress {
            address: ip(n),
            container: format!("c{n}"),
            interface: "eth0".to_owned(),
        }
    }

    /// A directory with enough leases for an index.
    fn indexed(scratch: &Scratch) -> Store {
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        fs::create_dir_all(store.directory()).unwrap();
        let leases: Vec<OwnedAddress> = (0..MIN_LEASES).map(lease).collect();
        for lease in &leases {
            let content = format!("{}\r\n{}", lease.container, lease.interface);
            fs::write(store.path(&lease.address.to_string()), content).unwrap();
        }
        build(&store, &leases).unwrap();
        store
    }

    #[test]
    fn the_index_is_valid_until_a_lease_is_created_or_removed() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let index = Index::load(&store).unwrap();
        assert_eq!(index.addresses().len(), MIN_LEASES);
        assert_eq!(
            index.leases_of(&attachment_of("c7", "eth0")).of_attachment,
            [ip(7)]
        );
        assert!(
            index
                .leases_of(&attachment_of("c7", "eth1"))
                .other_interfaces
        );
        assert_eq!(
            index.leases_of(&attachment_of("7", "eth0")),
            IndexedLeases::default()
        );
        fs::remove_file(store.path("10.1.0.7")).unwrap();
        assert!(Index::load(&store).is_none());
    }

    #[test]
    fn an_updated_index_is_valid() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let index = Index::load(&store).unwrap();
        let new = attachment_of("10.1.0.9", "eth0");
        fs::remove_file(store.path("10.1.0.7")).unwrap();
        index.update(&store, &new, &[ip(100)], &[ip(7)]).unwrap();
        let index = Index::load(&store).unwrap();
        assert_eq!(
            index.leases_of(&attachment_of("c7", "eth0")),
            IndexedLeases::default()
        );
        // A container ID may look like an address.
        assert_eq!(index.leases_of(&new).of_attachment, [ip(100)]);
        assert!(index.addresses().contains(&ip(100)) && !index.addresses().contains(&ip(7)));
    }

    #[test]
    fn an_index_of_mostly_removed_leases_is_deleted() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let other = attachment_of("x", "y");
        for n in 0..MIN_LEASES {
            let index = Index::load(&store).unwrap();
            index.update(&store, &other, &[ip(n)], &[ip(n)]).unwrap();
        }
        Index::load(&store)
            .unwrap()
            .update(&store, &other, &[], &[ip(0)])
            .unwrap();
        assert!(!store.path(FILE).exists());
    }

    #[test]
    fn a_symbolic_link_to_an_index_is_not_followed() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let outside = scratch.path().join("outside");
        fs::rename(store.path(FILE), &outside).unwrap();
        let before = fs::read(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, store.path(FILE)).unwrap();
        let text = String::from_utf8(before.clone()).unwrap();
        let directory = fs::metadata(store.directory()).unwrap();
        let header = header(directory.modified().unwrap(), ctime(&directory)).unwrap();
        let text = text.replacen(&text[..header.len()], &header, 1);
        fs::write(&outside, &text).unwrap();
        assert!(Index::load(&store).is_none());
        let index = Index { text: text.clone() };
        assert!(
            index
                .update(&store, &attachment_of("x", "y"), &[], &[ip(1)])
                .is_err()
        );
        assert_eq!(fs::read_to_string(&outside).unwrap(), text);
    }

    #[test]
    fn few_leases_are_not_indexed() {
        let scratch = Scratch::new();
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        fs::create_dir_all(store.directory()).unwrap();
        build(&store, &[lease(1)]).unwrap();
        assert!(!store.path(FILE).exists());
    }
}
