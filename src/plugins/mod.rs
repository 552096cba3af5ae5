//! From a plugin and a verb to the one function that does it; writes the result or the error, once.

pub mod bridge;
pub mod log_record;
pub mod loopback;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use serde::Serialize;

use crate::build;
use crate::cni::Version;
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::environment::{Environment, Operation};
use crate::cni::request::Request;
use crate::cni::result::{AddResult, pretty};
use crate::error::{Code, Error};
use crate::ipam::HostLocal;
use crate::kernel::log::{self, Level};
use crate::kernel::netns::{Netns, NetnsError, OwnNetns};
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals;
use crate::plugins::log_record::{Record, Settings};
use crate::undo::Undo;

/// The name of the operator's command line.
const COMMAND_LINE: &str = "gangplank";

/// The release of the Go plugins whose configurations, files and rules these plugins share. Clients require a release:
/// Nomad at least 0.4.0 of bridge (and 1.3.0 for CHECK), nerdctl 1.7.1 of firewall.
const GO_RELEASE: &str = "v1.9.1";

/// The plugins that this binary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Plugin {
    Bridge,
    HostLocal,
    Loopback,
}

impl Plugin {
    /// All of them.
    pub const ALL: [Plugin; 3] = [Plugin::Bridge, Plugin::HostLocal, Plugin::Loopback];

    /// The name by which a configuration and argv[0] call it.
    pub fn name(self) -> &'static str {
        match self {
            Plugin::Bridge => "bridge",
            Plugin::HostLocal => "host-local",
            Plugin::Loopback => "loopback",
        }
    }

    /// The plugin of that name, which may have a prefix ending in `-`: BuildKit installs plugins as `buildkit-cni-bridge`,
    /// KubeVirt as `cnv-bridge`.
    pub fn named(name: &str) -> Option<Plugin> {
        let is_named = |plugin: &Plugin| {
            let prefix = name.strip_suffix(plugin.name());
            prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
        };
        Plugin::ALL.into_iter().find(is_named)
    }

    /// What it prints when it is run without a command: its name and version, as the Go plugins print theirs. The first
    /// word that is a semantic version is the Go release, with our own version as its build metadata (semver.org, 10).
    pub fn about(self) -> String {
        let name = self.name();
        format!("CNI {name} plugin {GO_RELEASE}+{}", build::version())
    }
}

/// What the binary is, by the name it is called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A plugin.
    Plugin(Plugin),
    /// The operator's command line.
    CommandLine,
    /// A name that is neither.
    Unknown,
}

impl Program {
    /// `gangplank` is the plugin bridge for a runtime. A copy such as `gangplank-linux-x86_64` is the command line alone.
    pub fn named(name: &str, env: &Environment) -> Program {
        let is_request = env.var("CNI_COMMAND").is_some();
        match Plugin::named(name) {
            Some(plugin) => Program::Plugin(plugin),
            None if is_request && name == COMMAND_LINE => Program::Plugin(Plugin::Bridge),
            None if !is_request && name.starts_with(COMMAND_LINE) => Program::CommandLine,
            None => Program::Unknown,
        }
    }
}

/// Refuses to be the program of a name, as a CNI error if a runtime called it. Guessing would have, for example,
/// `bridge.orig` or `portmap` attach a second interface.
pub fn refuse_name(name: &str, env: &Environment) -> ExitCode {
    let plugins = Plugin::ALL.map(Plugin::name).join(", ");
    let msg = format!("{name:?} is not the name of a plugin: this program has {plugins}");
    let error = Error::new(Code::INVALID_ENVIRONMENT, msg).details(
        "call it by one of these names, which may have a prefix ending in \"-\"; gangplank install DIR puts them into a directory",
    );
    if env.var("CNI_COMMAND").is_some() {
        return fail(&error, Version::NEWEST);
    }
    eprintln!("{COMMAND_LINE}: {error}");
    ExitCode::FAILURE
}

