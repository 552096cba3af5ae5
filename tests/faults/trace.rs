//! Fault injection with strace(1).

use std::collections::HashMap;
use std::fmt;

use crate::fixture::Fixture;
use crate::support::{Answer, Call, Pod};

/// The log of strace on the node.
const LOG: &str = "/run/trace";

/// Time limit of a plugin; strace slows a call down by about 20 ms.
const LIMIT: &str = "timeout --signal=KILL 60";

/// A system call of a plugin. strace counts per name.
#[derive(Clone, Debug)]
pub struct Step {
    /// The index of the plugin in the chain.
    pub plugin: usize,
    pub name: String,
    /// `when=` of strace: the number of the call among those with the same name.
    pub occurrence: usize,
    /// The line in the log without a fault.
    pub line: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plugin {}, {} {}",
            self.plugin, self.name, self.occurrence
        )
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

/// Runs a verb for a pod with a fault at a step.
pub fn run_with_fault(
    fixture: &Fixture,
    (verb, pod): (&str, &Pod),
    step: &Step,
    fault: Fault,
) -> Answer {
    fixture.run_with(verb, pod, |plugin, call| match plugin == step.plugin {
        true => call_with_fault(fixture, call, step, fault),
        false => call.run(),
    })
}

/// Runs a call with a fault at a step.
pub fn call_with_fault(fixture: &Fixture, call: &Call, step: &Step, fault: Fault) -> Answer {
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

/// The system calls of a verb without a fault.
pub fn steps(fixture: &Fixture, verb: &str, pod: &Pod) -> Vec<Step> {
    let mut steps = Vec::new();
    let answer = fixture.run_with(verb, pod, |plugin, call| {
        let (answer, of_call) = traced(fixture, call);
        steps.extend(of_call.into_iter().map(|step| Step { plugin, ..step }));
        answer
    });
    answer.ok();
    steps
}

/// The system calls of a call, which must succeed.
pub fn steps_of_call(fixture: &Fixture, call: &Call) -> Vec<Step> {
    let (answer, steps) = traced(fixture, call);
    answer.ok();
    steps
}

fn traced(fixture: &Fixture, call: &Call) -> (Answer, Vec<Step>) {
    let traced = call.clone().under(&format!("{LIMIT} strace -o {LOG}"));
    let answer = traced.run();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut step = |line: &str| {
        let (name, _) = line.split_once('(')?;
        let name = name.to_owned();
        let occurrence = seen.entry(name.clone()).or_default();
        *occurrence += 1;
        let occurrence = *occurrence;
        Some(Step {
            plugin: 0,
            name,
            occurrence,
            line: line.to_owned(),
        })
    };
    let log = fixture.node.read(LOG);
    let calls = log.lines().filter(|line| !line.starts_with(['-', '+']));
    (answer, calls.filter_map(&mut step).collect())
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
