//! SIGTERM: instead of ending the process between two steps, it is noticed where an ADD can turn back.
//!
//! A handler and a socket pair, not a blocked signal and a signalfd: programs we start would inherit the blocked signal
//! (std leaves the mask as it is), while a handler ends with exec.

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

/// Readable once the signal arrived; it is never read.
static ARRIVED: OnceLock<UnixStream> = OnceLock::new();

/// Whether what is being done is to be given up for it.
static CANCELLATION_ENABLED: AtomicBool = AtomicBool::new(false);

/// SIGTERM arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by SIGTERM")]
pub struct Terminated;

/// From now on the signal ends nothing by itself: DEL and GC go on to their end, which is bounded.
///
/// # Errors
/// When it cannot be caught.
pub fn install_handlers() -> io::Result<()> {
    let reader = retry_on_eintr(|| {
        let (reader, writer) = UnixStream::pair()?;
        pipe::register(SIGTERM, writer)?;
        Ok(reader)
    })?;
    let _ = ARRIVED.set(reader);
    // A parent may have blocked them: SIGTERM for us, SIGALRM for the programs that we start, which inherit the mask
    // (iptables ends its wait for the lock with it).
    let mut needed = SigSet::empty();
    needed.add(Signal::SIGTERM);
    needed.add(Signal::SIGALRM);
    Ok(needed.thread_unblock()?)
}

/// Has the kernel keep the exit statuses of programs that we start. It keeps none while SIGCHLD is ignored, and a parent
/// that ignores it leaves that to us (wait(2), "NOTES"). With a handler it is not ignored, neither by us nor by the
/// programs.
///
/// # Errors
/// When no handler can be installed.
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

/// Whether a signal is ignored (proc_pid_status(5)); so it may be when the kernel does not tell.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

/// From now on it ends waits and is found by [`check`].
pub fn enable_cancellation() {
    CANCELLATION_ENABLED.store(true, Ordering::Relaxed);
}

/// Does something that is done to its end, however often the signal arrives: an undo.
pub fn uncancellable<T>(work: impl FnOnce() -> T) -> T {
    let heeded = CANCELLATION_ENABLED.swap(false, Ordering::Relaxed);
    let done = work();
    CANCELLATION_ENABLED.store(heeded, Ordering::Relaxed);
    done
}

/// What becomes readable when the signal arrives, while it is heeded.
pub fn wake() -> Option<BorrowedFd<'static>> {
    let heeded = CANCELLATION_ENABLED.load(Ordering::Relaxed);
    ARRIVED.get().filter(|_| heeded).map(AsFd::as_fd)
}

/// Turns back if the signal arrived and is heeded.
///
/// # Errors
/// When it did.
pub fn check() -> Result<(), Terminated> {
    let Some(wake) = wake() else { return Ok(()) };
    let mut polled = [PollFd::new(wake, PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(1..) => Err(Terminated),
        _ => Ok(()),
    }
}

/// Waits until there is something to read, the signal arrives while it is heeded, or the time is over.
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
