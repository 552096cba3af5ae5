//! `gangplank doctor`: what is wrong with this node's pod networks, and `--fix`, which repairs what is safe to repair.
//!
//! Each room looks at one part of the [`Node`] and changes nothing; [`fix`] alone does.

mod addresses;
mod configurations;
mod files;
mod finding;
mod fix;
mod forward;
mod host;
mod links;
mod rules;

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::cli::node::Node;
use crate::cli::style::{Style, Tone};
use crate::cli::{Answer, args};
use crate::error::Error;
use finding::{Finding, Severity};

/// The exit status when something was found that still stands.
const FOUND: u8 = 3;

/// How long after a first look that found something there is a second one.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// A finding and what became of it.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    finding: Finding,
    /// Whether `--fix` can repair it.
    fixable: bool,
    /// Whether it was repaired now.
    fixed: bool,
    /// Why it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// Looks for everything, and repairs what is safe when that was asked for.
///
/// # Errors
/// When the node cannot be looked at.
pub fn doctor(asked: &args::Doctor, style: Style) -> Result<Answer, Error> {
    let mut node = Node::look(&asked.paths)?;
    let mut findings = examine(&node, asked);
    if !findings.is_empty() {
        // An ADD or a DEL at work looks like a fault for a moment: what counts is seen twice.
        std::thread::sleep(BETWEEN_LOOKS);
        node = Node::look(&asked.paths)?;
        let before = std::mem::replace(&mut findings, examine(&node, asked));
        findings.retain(|it| {
            before
                .iter()
                .any(|old| (old.id, &old.cause) == (it.id, &it.cause))
        });
    }
    let outcomes: Vec<Outcome> = findings
        .into_iter()
        .map(|finding| match finding.fix.as_ref().filter(|_| asked.fix) {
            None => outcome(finding, None),
            Some(fix) => {
                let done = fix::apply(fix, &node, &asked.cni_path);
                outcome(finding, Some(done))
            }
        })
        .collect();
    let stands = outcomes.iter().any(|outcome| !outcome.fixed);
    let status = if stands { FOUND } else { 0 };
    Ok(match asked.json {
        true => Answer::json(&outcomes, status),
        false => Answer {
            text: tell(&outcomes, asked, style),
            status,
            warnings: Vec::new(),
        },
    })
}

/// All findings, those that matter most first.
fn examine(node: &Node, asked: &args::Doctor) -> Vec<Finding> {
    let mut findings = Vec::new();
    files::examine(node, asked, &mut findings);
    configurations::examine(node, asked, &mut findings);
    addresses::examine(node, &mut findings);
    links::examine(node, &mut findings);
    rules::examine(node, &mut findings);
    host::examine(node, &mut findings);
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    findings
}

fn outcome(finding: Finding, done: Option<Result<(), Error>>) -> Outcome {
    Outcome {
        fixable: finding.fix.is_some(),
        fixed: matches!(done, Some(Ok(()))),
        failure: done.and_then(Result::err).map(|error| error.to_string()),
        finding,
    }
}

fn tell(outcomes: &[Outcome], asked: &args::Doctor, style: Style) -> String {
    let mut text = String::new();
    for Outcome {
        finding,
        fixable,
        fixed,
        failure,
    } in outcomes
    {
        let (tone, mark) = match (finding.severity, fixed) {
            (_, true) => (Tone::Good, "fixed"),
            (Severity::Error, false) => (Tone::Bad, "error"),
            (Severity::Warning, false) => (Tone::Warning, "warning"),
        };
        let _ = writeln!(
            text,
            "{}: {} [{}]",
            style.tone(tone, mark),
            finding.cause,
            finding.id
        );
        for evidence in &finding.evidence {
            let _ = writeln!(text, "    seen: {evidence}");
        }
        if let Some(failure) = failure {
            let _ = writeln!(text, "    not repaired: {failure}");
        }
        if !fixed {
            let hint = if *fixable && !asked.fix {
                " (or gangplank doctor --fix)"
            } else {
                ""
            };
            let _ = writeln!(text, "    remedy: {}{hint}", finding.remedy);
        }
    }
    let fixed = outcomes.iter().filter(|outcome| outcome.fixed).count();
    let left = outcomes.len() - fixed;
    let _ = match (left, fixed) {
        (0, 0) => writeln!(text, "{}: nothing found", style.tone(Tone::Good, "ok")),
        (left, 0) => writeln!(text, "{left} found"),
        (left, fixed) => writeln!(text, "{fixed} repaired, {left} left"),
    };
    text
}
