//! What is wrong is refused before anything is touched, with the field and the value.

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

    /// What is wrong with the answer, if anything is.
    fn verdict(&self, answer: &Answer) -> Result<(), String> {
        if answer.code != Some(1) {
            return Err(format!("it was not refused: {answer:?}"));
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
        let said = format!("{} {}", text("msg"), text("details"));
        match self.words.iter().find(|word| !said.contains(**word)) {
            Some(word) => Err(format!("it does not say {word:?}: {said}")),
            None => Ok(()),
        }
    }
}

#[test]
fn every_wrong_input_is_refused_and_nothing_is_touched() {
    requires!("iptables", "ip6tables");
    if testing_go() {
        return every_wrong_input_is_wrong_to_the_reference_too();
    }
    let node = Node::new("node");
    node.write("/run/plain", "");
    let pod = node.pod("pod");
    let before = NodeState::of(&node);
    let in_pod = pod.run("ip -o link");
    let mut wrong = Vec::new();
    let rows = invalid_inputs();
    for row in &rows {
        let answer = row.run(&node, &pod);
        if let Err(why) = row.verdict(&answer) {
            wrong.push(format!("{}: {why}", row.name));
        }
        let after = NodeState::of(&node);
        if after != before || pod.run("ip -o link") != in_pod {
            wrong.push(format!("{}: something was touched: {after:?}", row.name));
            break;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    // What the rows change is right as it stands.
    let network = node.network(InvalidInput::right());
    let result = network.add(&pod);
    node.reaches(&Network::address(&result));
}

/// The reference refuses the same inputs, except where a row says otherwise: so each of them is really wrong.
fn every_wrong_input_is_wrong_to_the_reference_too() {
    let mut wrong = Vec::new();
    for row in invalid_inputs() {
        let node = Node::new("node");
        node.write("/run/plain", "");
        let pod = node.pod("pod");
        let answer = row.run(&node, &pod);
        if (answer.code == Some(0)) != row.accepted_by_go {
            wrong.push(format!("{}: {answer:?}", row.name));
        }
    }
    note("its codes, its words and what it leaves behind are not looked at");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_as_long_as_it_should_be_and_its_names_differ() {
    let rows = invalid_inputs();
    assert!(rows.len() >= 70, "{}", rows.len());
    let names: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len());
}
