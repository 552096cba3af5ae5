//! Another IPAM plugin: a program from CNI_PATH that is given our environment and our stdin (CNI spec 1.1, section 4).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::cni::Version;
use crate::cni::conf::NetConf;
use crate::cni::environment::Command;
use crate::cni::json::{self, JsonCursor};
use crate::cni::names::Attachment;
use crate::cni::result::AddResult;
use crate::error::{Code, Error};
use crate::ipam::Lease;
use crate::kernel::files;
use crate::kernel::process::{self, Output, ProcessError};
use crate::kernel::signals;

/// Some ask servers on the network, but a runtime gives up sooner or later.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a program that is just being written is tried again, and how long after.
const BUSY_RETRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// How much of a program's output an error quotes, in characters.
const QUOTED: usize = 300;

/// Not IPAM plugins; being us, they would run themselves again and again.
const NOT_IPAM: [&str; 3] = ["bridge", "gangplank", "loopback"];

/// Another IPAM plugin with the configuration of one network.
#[derive(Clone, Debug)]
pub struct Delegate {
    plugin: String,
    path: Vec<PathBuf>,
    stdin: Vec<u8>,
    version: Version,
    is_no_ipam: bool,
}

impl Delegate {
    /// The plugin of that name; whether it exists is not asked.
    pub fn new(plugin: &str, conf: &NetConf, cni_path: &[PathBuf]) -> Delegate {
        let ours = conf.root().text("type").ok().flatten();
        Delegate {
            plugin: plugin.to_owned(),
            path: cni_path.to_vec(),
            stdin: conf.bytes.clone(),
            version: conf.version,
            is_no_ipam: NOT_IPAM.contains(&plugin) || ours == Some(plugin),
        }
    }

    /// The program.
    ///
    /// # Errors
    /// Code 7 when the name is a path or a plugin that is no IPAM, or no directory of CNI_PATH has it.
    pub fn locate(&self) -> Result<PathBuf, Error> {
        let refused = |wanted| Error::config("ipam.type", format!("{:?}", self.plugin), wanted);
        if self.plugin.contains(['/', '\0']) || matches!(self.plugin.as_str(), "." | "..") {
            return Err(refused("it must be the name of a plugin, not a path"));
        }
        if self.is_no_ipam {
            return Err(refused(
                "that is no IPAM plugin: did you mean \"host-local\"?",
            ));
        }
        // An empty element is the current directory; a bare name would be looked for in PATH.
        let here = Path::new(".");
        let directories = self.path.iter().map(|directory| match directory {
            empty if empty.as_os_str().is_empty() => here,
            directory => directory,
        });
        let mut programs = directories.map(|directory| directory.join(&self.plugin));
        programs.find(|program| program.is_file()).ok_or_else(|| {
            let tried: Vec<_> = self
                .path
                .iter()
                .map(|path| path.to_string_lossy())
                .collect();
            refused("no directory of CNI_PATH has a plugin of that name")
                .details(format!("looked in {}", tried.join(", ")))
        })
    }

    /// Runs its ADD. What it gives but cannot be used is given back.
    ///
    /// # Errors
    /// Its own error as it is; 999 when it gives no answer, an answer that is no result, or no address.
    pub fn reserve(&self, attachment: &Attachment) -> Result<Lease, Error> {
        let output = self.run(Command::Add, attachment)?;
        self.parse_answer(&output.stdout).map_err(|error| {
            let error = error.context(format!("IPAM plugin {}", self.plugin));
            match self.release(attachment) {
                Ok(()) => error,
                Err(more) => error.details(format!("also: {more}")),
            }
        })
    }

    /// Runs its DEL.
    ///
    /// # Errors
    /// Its own error as it is; 999 when it gives no answer; 7 when it is not there.
    pub fn release(&self, attachment: &Attachment) -> Result<(), Error> {
        self.run(Command::Del, attachment).map(drop)
    }

