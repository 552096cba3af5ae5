//! Finds or builds the `gangplank` binary: cargo does not build it with the example.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Failure;

/// The path of the binary: GANGPLANK_BIN if it is set; under cargo, the binary that cargo builds; otherwise the one that
/// was built together with the demo.
pub fn find_or_build() -> Result<PathBuf, Failure> {
    if let Some(binary) = env::var_os("GANGPLANK_BIN") {
        return Ok(binary.into());
    }
    match env::var_os("CARGO") {
        Some(cargo) => build(Command::new(cargo)),
        None => in_target_directory(),
    }
}

fn build(mut cargo: Command) -> Result<PathBuf, Failure> {
    cargo
        .args(["build", "--bin", "gangplank"])
        .arg("--message-format=json-render-diagnostics")
        // cargo searches .cargo/config.toml from the working directory upwards.
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
        let is_gangplank = message["target"]["name"] == "gangplank";
        let path = message["executable"].as_str().filter(|_| is_gangplank)?;
        Some(path.into())
    };
    let found = messages.lines().find_map(executable);
    Ok(found.ok_or("cargo did not print the path of the binary gangplank")?)
}

/// The binary is one directory above the demo, which is `target/<triple>/<profile>/examples/demo`.
fn in_target_directory() -> Result<PathBuf, Failure> {
    let demo = env::current_exe()?;
    let binary = demo.ancestors().nth(2).map(|dir| dir.join("gangplank"));
    let found = binary.filter(|path| path.is_file());
    Ok(found
        .ok_or("the binary gangplank is not built: run `cargo run --release --example demo`")?)
}
