//! Measures one plugin call: duration of the whole process, child processes and system calls.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Node, PATH};

pub struct Call {
    pub program: PathBuf,
    pub env: BTreeMap<&'static str, String>,
    pub stdin: String,
}

/// Counts of a call, including its children.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Executed programs besides the plugin.
    pub processes: usize,
    pub calls: usize,
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(all: I) -> Counts {
        all.fold(Counts::default(), |sum, next| Counts {
            processes: sum.processes + next.processes,
            calls: sum.calls + next.calls,
        })
    }
}

/// Runs a call. Returns the duration from the start to the end of the process, and stdout.
pub fn call(node: &Node, call: &Call) -> (Duration, String) {
    let command = Command::new(&call.program);
    node.inside(|| run(command, call))
}

/// Runs a call in the namespaces of the current thread.
pub fn run_here(call: &Call) {
    run(Command::new(&call.program), call);
}

/// Runs a call under strace.
pub fn counts(node: &Node, call: &Call) -> (Counts, String) {
    let log = "/run/strace";
    let mut command = Command::new("/usr/bin/strace");
    command
        .args(["-f", "-qq", "-o", log, "--"])
        .arg(&call.program);
    let (_, stdout) = node.inside(|| run(command, call));
    let log = node.read(log);
    let is_call = |line: &&str| line.contains('(') && !line.contains(" resumed>");
    let started = |line: &&str| line.contains("execve") && line.ends_with("= 0");
    let counts = Counts {
        processes: log.lines().filter(started).count().saturating_sub(1),
        calls: log.lines().filter(is_call).count(),
    };
    (counts, stdout)
}

fn run(mut command: Command, call: &Call) -> (Duration, String) {
    command
        .env_clear()
        .env("PATH", PATH)
        .envs(&call.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", call.program.display()));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(call.stdin.as_bytes())
        .expect("a plugin reads its configuration");
    drop(stdin);
    let output = child.wait_with_output().expect("a child ends");
    let took = start.elapsed();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{} failed: {stdout}",
        call.program.display()
    );
    (took, stdout)
}