    /// Runs its CHECK.
    ///
    /// # Errors
    /// Its own error as it is; 999 when it gives no answer; 7 when it is not there.
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        self.run(Command::Check, attachment).map(drop)
    }

    /// Runs its GC.
    ///
    /// # Errors
    /// Its own error as it is; 999 when it gives no answer; 7 when it is not there.
    pub fn gc(&self) -> Result<(), Error> {
        self.run(Command::Gc, None).map(drop)
    }

    /// Runs its STATUS. One that does not know the verb, which is younger than CNI 1.0, is taken for ready if it supports
    /// the version of the configuration; else no ADD works.
    ///
    /// # Errors
    /// Its own error as it is; code 50 when it is not there, cannot be run, gives no answer or is too old.
    pub fn status(&self) -> Result<(), Error> {
        let program = self.locate().map_err(Error::into_not_available)?;
        let output = match run_when_written(&program, &[command_of(Command::Status)], &self.stdin) {
            Ok(output) if output.status.success() => {
                output.relay_stderr();
                return Ok(());
            }
            Ok(output) => output,
            Err(ProcessError::NotStarted { cause, .. }) if !files::needs_repair(&cause) => {
                return Ok(());
            }
            Err(cause) => {
                let error = self.broken_off(Command::Status, None, cause);
                return Err(match error.code {
                    Code::PLUGIN => error.into_not_available(),
                    _ => error,
                });
            }
        };
        // The library of the Go plugins answers code 4 to an unknown verb, or for lack of variables that STATUS does not
        // have. Who knows the verb needs no variables.
        match parse_error(&output.stdout) {
            Some(error) if error.code != Code::INVALID_ENVIRONMENT => Err(error),
            _ => self.supports_version(&program).map_err(|why| {
                let failed = self.failure(Command::Status, &program, &output);
                failed.details(why).into_not_available()
            }),
        }
    }

    /// Whether its ADD takes a configuration of our version; why not otherwise.
    fn supports_version(&self, program: &Path) -> Result<(), String> {
        let stdin = format!(r#"{{"cniVersion":"{}"}}"#, self.version.as_str());
        let answer = run_when_written(program, &[command_of(Command::Version)], stdin.as_bytes());
        let answer = answer.map_err(|cause| format!("its VERSION failed: {cause}"))?;
        let value = json::parse("versions", &answer.stdout);
        let supported: Vec<String> = value.ok().map_or_else(Vec::new, |value| {
            let root = JsonCursor::root("versions", &value);
            let listed = root.list("supportedVersions").ok().flatten();
            let listed = listed.unwrap_or_default().into_iter();
            listed
                .filter_map(|it| it.as_text().map(str::to_owned).ok())
                .collect()
        });
        match supported.iter().any(|it| it == self.version.as_str()) {
            true => Ok(()),
            false if supported.is_empty() => {
                Err("it does not tell which versions it supports".to_owned())
            }
            false => Err(format!(
                "it supports cniVersion {}, but the configuration is of {}: no ADD can work; install a newer release, or lower cniVersion",
                supported.join(", "),
                self.version.as_str()
            )),
        }
    }

    /// What concerns a whole network names no attachment.
    fn run<'a>(
        &self,
        command: Command,
        attachment: impl Into<Option<&'a Attachment>>,
    ) -> Result<Output, Error> {
        let attachment = attachment.into();
        let program = self.locate()?;
        let mut env = vec![command_of(command)];
        if let Some(attachment) = attachment {
            env.push(("CNI_CONTAINERID", attachment.container.as_str()));
            env.push(("CNI_IFNAME", attachment.interface.as_str()));
        }
        let output = run_when_written(&program, &env, &self.stdin)
            .map_err(|cause| self.broken_off(command, attachment, cause))?;
        if output.status.success() {
            output.relay_stderr();
            return Ok(output);
        }
        Err(self.failure(command, &program, &output))
    }

    /// Its own error, or what can be said of a failure without one.
    fn failure(&self, command: Command, program: &Path, output: &Output) -> Error {
        parse_error(&output.stdout).unwrap_or_else(|| {
            let path = program.display();
            let what = format!(
                "{command} of IPAM plugin {} failed: {}",
                self.plugin,
                quote(&output.stderr_summary())
            );
            let said = String::from_utf8_lossy(&output.stdout);
            let error = Error::failed(what).details(format!("{path} ended with {}", output.status));
            match said.trim() {
                "" => error,
                said => error.details(format!("its answer is no CNI error: {}", quote(said))),
            }
        })
    }

    /// The error of a program that did not come to its end. What an ADD had done by then is given back.
    fn broken_off(
        &self,
        command: Command,
        attachment: Option<&Attachment>,
        cause: ProcessError,
    ) -> Error {
        let msg = format!("{command} of IPAM plugin {} failed: {cause}", self.plugin);
        let code = match cause {
            ProcessError::Terminated { .. } => Code::TRY_AGAIN,
            // The answer to STATUS is that it is not available.
            ProcessError::TimedOut { .. } if command != Command::Status => Code::TRY_AGAIN,
            _ => Code::PLUGIN,
        };
        let error = Error::new(code, msg);
        let (Command::Add, Some(attachment)) = (command, attachment) else {
            return error;
        };
        if matches!(cause, ProcessError::NotStarted { .. }) {
            return error;
        }
        match signals::uncancellable(|| self.release(attachment)) {
            Ok(()) => error,
            Err(more) => error.details(format!("also: {more}")),
        }
    }

    /// Reads what its ADD printed.
    ///
    /// # Errors
    /// Code 999 when it is no result or has no address.
    pub fn parse_answer(&self, stdout: &[u8]) -> Result<Lease, Error> {
        if stdout.trim_ascii().is_empty() {
            return Err(Error::failed("it ended well but gave no result"));
        }
        let unusable = |error: Error| Error {
            code: Code::PLUGIN,
            ..error
        };
        let value = json::parse("result", stdout).map_err(unusable)?;
        let result = match value {
            serde_json::Value::Null => AddResult::default(),
            value => JsonCursor::root("result", &value)
                .into_object()
                .and_then(|root| AddResult::parse(&root, self.version))
                .map_err(unusable)?,
        };
        if result.ips.is_empty() {
            return Err(Error::failed("its result has no address"));
        }
        let mut ips = result.ips;
        for ip in &mut ips {
            // It knows nothing of interfaces.
            ip.interface = None;
        }
        Ok(Lease {
            ips,
            routes: result.routes,
            dns: result.dns,
        })
    }
}

