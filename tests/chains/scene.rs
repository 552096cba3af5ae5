//! A node with a chain, and what is done to its pods.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::Case;
use crate::remains::{self, added_to, of_pods, state};
use crate::support::trace::{Fault, Step};
use crate::support::{Answer, Call, Chain, Node, PLUGINS, Pod, connect, note};
use crate::table::Runtime;

pub struct Scene<'c> {
    pub case: &'c Case,
    pub node: Node,
    /// A host outside, with a route to the pods.
    pub outside: Node,
    /// The state without pods. It has what the first pod created and others share.
    before: BTreeSet<String>,
    pods: usize,
}

/// A pod, and what the runtime stores about it.
pub struct Attachment {
    pub pod: Pod,
    pub number: usize,
    pub result: Value,
}

/// How the runtime deletes a pod.
#[derive(Clone, Copy, Debug)]
enum Del {
    /// In reverse order, as the specification says.
    Reverse,
    /// In the order of ADD.
    Forward,
    /// In reverse order and twice.
    Repeated,
    /// In reverse order, after the namespace has ended: CNI_NETNS is empty.
    WithoutNetns,
}

impl<'c> Scene<'c> {
    /// `None` if this kernel cannot run the chain.
    pub fn new(case: &'c Case) -> Option<Scene<'c>> {
        let (node, outside) = (Node::new("node"), Node::new("outside"));
        remains::install(&node);
        connect(&node, "eth0", &outside, "eth0");
        for (host, n) in [(&node, 5), (&outside, 9)] {
            host.run(&format!("ip addr add 172.18.0.{n}/24 dev eth0"));
            host.run(&format!("ip addr add fd18::{n}/64 dev eth0 nodad"));
            host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        }
        outside.run_all("ip route add default via 172.18.0.5\nip -6 route add default via fd18::5");
        let mut scene = Scene {
            case,
            node,
            outside,
            before: BTreeSet::new(),
            pods: 1,
        };
        scene.install();
        scene.prepare();
        let pristine = state(&scene.node);
        let first = scene.pod();
        let added = scene.try_add(&first, |_, call| call.run());
        if scene.lacks_vlan_filtering(&added) {
            // D3: a failed ADD of the Go plugin is not undone.
            if scene.go() != Some("bridge") {
                let left = added_to(&pristine, &scene.node);
                assert_eq!(left, [""; 0], "after the failed ADD");
            }
            note(&format!(
                "{}: skipped, this kernel has no VLAN filtering",
                case.name()
            ));
            return None;
        }
        let first = Attachment {
            result: added.ok(),
            ..first
        };
        scene.del(&first, Del::Reverse);
        scene.before = state(&scene.node);
        let left = remains::without_known(&of_pods(&scene.before), scene.go());
        assert!(left.is_empty(), "left after the first DEL: {left:#?}");
        Some(scene)
    }

    pub fn runtime(&self) -> &'static Runtime {
        self.case.runtime
    }

    /// Fills the bin directory: gangplank's file under its names, as `gangplank install` does, and one Go plugin.
    fn install(&self) {
        for plugin in PLUGINS {
            self.node.run(&format!("rm {}/{plugin}", Node::BIN));
        }
        self.node.run(&format!(
            "{} install {}",
            crate::support::binary().display(),
            Node::BIN
        ));
        if let Some((plugin, file)) = &self.case.go {
            self.node.replace_plugin(plugin, file);
        }
    }

    fn prepare(&self) {
        // Creates the tables, which iptables-save lists once they were used.
        for program in ["iptables", "ip6tables"] {
            for table in ["filter", "nat"] {
                self.node
                    .run(&format!("{program} -t {table} -P OUTPUT ACCEPT"));
            }
            self.node.run(&format!("{program} -P FORWARD ACCEPT"));
        }
        for line in self.runtime().node.lines() {
            match line.strip_prefix("write ") {
                Some(rest) => {
                    let (file, content) = rest.split_once(' ').expect("a file and its lines");
                    self.node.write(file, &content.replace(' ', "\n"));
                }
                None => drop(self.node.run(line)),
            }
        }
    }

