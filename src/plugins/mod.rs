//! The CNI plugins of this binary.
//!
//! Each plugin is a module here and one line in the registry below. [`dispatch`] reads the request, calls the plugin,
//! and writes the result or the error.

pub mod attachment;
pub mod call_metrics;
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

        pub const NAMES: &[&str] = &[$($name),*];

        const ENTRIES: &[Entry] = &[$(Entry::new::<$module::$plugin>($name)),*];
    };
}

/// The plugin of a name. The name may have a prefix ending in `-`: BuildKit installs plugins as `buildkit-cni-bridge`,
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
    "bandwidth" => bandwidth::Bandwidth,
    "firewall" => firewall::FirewallPlugin,
    "flannel" => flannel::Flannel,
    "portmap" => portmap::Portmap,
    "ptp" => ptp::Ptp,
    "static" => static_addresses::StaticPlugin,
    "tuning" => tuning::Tuning,
}

/// The name of the operator's command line.
const COMMAND_LINE: &str = "gangplank";

/// The program to run, by `argv[0]`.
pub enum Program {
    Plugin(Entry),
    CommandLine,
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

/// Rejects an unknown program name, as a CNI error if a runtime called it. With a default plugin, for example
/// `bridge.orig` or `portmap` would attach a second interface.
pub fn reject_name(name: &str, env: &Environment) -> ExitCode {
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
