//! What must hold after a call with an injected fault.

use serde_json::Value;

use crate::fixture::{Fixture, difference};
use crate::support::Answer;

/// The result of a successful call; otherwise adds a failure to `wrong`.
pub fn succeeded(what: &str, answer: &Answer, wrong: &mut Vec<String>) -> Option<Value> {
    if answer.code == Some(0) {
        return Some(serde_json::from_str(&answer.stdout).unwrap_or(Value::Null));
    }
    let stdout = answer
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    wrong.push(format!("{what} failed: {stdout} {}", answer.stderr));
    None
}

/// Failures after an ADD with a fault: DEL must remove everything, and the next ADDs must succeed.
pub fn wrong_after_add(fixture: &Fixture) -> Vec<String> {
    let mut wrong = Vec::new();
    succeeded("DEL", &fixture.run("DEL", &fixture.pod), &mut wrong);
    wrong.extend(left(fixture, 0));
    wrong.extend(wrong_with_next(fixture));
    wrong
}

/// Differences from the state without attached pods, or with those plugins of the chain that succeeded before. If the network was not used before, the bridge, the lease
/// directory and forwarding may be missing: the next ADD creates them.
pub fn left(fixture: &Fixture, plugins: usize) -> Vec<String> {
    let mut left = difference(&fixture.partial[plugins], &fixture.state());
    let is_made_once = |fact: &String| {
        !fact.starts_with("left") || fact.starts_with("left: br0") || fact.contains("forward")
    };
    left.retain(|fact| fixture.kind.used || !is_made_once(fact));
    left
}

/// Failures when the same container and another one are now added and deleted.
pub fn wrong_with_next(fixture: &Fixture) -> Vec<String> {
    let mut wrong = Vec::new();
    let added = fixture.run("ADD", &fixture.pod);
    if let Some(result) = succeeded("the next ADD", &added, &mut wrong) {
        wrong.extend(difference(&fixture.full, &fixture.state()));
        succeeded(
            "its CHECK",
            &fixture.check(&fixture.pod, &result),
            &mut wrong,
        );
    }
    let added = fixture.run("ADD", &fixture.other);
    succeeded("another's ADD", &added, &mut wrong);
    for pod in [&fixture.pod, &fixture.other] {
        succeeded("DEL in the end", &fixture.run("DEL", pod), &mut wrong);
    }
    wrong.extend(difference(&fixture.empty, &fixture.state()));
    wrong
}
