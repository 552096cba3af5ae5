//! Executes another plugin from CNI_PATH with the same environment (CNI spec 1.1, section 4).

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
use crate::kernel::files;
use crate::kernel::process::{self, Output, ProcessError};
use crate::kernel::signals;

/// DHCP and similar plugins ask servers on the network, but runtimes time out eventually.
const TIMEOUT: Duration = Duration::from_secs(60);

/// For a program that is being written (ETXTBSY).
const BUSY_RETRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Maximum length of quoted output, in characters.
const QUOTED: usize = 300;

/// What a plugin is executed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Addresses.
    Ipam,
    /// The container's interface.
    Interface,
}

impl Role {
    fn noun(self) -> &'static str {
        match self {
            Role::Ipam => "IPAM plugin",
            Role::Interface => "plugin",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Role::Ipam => "ipam.type",
            Role::Interface => "delegate.type",
        }
    }

    /// The plugins that cannot have the role. gangplank would execute itself recursively.
    fn excluded(self) -> &'static [&'static str] {
        match self {
            Role::Ipam => &["bridge", "gangplank", "loopback"],
            Role::Interface => &["flannel", "gangplank", "host-local", "loopback", "static"],
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Role::Ipam => "that is no IPAM plugin: did you mean \"host-local\"?",
            Role::Interface => "that plugin creates no interface: did you mean \"bridge\"?",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Delegate {
    role: Role,
    plugin: String,
    path: Vec<PathBuf>,
    stdin: Vec<u8>,
    version: Version,
    is_excluded: bool,
}

impl Delegate {
    /// A plugin that gets the configuration on stdin. Does not check whether the program exists.
    pub fn new(role: Role, plugin: &str, conf: &NetConf, cni_path: &[PathBuf]) -> Delegate {
        let own_type = conf.root().text("type").ok().flatten();
        let is_own = role == Role::Ipam && own_type == Some(plugin);
        Delegate {
            role,
            plugin: plugin.to_owned(),
            path: cni_path.to_vec(),
            stdin: conf.bytes.clone(),
            version: conf.version,
            is_excluded: role.excluded().contains(&plugin) || is_own,
        }
    }

    /// The path of the program.
    ///
    /// # Errors
    /// Code 7 if the name is a path or not that of such a plugin, or if no directory of CNI_PATH has it.
    pub fn locate(&self) -> Result<PathBuf, Error> {
        let invalid = |wanted| Error::config(self.role.key(), format!("{:?}", self.plugin), wanted);
        if self.plugin.contains(['/', '\0']) || matches!(self.plugin.as_str(), "." | "..") {
            return Err(invalid("it must be the name of a plugin, not a path"));
        }
        if self.is_excluded {
            return Err(invalid(self.role.hint()));
        }
        // Relative to ".", because a bare name would be searched in PATH.
        let mut programs = self
            .path
            .iter()
            .map(|directory| Path::new(".").join(directory).join(&self.plugin));
        programs.find(|program| program.is_file()).ok_or_else(|| {
            let tried: Vec<_> = self
                .path
                .iter()
                .map(|path| path.to_string_lossy())
                .collect();
            invalid("no directory of CNI_PATH has a plugin of that name")
                .details(format!("looked in {}", tried.join(", ")))
        })
    }

    /// Runs ADD, and DEL if `parse` rejects the result.
    ///
    /// # Errors
    /// The plugin's error unchanged; 999 if it fails without one; those of `parse`.
    pub fn add<T>(
        &self,
        attachment: &Attachment,
        parse: impl FnOnce(AddResult) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let output = self.run(Command::Add, attachment)?;
        let parsed = self.parse_result(&output.stdout).and_then(parse);
        parsed.map_err(|error| {
            let error = error.context(format!("{} {}", self.role.noun(), self.plugin));
            error.and(self.release(attachment))
        })
    }

    /// # Errors
    /// The plugin's error unchanged; 999 if it fails without one; 7 if it does not exist.
    pub fn release(&self, attachment: &Attachment) -> Result<(), Error> {
        self.run(Command::Del, attachment).map(drop)
    }

    /// # Errors
    /// Like [`Delegate::release`].
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        self.run(Command::Check, attachment).map(drop)
    }

    /// # Errors
    /// Like [`Delegate::release`].
    pub fn gc(&self) -> Result<(), Error> {
        self.run(Command::Gc, None).map(drop)
    }

    /// Runs STATUS. A plugin that does not implement it (before CNI 1.1) is assumed to be ready if it supports the
    /// version of the configuration; otherwise no ADD can work.
    ///
    /// # Errors
    /// The plugin's error unchanged; code 50 if it does not exist, cannot be executed, fails without an error or is too
    /// old.
    pub fn status(&self) -> Result<(), Error> {
        let program = self.locate().map_err(Error::into_not_available)?;
        let output =
            match run_retrying_if_busy(&program, &[command_variable(Command::Status)], &self.stdin)
            {
                Ok(output) if output.status.success() => {
                    output.relay_stderr();
                    return Ok(());
                }
                Ok(output) => output,
                Err(ProcessError::NotStarted { cause, .. }) if !files::needs_repair(&cause) => {
                    return Ok(());
                }
                Err(cause) => {
                    let error = self.process_error(Command::Status, None, cause);
                    return Err(match error.code {
                        Code::PLUGIN => error.into_not_available(),
                        _ => error,
                    });
                }
            };
        // The Go plugins' library returns code 4 for an unknown command, and for missing variables, which STATUS does
        // not need.
        match parse_error(&output.stdout) {
            Some(error) if error.code != Code::INVALID_ENVIRONMENT => Err(error),
            _ => self.supports_version(&program).map_err(|reason| {
                let error = self.exit_error(Command::Status, &program, &output);
                error.details(reason).into_not_available()
            }),
        }
    }

    /// Whether the plugin supports the version of the configuration; the error is the reason.
    fn supports_version(&self, program: &Path) -> Result<(), String> {
        let stdin = format!(r#"{{"cniVersion":"{}"}}"#, self.version.as_str());
        let output = run_retrying_if_busy(
            program,
            &[command_variable(Command::Version)],
            stdin.as_bytes(),
        );
        let output = output.map_err(|cause| format!("its VERSION failed: {cause}"))?;
        let supported = Version::supported_in(&output.stdout);
        match supported
            .iter()
            .any(|version| version == self.version.as_str())
        {
            true => Ok(()),
            false if supported.is_empty() => Err("its VERSION result lists no versions".to_owned()),
            false => Err(format!(
                "it supports cniVersion {}, but the configuration has {}: ADD will fail; install a newer release, or lower cniVersion",
                supported.join(", "),
                self.version.as_str()
            )),
        }
    }

    /// GC has no attachment.
    fn run<'a>(
        &self,
        command: Command,
        attachment: impl Into<Option<&'a Attachment>>,
    ) -> Result<Output, Error> {
        let attachment = attachment.into();
        let program = self.locate()?;
        let mut env = vec![command_variable(command)];
        if let Some(attachment) = attachment {
            env.push(("CNI_CONTAINERID", attachment.container.as_str()));
            env.push(("CNI_IFNAME", attachment.interface.as_str()));
        }
        let output = run_retrying_if_busy(&program, &env, &self.stdin)
            .map_err(|cause| self.process_error(command, attachment, cause))?;
        if output.status.success() {
            output.relay_stderr();
            return Ok(output);
        }
        Err(self.exit_error(command, &program, &output))
    }

    /// The plugin's error, or a description of its failure.
    fn exit_error(&self, command: Command, program: &Path, output: &Output) -> Error {
        parse_error(&output.stdout).unwrap_or_else(|| {
            let path = program.display();
            let msg = format!(
                "{command} of {} {} failed: {}",
                self.role.noun(),
                self.plugin,
                quote(&output.stderr_summary())
            );
            let stdout = String::from_utf8_lossy(&output.stdout);
            let error = Error::failed(msg).details(format!("{path} ended with {}", output.status));
            match stdout.trim() {
                "" => error,
                output => {
                    error.details(format!("its output is not a CNI error: {}", quote(output)))
                }
            }
        })
    }

    /// The error of a program that was not started, terminated or timed out. After an ADD, runs DEL.
    fn process_error(
        &self,
        command: Command,
        attachment: Option<&Attachment>,
        cause: ProcessError,
    ) -> Error {
        let (noun, plugin) = (self.role.noun(), &self.plugin);
        let msg = format!("{command} of {noun} {plugin} failed: {cause}");
        let code = match cause {
            ProcessError::Terminated { .. } => Code::TRY_AGAIN,
            // STATUS reports "not available" instead.
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
        error.and(signals::uncancellable(|| self.release(attachment)))
    }

    /// Parses the output of ADD.
    ///
    /// # Errors
    /// Code 999 if it is not a result.
    pub fn parse_result(&self, stdout: &[u8]) -> Result<AddResult, Error> {
        if stdout.trim_ascii().is_empty() {
            return Err(Error::failed("it succeeded without a result"));
        }
        let invalid = |error: Error| error.with_code(Code::PLUGIN);
        match json::parse("result", stdout).map_err(invalid)? {
            serde_json::Value::Null => Ok(AddResult::default()),
            value => JsonCursor::root("result", &value)
                .into_object()
                .and_then(|root| AddResult::parse(&root, self.version))
                .map_err(invalid),
        }
    }
}

fn command_variable(command: Command) -> (&'static str, &'static str) {
    ("CNI_COMMAND", command.as_str())
}

fn run_retrying_if_busy(
    program: &Path,
    env: &[(&str, &str)],
    stdin: &[u8],
) -> Result<Output, ProcessError> {
    let mut retries = BUSY_RETRIES;
    loop {
        match process::run(program, &[], env, stdin, TIMEOUT) {
            // There is no event for the end of ETXTBSY.
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

/// `None` if it is not a CNI error.
pub fn parse_error(stdout: &[u8]) -> Option<Error> {
    let value = json::parse("error", stdout).ok()?;
    let root = JsonCursor::root("error", &value);
    let code = root.number("code", 0..=u32::MAX).ok()??;
    let msg = root.text("msg").ok()?.unwrap_or_default();
    let details = root.text("details").ok()?.unwrap_or_default();
    let error = Error::new(Code(code), msg);
    Some(match details {
        "" => error,
        details => error.details(details),
    })
}

/// The beginning of the output, on one line.
fn quote(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED) {
        None => line,
        Some((cut, _)) => format!("{}…", &line[..cut]),
    }
}

#[cfg(test)]
mod tests;
