//! Reads a request, calls the plugin, and writes the result or the error once. Owns the undo stack, the log record, signal
//! handling and stdout.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use serde::Serialize;

use crate::build;
use crate::cni::Version;
use crate::cni::conf::NetConf;
use crate::cni::environment::{Command, Environment, Invocation, Operation};
use crate::cni::json::KeyPaths;
use crate::cni::request::Request;
use crate::cni::result::{AddResult, pretty};
use crate::error::{Code, Error};
use crate::kernel::log::{self, Level};
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals;
use crate::plugins::call_metrics::{self, Calls};
use crate::plugins::log_record::{self, Record, Settings};
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// The release of the Go plugins with which these plugins are compatible. Clients require a release: Nomad 0.4.0 of bridge
/// (1.3.0 for CHECK), nerdctl 1.7.1 of firewall.
const GO_RELEASE: &str = "v1.9.1";

/// A registered plugin.
#[derive(Clone, Copy)]
pub struct Entry {
    name: &'static str,
    keys: &'static [fn() -> KeyPaths],
    validate: fn(&Request) -> Result<(), Error>,
    run: for<'e> fn(&mut Call<'e>, &Operation, &Request) -> Result<(), Error>,
}

impl Entry {
    pub const fn new<P: Plugin>(name: &'static str) -> Entry {
        Entry {
            name,
            keys: P::KEYS,
            validate: |request| P::parse(request).map(drop),
            run: |call, operation, request| call.run::<P>(operation, request),
        }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Parses a configuration as for an ADD.
    ///
    /// # Errors
    /// If a key is invalid; the error names it.
    pub fn validate(&self, conf: NetConf) -> Result<(), Error> {
        (self.validate)(&Request::of_configuration(conf))
    }

    /// Name and version, printed without CNI_COMMAND in the form of the Go plugins. The first semantic version is the Go
    /// release, with our own version as build metadata (semver.org, 10).
    pub fn about(&self) -> String {
        let name = self.name;
        format!("CNI {name} plugin {GO_RELEASE}+{}", build::version())
    }
}

/// Serves one request of a runtime.
pub fn serve(plugin: Entry, env: &Environment, stdin: impl Read) -> ExitCode {
    let Some(command) = env.var("CNI_COMMAND") else {
        eprintln!("{}", plugin.about());
        eprintln!("CNI protocol versions supported: {}", Version::list());
        return ExitCode::SUCCESS;
    };
    if let Err(cause) = Settings::of_environment(env).and_then(|it| start_log(it, env)) {
        log::warn(&cause);
    }
    let mut call = Call {
        env,
        version: Version::NEWEST,
        record: Record::new(plugin.name, plugin.keys, env),
    };
    let outcome = call.execute(plugin, stdin);
    let code = match &outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, call.version),
    };
    let error = outcome.as_ref().err();
    call.record.end(error);
    call_metrics::count(&Calls::one(
        plugin.name,
        Command::named(&command).map(Command::as_str),
        error.map_or(0, |error| error.code.0),
        call.record.began().elapsed(),
    ));
    code
}

fn start_log(settings: Option<Settings>, env: &Environment) -> Result<(), String> {
    settings.map_or(Ok(()), |settings| settings.start(env))
}

/// Reports a panic.
pub fn report_internal_error(cause: &str) {
    let error = Error::new(Code::PLUGIN, format!("internal error: {cause}"))
        .details("this is a bug in gangplank; run DEL to clean up, and please report it");
    fail(&error, Version::NEWEST);
    log_record::write_fatal(&error);
}

/// Writes the error document to stdout (CNI spec 1.1, section 5, "Error").
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
    // A failure of this write cannot be reported.
    let _ = print(&pretty(&Document {
        version: version.as_str(),
        code: error.code.0,
        msg: &error.msg,
        details: &error.details,
    }));
    ExitCode::FAILURE
}

/// Writes a document with one system call, as far as the kernel accepts it, so that a reader does not see a part of it.
fn print(document: &str) -> io::Result<()> {
    let stdout = retry_on_eintr(|| io::stdout().as_fd().try_clone_to_owned())?;
    File::from(stdout).write_all(document.as_bytes())
}

