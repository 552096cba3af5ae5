//! Who has which address, in one file: with it neither an ADD nor a DEL opens the other leases.
//!
//! It is a hint and never the truth. Whoever writes it under the lock, as the last thing, sets the directory's time of
//! modification to one that no clock shows any more, and notes it in the first line. Every lease that anybody makes or
//! removes sets that time anew. So the index is believed exactly while both are the same; the Go plugin, which knows
//! nothing of it, cannot make it lie. A backup restores that time together with the index, but never the time of the
//! directory's last status change (utimensat(2)), which is noted too. In a small directory reading the leases costs less,
//! and there is none.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha512};

use crate::cni::names::Attachment;
use crate::ipam::store::scan::{Owned, UNKNOWN};
use crate::ipam::store::{Store, create_new, remove};
use crate::kernel::files;
use crate::net::parse_ip;

const FILE: &str = ".gangplank.index";

/// From how many leases on it is kept: each lease costs three system calls to read, the index ten.
const WORTHWHILE: usize = 8;

/// What is longer is not believed: a hundred thousand leases fit.
const MAX_BYTES: u64 = 16 << 20;

/// The index as it was read, believed at that moment. A line is ` ADDRESS CONTAINER INTERFACE`, the container as a short
/// hash, for all of it is read each time; it begins with `-` instead of the space when the lease is gone.
#[derive(Debug)]
pub struct Index {
    text: String,
}

/// What the index says about an attachment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Its leases.
    pub mine: Vec<IpAddr>,
    /// Leases that name the container only.
    pub of_container: Vec<IpAddr>,
    /// Whether other interfaces of the container have any.
    pub siblings: bool,
}

