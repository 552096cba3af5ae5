//! The CNI plugins of this binary.
//!
//! Each plugin is a module here and one line in the registry below. [`dispatch`] reads the request, calls the plugin,
//! and writes the result or the error.

pub mod dispatch;
pub mod log_record;
pub mod plugin;

use std::process::ExitCode;

use crate::cni::Version;
use crate::cni::environment::Environment;
use crate::error::{Code, Error};
use crate::plugins::dispatch::Entry;

/// Declares the modules of the plugins and the names by which `argv[0]` and a configuration's `type` call them.
macro_rules! registry {
    ($($name:literal => $module:ident::$plugin:ident,)*) => {
        $(pub mod $module;)*

        /// The names of all plugins.
        pub const NAMES: &[&str] = &[$($name),*];

        const ENTRIES: &[Entry] = &[$(Entry::new::<$module::$plugin>($name)),*];
    };
}

/// The plugin of that name, which may have a prefix ending in `-`: BuildKit installs plugins as `buildkit-cni-bridge`,
/// KubeVirt as `cnv-bridge`.
pub fn named(name: &str) -> Option<Entry> {
    let is_named = |plugin: &&Entry| {
        let prefix = name.strip_suffix(plugin.name());
        prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
    };
    ENTRIES.iter().find(is_named).copied()
}

registry! {
    "bridge" => bridge::Bridge,
    "host-local" => host_local::HostLocalPlugin,
    "loopback" => loopback::Loopback,
}

/// The name of the operator's command line.
const COMMAND_LINE: &str = "gangplank";

/// What the binary is, by the name it is called by.
pub enum Program {
    /// A plugin.
    Plugin(Entry),
    /// The operator's command line.
    CommandLine,
    /// A name that is neither.
    Unknown,
}

impl Program {
    /// `gangplank` is the plugin bridge for a runtime. A copy such as `gangplank-linux-x86_64` is the command line alone.
    pub fn named(name: &str, env: &Environment) -> Program {
        let is_request = env.var("CNI_COMMAND").is_some();
        let plugin = match name {
            COMMAND_LINE if is_request => named("bridge"),
            name => named(name),
        };
        match plugin {
            Some(plugin) => Program::Plugin(plugin),
            None if !is_request && name.starts_with(COMMAND_LINE) => Program::CommandLine,
            None => Program::Unknown,
        }
    }
}

/// Refuses to be the program of a name, as a CNI error if a runtime called it. Guessing would have, for example,
/// `bridge.orig` or `portmap` attach a second interface.
pub fn refuse_name(name: &str, env: &Environment) -> ExitCode {
    let plugins = NAMES.join(", ");
    let msg = format!("{name:?} is not the name of a plugin: this program has {plugins}");
    let error = Error::new(Code::INVALID_ENVIRONMENT, msg).details(
        "call it by one of these names, which may have a prefix ending in \"-\"; gangplank install DIR puts them into a directory",
    );
    if env.var("CNI_COMMAND").is_some() {
        return dispatch::fail(&error, Version::NEWEST);
    }
    eprintln!("{COMMAND_LINE}: {error}");
    ExitCode::FAILURE
}
