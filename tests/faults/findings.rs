//! Which rounds there are, and what came of them.

use std::fs::OpenOptions;
use std::io::Write;

use crate::support::{say, testing_go};

/// The file that gets a line of figures for each kind of disturbance, fields apart by tabs; `tests/faults/run` makes a
/// table of it.
const TABLE: &str = "GANGPLANK_FAULTS_TABLE";

/// Which of the rounds: each one, or every few of them unless all are asked for.
pub fn chosen<T>(rounds: &[T], every: usize) -> impl Iterator<Item = &T> {
    let all = std::env::var("GANGPLANK_FAULTS").is_ok_and(|which| which == "all");
    let every = if all { 1 } else { every };
    rounds.iter().skip(every / 2).step_by(every)
}

/// What was found in many rounds.
pub struct Findings {
    what: String,
    calls: usize,
    rounds: usize,
    bad: Vec<String>,
}

impl Findings {
    /// Of a verb that makes so many system calls.
    pub fn of(what: &str, calls: usize) -> Findings {
        Findings {
            what: what.to_owned(),
            calls,
            rounds: 0,
            bad: Vec::new(),
        }
    }

    /// Keeps what was wrong in a round, if anything was.
    pub fn note(&mut self, round: &str, wrong: &[String]) -> bool {
        self.rounds += 1;
        if !wrong.is_empty() {
            self.bad
                .push(format!("{round}\n      {}", wrong.join("\n      ")));
        }
        !wrong.is_empty()
    }

    /// Fails when anything was wrong; for the reference it is only told.
    pub fn finish(self) {
        let Findings {
            what,
            calls,
            rounds,
            bad,
        } = self;
        assert!(rounds > 0, "{what}: nothing was disturbed");
        let figure = format!(
            "{what}, {calls} system calls: of {rounds} rounds {} went wrong",
            bad.len()
        );
        say(&figure);
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
            println!("{figure}\n   {}", bad.join("\n   "));
            return;
        }
        assert!(bad.is_empty(), "{figure}\n   {}", bad.join("\n   "));
    }
}
