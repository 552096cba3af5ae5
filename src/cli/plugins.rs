//! The programs in a CNI bin directory: what they are, and what they answer to VERSION and STATUS.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::build;
use crate::kernel::process::{self, Output};

/// How long a program may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing is there.
    Absent,
    /// This very program.
    This,
    /// gangplank of another version or build; its version.
    Gangplank(String),
    /// Another program.
    Other,
}

/// Identifies a file by its content. It is not run: a wrapper of a plugin says what the plugin says.
pub fn identify(file: &Path) -> Identity {
    // Neither a pipe nor a directory is read: one would be waited for.
    let is_file = fs::metadata(file).is_ok_and(|it| it.is_file());
    let Some(content) = is_file.then(|| fs::read(file).ok()).flatten() else {
        return match file.symlink_metadata() {
            Ok(_) => Identity::Other,
            Err(_) => Identity::Absent,
        };
    };
    let own = fs::read(process::OWN);
    if own.is_ok_and(|own| own == content) {
        return Identity::This;
    }
    match build::version_of(&content) {
        Some(version) => Identity::Gangplank(version),
        None => Identity::Other,
    }
}

/// The first line that a program prints without a command, where a CNI plugin says what it is. Empty when it prints none.
pub fn about(file: &Path) -> String {
    let output = process::run(file, &[], &[("CNI_COMMAND", "")], b"", LIMIT);
    let stderr = output.map(|output| output.stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&stderr);
    text.lines().next().unwrap_or_default().to_owned()
}

/// The protocol versions that a plugin supports (CNI spec 1.1, "VERSION").
///
/// # Errors
/// What it answers instead, or why it does not.
pub fn supported_versions(file: &Path, cni_path: &str) -> Result<Vec<String>, String> {
    let request = r#"{"cniVersion": "1.0.0"}"#;
    let output = call(file, "VERSION", cni_path, request.as_bytes())?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let versions = answer["supportedVersions"].as_array().into_iter().flatten();
    let versions: Vec<String> = versions
        .filter_map(|version| version.as_str().map(str::to_owned))
        .collect();
    match versions.is_empty() {
        false => Ok(versions),
        true => Err(said(&output)),
    }
}

/// Whether a plugin answers STATUS with success (CNI spec 1.1, "STATUS").
///
/// # Errors
/// What it answers instead, or why it does not.
pub fn status(file: &Path, cni_path: &str, config: &[u8]) -> Result<(), String> {
    let output = call(file, "STATUS", cni_path, config)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(said(&output)),
    }
}

/// Calls a plugin for no attachment, as runtimes do.
fn call(file: &Path, command: &str, cni_path: &str, stdin: &[u8]) -> Result<Output, String> {
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_PATH", cni_path),
        ("CNI_CONTAINERID", ""),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", ""),
        ("CNI_ARGS", ""),
    ];
    process::run(file, &[], &env, stdin, LIMIT).map_err(|cause| cause.to_string())
}

/// The message of an error document, or else what there is.
fn said(output: &Output) -> String {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match (document["msg"].as_str(), document["code"].as_u64()) {
        (Some(msg), Some(code)) => format!("{msg} (code {code})"),
        _ => output.stderr_summary(),
    }
}
