//! The operator's command line: `args` declares the commands, each returns an `Answer`, which this file prints.

mod args;
mod conf;
mod doctor;
mod generated;
mod install;
mod node;
mod plugin_list;
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
use crate::kernel::netlink::NetlinkError;
use args::{CommandLine, OutputFormat, Subcommands};
use style::Style;

/// The maximum length of stdin in bytes: enough for a list of 5,000 nodes with the images of each.
const MAX_STDIN: u64 = 512 << 20;

/// Runs a command and returns its exit status.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = std::iter::once("gangplank".into()).chain(args);
    let command_line = match CommandLine::try_parse_from(args) {
        Ok(command_line) => command_line,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match execute(command_line) {
        Ok(answer) => answer.print(),
        Err(error) => {
            eprintln!("gangplank: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a command prints, and its exit status.
#[derive(Debug)]
struct Answer {
    stdout: String,
    warnings: Vec<String>,
    status: u8,
}

impl Answer {
    fn text(stdout: impl Into<String>) -> Answer {
        Answer {
            stdout: stdout.into(),
            warnings: Vec::new(),
            status: 0,
        }
    }

    /// A report as JSON, or as `text` writes it.
    fn report<R: Serialize>(
        report: &R,
        format: OutputFormat,
        text: impl FnOnce(&R) -> String,
    ) -> Answer {
        Answer::text(match format.json {
            true => pretty(report) + "\n",
            false => text(report),
        })
    }

    fn with_status(self, status: u8) -> Answer {
        Answer { status, ..self }
    }

    fn print(&self) -> ExitCode {
        for warning in &self.warnings {
            eprintln!("gangplank: warning: {warning}");
        }
        match io::stdout().write_all(self.stdout.as_bytes()) {
            // A reader such as head(1) may exit before the end.
            Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
                eprintln!("gangplank: cannot write to stdout: {cause}");
                ExitCode::FAILURE
            }
            _ => ExitCode::from(self.status),
        }
    }
}

fn execute(command_line: CommandLine) -> Result<Answer, Error> {
    let style = Style::new(command_line.color);
    match command_line.command {
        Subcommands::Status(args) => status::status(&args, style),
        Subcommands::Doctor(args) => doctor::doctor(&args, style),
        Subcommands::Reconcile(args) => reconcile::reconcile(&args),
        Subcommands::Routes(args) => routes::routes(&args, &read_stdin()?),
        Subcommands::Install(args) => {
            install::install(&args.directory, &args.names()).map(Answer::text)
        }
        Subcommands::Uninstall(args) => {
            install::uninstall(&args.directory, &args.names()).map(Answer::text)
        }
        Subcommands::Completions { shell } => generated(generated::completions(shell)),
        Subcommands::Man => generated(generated::manual()),
        Subcommands::Conf(args) => conf::conf(&args, read_stdin),
    }
}

fn generated(text: io::Result<Vec<u8>>) -> Result<Answer, Error> {
    let text = text.map_err(|cause| Error::failed(format!("cannot generate the text: {cause}")))?;
    Ok(Answer::text(String::from_utf8_lossy(&text)))
}

/// The error if a part of this machine's network configuration cannot be listed.
fn unreadable(what: &str) -> impl Fn(NetlinkError) -> Error {
    move |cause| Error::failed(format!("cannot list this machine's {what}: {cause}"))
}

fn read_stdin() -> Result<String, Error> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_STDIN).read_to_string(&mut text);
    read.map_err(|cause| Error::failed(format!("cannot read stdin: {cause}")))?;
    // A truncated list must not pass as complete: the routes of the missing nodes would be removed.
    if text.len() as u64 == MAX_STDIN {
        return Err(Error::failed(format!(
            "stdin has {MAX_STDIN} bytes or more"
        )));
    }
    Ok(text)
}
