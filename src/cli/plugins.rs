//! The programs in a CNI bin directory: their identity, and their answers to VERSION and STATUS.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::build;
use crate::cni::Version;
use crate::delegate::parse_error;
use crate::kernel::process::{self, Output};

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Absent,
    /// The same content as this program.
    This,
    /// gangplank of another version or build, with its version.
    Gangplank(String),
    Other,
}

/// The program of a plugin: the first file of its name in the directories of `cni_path`.
pub fn find(cni_path: &str, name: &str) -> Option<PathBuf> {
    let mut files = std::env::split_paths(cni_path).map(|directory| directory.join(name));
    files.find(|file| file.is_file())
}

/// Identifies a program by its content. It is not executed: a wrapper script prints what the wrapped plugin prints.
pub fn identify(file: &Path) -> Identity {
    // Reading a FIFO would block.
    let is_file = fs::metadata(file).is_ok_and(|it| it.is_file());
    let Some(content) = is_file.then(|| fs::read(file).ok()).flatten() else {
        return match file.symlink_metadata() {
            Ok(_) => Identity::Other,
            Err(_) => Identity::Absent,
        };
    };
    if fs::read(process::OWN).is_ok_and(|own| own == content) {
        return Identity::This;
    }
    build::version_of(&content).map_or(Identity::Other, Identity::Gangplank)
}

/// The first line that a program prints to stderr if it is called without a command: CNI plugins describe themselves there.
pub fn self_description(file: &Path) -> Option<String> {
    let output = process::run(file, &[], &[("CNI_COMMAND", "")], b"", TIMEOUT).ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next().filter(|line| !line.is_empty())?;
    Some(line.to_owned())
}

/// The protocol versions that a plugin supports (CNI spec 1.1, "VERSION").
///
/// # Errors
/// Its error message, or the reason why it did not run.
pub fn supported_versions(file: &Path, cni_path: &str) -> Result<Vec<String>, String> {
    let output = call(file, "VERSION", cni_path, br#"{"cniVersion": "1.0.0"}"#)?;
    let versions = Version::supported_in(&output.stdout);
    match versions.is_empty() {
        false => Ok(versions),
        true => Err(error_of(&output)),
    }
}

/// Whether a plugin answers STATUS with success (CNI spec 1.1, "STATUS").
///
/// # Errors
/// Its error message, or the reason why it did not run.
pub fn status(file: &Path, cni_path: &str, config: &[u8]) -> Result<(), String> {
    let output = call(file, "STATUS", cni_path, config)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(error_of(&output)),
    }
}

/// Calls a plugin without an attachment.
fn call(file: &Path, command: &str, cni_path: &str, stdin: &[u8]) -> Result<Output, String> {
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_PATH", cni_path),
        ("CNI_CONTAINERID", ""),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", ""),
        ("CNI_ARGS", ""),
    ];
    process::run(file, &[], &env, stdin, TIMEOUT).map_err(|cause| cause.to_string())
}

/// The message of a CNI error document, or else stderr.
fn error_of(output: &Output) -> String {
    match parse_error(&output.stdout) {
        Some(error) => format!("{} (code {})", error.msg, error.code.0),
        None => output.stderr_summary(),
    }
}
