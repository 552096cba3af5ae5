//! Peak memory of a plugin's own process, without its children.
//! The plugin writes its result to a full pipe, and blocks there while its memory is read.

use std::fs;
use std::io::{Read, Write, pipe};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use crate::Side;
use crate::cases::Case;
use crate::support::PATH;
use crate::timed::Call;

pub const HEADER: &str = "\
| case | peak memory of an ADD, ours: MB | theirs: MB |
|---|---|---|";

/// Time limit until the plugin writes its result.
const LIMIT: Duration = Duration::from_secs(20);

/// The medians of five ADDs, as a table line.
pub fn measure(case: &Case, against: &PathBuf) -> String {
    let median = |plugins: Option<&PathBuf>| {
        let side = Side::new(case, plugins, 0, 5);
        let peak = |pod| {
            let call = side.setting.first_add(pod, 0);
            side.node.inside(|| peak_of(&call))
        };
        let mut peaks: Vec<usize> = side.pods.iter().map(peak).collect();
        peaks.sort();
        peaks[2] as f64 * 1024.0 / 1e6
    };
    let (ours, theirs) = (median(None), median(Some(against)));
    format!("| {} | {ours:.1} | {theirs:.1} |", case.name)
}

/// Peak resident memory of a call, in KiB.
fn peak_of(call: &Call) -> usize {
    let (mut reader, mut writer) = pipe().expect("a pipe");
    let size = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).expect("a pipe has a size");
    writer
        .write_all(&vec![0; size as usize])
        .expect("as much as fits");
    let mut child = Command::new(&call.program)
        .env_clear()
        .env("PATH", PATH)
        .envs(&call.env)
        .stdin(Stdio::piped())
        .stdout(writer)
        .spawn()
        .expect("a plugin starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(call.stdin.as_bytes())
        .expect("a plugin reads its configuration");
    drop(stdin);
    let peak = peak_when_blocked(child.id());
    let mut printed = Vec::new();
    reader.read_to_end(&mut printed).expect("a result");
    assert!(child.wait().expect("a child ends").success());
    peak
}

/// Waits until a process blocks in a pipe write, then reads its peak (VmHWM of proc_pid_status(5)).
fn peak_when_blocked(pid: u32) -> usize {
    let deadline = Instant::now() + LIMIT;
    let threads = format!("/proc/{pid}/task");
    let blocks_in_write = || {
        let threads = fs::read_dir(&threads).expect("a process has threads");
        let waits_for = |thread: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(thread.ok()?.path().join("wchan")).ok()
        };
        threads
            .filter_map(waits_for)
            .any(|function| function.contains("pipe_write"))
    };
    while !blocks_in_write() {
        assert!(
            Instant::now() < deadline,
            "process {pid} did not write its result"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words = line.expect("a peak").split_whitespace().next();
    words.and_then(|kib| kib.parse().ok()).expect("a number")
}
