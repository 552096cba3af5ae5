//! Delta debugging (Zeller, Hildebrandt): finds a short subsequence that still violates an invariant.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::action::{Action, Implementation};
use super::history::{self, Finding, HistoryResult};

/// Time limit.
const LIMIT: Duration = Duration::from_secs(30);

/// The findings of a sequence that the Go plugins do not have at the same steps.
pub fn violations(actions: &[Action]) -> Vec<Finding> {
    let HistoryResult { findings, killed } = history::run(actions, Implementation::Gangplank);
    if !findings.iter().any(|finding| finding.is_excused_by_go) {
        return findings;
    }
    let by_go = history::run(&without_late_kills(actions, &killed), Implementation::Go);
    let by_go = by_go.findings;
    let is_excused = |finding: &Finding| {
        let mut same = by_go
            .iter()
            .filter(|it| it.step == finding.step && it.kind == finding.kind);
        finding.is_excused_by_go && same.any(|it| it.subject == finding.subject)
    };
    findings
        .into_iter()
        .filter(|finding| !is_excused(finding))
        .collect()
}

/// The sequence without kills that came after the end of the call: the slower Go plugins might be killed, and killed
/// calls are not compared.
fn without_late_kills(actions: &[Action], killed: &BTreeSet<usize>) -> Vec<Action> {
    let mut actions = actions.to_vec();
    let steps = actions.iter_mut().enumerate();
    let calls = steps.filter_map(|(step, action)| Some((step, action.options()?)));
    for (_, options) in calls.filter(|(step, _)| !killed.contains(step)) {
        options.kill_after = None;
    }
    actions
}

/// A shorter sequence with a violation of the same kind.
pub fn minimize(actions: &[Action], violation: &Finding) -> Vec<Action> {
    let began = Instant::now();
    let fails = |actions: &[Action]| {
        violations(actions)
            .iter()
            .any(|it| it.kind == violation.kind)
    };
    let mut actions = actions[..=violation.step].to_vec();
    let mut size = actions.len() / 2;
    while size > 0 {
        let mut at = 0;
        let mut is_shorter = false;
        while at < actions.len() && began.elapsed() < LIMIT {
            let mut rest = actions.clone();
            rest.drain(at..(at + size).min(actions.len()));
            if fails(&rest) {
                actions = rest;
                is_shorter = true;
            } else {
                at += size;
            }
        }
        // Until no single action can be removed.
        if size > 1 || !is_shorter {
            size /= 2;
        }
    }
    actions
}
