//! Defects of the reference that must be gone. Each test plays one scenario with both parties: ours must do well,
//! and the reference must show the defect, so that the test itself is proven. The numbers are those of the
//! behaviour specification, section 6. D4d, D14, D16, D19 and D21 to D23 are not here: Debian's 1.1.1 does not have
//! them, they cannot be provoked from outside, or their tests are in `tests/netns`.

mod addresses;
mod attach;
mod check;
mod cleanup;
mod routes;

use serde_json::{Value, json};

use crate::implementation::{Implementation, node};
use crate::support::{Answer, Network, Node, Pod, small_network};

/// A fresh node, the plugins of one party, and a network on it.
struct Fixture {
    node: Node,
    party: Implementation,
}

impl Fixture {
    fn new(party: Implementation) -> Fixture {
        Fixture {
            node: node(),
            party,
        }
    }

    fn call(&self, verb: &str, pod: &Pod, config: &Value) -> Answer {
        self.party
            .call_for(&self.node, config)
            .verb(verb)
            .pod(pod)
            .run()
    }

    #[track_caller]
    fn add(&self, pod: &Pod, config: &Value) -> Value {
        self.call("ADD", pod, config).ok()
    }

    #[track_caller]
    fn del(&self, pod: &Pod, config: &Value) {
        self.call("DEL", pod, config).ok();
    }

    fn check(&self, pod: &Pod, config: &Value, result: &Value) -> Answer {
        let config = with(config, "prevResult", result.clone());
        self.call("CHECK", pod, &config)
    }

    /// The nat rules of both families.
    fn rules(&self) -> Vec<String> {
        crate::implementation::nat_rules(&self.node)
    }

    /// The addresses that are leased on the network `small`.
    fn leases(&self) -> Vec<String> {
        let leases = crate::support::leases(&self.node, "small");
        leases.iter().map(ToString::to_string).collect()
    }
}

fn with(config: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut config = config.clone();
    config[key] = value.into();
    config
}

fn masqueraded() -> Value {
    with(&small_network(), "ipMasq", true)
}

fn dual_masqueraded() -> Value {
    let mut config = masqueraded();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

fn succeeds(answer: &Answer) -> bool {
    answer.code == Some(0)
}

/// Whether an answer is in order, good or bad: one document on stdout, no crash.
fn is_in_order(answer: &Answer) -> bool {
    let documents = serde_json::Deserializer::from_str(&answer.stdout).into_iter::<Value>();
    let documents = documents.collect::<Vec<_>>();
    matches!(answer.code, Some(0 | 1))
        && documents.len() <= 1
        && documents.iter().all(Result::is_ok)
}

fn host_link(result: &Value) -> String {
    Network::host_link(result)
}