    fn lacks_vlan_filtering(&self, added: &Answer) -> bool {
        let has_vlan = self.runtime().list().to_string().contains("\"vlan\"");
        has_vlan && added.code == Some(1) && added.error().text().to_lowercase().contains("vlan")
    }

    /// A new pod that is not attached.
    pub fn pod(&mut self) -> Attachment {
        self.pods += 1;
        Attachment {
            pod: self.node.pod(&format!("victim-{}", self.pods)),
            number: self.pods,
            result: Value::Null,
        }
    }

    /// The chain for a pod, with the values of the runtime for capabilities.
    pub fn chain(&self, number: usize) -> Chain<'_> {
        let mapping = |protocol: &str| json!({ "hostPort": 8000 + number, "containerPort": 9000, "protocol": protocol, "hostIP": "" });
        let chain = self.node.chain(&self.runtime().list());
        let limit = json!({ "ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000 });
        let chain = chain
            .with_args(&self.runtime().args.replace("{n}", &number.to_string()))
            .with_ports(json!([mapping("tcp"), mapping("udp")]))
            .with_capability("bandwidth", limit)
            .with_capability("mac", format!("02:00:00:00:01:{number:02x}").into());
        // Go's flannel 0.9 supports versions up to 0.4.0.
        match &self.case.go {
            Some((plugin, _)) if plugin == "flannel" => chain.version("0.3.1"),
            _ => chain,
        }
    }

    fn try_add(&self, pod: &Attachment, execute: impl FnMut(usize, &Call) -> Answer) -> Answer {
        self.run("ADD", pod, execute)
    }

    /// Runs a verb of all plugins up to the first failure.
    fn run(
        &self,
        verb: &str,
        to: &Attachment,
        execute: impl FnMut(usize, &Call) -> Answer,
    ) -> Answer {
        let prev = self.prev_result(verb, to);
        self.chain(to.number).run(verb, (&to.pod, &prev), execute)
    }

    /// libcni passes prevResult to DEL and CHECK since version 0.4.0.
    fn prev_result(&self, verb: &str, to: &Attachment) -> Value {
        let version = self.chain(0).list()["cniVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        if verb == "ADD" || version.as_str() < "0.4.0" {
            Value::Null
        } else {
            to.result.clone()
        }
    }

    #[track_caller]
    pub fn add(&mut self) -> Attachment {
        let pod = self.pod();
        let answer = self.try_add(&pod, |_, call| call.run());
        Attachment {
            result: answer.ok(),
            ..pod
        }
    }

    pub fn check(&self, to: &Attachment) {
        let version = self.chain(0).list()["cniVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        if version.as_str() >= "0.4.0" {
            self.run("CHECK", to, |index, call| {
                let answer = call.run();
                assert_eq!(answer.code, Some(0), "CHECK of plugin {index}: {answer:?}");
                answer
            })
            .ok();
        }
    }

    /// Calls DEL of all plugins, which must succeed.
    fn del(&self, of: &Attachment, how: Del) {
        run_all(&self.del_calls(of, how), how);
    }

    fn del_calls(&self, of: &Attachment, how: Del) -> Vec<Call<'_>> {
        let (chain, prev) = (self.chain(of.number), self.prev_result("DEL", of));
        let call = |index: usize| {
            let call = chain.call(index, "DEL", &prev).pod(&of.pod);
            match how {
                Del::WithoutNetns => call.netns(""),
                _ => call,
            }
        };
        let in_order = 0..chain.plugins.len();
        match how {
            Del::Forward => in_order.map(call).collect(),
            Del::Repeated => in_order
                .clone()
                .rev()
                .chain(in_order.rev())
                .map(call)
                .collect(),
            Del::Reverse | Del::WithoutNetns => in_order.rev().map(call).collect(),
        }
    }

    /// Asserts that nothing remains except what a Go plugin is known to leave.
    fn assert_nothing_left(&mut self, after: &str) {
        let left = added_to(&self.before, &self.node);
        let unknown = remains::without_known(&left, self.go());
        assert!(unknown.is_empty(), "left {after}: {unknown:#?}");
        self.before = state(&self.node);
    }