/// Serves one request of a runtime.
pub fn serve(plugin: Plugin, env: &Environment, stdin: impl Read) -> ExitCode {
    if env.var("CNI_COMMAND").is_none() {
        eprintln!("{}", plugin.about());
        eprintln!("CNI protocol versions supported: {}", Version::list());
        return ExitCode::SUCCESS;
    }
    if let Err(why) = Settings::of_environment(env).and_then(start_log) {
        complain(&why);
    }
    let mut call = Call {
        plugin,
        env,
        version: Version::NEWEST,
        record: Record::new(plugin.name(), env),
    };
    let outcome = call.answer(stdin);
    let code = match &outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, call.version),
    };
    call.record.end(outcome.as_ref().err());
    code
}

fn start_log(settings: Option<Settings>) -> Result<(), String> {
    settings.map_or(Ok(()), |settings| settings.start())
}

/// Says what is wrong with the log: that is no reason to fail.
fn complain(why: &str) {
    // Whether anybody reads that is no reason either.
    let _ = writeln!(io::stderr(), "gangplank: {why}");
}

/// Reports a fault of the program itself, which ends here.
pub fn break_down(what: &str) {
    let error = internal_error(what);
    fail(&error, Version::NEWEST);
    log_record::write_fatal(&error);
}

/// A request that is being served.
struct Call<'e> {
    plugin: Plugin,
    env: &'e Environment,
    /// The configuration's as soon as that is known.
    version: Version,
    record: Record<'e>,
}

/// Reports an error as the document the spec asks for, on stdout.
pub fn fail(error: &Error, version: Version) -> ExitCode {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(rename = "cniVersion")]
        version: &'static str,
        code: u32,
        msg: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        details: &'a str,
    }
    // Nobody is left to tell when even this cannot be written.
    let _ = print(&pretty(&Document {
        version: version.as_str(),
        code: error.code.0,
        msg: &error.msg,
        details: &error.details,
    }));
    ExitCode::FAILURE
}

/// Writes a document by one system call, as far as the kernel takes it: half of one is nothing.
fn print(document: &str) -> io::Result<()> {
    let stdout = retry_on_eintr(|| io::stdout().as_fd().try_clone_to_owned())?;
    File::from(stdout).write_all(document.as_bytes())
}

