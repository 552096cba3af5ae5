//! `gangplank doctor`: finds problems of this node's pod networks. `--fix` repairs those that can be repaired without
//! interrupting pods.
//!
//! Each submodule examines one part of the [`Node`] and changes nothing; only [`fix`] does.

mod addresses;
mod chained;
mod configurations;
mod files;
pub mod finding;
mod fix;
mod forward;
mod host;
mod links;
mod rules;

use std::fmt::Write;

use serde::Serialize;

use crate::cli::Answer;
use crate::cli::args::DoctorArgs;
use crate::cli::node::{Node, RECHECK_DELAY};
use crate::cli::style::{Style, Tone};
use crate::error::Error;
use finding::{Finding, Severity};

/// The exit status if there are unresolved findings.
const UNRESOLVED: u8 = 3;

/// A finding and the result of its repair.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    finding: Finding,
    fixable: bool,
    fixed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

pub fn doctor(args: &DoctorArgs, style: Style) -> Result<Answer, Error> {
    let mut node = Node::observe(&args.paths)?;
    let mut findings = examine(&node, args);
    if !findings.is_empty() {
        // An ADD or DEL in progress looks like a problem for a moment: only findings of both observations count.
        std::thread::sleep(RECHECK_DELAY);
        node = Node::observe(&args.paths)?;
        let before = std::mem::replace(&mut findings, examine(&node, args));
        let is_same =
            |one: &Finding, other: &Finding| (one.id, &one.cause) == (other.id, &other.cause);
        findings.retain(|finding| before.iter().any(|it| is_same(it, finding)));
    }
    let outcomes: Vec<Outcome> = findings
        .into_iter()
        .map(|finding| {
            let fix = finding.fix.as_ref();
            let applied = fix
                .filter(|_| args.fix)
                .map(|fix| fix::apply(fix, &node, &args.cni_path));
            Outcome {
                fixable: fix.is_some(),
                fixed: matches!(applied, Some(Ok(()))),
                failure: applied.and_then(Result::err).map(|error| error.to_string()),
                finding,
            }
        })
        .collect();
    let status = match outcomes.iter().all(|outcome| outcome.fixed) {
        true => 0,
        false => UNRESOLVED,
    };
    let text = |outcomes: &Vec<Outcome>| text(outcomes, args, style);
    Ok(Answer::report(&outcomes, args.format, text).with_status(status))
}

/// All findings, errors first.
fn examine(node: &Node, args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    files::examine(node, args, &mut findings);
    configurations::examine(node, args, &mut findings);
    addresses::examine(node, &mut findings);
    links::examine(node, &mut findings);
    rules::examine(node, &mut findings);
    chained::examine(node, &mut findings);
    host::examine(node, &mut findings);
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    findings
}

fn text(outcomes: &[Outcome], args: &DoctorArgs, style: Style) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let finding = &outcome.finding;
        let label = match (finding.severity, outcome.fixed) {
            (_, true) => style.tone(Tone::Good, "fixed"),
            (Severity::Error, false) => style.tone(Tone::Bad, "error"),
            (Severity::Warning, false) => style.tone(Tone::Warning, "warning"),
        };
        let (cause, id) = (&finding.cause, finding.id.as_str());
        let _ = writeln!(text, "{label}: {cause} [{id}]");
        for evidence in &finding.evidence {
            let _ = writeln!(text, "    evidence: {evidence}");
        }
        if let Some(failure) = &outcome.failure {
            let _ = writeln!(text, "    not repaired: {failure}");
        }
        if !outcome.fixed {
            let hint = match outcome.fixable && !args.fix {
                true => " (or gangplank doctor --fix)",
                false => "",
            };
            let _ = writeln!(text, "    remedy: {}{hint}", finding.remedy);
        }
    }
    let fixed = outcomes.iter().filter(|outcome| outcome.fixed).count();
    let _ = match (outcomes.len() - fixed, fixed) {
        (0, 0) => writeln!(text, "{}: nothing found", style.tone(Tone::Good, "ok")),
        (left, 0) => writeln!(text, "{left} found"),
        (left, fixed) => writeln!(text, "{fixed} repaired, {left} left"),
    };
    text
}
