//! What a file of the store says: `<container id>\r\n<interface>`. Only reads.

use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use crate::cni::names::{Attachment, ContainerId};
use crate::kernel::files;
use crate::kernel::retry::retry_on_eintr;

/// What a lease file says about an attachment.
#[derive(Debug, PartialEq, Eq)]
pub enum LeaseOwner {
    /// It is the attachment's.
    Mine,
    /// It names the container only, as old versions of the reference wrote it.
    Containers,
    /// It is another interface's of the same container.
    Siblings,
    /// It is somebody else's.
    Foreign,
    /// It is nobody's.
    Garbled,
}

/// Reads what a file says about `who`.
///
/// # Errors
/// When it cannot be read.
pub fn read_owner_for(path: &Path, attachment: &Attachment) -> io::Result<LeaseOwner> {
    match read_small(path) {
        // No plugin makes links: whatever this is, it is not ours to follow or to remove.
        Err(cause) if files::is_link(&cause) => Ok(LeaseOwner::Foreign),
        content => content.map(|content| owner_for(&content, attachment)),
    }
}

/// What the content of a file says about `who`.
pub fn owner_for(content: &[u8], attachment: &Attachment) -> LeaseOwner {
    let (container, interface) = (attachment.container.as_str(), attachment.interface.as_str());
    let rest = content.trim_ascii().strip_prefix(container.as_bytes());
    if rest == Some(b"") {
        return LeaseOwner::Containers;
    }
    // Programs that take CR LF for the end of a line of text may have written LF alone.
    let second = rest.and_then(|it| it.strip_prefix(b"\r\n").or_else(|| it.strip_prefix(b"\n")));
    match second {
        Some(name) if name == interface.as_bytes() => return LeaseOwner::Mine,
        Some(_) => return LeaseOwner::Siblings,
        None => {}
    }
    match parse_owner(content) {
        Some(_) => LeaseOwner::Foreign,
        None => LeaseOwner::Garbled,
    }
}

/// Container and interface; the latter is empty in the legacy form. `None` when the first line is no container id.
pub fn parse_owner(content: &[u8]) -> Option<(ContainerId, String)> {
    let text = String::from_utf8_lossy(content.trim_ascii());
    let (container, interface) = text.split_once('\n').unwrap_or((&text, ""));
    let container = container.trim_ascii().parse().ok()?;
    Some((container, interface.to_owned()))
}

/// Reads a file that holds two short lines, with one system call where they are.
///
/// # Errors
/// When it cannot be read.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    const USUAL: usize = 512;
    const LIMIT: u64 = 256 << 10;
    let mut file = files::no_follow().read(true).open(path)?;
    let mut content = vec![0; USUAL];
    let length = retry_on_eintr(|| file.read(&mut content))?;
    content.truncate(length);
    if length == USUAL {
        file.take(LIMIT).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// A lease as an error message tells it.
#[derive(Debug)]
pub struct Holder {
    address: IpAddr,
    owner: String,
    since: SystemTime,
}

impl Holder {
    /// Reads a lease; `None` when it is gone or garbled.
    pub fn read(path: &Path, address: IpAddr) -> Option<Holder> {
        let since = path
            .symlink_metadata()
            .and_then(|file| file.modified())
            .ok()?;
        let owner = match parse_owner(&read_small(path).ok()?)? {
            (container, interface) if interface.is_empty() => format!("container {container}"),
            (container, interface) => format!("container {container} interface {interface}"),
        };
        Some(Holder {
            address,
            owner,
            since,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = age(self.since);
        write!(f, "{} by {} for {age}", self.address, self.owner)
    }
}

/// How long ago that was, for a person.
pub fn age(since: SystemTime) -> String {
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::attachment_of;

    #[test]
    fn only_the_first_line_decides_whether_a_file_is_somebodys() {
        let attachment = attachment_of("c1", "eth0");
        for (content, expected) in [
            ("c1\r\neth0", LeaseOwner::Mine),
            (" c1\r\neth0\n", LeaseOwner::Mine),
            ("c1", LeaseOwner::Containers),
            ("c1\n", LeaseOwner::Containers),
            ("c1\r\neth1", LeaseOwner::Siblings),
            ("c10\r\neth0", LeaseOwner::Foreign),
            ("c1\neth0", LeaseOwner::Mine),
            ("c1\neth1", LeaseOwner::Siblings),
            ("c10\neth0", LeaseOwner::Foreign),
            ("c2", LeaseOwner::Foreign),
            ("c2\r\n\u{fc}", LeaseOwner::Foreign),
            ("", LeaseOwner::Garbled),
            (" \r\n", LeaseOwner::Garbled),
            ("\r\neth0", LeaseOwner::Foreign), // trimmed, it names a container "eth0"
            ("\0\0\0\0", LeaseOwner::Garbled),
            ("-c1\r\neth0", LeaseOwner::Garbled),
            ("not a container\r\neth0", LeaseOwner::Garbled),
        ] {
            assert_eq!(
                owner_for(content.as_bytes(), &attachment),
                expected,
                "{content:?}"
            );
        }
        assert_eq!(owner_for(b"c2\r\n\xff", &attachment), LeaseOwner::Foreign);
        assert_eq!(owner_for(b"\xff\xfe", &attachment), LeaseOwner::Garbled);
    }
}