struct Call<'e> {
    env: &'e Environment,
    /// `cniVersion` of the configuration once it is parsed.
    version: Version,
    record: Record<'e>,
}

impl Call<'_> {
    fn execute(&mut self, plugin: Entry, stdin: impl Read) -> Result<(), Error> {
        let request = self
            .read_request(stdin)
            .inspect_err(|error| log::add_span("parse", self.record.began(), Some(error)))?;
        match request {
            Some((operation, request)) => (plugin.run)(self, &operation, &request),
            None => log::timed_span("result", || write(&supported_versions())),
        }
    }

    /// `None` for VERSION.
    fn read_request(&mut self, stdin: impl Read) -> Result<Option<(Operation, Request)>, Error> {
        let invocation = Invocation::parse(self.env)?;
        let Invocation {
            command,
            operation,
            cni_path,
            args,
            own_netns_allowed,
        } = invocation;
        if operation == Operation::Version {
            return Ok(None);
        }
        let bytes = NetConf::read(stdin)?;
        if log::enabled(Level::Error) {
            self.record.configuration(&bytes);
        }
        let conf = NetConf::parse(bytes)?;
        self.start_configured_log(&conf, &operation)?;
        signals::install_handlers()
            .map_err(|cause| Error::failed(format!("cannot catch SIGTERM: {cause}")))?;
        self.version = conf.version;
        conf.version.allow(command)?;
        let request = Request {
            conf,
            cni_path,
            // CNI_ARGS belong to an attachment.
            args: match operation {
                Operation::Gc | Operation::Status => String::new(),
                _ => args,
            },
            own_netns_allowed,
        };
        Ok(Some((operation, request)))
    }

    fn run<P: Plugin>(&mut self, operation: &Operation, request: &Request) -> Result<(), Error> {
        if let Operation::Add(_) = operation {
            signals::enable_cancellation();
        }
        let parsed = match operation {
            // They read only what names resources.
            Operation::Del(_) | Operation::Gc | Operation::Version => Ok(None),
            _ => P::parse(request).map(Some),
        };
        log::add_span("parse", self.record.began(), parsed.as_ref().err());
        match (operation, parsed?) {
            (Operation::Add(target), Some(plugin)) => {
                let mut undo = Undo::default();
                plugin
                    .add(target, &mut undo)
                    .and_then(|result| self.write_result(result, request))
                    .map_err(|cause| signals::uncancellable(|| undo.unwind(cause)))
            }
            (Operation::Check(target), Some(plugin)) => plugin.check(target),
            (Operation::Del(target), _) => P::del(request, target),
            (Operation::Gc, _) => P::gc(request),
            (Operation::Status, Some(plugin)) => plugin.status(),
            _ => Ok(()),
        }
    }

    /// Starts the log of the configuration, unless the environment started one. DEL and GC ignore an invalid log key.
    fn start_configured_log(&mut self, conf: &NetConf, operation: &Operation) -> Result<(), Error> {
        let settings = match (Settings::of_configuration(&conf.root()), operation) {
            (Err(_), Operation::Del(_) | Operation::Gc) => None,
            (settings, _) => settings?,
        };
        if !log::enabled(Level::Error)
            && let Some(settings) = settings
        {
            match settings.start(self.env) {
                Ok(()) => self.record.configuration(&conf.bytes),
                Err(cause) => log::warn(&cause),
            }
        }
        if log::enabled(Level::Error) {
            self.record.network(conf.name.as_str());
        }
        Ok(())
    }

    fn write_result(&mut self, result: AddResult, request: &Request) -> Result<(), Error> {
        log::timed_span("result", || {
            self.record.result(&result);
            write(&result.to_document(request.conf.version)?)
        })
    }
}

fn write(document: &str) -> Result<(), Error> {
    print(document).map_err(|cause| {
        Error::new(
            Code::IO,
            format!("cannot write the result to stdout: {cause}"),
        )
    })
}

/// The result of VERSION.
fn supported_versions() -> String {
    let all = Version::ALL.map(Version::as_str);
    let list =
        serde_json::json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": all });
    format!("{list}\n")
}
