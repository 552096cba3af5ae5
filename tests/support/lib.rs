//! Shared by all test suites: nodes and pods in private namespaces, plugin calls, and snapshots of a node's state.
//!
//! The machine's own network is not touched: a [`Node`] has its own network and mount namespaces, and all packets stay
//! in them. The plugins under test are gangplank's, or those in the directory `GANGPLANK_TEST_PLUGINS`, for example the
//! Go plugins.

mod call;
mod chain;
mod echo;
pub mod firewalld;
pub mod flows;
pub mod implementation;
pub mod namespace;
mod node;
mod probes;
mod snapshot;
pub mod trace;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use call::{Answer, Call, CniError, Network, small_network};
pub use chain::{Chain, small_chain};
pub use echo::{EchoServer, Protocol, UdpClient};
pub use node::{Node, Pod, connect};
pub use probes::{Namespace, Ping};
pub use snapshot::{NodeState, chain_of, leases};

/// gangplank's plugins, sorted.
pub const PLUGINS: [&str; 10] = [
    "bandwidth",
    "bridge",
    "firewall",
    "flannel",
    "host-local",
    "loopback",
    "portmap",
    "ptp",
    "static",
    "tuning",
];

/// The plugins that the Go project has, which [`go_plugins`] contains. flannel left it after version 0.9.1.
pub fn plugins_of_go() -> impl Iterator<Item = &'static str> {
    PLUGINS.into_iter().filter(|plugin| *plugin != "flannel")
}

/// The directories of Debian's programs; the PATH of an unprivileged user lacks some of them.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The directory of the Go plugins: Debian's, or another version's that `GANGPLANK_GO_PLUGINS` names.
pub fn go_plugins() -> PathBuf {
    std::env::var_os("GANGPLANK_GO_PLUGINS").map_or_else(|| "/usr/lib/cni".into(), PathBuf::from)
}

/// The directory of the plugins that are tested instead of gangplank's.
fn plugins_under_test() -> Option<PathBuf> {
    std::env::var_os("GANGPLANK_TEST_PLUGINS").map(PathBuf::from)
}

/// Whether the Go plugins are tested instead of gangplank's.
pub fn testing_go() -> bool {
    plugins_under_test().is_some()
}

/// Whether the Go plugins that are tested, or compared with, support CNI 1.1.0: version 1.6.0 or newer. Since then
/// portmap has an nftables backend.
pub fn go_is_recent() -> bool {
    is_recent(&plugins_under_test().unwrap_or_else(go_plugins))
}

fn is_recent(plugins: &Path) -> bool {
    let mut version = Command::new(plugins.join("portmap"));
    version.env_clear().env("CNI_COMMAND", "VERSION");
    let answer = version.stdin(Stdio::null()).output();
    answer.is_ok_and(|answer| String::from_utf8_lossy(&answer.stdout).contains("\"1.1.0\""))
}

/// The directory of recent Go plugins: [`go_plugins`], or those of Debian unstable.
pub fn recent_go_plugins() -> Option<PathBuf> {
    let installed = go_plugins();
    if is_recent(&installed) {
        return Some(installed);
    }
    Some(debian("sid", &["containernetworking-plugins"])?.join("usr/lib/cni"))
}

/// The directory of unpacked packages of a Debian release, with `tests/debian`. Prints the reason if there is none, and
/// panics if the variable `CI` is set.
pub fn debian(suite: &str, packages: &[&str]) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../debian");
    let output = Command::new(script).arg(suite).args(packages).output();
    let output = output.expect("tests/debian is executable");
    if output.status.success() {
        let dir = String::from_utf8(output.stdout).expect("a path");
        return Some(PathBuf::from(dir.trim_end()));
    }
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(std::env::var_os("CI").is_none(), "{why}");
    note(&why);
    None
}

/// Whether the running test must return, because the Go plugins are tested and are known to fail it for the reason
/// `why`. Numbers such as D1 are those of `tests/go_plugins/defects/mod.rs`.
pub fn skip_for_go(why: &str) -> bool {
    let skipped = testing_go();
    if skipped {
        note(&format!("skipped for the Go plugins: {why}"));
    }
    skipped
}

/// The binary under test: the one that `GANGPLANK_BIN` names, otherwise the one that cargo built for the tests.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("GANGPLANK_BIN") {
        return binary.into();
    }
    // Tests are built as target/TRIPLE/PROFILE/deps/NAME-HASH, the binary as target/TRIPLE/PROFILE/gangplank.
    let test = std::env::current_exe().expect("cannot read /proc/self/exe");
    let profile = test.ancestors().nth(2).expect("a test has a directory");
    let binary = profile.join("gangplank");
    assert!(
        binary.is_file(),
        "no binary to test: {} does not exist; run `cargo build`, or set GANGPLANK_BIN",
        binary.display()
    );
    binary
}

/// The file of a plugin under test. Plugins that gangplank does not have are Go plugins.
pub fn plugin_file(plugin: &str) -> PathBuf {
    match (PLUGINS.contains(&plugin), plugins_under_test()) {
        (true, None) => binary(),
        (true, Some(dir)) => dir.join(plugin),
        (false, _) => go_plugins().join(plugin),
    }
}

/// Whether a test that creates namespaces and needs these programs can run; `cni:NAME` is a Go plugin.
///
/// Prints the reason if it cannot, and panics if the variable `CI` is set.
pub fn require(programs: &[&str]) -> bool {
    let mut missing: Vec<String> = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("the permission to create namespaces (use tests/run, or root)".into());
    }
    for program in ["ip"].iter().chain(programs) {
        let found = match program.strip_prefix("cni:") {
            Some(plugin) => go_plugins().join(plugin).exists(),
            None => PATH
                .split(':')
                .any(|dir| Path::new(dir).join(program).exists()),
        };
        if !found {
            missing.push(format!("the program {program} (use tests/run)"));
        }
    }
    if missing.is_empty() {
        return true;
    }
    let why = format!("cannot run: missing {}", missing.join(", and "));
    assert!(std::env::var_os("CI").is_none(), "{why}");
    note(&why);
    false
}

/// Returns from a test that cannot run on this machine.
#[macro_export]
macro_rules! requires {
    ($($program:literal),*) => {
        if !$crate::require(&[$($program),*]) {
            return;
        }
    };
}

/// Prints a note about the running test even if it passes: the test harness captures only `print!` and `eprint!`.
pub fn note(what: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "NOTE {test}: {what}");
}

/// The content of a file under `examples/`.
pub fn example(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A command from its words, separated by spaces.
pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command line has words"));
    command.args(words).env("PATH", PATH);
    command
}