impl Index {
    /// Reads the index; `None` when there is none or the directory has changed since it was written.
    pub fn load(store: &Store) -> Option<Index> {
        let file = files::no_follow().read(true).open(store.path(FILE)).ok()?;
        let length = file.metadata().ok()?.len().min(MAX_BYTES);
        let mut text = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut text, 0).ok()?;
        let text = String::from_utf8(text).ok()?;
        // Asked behind the reading: who changes leases meanwhile changes the time first.
        let directory = fs::metadata(store.directory()).ok()?;
        Index::validate(text, directory.modified().ok()?, ctime(&directory))
    }

    /// Takes a text for the index of a directory that was changed last at that time; `None` when it is not.
    pub fn validate(text: String, modified: SystemTime, changed: Changed) -> Option<Index> {
        let is_whole = (text.len() as u64) < MAX_BYTES;
        (is_whole && text.starts_with(&header(modified, changed)?)).then_some(Index { text })
    }

    /// What it says about an attachment.
    pub fn claims(&self, attachment: &Attachment) -> Claims {
        let mut claims = Claims::default();
        let key = key_of(attachment.container.as_str());
        let named = format!(" {key} ");
        // Who is new is in no line, and that is seen sooner than where one would be.
        if !self.text.contains(&named) {
            return claims;
        }
        for (at, _) in self.text.match_indices(&named) {
            match self.line_around(at) {
                Some((address, container, interface)) if container == key => match interface {
                    "" => claims.of_container.push(address),
                    _ if interface == attachment.interface.as_str() => claims.mine.push(address),
                    _ => claims.siblings = true,
                },
                _ => {}
            }
        }
        claims
    }

    /// All addresses that somebody has.
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

    /// Writes what has changed. Where that does not pay the index goes; it is made again when it is worthwhile.
    pub fn amend(
        &self,
        store: &Store,
        added: &[(IpAddr, Attachment)],
        removed: &[IpAddr],
    ) -> io::Result<()> {
        let path = store.path(FILE);
        if !removed.is_empty() {
            let dead = self.text.matches("\n-").count() + removed.len();
            if dead > WORTHWHILE && dead * 2 > self.text.lines().count() {
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
        for (address, attachment) in added {
            push_line(
                &mut lines,
                *address,
                attachment.container.as_str(),
                attachment.interface.as_str(),
            );
        }
        file.write_all_at(lines.as_bytes(), self.text.len() as u64)?;
        stamp(store, &file)
    }
}

/// Makes an index of all leases; not of few.
pub(super) fn build(store: &Store, leases: &[Owned]) -> io::Result<()> {
    if leases.len() < WORTHWHILE {
        return Ok(());
    }
    let text = text_of(leases, UNIX_EPOCH, (0, 0));
    remove(&store.path(FILE))?;
    let file = create_new(&store.path(FILE))?;
    file.write_all_at(text.as_bytes(), 0)?;
    stamp(store, &file)
}

/// The index of these leases in a directory with these times.
pub fn text_of(leases: &[Owned], modified: SystemTime, changed: Changed) -> String {
    let mut text = header(modified, changed).unwrap_or_default();
    for lease in leases {
        push_line(&mut text, lease.address, &lease.container, &lease.interface);
    }
    text
}

/// Makes the index believed: writing into an existing file does not change the times of its directory.
fn stamp(store: &Store, index: &File) -> io::Result<()> {
    // A second ago: nobody's clock shows that again, so nobody else sets it.
    let time = SystemTime::now() - Duration::from_secs(1);
    let directory = File::open(store.directory())?;
    directory.set_modified(time)?;
    let changed = ctime(&directory.metadata()?);
    let header = header(time, changed);
    let header = header.ok_or_else(|| io::Error::other("the clock stands before 1970"))?;
    index.write_all_at(header.as_bytes(), 0)
}

/// The time of the last status change, in seconds and nanoseconds.
type Changed = (i64, i64);

fn ctime(directory: &Metadata) -> Changed {
    (directory.ctime(), directory.ctime_nsec())
}

/// The first line, of the same length for all times.
fn header(modified: SystemTime, (seconds, nanoseconds): Changed) -> Option<String> {
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    Some(format!(
        "gangplank leases {:020}.{:09} {seconds:020}.{nanoseconds:09}\n",
        since.as_secs(),
        since.subsec_nanos()
    ))
}

fn push_line(text: &mut String, address: IpAddr, container: &str, interface: &str) {
    // White space would end a field, and no interface that can be asked for has any.
    let interface = if interface.contains(char::is_whitespace) {
        UNKNOWN
    } else {
        interface
    };
    let key = key_of(container);
    let _ = writeln!(text, " {address} {key} {interface}");
}

/// What stands for a container. Two with the same one would only cost time: each lease that a line claims is looked at.
fn key_of(container: &str) -> String {
    if container == UNKNOWN {
        return UNKNOWN.to_owned();
    }
    let digest = Sha512::digest(container);
    let digits = digest[..8].iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// The fields of a line whose lease is still there.
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

    fn lease(n: usize) -> Owned {
        Owned {
            address: ip(n),
            container: format!("c{n}"),
            interface: "eth0".to_owned(),
        }
    }

    /// A directory with as many leases as it takes, and its index.
    fn indexed(scratch: &Scratch) -> Store {
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        fs::create_dir_all(store.directory()).unwrap();
        let leases: Vec<Owned> = (0..WORTHWHILE).map(lease).collect();
        for lease in &leases {
            let content = format!("{}\r\n{}", lease.container, lease.interface);
            fs::write(store.path(&lease.address.to_string()), content).unwrap();
        }
        build(&store, &leases).unwrap();
        store
    }

    #[test]
    fn it_is_believed_until_anybody_changes_a_lease() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let index = Index::load(&store).unwrap();
        assert_eq!(index.addresses().len(), WORTHWHILE);
        assert_eq!(index.claims(&attachment_of("c7", "eth0")).mine, [ip(7)]);
        assert!(index.claims(&attachment_of("c7", "eth1")).siblings);
        assert_eq!(index.claims(&attachment_of("7", "eth0")), Claims::default());
        fs::remove_file(store.path("10.1.0.7")).unwrap();
        assert!(Index::load(&store).is_none());
    }

    #[test]
    fn what_is_amended_is_believed_again() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        let index = Index::load(&store).unwrap();
        let new = attachment_of("10.1.0.9", "eth0");
        fs::remove_file(store.path("10.1.0.7")).unwrap();
        index
            .amend(&store, &[(ip(100), new.clone())], &[ip(7)])
            .unwrap();
        let index = Index::load(&store).unwrap();
        assert_eq!(
            index.claims(&attachment_of("c7", "eth0")),
            Claims::default()
        );
        // A container may be called like an address.
        assert_eq!(index.claims(&new).mine, [ip(100)]);
        assert!(index.addresses().contains(&ip(100)) && !index.addresses().contains(&ip(7)));
    }

    #[test]
    fn one_that_is_mostly_dead_goes() {
        let scratch = Scratch::new();
        let store = indexed(&scratch);
        for n in 0..WORTHWHILE {
            let index = Index::load(&store).unwrap();
            index
                .amend(&store, &[(ip(n), attachment_of("x", "y"))], &[ip(n)])
                .unwrap();
        }
        Index::load(&store)
            .unwrap()
            .amend(&store, &[], &[ip(0)])
            .unwrap();
        assert!(!store.path(FILE).exists());
    }

    #[test]
    fn an_index_behind_a_link_is_none() {
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
        assert!(index.amend(&store, &[], &[ip(1)]).is_err());
        assert_eq!(fs::read_to_string(&outside).unwrap(), text);
    }

    #[test]
    fn few_leases_have_none() {
        let scratch = Scratch::new();
        let store = Store::new(scratch.path(), &"net".parse().unwrap());
        fs::create_dir_all(store.directory()).unwrap();
        build(&store, &[lease(1)]).unwrap();
        assert!(!store.path(FILE).exists());
    }
}
