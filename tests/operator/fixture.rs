//! A node as an operator finds it: configurations, pods, what their runtime remembers, and the command to look at it all.

use std::io::Write;
use std::ops::Deref;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Network, Node, PATH, Pod, binary, command};

/// Where the fixture has its configurations, what runtimes remember, and leases.
pub const CONF: &str = "/run/net.d";
pub const CACHE: &str = "/run/results";
pub const LEASES: &str = "/var/lib/cni/networks";

/// A node with directories of its own.
pub struct Fixture {
    node: Node,
}

impl Deref for Fixture {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Fixture {
    /// A node on which nothing is configured; it forwards packets, as one of a cluster does, and the plugins of Go are
    /// there as `go-bridge` and `go-host-local`.
    pub fn new() -> Fixture {
        let node = Node::new("node");
        for plugin in ["bridge", "host-local"] {
            node.install_go_plugin(plugin);
        }
        node.run(&format!("mkdir {CONF} {CACHE}"));
        node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        Fixture { node }
    }

    /// A node with this network.
    pub fn with(config: &Value) -> Fixture {
        let fixture = Fixture::new();
        fixture.configure("10-net.conflist", config);
        fixture
    }

    /// Writes a network of one plugin as a list.
    pub fn configure(&self, file: &str, config: &Value) {
        self.configure_list(file, &[config]);
    }

    /// Writes a network of several plugins, with the name and version of the first.
    pub fn configure_list(&self, file: &str, plugins: &[&Value]) {
        let first = plugins[0];
        let list =
            json!({ "cniVersion": first["cniVersion"], "name": first["name"], "plugins": plugins });
        self.write(&format!("{CONF}/{file}"), &list.to_string());
    }

    /// The network of a configuration as the plugin of Go makes it.
    pub fn go(&self, config: &Value) -> Network<'_> {
        let mut config = config.clone();
        config["type"] = "go-bridge".into();
        config["ipam"]["type"] = "go-host-local".into();
        self.network(config)
    }

    /// Writes what libcni keeps of an ADD.
    pub fn remember(&self, network: &Network, pod: &Pod, result: &Value) {
        let name = network.config["name"].as_str().unwrap();
        let id = pod.id();
        let cache = json!({
            "kind": "cniCacheV1",
            "containerId": id,
            "config": "e30=",
            "ifName": "eth0",
            "networkName": name,
            "netns": pod.path,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", format!("{id}-0")]],
            "result": result,
        });
        self.write(&format!("{CACHE}/{name}-{id}-eth0"), &cache.to_string());
    }

    /// Attaches a pod, and remembers it as a runtime does; the result.
    #[track_caller]
    pub fn run_pod(&self, network: &Network, pod: &Pod) -> Value {
        let result = network.add(pod);
        self.remember(network, pod, &result);
        result
    }

    /// Runs the binary as it is told, with nothing on stdin.
    pub fn gangplank(&self, line: &str) -> Answer {
        self.gangplank_reading(line, "")
    }

    /// Runs the binary as it is told, with a text on stdin.
    pub fn gangplank_reading(&self, line: &str, text: &str) -> Answer {
        let mut command = Command::new(binary());
        command.args(line.split_whitespace());
        self.finish(command, text)
    }

    /// Runs a command that may be another program which starts the binary: `BINARY` in its words is that.
    pub fn under(&self, line: &str) -> Answer {
        let line = line.replace("BINARY", binary().to_str().unwrap());
        self.finish(command(&line), "")
    }

    fn finish(&self, mut command: Command, text: &str) -> Answer {
        let has_path = command.get_envs().any(|(name, _)| name == "PATH");
        command.env_remove("CNI_PATH").env_remove("NO_COLOR");
        if !has_path {
            command.env("PATH", PATH);
        }
        let output = self.inside(|| {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
            child.wait_with_output().unwrap()
        });
        Answer::of(output)
    }

    /// `status` on the fixture's directories.
    pub fn status(&self, words: &str) -> Answer {
        self.gangplank(&format!("status {words} {}", places()))
    }

    /// `reconcile` on the fixture's directories.
    pub fn reconcile(&self, words: &str) -> Answer {
        self.gangplank(&format!("reconcile {words} {}", places()))
    }

    /// `doctor` on the fixture's directories.
    pub fn doctor(&self, words: &str) -> Answer {
        self.gangplank(&format!("doctor {words} {}", doctors_places()))
    }

    /// The findings of `doctor`; fails when its exit status is not of them.
    #[track_caller]
    pub fn findings(&self) -> Findings {
        Findings::of(&self.doctor("--json"))
    }

    /// The findings of `doctor --fix`.
    #[track_caller]
    pub fn fix(&self) -> Findings {
        Findings::of(&self.doctor("--fix --json"))
    }

    /// Fails unless `doctor` finds nothing.
    #[track_caller]
    pub fn is_healthy(&self) {
        let findings = self.findings();
        assert!(findings.all.is_empty(), "{:#?}", findings.all);
    }

    /// Makes a lease look as if it were written an hour ago.
    pub fn age(&self, network: &str, address: &str) {
        let file = format!("{LEASES}/{network}/{address}");
        self.run(&format!("touch --no-create --date=-1hour {file}"));
    }
}

/// The flags for `status` and `reconcile`.
pub fn places() -> String {
    format!("--conf-dir {CONF} --cache-dir {CACHE} --data-dir {LEASES}")
}

/// The flags for `doctor`.
pub fn doctors_places() -> String {
    format!("{} --cni-path {}", places(), Node::BIN)
}

/// What `doctor` found.
#[derive(Debug)]
pub struct Findings {
    pub all: Vec<Value>,
}

impl Findings {
    #[track_caller]
    fn of(answer: &Answer) -> Findings {
        assert_eq!(answer.stderr, "", "{answer:?}");
        let all: Vec<Value> =
            serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        let stands = all.iter().any(|it| it["fixed"] == false);
        let status = if stands { 3 } else { 0 };
        assert_eq!(answer.code, Some(status), "{answer:?}");
        for finding in &all {
            for key in ["cause", "remedy"] {
                assert_ne!(finding[key].as_str().unwrap(), "", "{finding}");
            }
            assert_ne!(
                finding["evidence"].as_array().unwrap().len(),
                0,
                "{finding}"
            );
        }
        Findings { all }
    }

    /// Their names.
    pub fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self
            .all
            .iter()
            .map(|it| it["id"].as_str().unwrap())
            .collect();
        ids.sort();
        ids
    }

    /// The one of that name, as text; fails when there is none.
    #[track_caller]
    pub fn the(&self, id: &str) -> String {
        let found = self.all.iter().find(|it| it["id"] == id);
        found
            .unwrap_or_else(|| panic!("no {id} in {:#?}", self.all))
            .to_string()
    }
}
