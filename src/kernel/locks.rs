//! Locks on files (flock(2)): waited for with a bound, and who holds one.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use crate::kernel::files;
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals::{self, Terminated};

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process kept it all the time.
    #[error("it is held by {} for more than {} s", holder.as_deref().unwrap_or("another process"), limit.as_secs())]
    Held {
        /// Its pid and name, if the kernel tells.
        holder: Option<String>,
        /// How long was waited.
        limit: Duration,
    },
    /// We are to end.
    #[error(transparent)]
    Terminated(#[from] Terminated),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens a file to lock it; a symbolic link is not followed, and a FIFO not waited for.
///
/// It is opened for writing, because NFS gives an exclusive lock on nothing else (flock(2), "NFS details"). Where its
/// mode does not permit that, it is opened for reading: other file systems need no more.
///
/// # Errors
/// Those of open(2).
pub fn open_plain(path: &Path) -> io::Result<File> {
    match files::no_follow().read(true).write(true).open(path) {
        Err(cause) if cause.raw_os_error() == Some(Errno::EACCES as i32) => {
            files::no_follow().read(true).open(path)
        }
        opened => opened,
    }
}

/// Takes the exclusive lock on a file; it is given back when the file is dropped.
///
/// # Errors
/// When it is not free within `limit`.
pub fn lock_within(file: File, limit: Duration) -> Result<File, LockError> {
    let attempt = || match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(cause)) => Err(cause),
    };
    if retry_on_eintr(attempt)? {
        return Ok(file);
    }
    let metadata = file.metadata()?;
    let (sender, receiver) = mpsc::channel();
    let (ended, ends) = io::pipe()?;
    // The kernel wakes a blocked flock at once but knows no timeout, so another thread blocks. When nobody waits
    // for its answer any more, the file comes back with the failed send, is dropped, and the lock is free.
    thread::Builder::new().spawn(move || {
        let outcome = retry_on_eintr(|| file.lock()).map(|()| file);
        let _ = sender.send(outcome);
        drop(ends);
    })?;
    signals::wait_readable(ended.as_fd(), limit)?;
    match receiver.try_recv() {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            signals::check()?;
            Err(LockError::Held {
                holder: holder(&metadata),
                limit,
            })
        }
    }
}

/// The process that holds the lock on a file, as `pid 123 (name)`.
///
/// `None` when nobody does, and on file systems that show another device to users than to /proc/locks (overlayfs,
/// btrfs).
pub fn holder(file: &Metadata) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find_holder(&locks, file)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("pid {pid}"),
        name => format!("pid {pid} ({name})"),
    })
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 1234 08:01:131090 0 EOF`; those of who waits have `->` behind the number
/// (proc_locks(5)).
fn find_holder<'a>(locks: &'a str, file: &Metadata) -> Option<&'a str> {
    let (device, inode) = (file.dev(), file.ino());
    let id = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == id => Some(pid),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Instant;

    fn lock_file(name: &str) -> (PathBuf, impl Fn() -> File) {
        let path = std::env::temp_dir().join(format!("gangplank-{}-{name}", std::process::id()));
        File::create(&path).unwrap();
        let again = path.clone();
        (path, move || File::open(&again).unwrap())
    }

    #[test]
    fn a_lock_held_too_long_names_its_holder() {
        let (path, open) = lock_file("held");
        let first = lock_within(open(), Duration::from_secs(10)).unwrap();
        let error = lock_within(open(), Duration::from_millis(50)).unwrap_err();
        let LockError::Held { holder, .. } = error else {
            panic!("{error}")
        };
        // Some file systems hide it; nothing else may be named.
        let us = format!("pid {} (", std::process::id());
        assert!(holder.is_none_or(|holder| holder.starts_with(&us)));
        drop(first);
        // Neither does the wait that was given up keep it.
        lock_within(open(), Duration::from_secs(10)).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_lock_that_is_given_back_is_had_at_once() {
        let (path, open) = lock_file("handed");
        let first = lock_within(open(), Duration::from_secs(10)).unwrap();
        let waiting = open();
        let waiter = thread::spawn(move || {
            let _lock = lock_within(waiting, Duration::from_secs(20)).unwrap();
            Instant::now()
        });
        thread::sleep(Duration::from_millis(100));
        drop(first);
        let freed = Instant::now();
        let had = waiter.join().unwrap();
        assert!(had.saturating_duration_since(freed) < Duration::from_secs(5));
        fs::remove_file(path).unwrap();
    }
}
