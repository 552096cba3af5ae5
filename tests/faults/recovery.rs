//! What must hold after a call that was disturbed.

use serde_json::Value;

use crate::fixture::{Fixture, difference};
use crate::support::Answer;

/// Whether an answer is that of a success; otherwise what it says.
pub fn succeeded(what: &str, answer: &Answer, wrong: &mut Vec<String>) -> Option<Value> {
    if answer.code == Some(0) {
        return Some(serde_json::from_str(&answer.stdout).unwrap_or(Value::Null));
    }
    let said = answer
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    wrong.push(format!("{what} failed: {said} {}", answer.stderr));
    None
}

/// What is wrong after an ADD that was disturbed: DEL must take all of it, and then ADDs must do all they should.
pub fn wrong_after_add(fixture: &Fixture) -> Vec<String> {
    let mut wrong = Vec::new();
    succeeded("DEL", &fixture.call("DEL", &fixture.pod).run(), &mut wrong);
    wrong.extend(left(fixture));
    wrong.extend(wrong_with_next(fixture));
    wrong
}

/// What stands though no pod is attached, and what does not. The bridge, the directory and forwarding are made once and
/// stay: what a first ADD was still to make of them is no loss, for the next one makes it.
pub fn left(fixture: &Fixture) -> Vec<String> {
    let mut left = difference(&fixture.empty, &fixture.state());
    let is_made_once = |fact: &String| {
        !fact.starts_with("left") || fact.starts_with("left: br0") || fact.contains("forward")
    };
    left.retain(|fact| fixture.kind.used || !is_made_once(fact));
    left
}

/// What is wrong when the same container and another one are attached now, and detached.
pub fn wrong_with_next(fixture: &Fixture) -> Vec<String> {
    let mut wrong = Vec::new();
    let added = fixture.call("ADD", &fixture.pod).run();
    if let Some(result) = succeeded("the next ADD", &added, &mut wrong) {
        wrong.extend(difference(&fixture.full, &fixture.state()));
        succeeded(
            "its CHECK",
            &fixture.check(&fixture.pod, &result),
            &mut wrong,
        );
    }
    let added = fixture.call("ADD", &fixture.other).run();
    succeeded("another's ADD", &added, &mut wrong);
    for pod in [&fixture.pod, &fixture.other] {
        succeeded(
            "DEL in the end",
            &fixture.call("DEL", pod).run(),
            &mut wrong,
        );
    }
    wrong.extend(difference(&fixture.empty, &fixture.state()));
    wrong
}
