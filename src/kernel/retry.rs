//! System calls that a signal interrupts.

use std::io::{self, ErrorKind};

/// Retries on EINTR; SIGTERM is handled in [`super::signals`]. The standard library retries only some operations on
/// files.
///
/// # Errors
/// Those of the attempt other than EINTR.
pub fn retry_on_eintr<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