impl Call<'_> {
    /// Does what is asked and writes the result.
    fn answer(&mut self, stdin: impl Read) -> Result<(), Error> {
        let request = Request::parse(self.env)?;
        if request.verb == Verb::Version {
            return write(&supported_versions());
        }
        let bytes = NetConf::read(stdin)?;
        if log::enabled(Level::Error) {
            self.record.configuration(&bytes);
        }
        let conf = NetConf::parse(bytes)?;
        self.log(&conf, &request)?;
        signals::install_handlers()
            .map_err(|cause| Error::failed(format!("cannot catch SIGTERM: {cause}")))?;
        self.version = conf.version;
        conf.version.allow(request.command())?;
        match self.plugin {
            Plugin::Bridge => match &request.verb {
                Verb::Add { attachment, netns } => {
                    bridge::add(&conf, &request, attachment, netns, |it| {
                        self.tell(it, &conf)
                    })
                }
                Verb::Check { attachment, netns } => {
                    bridge::check(&conf, &request, attachment, netns)
                }
                Verb::Del { attachment, netns } => {
                    bridge::del(&conf, &request, attachment, netns.as_deref())
                }
                Verb::Gc => bridge::gc(&conf, &request),
                Verb::Status => bridge::status(&conf, &request),
                Verb::Version => Ok(()),
            },
            Plugin::HostLocal => {
                refuse_own_netns(&request)?;
                log::timed_span("ipam", || self.host_local(&conf, &request))
            }
            Plugin::Loopback => match &request.verb {
                Verb::Add { netns, .. } => self.tell(loopback::add(&conf, &request, netns)?, &conf),
                Verb::Check { netns, .. } => loopback::check(&request, netns),
                Verb::Del { netns, .. } => loopback::del(&request, netns.as_deref()),
                Verb::Gc | Verb::Status | Verb::Version => Ok(()),
            },
        }
    }

    /// Logs as the configuration wants it, unless the environment wants it otherwise. What became wrong with that since
    /// the ADD keeps no DEL from its work.
    fn log(&mut self, conf: &NetConf, request: &Request) -> Result<(), Error> {
        let settings = match (Settings::of_configuration(&conf.root()), &request.verb) {
            (Err(_), Verb::Del { .. } | Verb::Gc) => None,
            (settings, _) => settings?,
        };
        if !log::enabled(Level::Error)
            && let Some(settings) = settings
        {
            match settings.start() {
                Ok(()) => self.record.configuration(&conf.bytes),
                Err(why) => complain(&why),
            }
        }
        if log::enabled(Level::Error) {
            self.record.network(conf.name.as_str());
        }
        Ok(())
    }

    /// `host-local` as a plugin of its own, as `ptp` and `macvlan` call it.
    fn host_local(&mut self, conf: &NetConf, request: &Request) -> Result<(), Error> {
        match &request.verb {
            Verb::Add { attachment, .. } => {
                let plugin = HostLocal::parse(conf, &Args::parse(&request.args)?)?;
                signals::enable_cancellation();
                let lease = plugin.reserve(attachment)?;
                let held = lease.held();
                let mut undo = Undo::default();
                undo.push(|| plugin.release(attachment, &held));
                self.tell(lease.into(), conf)
                    .map_err(|cause| undo.unwind(cause))
            }
            Verb::Check { attachment, .. } => {
                HostLocal::parse(conf, &Args::parse(&request.args)?)?.check(attachment)?;
                Ok(())
            }
            Verb::Del { attachment, .. } => {
                let plugin = HostLocal::parse_for_release(conf)?;
                plugin.release(attachment, &plugin.held(attachment)?)?;
                Ok(())
            }
            Verb::Gc => {
                let plugin = HostLocal::parse_for_release(conf)?;
                match conf.valid_attachments()? {
                    Some(valid) => plugin.gc_without_links(&valid),
                    None => Ok(()),
                }
            }
            Verb::Status => {
                HostLocal::parse(conf, &Args::default())?.status()?;
                Ok(())
            }
            Verb::Version => Ok(()),
        }
    }

    fn tell(&mut self, result: AddResult, conf: &NetConf) -> Result<(), Error> {
        self.record.result(&result);
        write(&result.to_document(conf.version)?)
    }
}

/// host-local does not enter the namespace, so any other path is none of its business.
fn refuse_own_netns(request: &Request) -> Result<(), Error> {
    let path = match &request.verb {
        Verb::Add { netns, .. } | Verb::Check { netns, .. } => Some(netns),
        Verb::Del { netns, .. } => netns.as_ref(),
        _ => None,
    };
    let Some(path) = path else { return Ok(()) };
    match Netns::open(path, OwnNetns::allowed(request.own_netns_allowed)) {
        Err(own @ NetnsError::Own) => Err(own.report(path)),
        _ => Ok(()),
    }
}

fn write(document: &str) -> Result<(), Error> {
    let failed = |cause| {
        Error::new(
            Code::IO,
            format!("cannot write the result to stdout: {cause}"),
        )
    };
    print(document).map_err(failed)
}

/// The answer to VERSION: compact, with a newline, whatever the configuration's version is.
fn supported_versions() -> String {
    let all = Version::ALL.map(Version::as_str);
    let list =
        serde_json::json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": all });
    format!("{list}\n")
}

/// The error to report when the program itself is at fault.
fn internal_error(what: &str) -> Error {
    Error::new(Code::PLUGIN, format!("internal error: {what}"))
        .details("this is a fault of gangplank; run DEL to clean up, and please report it")
}
