//! Processes, and the network namespaces of processes and mounts, from /proc.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::kernel::retry::retry_on_eintr;

/// One path for each network namespace of a process or an nsfs mount.
///
/// # Errors
/// If the mounts, or a process of the same user, cannot be read.
pub fn network_namespaces() -> io::Result<Vec<PathBuf>> {
    let mut found = HashMap::new();
    for process in processes()? {
        let path = process.path().join("ns/net");
        let name = retry_on_eintr(|| fs::read_link(&path));
        if let Some(name) = if_ours_to_see(&process, name)? {
            found.entry(name.into_os_string()).or_insert(path);
        }
    }
    let mounts = fs::read("/proc/self/mountinfo")?;
    for line in mounts.split(|byte| *byte == b'\n') {
        if let Some((name, path)) = parse_nsfs_mount(line) {
            found.entry(name).or_insert(path);
        }
    }
    Ok(found.into_values().collect())
}

/// The values of an environment variable of other processes in the mount or network namespace of this one. Processes in
/// neither belong to another node on this machine.
///
/// # Errors
/// If a process of the same user cannot be read.
pub fn environment_values(variable: &str) -> io::Result<HashSet<String>> {
    let prefix = format!("{variable}=");
    let own = std::process::id().to_string();
    let mut values = HashSet::new();
    for process in processes()? {
        if process.file_name() == own.as_str() {
            continue;
        }
        let read = retry_on_eintr(|| fs::read(process.path().join("environ")));
        let Some(environment) = if_ours_to_see(&process, read)? else {
            continue;
        };
        let mut entries = environment.split(|byte| *byte == 0);
        let value = entries.find_map(|entry| entry.strip_prefix(prefix.as_bytes()));
        if let Some(value) = value
            && is_on_this_host(&process.path())
        {
            values.insert(String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(values)
}

/// A plugin that has entered a container's network namespace is still in the mount namespace of its host; one that a
/// runtime starts in another mount namespace begins in the host's network namespace.
fn is_on_this_host(process: &Path) -> bool {
    let is_same = |namespace: &str| {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace));
        match of(process) {
            Ok(theirs) => of(Path::new("/proc/thread-self")).is_ok_and(|own| own == theirs),
            Err(cause) => !is_gone(&cause),
        }
    };
    is_same("mnt") || is_same("net")
}

fn is_gone(cause: &io::Error) -> bool {
    cause.kind() == ErrorKind::NotFound || cause.raw_os_error() == Some(Errno::ESRCH as i32)
}

fn processes() -> io::Result<Vec<DirEntry>> {
    let entries = retry_on_eintr(|| fs::read_dir("/proc")?.collect::<io::Result<Vec<_>>>())?;
    let is_process = |entry: &DirEntry| entry.file_name().as_bytes().iter().all(u8::is_ascii_digit);
    Ok(entries.into_iter().filter(is_process).collect())
}

/// `None` for a process that has ended, or is not accessible because it has another user or more capabilities
/// (ptrace(2), "Ptrace access mode checking"): a runtime starts all plugins with the same ones.
fn if_ours_to_see<T>(process: &DirEntry, read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(cause) if is_gone(&cause) => Ok(None),
        Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {
            let own = Rights::of(Path::new("/proc/self"))?;
            match Rights::of(&process.path()) {
                Ok(theirs) if theirs.is_within(&own) => Err(cause),
                _ => Ok(None),
            }
        }
        Err(cause) => Err(cause),
    }
}

/// The user of a process and its effective capabilities (capabilities(7)), as a bit mask.
struct Rights {
    user: u32,
    capabilities: u64,
}

impl Rights {
    fn of(process: &Path) -> io::Result<Rights> {
        let status = fs::read_to_string(process.join("status"))?;
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let parse = |digits: &str| u64::from_str_radix(digits.trim(), 16).ok();
        Ok(Rights {
            user: retry_on_eintr(|| fs::metadata(process))?.uid(),
            capabilities: capabilities.and_then(parse).unwrap_or_default(),
        })
    }

    fn is_within(&self, other: &Rights) -> bool {
        self.user == other.user && self.capabilities & !other.capabilities == 0
    }
}

/// The name of a network namespace and where it is mounted, from a line like
/// `36 35 0:4 net:[4026532281] /run/netns/a rw shared:7 - nsfs nsfs rw` (proc_pid_mountinfo(5)).
fn parse_nsfs_mount(line: &[u8]) -> Option<(OsString, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let (root, mount_point) = (fields.next()?, fields.next()?);
    if !root.starts_with(b"net:[") {
        return None;
    }
    let name = OsString::from_vec(root.to_vec());
    Some((name, OsString::from_vec(unescape(mount_point)).into()))
}

/// Space, tab, newline and backslash are encoded as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_network_namespaces_are_recognised() {
        let line = br"36 35 0:4 net:[4026532281] /run/netns/a\040b\134 rw shared:7 - nsfs nsfs rw";
        let (name, mount_point) = parse_nsfs_mount(line).unwrap();
        assert_eq!(name, "net:[4026532281]");
        assert_eq!(mount_point, Path::new(r"/run/netns/a b\"));
        for other in [
            &b"22 1 8:1 / / rw - ext4 /dev/sda1 rw"[..],
            b"37 35 0:4 mnt:[4026532290] /run/x rw - nsfs nsfs rw",
            b"",
        ] {
            assert_eq!(parse_nsfs_mount(other), None);
        }
        assert_eq!(unescape(br"\9\"), br"\9\");
    }

    #[test]
    fn the_namespace_and_the_environment_of_a_child_are_seen() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .env("GANGPLANK_PROCFS_TEST", "here")
            .spawn()
            .unwrap();
        // During execve(2) a process has no environment for a moment.
        let seen = (0..1000).find_map(|_| {
            let values = environment_values("GANGPLANK_PROCFS_TEST").unwrap();
            values.contains("here").then_some(values)
        });
        let namespaces = network_namespaces().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, Some(HashSet::from(["here".to_owned()])));
        assert!(!namespaces.is_empty());
        let own = Rights::of(Path::new("/proc/self")).unwrap();
        let root = Rights {
            capabilities: u64::MAX,
            user: own.user,
        };
        assert!(own.is_within(&root) && !root.is_within(&own));
    }
}
