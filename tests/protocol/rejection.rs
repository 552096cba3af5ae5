//! Invalid inputs are rejected before any change, with an error that names field and value.

use crate::invalid_inputs::{InvalidInput, invalid_inputs};
use crate::support::{Answer, Network, Node, NodeState, Pod, note, requires, testing_go};

impl InvalidInput {
    fn run(&self, node: &Node, pod: &Pod) -> Answer {
        let mut call = node.cni(self.plugin).verb("ADD").pod(pod);
        call = match &self.raw {
            Some(bytes) => call.stdin(bytes.clone()),
            None => call.config(&self.config),
        };
        for (name, value) in &self.env {
            call = match value {
                Some(value) => call.env(name, value),
                None => call.unset(name),
            };
        }
        call.run()
    }

    /// Checks the answer to an invalid input.
    fn verify(&self, answer: &Answer) -> Result<(), String> {
        if answer.code != Some(1) {
            return Err(format!("not rejected: {answer:?}"));
        }
        let document: serde_json::Value = serde_json::from_str(&answer.stdout)
            .map_err(|e| format!("not one JSON document, {e}: {answer:?}"))?;
        let code = document["code"].as_u64().unwrap_or_default();
        if !self.codes.contains(&code) {
            return Err(format!(
                "code {code} is none of {:?}: {document}",
                self.codes
            ));
        }
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let message = format!("{} {}", text("msg"), text("details"));
        match self.words.iter().find(|word| !message.contains(**word)) {
            Some(word) => Err(format!("no {word:?} in: {message}")),
            None => Ok(()),
        }
    }
}

#[test]
fn invalid_inputs_are_rejected_before_any_change() {
    requires!("iptables", "ip6tables");
    if testing_go() {
        return assert_rejected_by_go_too();
    }
    let node = Node::new("node");
    node.write("/run/plain", "");
    let pod = node.pod("pod");
    let before = NodeState::of(&node);
    let in_pod = pod.run("ip -o link");
    let mut wrong = Vec::new();
    let inputs = invalid_inputs();
    for input in &inputs {
        let answer = input.run(&node, &pod);
        if let Err(why) = input.verify(&answer) {
            wrong.push(format!("{}: {why}", input.name));
        }
        let after = NodeState::of(&node);
        if after != before || pod.run("ip -o link") != in_pod {
            wrong.push(format!("{}: the state changed: {after:?}", input.name));
            break;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} inputs:\n{}",
        wrong.len(),
        inputs.len(),
        wrong.join("\n")
    );
    // The unmodified configuration is valid.
    let network = node.network(InvalidInput::valid());
    let result = network.add(&pod);
    node.reaches(&Network::address(&result));
}

/// The Go plugins reject the same inputs, except those marked with `accepted_by_go`.
fn assert_rejected_by_go_too() {
    let mut wrong = Vec::new();
    for input in invalid_inputs() {
        let node = Node::new("node");
        node.write("/run/plain", "");
        let pod = node.pod("pod");
        let answer = input.run(&node, &pod);
        if (answer.code == Some(0)) != input.accepted_by_go {
            wrong.push(format!("{}: {answer:?}", input.name));
        }
    }
    note("error codes, messages and resources left by the Go plugins are not checked");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_complete_and_its_names_are_unique() {
    let inputs = invalid_inputs();
    assert!(inputs.len() >= 70, "{}", inputs.len());
    let names: std::collections::BTreeSet<&str> = inputs.iter().map(|input| input.name).collect();
    assert_eq!(names.len(), inputs.len());
}
