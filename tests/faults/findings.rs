//! Which rounds there are, and what came of them.

use crate::support::{reference, say};

/// Which of the rounds: each one, or every few of them unless all are asked for.
pub fn chosen<T>(rounds: &[T], every: usize) -> impl Iterator<Item = &T> {
    let all = std::env::var("GANGPLANK_FAULTS").is_ok_and(|which| which == "all");
    let every = if all { 1 } else { every };
    rounds.iter().skip(every / 2).step_by(every)
}

/// What was found in many rounds.
pub struct Findings {
    what: String,
    rounds: usize,
    bad: Vec<String>,
}

impl Findings {
    pub fn of(what: &str) -> Findings {
        Findings {
            what: what.to_owned(),
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
        let Findings { what, rounds, bad } = self;
        let figure = format!("{what}: of {rounds} rounds {} went wrong", bad.len());
        say(&figure);
        if reference().is_some() {
            println!("{figure}\n   {}", bad.join("\n   "));
            return;
        }
        assert!(bad.is_empty(), "{figure}\n   {}", bad.join("\n   "));
    }
}
