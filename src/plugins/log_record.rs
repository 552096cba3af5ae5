//! The log: one line per CNI call.
//!
//! ```text
//! time=2026-01-31T03:12:45.678Z level=info pid=4711 plugin=bridge verb=ADD pod=shop/web container=5b0c… ifname=eth0
//!   network=pods result=ok ips=10.244.0.2/24 total_ms=3.120 ipam_ms=0.310 link_ms=1.020 masquerade_ms=1.650
//! ```
//! The line of a failed call contains code, message, details and the redacted request ([`redaction`]). The keys `logFile`
//! and `logLevel` enable the log, or the variable `GANGPLANK_LOG`, which takes precedence: `/run/gangplank.log`, or with a
//! level `debug:/run/gangplank.log`. A call does not fail because its log cannot be written.

pub mod redaction;

use std::path::PathBuf;
use std::time::Instant;

use crate::cni::environment::{Command, Environment};
use crate::cni::json::JsonCursor;
use crate::cni::json::KeyPaths;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::kernel::log::{self, Format, Level, Line, TRACEPARENT, TraceParent};

const VARIABLE: &str = "GANGPLANK_LOG";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    path: PathBuf,
    level: Level,
    format: Format,
}

impl Settings {
    /// Reads `logFile`, an absolute path, `logLevel`, by default `info`, and `logFormat`, by default `logfmt`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value.
    pub fn of_configuration(root: &JsonCursor) -> Result<Option<Settings>, Error> {
        let level = root.text("logLevel")?.map(|text| {
            level_of(text).ok_or_else(|| {
                let wanted = "it must be \"error\", \"info\" or \"debug\"";
                root.at("logLevel").invalid(format!("{text:?}"), wanted)
            })
        });
        let level = level.transpose()?.unwrap_or(Level::Info);
        let format = root.text("logFormat")?.map(|text| {
            format_of(text).ok_or_else(|| {
                let wanted = "it must be \"logfmt\" or \"json\"";
                root.at("logFormat").invalid(format!("{text:?}"), wanted)
            })
        });
        let format = format.transpose()?.unwrap_or(Format::Logfmt);
        let Some(text) = root.non_empty_text("logFile")? else {
            return Ok(None);
        };
        let path = path_of(text).ok_or_else(|| {
            let wanted = "it must be an absolute path to a file";
            root.at("logFile").invalid(format!("{text:?}"), wanted)
        })?;
        Ok(Some(Settings {
            path,
            level,
            format,
        }))
    }

    /// Reads `GANGPLANK_LOG`.
    ///
    /// # Errors
    /// If its value is invalid.
    pub fn of_environment(env: &Environment) -> Result<Option<Settings>, String> {
        let Some(text) = env.var(VARIABLE) else {
            return Ok(None);
        };
        let settings = |words: &str, path: &str| {
            let mut settings = Settings {
                path: path_of(path)?,
                level: Level::Info,
                format: Format::Logfmt,
            };
            for word in words.split_terminator(',') {
                match (level_of(word), format_of(word)) {
                    (Some(level), _) => settings.level = level,
                    (_, Some(format)) => settings.format = format,
                    _ => return None,
                }
            }
            Some(settings)
        };
        let found = match text.split_once(':') {
            Some((words, path)) if !text.starts_with('/') && !words.is_empty() => {
                settings(words, path)
            }
            _ => settings("", &text),
        };
        found.map(Some).ok_or_else(|| {
            format!(
                "{VARIABLE} is {text:?}, but it must be an absolute path, optionally after \"error:\", \"info:\", \"debug:\", or with a format \"json:\" or \"debug,json:\""
            )
        })
    }

    /// Opens the log. Spans continue the trace of TRACEPARENT.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn start(&self, env: &Environment) -> Result<(), String> {
        let text = env.var(TRACEPARENT).filter(|_| self.format == Format::Json);
        let parent = text.as_deref().and_then(TraceParent::parse);
        log::start(&self.path, self.level, self.format, parent)
            .map_err(|cause| format!("cannot log to {}: {cause}", self.path.display()))?;
        if let (Some(text), None) = (text, parent) {
            let what = format!(
                "{TRACEPARENT} is {text:?}, not 00-TRACE_ID-SPAN_ID-FLAGS in lower-case hexadecimal digits: this call has a trace of its own"
            );
            log::write(Line::new(Level::Error).field("warning", &what));
        }
        Ok(())
    }
}

fn level_of(text: &str) -> Option<Level> {
    Level::ALL.into_iter().find(|level| level.as_str() == text)
}

fn format_of(text: &str) -> Option<Format> {
    Format::ALL
        .into_iter()
        .find(|format| format.as_str() == text)
}

fn path_of(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let is_valid = path.is_absolute() && path.file_name().is_some() && !text.contains('\0');
    is_valid.then_some(path)
}

/// The record of one call.
#[derive(Debug)]
pub struct Record<'a> {
    plugin: &'static str,
    keys: &'static [fn() -> KeyPaths],
    env: &'a Environment,
    began: Instant,
    network: String,
    configuration: Vec<u8>,
    addresses: String,
}

