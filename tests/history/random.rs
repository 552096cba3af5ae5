//! Random histories: sequences of actions by administrators, other tools, the Go plugins and gangplank on one node,
//! with invariants checked after each action (see [`history`]).
//!
//! An action is a line of text (see [`action`]). The files in `tests/history/sequences` are minimized histories that
//! once violated an invariant; they run first. Then histories are generated from a seed. A plain run generates a few,
//! always the same, without killed calls, because their outcome depends on the speed of the machine; with
//! `GANGPLANK_HISTORY_STEPS` calls are killed too. A violation is minimized, printed and written to a file, which
//! belongs into `tests/history/sequences` once the bug is fixed. Some invariants are violated by the Go plugins too:
//! such a history is run again with the Go plugins instead of gangplank, and only violations that they do not have are
//! reported.
//!
//! - `GANGPLANK_HISTORY_STEPS`: the number of random steps;
//! - `GANGPLANK_HISTORY_SEED`: the first seed, 1 by default;
//! - `GANGPLANK_HISTORY_FILE`: runs only this file, and prints the answer of each step.

mod action;
mod answers;
mod connectivity;
mod effects;
mod generate;
mod history;
mod leftovers;
mod minimize;
mod model;
mod networks;
mod snapshot;
mod traffic;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use action::{Action, parse_sequence, print_sequence};
use history::Finding;
use minimize::{minimize, violations};

use crate::implementation::{IPTABLES, ready};
use crate::support::note;

/// Actions in one history: long enough for names and addresses to be reused, short enough to be minimized.
const LENGTH: usize = 50;

/// Random steps of a plain run.
const STEPS: usize = 300;

/// Violations of a kind that are minimized; further ones are only counted.
const MAX_MINIMIZED: usize = 3;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Violations by kind: the number of histories, and the minimized sequences.
#[derive(Default)]
struct Report {
    violations: BTreeMap<String, (usize, Vec<String>)>,
}

impl Report {
    /// Counts the findings of a history. Returns those to minimize.
    fn count(&mut self, found: &[Finding]) -> Vec<Finding> {
        let kinds: BTreeSet<&String> = found.iter().map(|finding| &finding.kind).collect();
        let mut new = Vec::new();
        for kind in kinds {
            let (count, _) = self.violations.entry(kind.clone()).or_default();
            *count += 1;
            if *count <= MAX_MINIMIZED {
                new.extend(found.iter().find(|finding| finding.kind == *kind).cloned());
            }
        }
        new
    }

    fn add(&mut self, kind: &str, sequence: String) {
        let (_, sequences) = self.violations.entry(kind.to_owned()).or_default();
        sequences.push(sequence);
    }
}

/// The text of a sequence file.
fn describe(name: &str, finding: &Finding, shortest: &[Action]) -> String {
    let (step, text) = (finding.step + 1, finding.text.replace('\n', "\n# "));
    let sequence = print_sequence(shortest);
    format!(
        "# {name}, step {step}: {}: {text}\n{sequence}",
        finding.kind
    )
}

/// Writes a minimized sequence to the target directory.
fn write_sequence(name: &str, finding: &Finding, text: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("history");
    let words = format!("{name} {}", finding.kind);
    let file = words.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = dir.join(format!("{file}.txt"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    note(&format!("written to {}", path.display()));
}

/// Runs histories on several nodes at once.
fn run_all(
    count: usize,
    history: impl Fn(usize) -> (String, Vec<Action>) + Sync,
    are_minimal: bool,
) {
    let (next, steps) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let report = Mutex::new(Report::default());
    let began = Instant::now();
    let worker = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            let (name, actions) = history(at);
            let found = violations(&actions);
            steps.fetch_add(actions.len(), Ordering::Relaxed);
            for Finding {
                step, kind, text, ..
            } in &found
            {
                note(&format!("{name}, step {}: {kind}: {text}", step + 1));
            }
            let new = report.lock().unwrap().count(&found);
            for finding in new {
                let shortest = match are_minimal {
                    true => actions.clone(),
                    false => minimize(&actions, &finding),
                };
                let text = describe(&name, &finding, &shortest);
                if !are_minimal {
                    write_sequence(&name, &finding, &text);
                }
                report.lock().unwrap().add(&finding.kind, text);
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let steps = steps.into_inner();
    note(&format!("{steps} steps in {seconds:.0} s"));
    let report = report.into_inner().unwrap();
    let list = report
        .violations
        .iter()
        .map(|(kind, (count, texts))| format!("{kind}, {count} histories:\n{}", texts.join("\n")));
    let list: Vec<String> = list.collect();
    assert!(
        list.is_empty(),
        "invariants violated:\n\n{}",
        list.join("\n")
    );
}

fn sequences() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/history/sequences");
    let files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|it| it == "txt"))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> (String, Vec<Action>) {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let actions = parse_sequence(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (path.display().to_string(), actions)
}

#[test]
fn no_random_history_violates_an_invariant() {
    if !ready(&[IPTABLES, &["nft", "timeout", "sh"]].concat()) {
        return;
    }
    if let Some(file) = std::env::var_os("GANGPLANK_HISTORY_FILE") {
        let (name, actions) = read(Path::new(&file));
        let found = violations(&actions);
        assert!(found.is_empty(), "{name}:\n{found:#?}");
        return;
    }
    let files = sequences();
    run_all(files.len(), |at| read(&files[at]), true);
    let steps: usize = setting("GANGPLANK_HISTORY_STEPS", STEPS);
    let first: u64 = setting("GANGPLANK_HISTORY_SEED", 1);
    let has_kills = std::env::var_os("GANGPLANK_HISTORY_STEPS").is_some();
    let random = |at: usize| {
        let seed = first + at as u64;
        let mut actions = generate::sequence(seed, LENGTH);
        if !has_kills {
            let calls = actions.iter_mut().filter_map(Action::options);
            calls.for_each(|options| options.kill_after = None);
        }
        (format!("seed {seed}"), actions)
    };
    run_all(steps.div_ceil(LENGTH), random, false);
}

#[test]
fn a_printed_sequence_parses_to_itself() {
    for seed in 0..50 {
        let actions = generate::sequence(seed, LENGTH);
        assert_eq!(parse_sequence(&print_sequence(&actions)), Ok(actions));
    }
}
