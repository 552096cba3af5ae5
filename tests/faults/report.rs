//! The selection of rounds, and their results.

use std::fs::OpenOptions;
use std::io::Write;

use crate::support::{note, testing_go};

/// The file to which a line of tab-separated numbers is appended for each kind of fault; `tests/faults/run` formats it.
const TABLE: &str = "GANGPLANK_FAULTS_TABLE";

/// Every `every`-th round, or all with `GANGPLANK_FAULTS=all`.
pub fn chosen<T>(rounds: &[T], every: usize) -> impl Iterator<Item = &T> {
    let all = std::env::var("GANGPLANK_FAULTS").is_ok_and(|which| which == "all");
    let every = if all { 1 } else { every };
    rounds.iter().skip(every / 2).step_by(every)
}

/// The failures of many rounds.
pub struct FaultReport {
    what: String,
    calls: usize,
    rounds: usize,
    bad: Vec<String>,
}

impl FaultReport {
    /// For a call that makes this many system calls, or 0 for many calls.
    pub fn of(what: &str, calls: usize) -> FaultReport {
        FaultReport {
            what: what.to_owned(),
            calls,
            rounds: 0,
            bad: Vec::new(),
        }
    }

    /// Records the failures of a round. Returns whether there were any.
    pub fn note(&mut self, round: &str, wrong: &[String]) -> bool {
        self.rounds += 1;
        if !wrong.is_empty() {
            self.bad
                .push(format!("{round}\n      {}", wrong.join("\n      ")));
        }
        !wrong.is_empty()
    }

    /// Panics if there were failures; those of the Go plugins are only printed.
    pub fn finish(self) {
        let FaultReport {
            what,
            calls,
            rounds,
            bad,
        } = self;
        assert!(rounds > 0, "{what}: no fault was injected");
        let what_with_calls = match calls {
            0 => what.clone(),
            _ => format!("{what}, {calls} system calls"),
        };
        let summary = format!("{what_with_calls}: {} of {rounds} rounds failed", bad.len());
        note(&summary);
        if let Some(file) = std::env::var_os(TABLE) {
            let mut table = OpenOptions::new()
                .create(true)
                .append(true)
                .open(file)
                .unwrap();
            let line = format!("{what}\t{calls}\t{rounds}\t{}\n", bad.len());
            table.write_all(line.as_bytes()).unwrap();
        }
        if testing_go() {
            println!("{summary}\n   {}", bad.join("\n   "));
            return;
        }
        assert!(bad.is_empty(), "{summary}\n   {}", bad.join("\n   "));
    }
}
