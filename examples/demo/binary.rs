//! The binary: given, built by cargo, or found beside the demo. An example's build does not build it.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Failure;

/// The path of the `gangplank` binary: what GANGPLANK_BIN names, what the cargo that runs us builds, or what was built
/// beside us.
pub fn find_or_build() -> Result<PathBuf, Failure> {
    if let Some(binary) = env::var_os("GANGPLANK_BIN") {
        return Ok(binary.into());
    }
    match env::var_os("CARGO") {
        Some(cargo) => build(Command::new(cargo)),
        None => beside_us(),
    }
}

fn build(mut cargo: Command) -> Result<PathBuf, Failure> {
    cargo
        .args(["build", "--bin", "gangplank"])
        .arg("--message-format=json-render-diagnostics")
        // cargo looks for .cargo/config.toml from here upwards.
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo
        .output()
        .map_err(|cause| format!("cannot run {cargo:?}: {cause}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo could not build the binary gangplank: {}",
            output.status
        )
        .into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| -> Option<PathBuf> {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "gangplank";
        let path = message["executable"].as_str().filter(|_| is_ours)?;
        Some(path.into())
    };
    let found = messages.lines().find_map(executable);
    Ok(found.ok_or("cargo did not tell where it put the binary gangplank")?)
}

/// `target/<triple>/<profile>/examples/demo` has the binary one directory up.
fn beside_us() -> Result<PathBuf, Failure> {
    let own = env::current_exe()?;
    let beside = own.ancestors().nth(2).map(|dir| dir.join("gangplank"));
    let found = beside.filter(|path| path.is_file());
    Ok(found.ok_or(
        "there is no gangplank to show: start this by `cargo run --release --example demo`",
    )?)
}
