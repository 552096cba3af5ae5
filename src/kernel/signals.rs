//! SIGTERM: it does not end the process at any instruction but cancels an ADD at points where the ADD can be undone.
//! It has a handler that writes to a socket pair. With a blocked signal and a signalfd, started programs would inherit
//! the signal mask; a handler is reset by execve(2).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use crate::kernel::retry::retry_on_eintr;

/// Readable after the signal; it is never read.
static ARRIVED: OnceLock<UnixStream> = OnceLock::new();

/// Whether SIGTERM cancels the operation.
static CANCELLATION_ENABLED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("terminated by SIGTERM")]
pub struct Terminated;

/// Installs the handler. Without [`enable_cancellation`] the signal has no effect: DEL and GC continue to their end.
///
/// # Errors
/// If the handler cannot be installed.
pub fn install_handlers() -> io::Result<()> {
    let reader = retry_on_eintr(|| {
        let (reader, writer) = UnixStream::pair()?;
        pipe::register(SIGTERM, writer)?;
        Ok(reader)
    })?;
    let _ = ARRIVED.set(reader);
    // The parent may have blocked SIGTERM and SIGALRM. Programs inherit the mask, and iptables ends its wait for the
    // lock with SIGALRM.
    let mut needed = SigSet::empty();
    needed.add(Signal::SIGTERM);
    needed.add(Signal::SIGALRM);
    Ok(needed.thread_unblock()?)
}

/// Makes the kernel keep the exit statuses of started programs, which it discards if the parent left SIGCHLD ignored
/// (wait(2), "NOTES"). Installs a handler then; execve(2) resets it to the default for the programs.
///
/// # Errors
/// If the handler cannot be installed.
pub fn keep_exit_statuses() -> io::Result<()> {
    static ARE_KEPT: Mutex<bool> = Mutex::new(false);
    let mut are_kept = ARE_KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*are_kept {
        if is_ignored(Signal::SIGCHLD) {
            flag::register(SIGCHLD, Arc::default())?;
        }
        *are_kept = true;
    }
    Ok(())
}

/// Whether a signal is ignored (proc_pid_status(5)); assumed if that cannot be read.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

/// From now on SIGTERM ends waits, and [`check`] reports it.
pub fn enable_cancellation() {
    CANCELLATION_ENABLED.store(true, Ordering::Relaxed);
}

/// Runs a closure that SIGTERM does not cancel.
pub fn uncancellable<T>(work: impl FnOnce() -> T) -> T {
    let is_enabled = CANCELLATION_ENABLED.swap(false, Ordering::Relaxed);
    let done = work();
    CANCELLATION_ENABLED.store(is_enabled, Ordering::Relaxed);
    done
}

/// A file descriptor that becomes readable with the signal, if cancellation is enabled.
pub fn wake() -> Option<BorrowedFd<'static>> {
    let is_enabled = CANCELLATION_ENABLED.load(Ordering::Relaxed);
    ARRIVED.get().filter(|_| is_enabled).map(AsFd::as_fd)
}

/// Checks for SIGTERM, if cancellation is enabled.
///
/// # Errors
/// [`Terminated`] after the signal.
pub fn check() -> Result<(), Terminated> {
    let Some(wake) = wake() else { return Ok(()) };
    let mut polled = [PollFd::new(wake, PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(1..) => Err(Terminated),
        _ => Ok(()),
    }
}

/// Waits until the file descriptor is readable, the operation is cancelled or the time is over.
///
/// # Errors
/// Those of poll(2).
pub fn wait_readable(fd: BorrowedFd, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let fds = [Some(fd), wake()];
        let polled = fds
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled.collect::<Vec<_>>(), timeout) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) if Instant::now() < deadline => {}
            Ok(_) => return Ok(()),
        }
    }
}
