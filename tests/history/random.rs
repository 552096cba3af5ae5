//! Random histories: sequences of actions by administrators, other tools, the Go plugins and ours on one node, with
//! invariants checked after each action (see [`history`]).
//!
//! An action is a line of text (see [`action`]), a history a text of such lines. Files of `tests/history/sequences` are
//! histories that once violated an invariant, minimised; they run first. Then come histories that are generated from a
//! seed. What violates an invariant is run again with the Go plugins in our place, where they might do the same, and is
//! minimised and printed; save it in a file there with the correction.
//!
//! - `GANGPLANK_HISTORY_STEPS`: how many random steps, none by default: the outcome of some depends on the speed of the
//!   machine, and what they find needs a person's judgement before it is a regression;
//! - `GANGPLANK_HISTORY_SEED`: the first seed, 1 by default;
//! - `GANGPLANK_HISTORY_FILE`: runs this file alone, and prints what is found at each step.

mod action;
mod answers;
mod connectivity;
mod effects;
mod generate;
mod history;
mod minimise;
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
use minimise::{minimise, violations};

use crate::party::{IPTABLES, ready};
use crate::support::say;

/// The length of one history: long enough to meet its own leftovers, short enough to be minimised.
const LENGTH: usize = 50;

/// How many violations are minimised and printed; the others are counted.
const PRINTED: usize = 20;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Violations by their kind, with the first sequence of each.
#[derive(Default)]
struct Report {
    violations: BTreeMap<String, (usize, String)>,
}

impl Report {
    /// Counts the findings of a history; those of a kind that is to be printed.
    fn count(&mut self, found: &[Finding]) -> Vec<Finding> {
        let kinds: BTreeSet<&String> = found.iter().map(|finding| &finding.kind).collect();
        let mut new = Vec::new();
        for kind in kinds {
            let is_printed = self.violations.len() < PRINTED;
            let (count, _) = self.violations.entry(kind.clone()).or_default();
            *count += 1;
            if *count == 1 && is_printed {
                new.extend(found.iter().find(|finding| finding.kind == *kind).cloned());
            }
        }
        new
    }

    fn print(&mut self, name: &str, finding: &Finding, shortest: &[Action]) {
        let (_, text) = self.violations.entry(finding.kind.clone()).or_default();
        let sequence = print_sequence(shortest);
        *text = format!(
            "{name}, step {}: {}\n{sequence}",
            finding.step + 1,
            finding.text
        );
    }
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
            let new = report.lock().unwrap().count(&found);
            for finding in new {
                let shortest = match are_minimal {
                    true => actions.clone(),
                    false => minimise(&actions, &finding),
                };
                report.lock().unwrap().print(&name, &finding, &shortest);
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
        .map(|(kind, (count, text))| format!("{kind}, {count} histories:\n{text}"));
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
    let steps: usize = setting("GANGPLANK_HISTORY_STEPS", 0);
    let first: u64 = setting("GANGPLANK_HISTORY_SEED", 1);
    let random = |at: usize| {
        let seed = first + at as u64;
        (format!("seed {seed}"), generate::sequence(seed, LENGTH))
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
