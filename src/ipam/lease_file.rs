//! The content of a lease file: `<container ID>\r\n<interface>`.

use std::io::{self, Read};
use std::path::Path;

use crate::cni::names::{Attachment, ContainerId};
use crate::kernel::files;
use crate::kernel::retry::retry_on_eintr;

/// The owner of a lease, compared with an attachment.
#[derive(Debug, PartialEq, Eq)]
pub enum LeaseOwner {
    /// The attachment.
    Attachment,
    /// The attachment's container, without an interface: the format of old versions of the Go plugin.
    Container,
    /// Another interface of the container.
    OtherInterface,
    OtherContainer,
    /// The file names no owner.
    Invalid,
}

/// Reads a lease file and compares its owner with an attachment.
///
/// # Errors
/// If it cannot be read.
pub fn read_owner_for(path: &Path, attachment: &Attachment) -> io::Result<LeaseOwner> {
    match read_small(path) {
        // Plugins create no symbolic links; it is neither followed nor removed.
        Err(cause) if files::is_link(&cause) => Ok(LeaseOwner::OtherContainer),
        content => content.map(|content| owner_for(&content, attachment)),
    }
}

/// Compares the owner in the content of a lease file with an attachment.
pub fn owner_for(content: &[u8], attachment: &Attachment) -> LeaseOwner {
    let (container, interface) = (attachment.container.as_str(), attachment.interface.as_str());
    let rest = content.trim_ascii().strip_prefix(container.as_bytes());
    if rest == Some(b"") {
        return LeaseOwner::Container;
    }
    // LF is accepted, too: text tools may have converted the line end.
    let second = rest.and_then(|it| it.strip_prefix(b"\r\n").or_else(|| it.strip_prefix(b"\n")));
    match second {
        Some(name) if name == interface.as_bytes() => LeaseOwner::Attachment,
        Some(_) => LeaseOwner::OtherInterface,
        None if parse_owner(content).is_some() => LeaseOwner::OtherContainer,
        None => LeaseOwner::Invalid,
    }
}

/// Container and interface; the interface is empty in the legacy format. `None` if the first line is not a container
/// ID.
pub fn parse_owner(content: &[u8]) -> Option<(ContainerId, String)> {
    let text = String::from_utf8_lossy(content.trim_ascii());
    let (container, interface) = text.split_once('\n').unwrap_or((&text, ""));
    let container = container.trim_ascii().parse().ok()?;
    Some((container, interface.to_owned()))
}

/// Reads up to 256 KiB of a file; with a single system call if it is small, as a lease is.
///
/// # Errors
/// If it cannot be read.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::tests::attachment_of;

    #[test]
    fn a_lease_has_an_owner_if_its_first_line_is_a_container_id() {
        let attachment = attachment_of("c1", "eth0");
        for (content, expected) in [
            ("c1\r\neth0", LeaseOwner::Attachment),
            (" c1\r\neth0\n", LeaseOwner::Attachment),
            ("c1", LeaseOwner::Container),
            ("c1\n", LeaseOwner::Container),
            ("c1\r\neth1", LeaseOwner::OtherInterface),
            ("c10\r\neth0", LeaseOwner::OtherContainer),
            ("c1\neth0", LeaseOwner::Attachment),
            ("c1\neth1", LeaseOwner::OtherInterface),
            ("c10\neth0", LeaseOwner::OtherContainer),
            ("c2", LeaseOwner::OtherContainer),
            ("c2\r\n\u{fc}", LeaseOwner::OtherContainer),
            ("", LeaseOwner::Invalid),
            (" \r\n", LeaseOwner::Invalid),
            ("\r\neth0", LeaseOwner::OtherContainer), // trimmed: container "eth0"
            ("\0\0\0\0", LeaseOwner::Invalid),
            ("-c1\r\neth0", LeaseOwner::Invalid),
            ("not a container\r\neth0", LeaseOwner::Invalid),
        ] {
            assert_eq!(
                owner_for(content.as_bytes(), &attachment),
                expected,
                "{content:?}"
            );
        }
        assert_eq!(
            owner_for(b"c2\r\n\xff", &attachment),
            LeaseOwner::OtherContainer
        );
        assert_eq!(owner_for(b"\xff\xfe", &attachment), LeaseOwner::Invalid);
    }
}
