//! What `gangplank` shows and does for a person.
//!
//! [`args`] is the command line. Each command has a room that works out what to say or do; only this file prints.

mod args;
mod chain;
mod conf;
mod doctor;
mod generated;
mod install;
mod node;
mod plugins;
mod reconcile;
mod routes;
mod status;
mod style;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::cni::result::pretty;
use crate::error::Error;
use args::{Command, CommandLine};
use style::Style;

/// Where runtimes look for plugins unless they are told otherwise.
const DEFAULT_DIRECTORY: &str = "/opt/cni/bin";

/// How much is read of stdin, in bytes: a list of five thousand nodes with all their images fits.
const MAX_STDIN: u64 = 512 << 20;

/// Runs a command of the operator. The exit status is what `--help` says.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = std::iter::once("gangplank".into()).chain(args);
    let line = match CommandLine::try_parse_from(args) {
        Ok(line) => line,
        Err(answer) => {
            let _ = answer.print();
            return ExitCode::from(answer.exit_code() as u8);
        }
    };
    match answer(line) {
        Ok(said) => say(&said),
        Err(error) => {
            eprintln!("gangplank: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a command has to say, and how it ended.
#[derive(Debug)]
struct Answer {
    text: String,
    status: u8,
    /// What is said on stderr.
    warnings: Vec<String>,
}

impl Answer {
    fn done(text: impl Into<String>) -> Answer {
        Answer {
            text: text.into(),
            status: 0,
            warnings: Vec::new(),
        }
    }

    fn json(document: &impl Serialize, status: u8) -> Answer {
        Answer {
            text: pretty(document) + "\n",
            status,
            warnings: Vec::new(),
        }
    }
}

fn answer(line: CommandLine) -> Result<Answer, Error> {
    let style = Style::new(line.color);
    match line.command {
        Command::Status(asked) => status::status(&asked, style),
        Command::Doctor(asked) => doctor::doctor(&asked, style),
        Command::Reconcile(asked) => reconcile::reconcile(&asked),
        Command::Routes(asked) => routes::routes(&asked, &read_stdin()?),
        Command::Install(to) => install::install(&to.directory).map(Answer::done),
        Command::Uninstall(from) => install::uninstall(&from.directory).map(Answer::done),
        Command::Completions { shell } => written(|text| generated::completions(shell, text)),
        Command::Man => written(|text| generated::manual(text)),
        Command::Conf(asked) => conf::conf(&asked, read_stdin),
    }
}

/// The answer that a generator writes.
fn written(generate: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<Answer, Error> {
    let mut text = Vec::new();
    generate(&mut text)
        .map_err(|cause| Error::failed(format!("cannot generate this text: {cause}")))?;
    Ok(Answer::done(String::from_utf8_lossy(&text)))
}

fn read_stdin() -> Result<String, Error> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_STDIN).read_to_string(&mut text);
    read.map_err(|cause| Error::failed(format!("cannot read stdin: {cause}")))?;
    // A list that is cut would be taken for a shorter one.
    if text.len() as u64 == MAX_STDIN {
        return Err(Error::failed(format!(
            "stdin has {MAX_STDIN} bytes or more"
        )));
    }
    Ok(text)
}

/// Prints an answer. A reader that has seen enough, such as `head`, is no failure.
fn say(answer: &Answer) -> ExitCode {
    for warning in &answer.warnings {
        eprintln!("gangplank: warning: {warning}");
    }
    match io::stdout().write_all(answer.text.as_bytes()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("gangplank: cannot write to stdout: {cause}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(answer.status),
    }
}
