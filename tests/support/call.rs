//! Calls of a plugin, as a runtime makes them, and what it answers.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Node, PATH, Pod};

/// One call: a verb, an attachment, a configuration.
#[derive(Clone)]
pub struct Call<'n> {
    node: &'n Node,
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    wrapper: Vec<String>,
}

impl<'n> Call<'n> {
    /// A call that says nothing yet but where plugins are.
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

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Leaves a variable out.
    pub fn unset(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// CNI_COMMAND.
    pub fn verb(self, verb: &str) -> Self {
        self.env("CNI_COMMAND", verb)
    }

    /// CNI_CONTAINERID.
    pub fn container(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    /// CNI_IFNAME.
    pub fn ifname(self, name: &str) -> Self {
        self.env("CNI_IFNAME", name)
    }

    /// CNI_NETNS.
    pub fn netns(self, path: &str) -> Self {
        self.env("CNI_NETNS", path)
    }

    /// CNI_ARGS.
    pub fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// The attachment of a pod's `eth0`.
    pub fn pod(self, pod: &Pod) -> Self {
        self.container(pod.id()).netns(&pod.path).ifname("eth0")
    }

    /// The configuration.
    pub fn config(self, config: &Value) -> Self {
        self.stdin(config.to_string())
    }

    /// The bytes on stdin.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Has another program start the plugin: `strace -o log`, `timeout 10`.
    pub fn under(mut self, wrapper: &str) -> Self {
        self.wrapper = wrapper.split_whitespace().map(str::to_owned).collect();
        self
    }

    /// Makes the call.
    pub fn run(&self) -> Answer {
        let file = format!("{}/{}", Node::BIN, self.plugin);
        let mut words = self.wrapper.iter().chain([&file]);
        let program = words.next().expect("there is the plugin at least");
        let output = self.node.inside(|| {
            let mut child = Command::new(program)
                .args(words)
                .env_clear()
                .envs(&self.env)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("{file}: {e}"));
            // A plugin that refuses its environment need not read.
            let _ = child.stdin.take().unwrap().write_all(&self.stdin);
            child.wait_with_output().unwrap()
        });
        Answer::of(output)
    }
}

/// What a plugin answered.
#[derive(Debug)]
#[must_use]
pub struct Answer {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

/// An error document.
#[derive(Debug)]
pub struct CniError {
    /// The CNI error code.
    pub code: u64,
    /// The message.
    pub msg: String,
    /// The details; empty when there are none.
    pub details: String,
}

impl CniError {
    /// Message and details, for searching.
    pub fn text(&self) -> String {
        format!("{} {}", self.msg, self.details)
    }
}

impl Answer {
    /// What a process that ended has said.
    pub fn of(output: Output) -> Answer {
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless the call succeeded; the result, or null where nothing was printed.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.code, Some(0), "the call failed: {self:?}");
        if self.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Fails unless the call was refused with exactly one error document on stdout.
    #[track_caller]
    pub fn error(&self) -> CniError {
        assert_eq!(
            self.code,
            Some(1),
            "the call was not refused in order: {self:?}"
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

/// Answers of the operator's command line.
impl Answer {
    /// Fails unless the command succeeded and wrote nothing to stderr; its stdout.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{self:?}");
        &self.stdout
    }

    /// Fails unless the command failed and wrote nothing to stdout; its stderr.
    #[track_caller]
    pub fn failure(&self) -> &str {
        assert_eq!((self.code, &*self.stdout), (Some(1), ""), "{self:?}");
        assert!(self.stderr.starts_with("gangplank: "), "{self:?}");
        &self.stderr
    }
}

/// A network on a node: the calls that a runtime makes for its pods.
#[derive(Clone)]
pub struct Network<'n> {
    node: &'n Node,
    /// The configuration, without what a runtime adds.
    pub config: Value,
}

impl<'n> Network<'n> {
    /// The network of a configuration.
    pub fn new(node: &'n Node, config: Value) -> Network<'n> {
        Network { node, config }
    }

    /// The same network with another value of a key at the top.
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Network<'n> {
        let mut network = self.clone();
        network.config[key] = value.into();
        network
    }

    /// A call for the pod's `eth0` on this network.
    pub fn call(&self, verb: &str, pod: &Pod) -> Call<'n> {
        self.call_for(verb, pod.id()).netns(&pod.path)
    }

    /// A call for a container whose namespace is not told.
    pub fn call_for(&self, verb: &str, container: &str) -> Call<'n> {
        let plugin = self.config["type"].as_str().expect("a plugin's name");
        self.node
            .cni(plugin)
            .verb(verb)
            .container(container)
            .ifname("eth0")
            .config(&self.config)
    }

    /// Attaches a pod; the result.
    #[track_caller]
    pub fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod).run().ok()
    }

    /// Detaches a pod.
    #[track_caller]
    pub fn del(&self, pod: &Pod) {
        assert_eq!(self.call("DEL", pod).run().ok(), Value::Null);
    }

    /// Checks a pod against the result of its ADD.
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

    /// The name of the pod's interface on the host.
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

/// A small bridge network, to be changed by the test: `10.77.0.0/24` on `br0`.
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
