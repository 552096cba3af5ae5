//! Random histories: sequences of actions by administrators, other tools, the Go plugins and ours on one node, with
//! invariants checked after each action (see [`history`]).
//!
//! An action is a line of text (see [`action`]), a history a text of such lines. Files of `tests/history/sequences` are
//! histories that once violated an invariant, minimised; they run first. Then come histories that are generated from a
//! seed: always the same few, without the calls that are killed, whose outcome depends on the speed of the machine; as many
//! as are asked for, with them. What violates an invariant is run again with the Go plugins in our place, where they might do the same, and is
//! minimised, printed and kept in a file; move it there with the correction.
//!
//! - `GANGPLANK_HISTORY_STEPS`: how many random steps;
//! - `GANGPLANK_HISTORY_SEED`: the first seed, 1 by default;
//! - `GANGPLANK_HISTORY_FILE`: runs this file alone, and prints the answer of each step.

mod action;
mod answers;
mod connectivity;
mod effects;
mod generate;
mod history;
mod minimise;
mod model;
mod networks;
mod remains;
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
use minimise::{minimise, violations};

use crate::implementation::{IPTABLES, ready};
use crate::support::say;

/// The length of one history: long enough to meet its own leftovers, short enough to be minimised.
const LENGTH: usize = 50;

/// How many random steps are always taken.
const STEPS: usize = 300;

/// How many violations of a kind are minimised; the others are counted.
const MINIMISED: usize = 3;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Violations by their kind: how many histories have one, and the shortest sequences of the first.
#[derive(Default)]
struct Report {
    violations: BTreeMap<String, (usize, Vec<String>)>,
}

impl Report {
    /// Counts the findings of a history; those that are to be minimised.
    fn count(&mut self, found: &[Finding]) -> Vec<Finding> {
        let kinds: BTreeSet<&String> = found.iter().map(|finding| &finding.kind).collect();
        let mut new = Vec::new();
        for kind in kinds {
            let (count, _) = self.violations.entry(kind.clone()).or_default();
            *count += 1;
            if *count <= MINIMISED {
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

/// The text of a file of `tests/history/sequences`.
fn describe(name: &str, finding: &Finding, shortest: &[Action]) -> String {
    let (step, text) = (finding.step + 1, finding.text.replace('\n', "\n# "));
    let sequence = print_sequence(shortest);
    format!(
        "# {name}, step {step}: {}: {text}\n{sequence}",
        finding.kind
    )
}

/// Keeps a minimised sequence, for [`GANGPLANK_HISTORY_FILE`](self) and for the sequences that run every time.
fn keep(name: &str, finding: &Finding, text: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("history");
    let words = format!("{name} {}", finding.kind);
    let file = words.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = dir.join(format!("{file}.txt"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    say(&format!("kept in {}", path.display()));
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
                say(&format!("{name}, step {}: {kind}: {text}", step + 1));
            }
            let new = report.lock().unwrap().count(&found);
            for finding in new {
                let shortest = match are_minimal {
                    true => actions.clone(),
                    false => minimise(&actions, &finding),
                };
                let text = describe(&name, &finding, &shortest);
                if !are_minimal {
                    keep(&name, &finding, &text);
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
    say(&format!("{steps} steps in {seconds:.0} s"));
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
    let are_killed = std::env::var_os("GANGPLANK_HISTORY_STEPS").is_some();
    let random = |at: usize| {
        let seed = first + at as u64;
        let mut actions = generate::sequence(seed, LENGTH);
        if !are_killed {
            let calls = actions.iter_mut().filter_map(Action::options);
            calls.for_each(|options| options.kill_after = None);
        }
        (format!("seed {seed}"), actions)
    };
    run_all(steps.div_ceil(LENGTH), random, false);
}

#[test]
fn a_sequence_is_read_as_it_is_printed() {
    for seed in 0..50 {
        let actions = generate::sequence(seed, LENGTH);
        assert_eq!(parse_sequence(&print_sequence(&actions)), Ok(actions));
    }
}
