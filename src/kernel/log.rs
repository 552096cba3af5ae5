//! The log file (`logFile`): what was done and how long it took. Unless it is started, nothing is measured, formatted
//! or opened.
//! Logging never makes an operation fail: a line that cannot be written is lost.

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

/// Each level includes the previous ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Failed operations.
    Error,
    /// Changing operations.
    Info,
    /// Also CHECK, STATUS and VERSION, and each step: netlink requests and programs.
    Debug,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Error, Level::Info, Level::Debug];

    /// The name in configurations and in the log file.
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

/// Starts logging for the rest of the process; later calls have no effect.
///
/// # Errors
/// If the file cannot be opened, or the path is a symbolic link or not a regular file.
pub fn start(path: &Path, level: Level) -> io::Result<()> {
    let file = file::open(path)?;
    let _ = LOG.set(Log {
        file,
        level,
        spans: Mutex::default(),
    });
    Ok(())
}

pub fn enabled(level: Level) -> bool {
    LOG.get().is_some_and(|log| level <= log.level)
}

/// Writes a line with one system call, so that lines of concurrent processes do not mix.
pub fn write(line: Line) {
    if let Some(log) = LOG.get() {
        // A full disk must not make the operation fail.
        let _ = (&log.file).write(line.end().as_bytes());
    }
}

/// Reports a problem that does not make the operation fail, on stderr and in the log.
pub fn warn(what: &str) {
    // A closed stderr is not an error.
    let _ = writeln!(io::stderr(), "gangplank: {what}");
    if enabled(Level::Error) {
        write(Line::new(Level::Error).field("warning", what));
    }
}

/// Runs a part of an operation and adds its duration to the span of that name.
pub fn timed_span<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let Some(log) = LOG.get() else {
        return work();
    };
    let began = Instant::now();
    let done = work();
    log.count(name, began.elapsed());
    done
}

/// The spans and their durations, in the order in which they began.
pub fn spans() -> Vec<(&'static str, Duration)> {
    let spans = LOG.get().and_then(|log| log.spans.lock().ok());
    spans.map(|spans| spans.clone()).unwrap_or_default()
}

/// The time, if steps are logged.
pub fn step_start() -> Option<Instant> {
    enabled(Level::Debug).then(Instant::now)
}

/// Logs a step that began at the time from [`step_start`].
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
