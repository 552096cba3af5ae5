//! Network namespaces: opened by path, recognised, entered for the length of a closure.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::kernel::retry::retry_on_eintr;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// How often it is tried to leave a namespace again.
const RETURNS: usize = 10;

/// Why a path is no namespace to work in.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at the path.
    #[error("there is no such file")]
    Missing,
    /// What is at the path is something else.
    #[error("it is not a network namespace")]
    NotANamespace,
    /// It is the namespace of the plugin itself.
    #[error("it is the plugin's own network namespace")]
    Own,
    /// The kernel refuses it.
    #[error("{0}")]
    Refused(#[from] io::Error),
}

impl NetnsError {
    /// Whether the container's namespace is gone, so that nothing of it can be left inside.
    pub fn is_gone(&self) -> bool {
        matches!(self, NetnsError::Missing | NetnsError::NotANamespace)
    }
}

/// Whether the namespace of the plugin itself may be worked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnNetns {
    /// Refuse it: nearly always it is a mistake of the caller, and the node's network would suffer.
    Refused,
    /// CNI_NETNS_OVERRIDE is set.
    Allowed,
}

impl OwnNetns {
    /// What CNI_NETNS_OVERRIDE says.
    pub fn allowed(is_overridden: bool) -> OwnNetns {
        if is_overridden {
            OwnNetns::Allowed
        } else {
            OwnNetns::Refused
        }
    }
}

/// An open network namespace, and the one to come back to.
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
    /// When the path holds no network namespace, or the plugin's own and that is refused.
    pub fn open(path: impl AsRef<Path>, own: OwnNetns) -> Result<Netns, NetnsError> {
        let path = path.as_ref();
        // Without O_NONBLOCK a FIFO at the path would hold us until somebody writes to it.
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

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a closure in the namespace. The thread is back in its own when this returns.
    ///
    /// # Errors
    /// When the namespace cannot be entered: it is of another kind, or that is not permitted.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let enter = || Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?);
        retry_on_eintr(enter).map_err(|cause| match cause.kind() {
            // Of another kind (setns(2), EINVAL).
            ErrorKind::InvalidInput => NetnsError::NotANamespace,
            _ => NetnsError::Refused(cause),
        })?;
        let done = work();
        self.come_home();
        Ok(done)
    }

    /// A thread may always return to the namespace it came from, but the kernel needs memory for it.
    fn come_home(&self) {
        let home = || setns(&self.home, CloneFlags::CLONE_NEWNET);
        let mut tries = (1..RETURNS).map(|_| home());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_told_apart() {
        let open = |path: &str| Netns::open(path, OwnNetns::Refused).unwrap_err();
        assert!(matches!(open("/nonexistent/ns"), NetnsError::Missing));
        assert!(matches!(open("/proc/self/exe/ns"), NetnsError::Missing));
        assert!(matches!(open("/tmp"), NetnsError::NotANamespace));
        assert!(matches!(open("/proc/self/exe"), NetnsError::NotANamespace));
        assert!(matches!(open(OWN), NetnsError::Own));
        assert!(Netns::open(OWN, OwnNetns::Allowed).is_ok());
    }
}