fn command_of(command: Command) -> (&'static str, &'static str) {
    ("CNI_COMMAND", command.as_str())
}

fn run_when_written(
    program: &Path,
    env: &[(&str, &str)],
    stdin: &[u8],
) -> Result<Output, ProcessError> {
    let mut retries = BUSY_RETRIES;
    loop {
        match process::run(program, &[], env, stdin, LIMIT) {
            // ETXTBSY tells of somebody who still writes the file, and nothing tells when that ends.
            Err(ProcessError::NotStarted { cause, .. })
                if retries > 0 && cause.kind() == ErrorKind::ExecutableFileBusy =>
            {
                retries -= 1;
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// A CNI error document; `None` for anything else.
pub fn parse_error(stdout: &[u8]) -> Option<Error> {
    let value = json::parse("error", stdout).ok()?;
    let root = JsonCursor::root("error", &value);
    let code = root.number("code", 0..=u32::MAX).ok()??;
    let msg = root.text("msg").ok()?.unwrap_or_default();
    let details = root.text("details").ok()?.unwrap_or_default();
    Some(Error {
        code: Code(code),
        msg: msg.to_owned(),
        details: details.to_owned(),
    })
}

/// The first part of what a program said, in one line.
fn quote(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED) {
        None => line,
        Some((cut, _)) => format!("{}…", &line[..cut]),
    }
}

#[cfg(test)]
mod tests;
