//! The identity of the running boot and of the machine. It does not depend on a clock, which may be wrong or set.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha512};

/// The machine ID of systemd, or else of D-Bus (machine-id(5)).
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// The boot ID, different for each boot (random(4)); `None` if it cannot be read.
pub fn id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    is_word(id).then(|| id.to_owned())
}

/// Identifies this machine across boots: a hash of the machine ID, the host name and, outside the network namespace of
/// PID 1, of the network namespace. Machines installed from one image have the same machine ID, and nodes in containers
/// on one machine often the same host name as well. The machine ID is hashed because it is confidential
/// (machine-id(5)). `None` if the machine cannot be identified.
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

/// `None` also for "uninitialized", the content during the first boot of an image (machine-id(5)).
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
    fn boot_and_machine_ids_do_not_change() {
        assert_eq!(id().map(|id| id.len()), Some(36));
        assert_eq!(id(), id());
        assert_eq!(machine(), machine());
        assert!(machine().is_none_or(|machine| machine.len() == 16));
    }

    #[test]
    fn other_content_is_no_machine_id() {
        assert_eq!(machine_id("/proc/version"), None);
        assert_eq!(machine_id("/nonexistent"), None);
        assert!(!is_word("") && !is_word("a b"));
    }
}
