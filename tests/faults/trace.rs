//! Fault injection with strace(1).

use std::collections::HashMap;
use std::fmt;

use crate::fixture::Fixture;
use crate::support::{Answer, Call};

/// The log of strace on the node.
const LOG: &str = "/run/trace";

/// Time limit of a plugin; strace slows a call down by about 20 ms.
const LIMIT: &str = "timeout --signal=KILL 60";

/// A system call of a plugin. strace counts per name.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    /// `when=` of strace: the number of the call among those with the same name.
    pub occurrence: usize,
    /// The line in the log without a fault.
    pub line: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.occurrence)
    }
}

/// The injected fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process is killed.
    Killed,
    /// The process gets SIGTERM.
    Terminated,
    /// The system call is not made and fails with that errno.
    Failing(&'static str),
}

/// Runs a call with a fault at a step.
pub fn run_with_fault(fixture: &Fixture, call: &Call, step: &Step, fault: Fault) -> Answer {
    let what = match fault {
        Fault::Killed => "signal=KILL".to_owned(),
        Fault::Terminated => "signal=TERM".to_owned(),
        Fault::Failing(errno) => format!("error={errno}"),
    };
    let Step {
        name, occurrence, ..
    } = step;
    let inject = format!("--inject={name}:{what}:when={occurrence}");
    fixture.node.inside(|| drop(std::fs::remove_file(LOG)));
    call.clone()
        .under(&format!("{LIMIT} strace -o {LOG} {inject}"))
        .run()
}

/// The system calls of a call without a fault.
pub fn steps(fixture: &Fixture, call: &Call) -> Vec<Step> {
    let traced = call.clone().under(&format!("{LIMIT} strace -o {LOG}"));
    traced.run().ok();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut step = |line: &str| {
        let (name, _) = line.split_once('(')?;
        let name = name.to_owned();
        let occurrence = seen.entry(name.clone()).or_default();
        *occurrence += 1;
        let occurrence = *occurrence;
        Some(Step {
            name,
            occurrence,
            line: line.to_owned(),
        })
    };
    let log = fixture.node.read(LOG);
    let calls = log.lines().filter(|line| !line.starts_with(['-', '+']));
    calls.filter_map(&mut step).collect()
}

/// The last lines of the log.
pub fn last_lines(fixture: &Fixture) -> String {
    let log = fixture.node.read(LOG);
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.starts_with("+++"))
        .collect();
    let short = |line: &&str| line.chars().take(160).collect::<String>();
    let last = lines.iter().skip(lines.len().saturating_sub(2)).map(short);
    last.collect::<Vec<_>>().join(" / ")
}

/// The line of the system call that failed; `None` if none did.
pub fn injected_line(fixture: &Fixture) -> Option<String> {
    let log = fixture.node.read(LOG);
    let line = log.lines().find(|line| line.contains("(INJECTED)"))?;
    Some(line.chars().take(200).collect())
}
