//! Plugin calls as a runtime makes them, and their answers.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Node, PATH, Pod};

#[derive(Clone)]
pub struct Call<'n> {
    node: &'n Node,
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    wrapper: Vec<String>,
}

impl<'n> Call<'n> {
    /// A call with PATH and CNI_PATH only.
    pub fn new(node: &'n Node, plugin: &str) -> Call<'n> {
        Call {
            node,
            plugin: plugin.to_owned(),
            env: BTreeMap::new(),
            stdin: Vec::new(),
            wrapper: Vec::new(),
        }
        .env("PATH", PATH)
        .env("CNI_PATH", Node::BIN)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    pub fn verb(self, verb: &str) -> Self {
        self.env("CNI_COMMAND", verb)
    }

    pub fn container(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    pub fn ifname(self, name: &str) -> Self {
        self.env("CNI_IFNAME", name)
    }

    pub fn netns(self, path: &str) -> Self {
        self.env("CNI_NETNS", path)
    }

    pub fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// Sets the variables for a pod's `eth0`.
    pub fn pod(self, pod: &Pod) -> Self {
        self.container(pod.id()).netns(&pod.path).ifname("eth0")
    }

    pub fn config(self, config: &Value) -> Self {
        self.stdin(config.to_string())
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts the plugin with another program, for example `strace -o log`.
    pub fn under(mut self, wrapper: &str) -> Self {
        self.wrapper = wrapper.split_whitespace().map(str::to_owned).collect();
        self
    }

    pub fn run(&self) -> Answer {
        let file = format!("{}/{}", Node::BIN, self.plugin);
        let mut arguments = self.wrapper.iter().chain([&file]);
        let program = arguments.next().expect("at least the plugin");
        let output = self.node.inside(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .env_clear()
                .envs(&self.env)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("{file}: {e}"));
            // A plugin that rejects its environment does not read stdin.
            let _ = child.stdin.take().unwrap().write_all(&self.stdin);
            child.wait_with_output().unwrap()
        });
        Answer::of(output)
    }
}

/// Exit code and output of a call.
#[derive(Debug)]
#[must_use]
pub struct Answer {
    /// `None` if the process was killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The error document of a failed call.
#[derive(Debug)]
pub struct CniError {
    pub code: u64,
    pub msg: String,
    /// Empty if there are none.
    pub details: String,
}

impl CniError {
    /// Message and details.
    pub fn text(&self) -> String {
        format!("{} {}", self.msg, self.details)
    }
}

impl Answer {
    pub fn of(output: Output) -> Answer {
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts that the call succeeded. Returns the result, or null if nothing was printed.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.code, Some(0), "the call failed: {self:?}");
        if self.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Asserts that the call failed with exactly one error document on stdout.
    #[track_caller]
    pub fn error(&self) -> CniError {
        assert_eq!(
            self.code,
            Some(1),
            "the call did not fail with exit code 1: {self:?}"
        );
        let document: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not one JSON document, {e}: {self:?}"));
        let keys: Vec<&str> = document
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        for key in keys {
            let known = ["cniVersion", "code", "msg", "details"].contains(&key);
            assert!(known, "an error document with {key:?}: {self:?}");
        }
        let msg = document["msg"].as_str().unwrap_or_default().to_owned();
        assert!(!msg.is_empty(), "an error without a message: {self:?}");
        CniError {
            code: document["code"]
                .as_u64()
                .unwrap_or_else(|| panic!("an error without a code: {self:?}")),
            msg,
            details: document["details"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// For calls of the command line.
impl Answer {
    /// Asserts that the command succeeded and wrote nothing to stderr. Returns stdout.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{self:?}");
        &self.stdout
    }

    /// Asserts that the command failed and wrote nothing to stdout. Returns stderr.
    #[track_caller]
    pub fn failure(&self) -> &str {
        assert_eq!((self.code, &*self.stdout), (Some(1), ""), "{self:?}");
        assert!(self.stderr.starts_with("gangplank: "), "{self:?}");
        &self.stderr
    }
}

/// A network on a node, with the calls that a runtime makes.
#[derive(Clone)]
pub struct Network<'n> {
    node: &'n Node,
    /// The configuration, without the keys that a runtime adds.
    pub config: Value,
}

impl<'n> Network<'n> {
    pub fn new(node: &'n Node, config: Value) -> Network<'n> {
        Network { node, config }
    }

    /// The same network with another value for a top-level key.
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Network<'n> {
        let mut network = self.clone();
        network.config[key] = value.into();
        network
    }

    /// A call for the pod's `eth0` on this network.
    pub fn call(&self, verb: &str, pod: &Pod) -> Call<'n> {
        self.call_for(verb, pod.id()).netns(&pod.path)
    }

    /// A call without CNI_NETNS.
    pub fn call_for(&self, verb: &str, container: &str) -> Call<'n> {
        let plugin = self.config["type"].as_str().expect("a plugin's name");
        self.node
            .cni(plugin)
            .verb(verb)
            .container(container)
            .ifname("eth0")
            .config(&self.config)
    }

    /// Runs ADD, which must succeed.
    #[track_caller]
    pub fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod).run().ok()
    }

    /// Runs DEL, which must succeed.
    #[track_caller]
    pub fn del(&self, pod: &Pod) {
        assert_eq!(self.call("DEL", pod).run().ok(), Value::Null);
    }

    /// For each change of the node: after ADD, CHECK succeeds; after the change, its error names the second text.
    #[track_caller]
    pub fn assert_check_names(&self, pod: &Pod, changes: &[(&str, &str)]) {
        for (change, named) in changes {
            let result = self.add(pod);
            self.check(pod, &result).ok();
            self.node.run(change);
            let error = self.check(pod, &result).error();
            assert!(error.text().contains(named), "{change}: {error:?}");
            self.del(pod);
        }
    }

    /// Runs CHECK with the result of ADD.
    pub fn check(&self, pod: &Pod, result: &Value) -> Answer {
        self.with("prevResult", result.clone())
            .call("CHECK", pod)
            .run()
    }

    /// The pod's address in a result, without its prefix length.
    #[track_caller]
    pub fn address(result: &Value) -> String {
        let ip = result["ips"][0]["address"].as_str();
        let ip = ip.or_else(|| result["ip4"]["ip"].as_str());
        let ip = ip.unwrap_or_else(|| panic!("no address in {result}"));
        ip.split('/').next().unwrap().to_owned()
    }

    /// The name of the host end of the pod's link.
    #[track_caller]
    pub fn host_link(result: &Value) -> String {
        let interfaces = result["interfaces"].as_array().expect("interfaces");
        let host = interfaces
            .iter()
            .find(|i| i.get("sandbox").is_none() && i["name"].as_str().unwrap().starts_with("veth"))
            .unwrap_or_else(|| panic!("no host link in {result}"));
        host["name"].as_str().unwrap().to_owned()
    }
}

/// A bridge network that tests modify: `10.77.0.0/24` on `br0`.
pub fn small_network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": true,
        "ipam": { "type": "host-local", "subnet": "10.77.0.0/24" },
    })
}
