//! File locks (flock(2)) with a time limit, and the processes that hold them.

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

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("it is held by {} for more than {} s", holder.as_deref().unwrap_or("another process"), limit.as_secs())]
    Held {
        /// Its pid and name, if known.
        holder: Option<String>,
        limit: Duration,
    },
    #[error(transparent)]
    Terminated(#[from] Terminated),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens a file in order to lock it. A symbolic link is not followed, and a FIFO does not block.
/// It is opened for writing because NFS requires that for an exclusive lock (flock(2), "NFS details"), or for reading
/// if its mode does not permit writing, which is sufficient on other file systems.
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

/// Acquires the exclusive lock on a file, which is released when the file is dropped.
///
/// # Errors
/// [`LockError::Held`] if another process holds it for longer than `limit`.
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
    let (ended, writer) = io::pipe()?;
    // flock(2) has no timeout, so another thread blocks in it. After a timeout here, its send fails, which drops the
    // file and releases the lock.
    thread::Builder::new().spawn(move || {
        let outcome = retry_on_eintr(|| file.lock()).map(|()| file);
        let _ = sender.send(outcome);
        drop(writer);
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
/// `None` if no process holds it, and on file systems whose stat(2) has another device number than /proc/locks
/// (overlayfs, btrfs).
pub fn holder(file: &Metadata) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find_holder(&locks, file)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("pid {pid}"),
        name => format!("pid {pid} ({name})"),
    })
}

/// A line is `1: FLOCK ADVISORY WRITE 1234 08:01:131090 0 EOF`, with `->` after the number if the process is waiting
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
        // Some file systems hide the holder; no other process may be named.
        let own = format!("pid {} (", std::process::id());
        assert!(holder.is_none_or(|holder| holder.starts_with(&own)));
        drop(first);
        // The wait that timed out does not acquire it later.
        lock_within(open(), Duration::from_secs(10)).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_released_lock_is_acquired_at_once() {
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
        let acquired = waiter.join().unwrap();
        assert!(acquired.saturating_duration_since(freed) < Duration::from_secs(5));
        fs::remove_file(path).unwrap();
    }
}
