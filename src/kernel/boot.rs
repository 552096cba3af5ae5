//! Which boot of which machine this is. No clock is asked: it may be wrong, and it may be set.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha512};

/// Where the machine ID is: of systemd, else of D-Bus (machine-id(5)).
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// The boot ID, different for each boot (random(4)); `None` if it cannot be read.
pub fn id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    is_word(id).then(|| id.to_owned())
}

/// Identifies this machine across boots: a hash of its machine ID, its host name and, in a network namespace other than
/// that of PID 1, of that namespace. Machines made from one image share the first, nodes on one kernel often the first
/// two. It is a hash because a machine ID is confidential (machine-id(5)). `None` if the machine cannot be identified.
pub fn machine() -> Option<String> {
    let machine = MACHINE_IDS.into_iter().find_map(machine_id)?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let namespace = match (namespace("self"), namespace("1")) {
        (Ok(own), Ok(first)) if own == first => String::new(),
        (Ok((device, inode)), _) => format!("{device}:{inode}"),
        (Err(_), _) => return None,
    };
    let digest = Sha512::digest(format!("{machine}\0{}\0{namespace}", host.trim()));
    Some(
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// During the first boot of an image it is "uninitialized" (machine-id(5)).
fn machine_id(path: &str) -> Option<String> {
    let id = fs::read_to_string(path).ok()?;
    let id = id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

fn namespace(process: &str) -> io::Result<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{process}/ns/net"))?;
    Ok((file.dev(), file.ino()))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_and_a_machine_stay_the_same() {
        assert_eq!(id().map(|id| id.len()), Some(36));
        assert_eq!(id(), id());
        assert_eq!(machine(), machine());
        assert!(machine().is_none_or(|machine| machine.len() == 16));
    }

    #[test]
    fn what_is_not_an_id_is_none() {
        assert_eq!(machine_id("/proc/version"), None);
        assert_eq!(machine_id("/nonexistent"), None);
        assert!(!is_word("") && !is_word("a b"));
    }
}
