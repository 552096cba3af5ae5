//! System calls that a signal has interrupted.

use std::io::{self, ErrorKind};

/// Tries again what a signal has interrupted (EINTR): SIGTERM is noticed elsewhere, and no other one concerns us. The
/// standard library does so for reading, writing and opening files, and for little else.
///
/// # Errors
/// Those of the attempt but that one.
pub fn retry_on_eintr<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
