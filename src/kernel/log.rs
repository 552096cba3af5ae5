//! A file that tells what was done and how long it took, and the clocks for that. Off unless it was started: then nothing
//! is timed, formatted or opened.
//!
//! Nothing here fails what it tells of: a line that cannot be written is lost.

mod file;
mod line;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use file::MAX_BYTES;
pub use line::Line;

static LOG: OnceLock<Log> = OnceLock::new();

/// How much is told; each level tells what those before it tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Operations that failed.
    Error,
    /// Operations.
    Info,
    /// Also those that only ask, and each step: messages to the kernel, other programs.
    Debug,
}

impl Level {
    /// All of them.
    pub const ALL: [Level; 3] = [Level::Error, Level::Info, Level::Debug];

    /// As it is written in configurations and in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

struct Log {
    file: File,
    level: Level,
    spans: Mutex<Vec<(&'static str, Duration)>>,
}

/// Starts it for the rest of the process, once.
///
/// # Errors
/// When the file cannot be opened: there is a symbolic link, or something else that is no regular file, or the kernel
/// refuses.
pub fn start(path: &Path, level: Level) -> io::Result<()> {
    let file = file::open(path)?;
    let _ = LOG.set(Log {
        file,
        level,
        spans: Mutex::default(),
    });
    Ok(())
}

/// Whether things of that level are told.
pub fn enabled(level: Level) -> bool {
    LOG.get().is_some_and(|log| level <= log.level)
}

/// Writes a line by one system call, so that those of processes that write at once do not mix.
pub fn write(line: Line) {
    if let Some(log) = LOG.get() {
        // A full disk is no reason to fail.
        let _ = (&log.file).write(line.end().as_bytes());
    }
}

/// Does a part of an operation; its time counts under that name.
pub fn timed_span<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let Some(log) = LOG.get() else {
        return work();
    };
    let began = Instant::now();
    let done = work();
    log.count(name, began.elapsed());
    done
}

/// The spans so far with their times, in the order in which they began.
pub fn spans() -> Vec<(&'static str, Duration)> {
    let spans = LOG.get().and_then(|log| log.spans.lock().ok());
    spans.map(|spans| spans.clone()).unwrap_or_default()
}

/// The time, where steps are told.
pub fn step_start() -> Option<Instant> {
    enabled(Level::Debug).then(Instant::now)
}

/// Tells a step that began at a time of [`clock`].
pub fn step(began: Option<Instant>, what: impl FnOnce() -> String) {
    if let Some(began) = began {
        let line = Line::new(Level::Debug).field("step", &what());
        write(line.milliseconds("ms", began.elapsed()));
    }
}

impl Log {
    fn count(&self, name: &'static str, time: Duration) {
        let Ok(mut spans) = self.spans.lock() else {
            return;
        };
        match spans.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += time,
            None => spans.push((name, time)),
        }
    }
}
