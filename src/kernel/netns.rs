//! Network namespaces, which are entered for the duration of a closure.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::kernel::locks::lock_within;
use crate::kernel::retry::retry_on_eintr;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// The number of attempts to leave a namespace.
const MAX_RETURNS: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("there is no such file")]
    Missing,
    #[error("it is not a network namespace")]
    NotANamespace,
    #[error("it is the plugin's own network namespace")]
    Own,
    #[error("{0}")]
    Refused(#[from] io::Error),
}

impl NetnsError {
    /// Whether the namespace no longer exists, so that there is nothing to remove in it.
    pub fn is_gone(&self) -> bool {
        matches!(self, NetnsError::Missing | NetnsError::NotANamespace)
    }
}

/// Whether the plugin's own namespace is accepted as that of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnNetns {
    /// It is refused: it is nearly always a mistake that would change the node's network.
    Refused,
    /// CNI_NETNS_OVERRIDE is set.
    Allowed,
}

impl OwnNetns {
    pub fn allowed(is_overridden: bool) -> OwnNetns {
        if is_overridden {
            OwnNetns::Allowed
        } else {
            OwnNetns::Refused
        }
    }
}

/// An open network namespace, and the one to return to.
#[derive(Debug)]
pub struct Netns {
    file: File,
    home: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at a path.
    ///
    /// # Errors
    /// If the path is not a network namespace, or it is the plugin's own and that is refused.
    pub fn open(path: impl AsRef<Path>, own: OwnNetns) -> Result<Netns, NetnsError> {
        let path = path.as_ref();
        // Without O_NONBLOCK, opening a FIFO blocks.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(
                |cause| match Errno::from_raw(cause.raw_os_error().unwrap_or(0)) {
                    Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG => NetnsError::Missing,
                    Errno::ENXIO | Errno::ELOOP => NetnsError::NotANamespace,
                    _ => NetnsError::Refused(cause),
                },
            )?;
        let kind = retry_on_eintr(|| Ok(fstatfs(&file)?))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace);
        }
        let home = File::open(OWN)?;
        if own == OwnNetns::Refused && same_file(&file, &home)? {
            return Err(NetnsError::Own);
        }
        Ok(Netns {
            file,
            home,
            path: path.to_owned(),
        })
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own() -> Result<Netns, NetnsError> {
        Netns::open(OWN, OwnNetns::Allowed)
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a closure in the namespace, then returns the thread to its own.
    ///
    /// # Errors
    /// If the namespace cannot be entered because it is of another kind or setns(2) is not permitted.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let enter = || Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?);
        retry_on_eintr(enter).map_err(|cause| match cause.kind() {
            // EINVAL: a namespace of another kind (setns(2)).
            ErrorKind::InvalidInput => NetnsError::NotANamespace,
            _ => NetnsError::Refused(cause),
        })?;
        let done = work();
        self.return_home();
        Ok(done)
    }

    /// setns(2) to the original namespace can only fail for lack of memory.
    fn return_home(&self) {
        let home = || setns(&self.home, CloneFlags::CLONE_NEWNET);
        let mut tries = (1..MAX_RETURNS).map(|_| home());
        if !tries.any(|returned| returned.is_ok()) {
            home().expect("a thread may return to the network namespace it came from");
        }
    }
}

impl std::os::fd::AsRawFd for Netns {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (
        retry_on_eintr(|| a.metadata())?,
        retry_on_eintr(|| b.metadata())?,
    );
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Waits until no other process has a turn in the thread's network namespace. The turn lasts until the file is dropped.
/// It is a courtesy, not a lock: `None` if the wait took longer than `limit`, or locks do not work. Every process can lock
/// the file of its own namespace.
pub fn take_turn(limit: Duration) -> Option<File> {
    lock_within(File::open(OWN).ok()?, limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_when_it_is_dropped() {
        let long = Duration::from_secs(20);
        let turn = take_turn(long).unwrap();
        assert!(take_turn(Duration::from_millis(20)).is_none());
        drop(turn);
        assert!(take_turn(long).is_some());
    }

    #[test]
    fn other_paths_are_refused() {
        let open = |path: &str| Netns::open(path, OwnNetns::Refused).unwrap_err();
        assert!(matches!(open("/nonexistent/ns"), NetnsError::Missing));
        assert!(matches!(open("/proc/self/exe/ns"), NetnsError::Missing));
        assert!(matches!(open("/tmp"), NetnsError::NotANamespace));
        assert!(matches!(open("/proc/self/exe"), NetnsError::NotANamespace));
        assert!(matches!(open(OWN), NetnsError::Own));
        assert!(Netns::open(OWN, OwnNetns::Allowed).is_ok());
    }
}
