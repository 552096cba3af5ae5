//! The log file (`logFile`): what was done and how long it took. Unless it is started, nothing is measured, formatted
//! or opened.
//! Logging never makes an operation fail: a line that cannot be written is lost.

mod file;
mod line;
mod trace;

use std::cell::Cell;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use file::MAX_BYTES;
pub use line::Line;
pub use trace::TraceParent;
use trace::{Span, Trace};

/// The variable with the parent span (OpenTelemetry, "Environment Variables as Context Propagation Carriers").
pub const TRACEPARENT: &str = "TRACEPARENT";

static LOG: OnceLock<Log> = OnceLock::new();

thread_local! {
    /// The number of the span that this thread is in.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Logfmt,
    /// An object per line. Also logs spans.
    Json,
}

impl Format {
    pub const ALL: [Format; 2] = [Format::Logfmt, Format::Json];

    /// The name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Logfmt => "logfmt",
            Format::Json => "json",
        }
    }
}

struct Log {
    file: File,
    level: Level,
    format: Format,
    trace: Trace,
    spans: Mutex<Vec<Span>>,
}

/// Starts logging for the rest of the process; later calls have no effect.
///
/// # Errors
/// If the file cannot be opened, or the path is a symbolic link or not a regular file.
pub fn start(
    path: &Path,
    level: Level,
    format: Format,
    parent: Option<TraceParent>,
) -> io::Result<()> {
    let file = file::open(path)?;
    let trace = match format {
        Format::Logfmt => Trace::without_ids(),
        Format::Json => Trace::new(parent),
    };
    let _ = LOG.set(Log {
        file,
        level,
        format,
        trace,
        spans: Mutex::default(),
    });
    Ok(())
}

fn format() -> Format {
    LOG.get().map_or(Format::Logfmt, |log| log.format)
}

pub fn enabled(level: Level) -> bool {
    LOG.get().is_some_and(|log| level <= log.level)
}

pub fn write(line: Line) {
    if let Some(log) = LOG.get() {
        log.write(&line.end());
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

/// Runs a part of an operation as a span of that name. Its parent is the span that the thread is in.
///
/// # Errors
/// Those of the part.
pub fn timed_span<T, E: Display>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let Some(log) = LOG.get() else {
        return work();
    };
    let number = log.trace.next_number();
    let parent = CURRENT.replace(number);
    let began = Instant::now();
    let done = work();
    CURRENT.set(parent);
    log.add(Span {
        name,
        number,
        parent,
        began,
        time: began.elapsed(),
        error: done.as_ref().err().map(E::to_string),
    });
    done
}

/// Adds a span that began at `began`, perhaps before the log, and ends now.
pub fn add_span(name: &'static str, began: Instant, error: Option<&impl Display>) {
    if let Some(log) = LOG.get() {
        log.add(Span {
            name,
            number: log.trace.next_number(),
            parent: CURRENT.get(),
            began,
            time: began.elapsed(),
            error: error.map(ToString::to_string),
        });
    }
}

/// The value of [`TRACEPARENT`] for a program that this thread starts, if spans are logged.
pub fn traceparent() -> Option<String> {
    LOG.get()?.trace.traceparent(CURRENT.get())
}

/// The span of the operation of which the other spans are parts.
pub struct RootSpan<'a> {
    pub name: String,
    pub began: Instant,
    pub error: Option<&'a str>,
    pub attributes: &'a [(&'a str, String)],
}

/// Writes the line of an operation with the duration of its spans, and the spans if they are logged.
pub fn write_with_spans(line: Line, operation: &RootSpan) {
    let Some(log) = LOG.get() else { return };
    let Ok(spans) = log.spans.lock() else { return };
    let time = operation.began.elapsed();
    let root = Span {
        name: "",
        number: 0,
        parent: 0,
        began: operation.began,
        time,
        error: operation.error.map(str::to_owned),
    };
    let level = line.level;
    let line = sums(&spans)
        .into_iter()
        .fold(line.milliseconds("total_ms", time), |line, (name, time)| {
            line.milliseconds(&format!("{name}_ms"), time)
        });
    let mut text = log.trace.ids(line, root.number).end();
    if let Some(line) = log.trace.line(level, &operation.name, &root) {
        text += &line.attributes(operation.attributes).end();
    }
    for span in spans.iter() {
        let line = log.trace.line(level, span.name, span);
        text += &line.map(Line::end).unwrap_or_default();
    }
    log.write(&text);
}

/// The total duration of the spans of each name.
fn sums(spans: &[Span]) -> Vec<(&'static str, Duration)> {
    let mut sums: Vec<(&'static str, Duration)> = Vec::new();
    for span in spans {
        match sums.iter_mut().find(|(known, _)| *known == span.name) {
            Some((_, sum)) => *sum += span.time,
            None => sums.push((span.name, span.time)),
        }
    }
    sums
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
    fn add(&self, span: Span) {
        if let Ok(mut spans) = self.spans.lock() {
            spans.push(span);
        }
    }

    /// Writes lines with one system call, so that those of concurrent processes do not mix.
    fn write(&self, text: &str) {
        // A full disk must not make the operation fail.
        let _ = (&self.file).write(text.as_bytes());
    }
}
