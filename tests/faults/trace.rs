//! Faults in the calls of a fixture.

use crate::fixture::Fixture;
pub use crate::support::trace::{Fault, LOG, Step};
use crate::support::{Answer, Call, Pod};

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
    fixture.node.call_with_fault(call, step, fault)
}

/// The system calls of a verb without a fault.
pub fn steps(fixture: &Fixture, verb: &str, pod: &Pod) -> Vec<Step> {
    let mut steps = Vec::new();
    let answer = fixture.run_with(verb, pod, |plugin, call| {
        let (answer, of_call) = fixture.node.traced(call);
        steps.extend(of_call.into_iter().map(|step| Step { plugin, ..step }));
        answer
    });
    answer.ok();
    steps
}

/// The system calls of a call, which must succeed.
pub fn steps_of_call(fixture: &Fixture, call: &Call) -> Vec<Step> {
    let (answer, steps) = fixture.node.traced(call);
    answer.ok();
    steps
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