    /// The plugin that is the Go plugin.
    fn go(&self) -> Option<&str> {
        self.case.go.as_ref().map(|(plugin, _)| plugin.as_str())
    }

    pub fn delete_in_order(&mut self, attachments: Vec<Attachment>) {
        for attachment in attachments {
            self.del(&attachment, Del::Reverse);
            let links = attachment.pod.run("ip -o link");
            assert_eq!(links.lines().count(), 1, "in the pod after DEL: {links}");
        }
        self.assert_nothing_left("after DEL in reverse order");
    }

    pub fn any_order_of_del_removes_everything(&mut self) {
        for how in [Del::Forward, Del::Repeated, Del::WithoutNetns] {
            let attachment = self.add();
            let calls = self.del_calls(&attachment, how);
            if matches!(how, Del::WithoutNetns) {
                attachment.pod.end();
            }
            run_all(&calls, how);
            self.assert_nothing_left(&format!("after DEL {how:?}"));
        }
    }

    /// The runtime fails at the missing plugin, both in ADD and in the following DEL, until the plugin is back.
    pub fn del_after_a_missing_plugin_removes_everything(&mut self) {
        let plugins = self.chain(0).plugins.len();
        for missing in 1..plugins {
            let missing_type = self.chain(0).plugins[missing].config["type"]
                .as_str()
                .unwrap()
                .to_owned();
            let file = format!("{}/{missing_type}", Node::BIN);
            let aside = format!("{file}.aside");
            let pod = self.pod();
            let node = &self.node;
            node.inside(|| fs::rename(&file, &aside)).unwrap();
            let not_found = || Answer {
                code: Some(1),
                stdout: String::new(),
                stderr: "not found".to_owned(),
            };
            let execute = |index: usize, call: &Call| match index == missing {
                true => not_found(),
                false => call.run(),
            };
            assert_eq!(self.try_add(&pod, execute).code, Some(1));
            let answer = self.run("DEL", &pod, execute);
            assert_eq!(
                answer.stderr, "not found",
                "DEL before {missing_type}: {answer:?}"
            );
            node.inside(|| fs::rename(&aside, &file)).unwrap();
            self.del(&pod, Del::Reverse);
            self.assert_nothing_left(&format!("after an ADD without {missing_type}"));
        }
    }

    /// Kills each plugin of gangplank in the middle of its ADD. `tests/faults` does so with the Go plugins, whose DEL may
    /// fail then.
    pub fn del_after_a_killed_plugin_removes_everything(&mut self) {
        let steps_per_plugin = if self.go().is_some() { 1 } else { 2 };
        let mut steps: Vec<Step> = Vec::new();
        let pod = self.pod();
        let node = &self.node;
        let traced = self.try_add(&pod, |plugin, call| {
            let (answer, of_call) = node.traced(call);
            let count = of_call.len();
            if self.go() == self.chain(0).plugins[plugin].config["type"].as_str() {
                return answer;
            }
            let middle = [count / 2, count * 3 / 4].map(|at| Step {
                plugin,
                ..of_call[at].clone()
            });
            steps.extend(middle.into_iter().take(steps_per_plugin));
            answer
        });
        traced.ok();
        self.del(&pod, Del::Reverse);
        for step in steps {
            let pod = self.pod();
            let node = &self.node;
            let answer = self.try_add(&pod, |plugin, call| match plugin == step.plugin {
                true => node.call_with_fault(call, &step, Fault::Killed),
                false => call.run(),
            });
            // This run made fewer system calls.
            let result = if answer.code == Some(0) {
                answer.ok()
            } else {
                Value::Null
            };
            self.del(&Attachment { result, ..pod }, Del::Reverse);
            self.assert_nothing_left(&format!("after an ADD killed at {step}"));
        }
    }
}

fn run_all(calls: &[Call], how: Del) {
    for call in calls {
        let answer = call.run();
        assert_eq!(answer.code, Some(0), "DEL {how:?}: {answer:?}");
    }
}