impl<'a> Record<'a> {
    /// The record of a call of `plugin`, whose keys are `keys`.
    pub fn new(
        plugin: &'static str,
        keys: &'static [fn() -> KeyPaths],
        env: &'a Environment,
    ) -> Record<'a> {
        Record {
            plugin,
            keys,
            env,
            began: Instant::now(),
            network: String::new(),
            configuration: Vec::new(),
            addresses: String::new(),
        }
    }

    pub fn configuration(&mut self, bytes: &[u8]) {
        self.configuration = bytes.to_vec();
    }

    pub fn network(&mut self, name: &str) {
        self.network = name.to_owned();
    }

    pub fn result(&mut self, result: &AddResult) {
        if log::enabled(Level::Info) {
            let addresses = result.ips.iter().map(|ip| ip.address.to_string());
            self.addresses = addresses.collect::<Vec<_>>().join(",");
        }
    }

    /// When the call began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Writes the line and the spans, with the error of a failed call.
    pub fn end(&self, error: Option<&Error>) {
        let var = |name| self.env.var(name).unwrap_or_default();
        let verb = var("CNI_COMMAND");
        let level = match (error, verb.as_str()) {
            (Some(_), _) => Level::Error,
            // Containerd requests STATUS every few seconds.
            (_, "STATUS" | "VERSION") => Level::Debug,
            _ => Level::Info,
        };
        if !log::enabled(level) {
            return;
        }
        let container = var("CNI_CONTAINERID");
        let pod = redaction::pod(&var("CNI_ARGS"));
        let line = Line::new(level)
            .field("plugin", self.plugin)
            .field("verb", &verb)
            .field("pod", pod.as_deref().unwrap_or(&container))
            .field("container", &container)
            .field("ifname", &var("CNI_IFNAME"))
            .field("network", &self.network);
        let line = match error {
            None => line.field("result", "ok").field("ips", &self.addresses),
            Some(error) => with_error(line, error)
                .field("request", &redaction::environment(self.env))
                .field(
                    "conf",
                    &redaction::configuration(&self.configuration, self.keys),
                ),
        };
        let (namespace, pod) = pod
            .as_deref()
            .unwrap_or("/")
            .split_once('/')
            .unwrap_or_default();
        let code = error.map(|error| error.code.0.to_string());
        let attributes = [
            ("cni.plugin", self.plugin.to_owned()),
            ("cni.command", verb.clone()),
            ("cni.network", self.network.clone()),
            ("cni.interface", var("CNI_IFNAME")),
            ("container.id", container),
            ("k8s.namespace.name", namespace.to_owned()),
            ("k8s.pod.name", pod.to_owned()),
            // https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/
            ("error.type", code.unwrap_or_default()),
        ];
        let root = log::RootSpan {
            name: Command::named(&verb).map_or("cni".to_owned(), |it| format!("cni.{it}")),
            began: self.began,
            error: error.map(|error| error.msg.as_str()),
            attributes: &attributes,
        };
        log::write_with_spans(line, &root);
    }
}

/// Writes a line for an error that ends the process.
pub fn write_fatal(error: &Error) {
    if log::enabled(Level::Error) {
        log::write(with_error(Line::new(Level::Error), error));
    }
}

fn with_error(line: Line, error: &Error) -> Line {
    line.field("result", "error")
        .field("code", &error.code.0.to_string())
        .field("msg", &error.msg)
        .field("details", &error.details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_configuration(text: &str) -> Result<Option<Settings>, Error> {
        let value = crate::cni::json::parse("configuration", text.as_bytes()).unwrap();
        Settings::of_configuration(&JsonCursor::root("configuration", &value))
    }

    fn of_environment(text: &str) -> Result<Option<Settings>, String> {
        let env = [(VARIABLE, text.into())].into_iter().collect();
        Settings::of_environment(&env)
    }

    fn settings(path: &str, level: Level) -> Option<Settings> {
        Some(Settings {
            path: path.into(),
            level,
            format: Format::Logfmt,
        })
    }

    #[test]
    fn a_configuration_names_file_and_level() {
        assert_eq!(of_configuration("{}"), Ok(None));
        assert_eq!(of_configuration(r#"{"logLevel": "debug"}"#), Ok(None));
        let both = r#"{"logFile": "/var/log/a.log", "logLevel": "error"}"#;
        assert_eq!(
            of_configuration(both),
            Ok(settings("/var/log/a.log", Level::Error))
        );
        assert_eq!(
            of_configuration(r#"{"logfile": "/a"}"#),
            Ok(settings("/a", Level::Info))
        );
        for (text, word, code) in [
            (r#"{"logFile": "a.log"}"#, "\"a.log\"", 7),
            (r#"{"logFile": "/"}"#, "logFile", 7),
            (r#"{"logFile": "/a\u0000"}"#, "logFile", 7),
            (r#"{"logFile": 5}"#, "logFile is 5", 6),
            (r#"{"logLevel": "INFO"}"#, "\"INFO\"", 7),
            (r#"{"logLevel": 3}"#, "logLevel is 3", 6),
            (r#"{"logFormat": "JSON"}"#, "\"JSON\"", 7),
            (r#"{"logFormat": true}"#, "logFormat is true", 6),
        ] {
            let error = of_configuration(text).unwrap_err();
            assert!(
                error.msg.contains(word) && error.code.0 == code,
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn the_variable_is_a_path_with_an_optional_level() {
        assert_eq!(
            of_environment("/a.log"),
            Ok(settings("/a.log", Level::Info))
        );
        assert_eq!(of_environment("/a:b"), Ok(settings("/a:b", Level::Info)));
        assert_eq!(
            of_environment("debug:/a:b"),
            Ok(settings("/a:b", Level::Debug))
        );
        assert_eq!(of_environment(""), Ok(None));
        let json = |level| {
            settings("/a:b", level).map(|it| Settings {
                format: Format::Json,
                ..it
            })
        };
        assert_eq!(of_environment("json:/a:b"), Ok(json(Level::Info)));
        assert_eq!(of_environment("debug,json:/a:b"), Ok(json(Level::Debug)));
        for invalid in ["a.log", "warn:/a.log", "debug:", "debug:a", ":/a", "xml:/a"] {
            assert!(of_environment(invalid).unwrap_err().contains(invalid));
        }
    }
}
