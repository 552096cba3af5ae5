//! A node with configurations, pods and a runtime's cache, on which commands of gangplank run.

use std::io::Write;
use std::ops::Deref;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Chain, Network, Node, PATH, Pod, binary, command};

/// Directories of the configurations, of the runtime's cache, and of the leases.
pub const CONF: &str = "/run/net.d";
pub const CACHE: &str = "/run/results";
pub const LEASES: &str = "/var/lib/cni/networks";

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
    /// A node without configurations. It forwards packets, as in a cluster, and the Go plugins are installed as
    /// `go-bridge` and `go-host-local`.
    pub fn new() -> Fixture {
        let node = Node::new("node");
        for plugin in ["bridge", "host-local"] {
            node.install_go_plugin(plugin);
        }
        node.run(&format!("mkdir {CONF} {CACHE}"));
        node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        Fixture { node }
    }

    pub fn with(config: &Value) -> Fixture {
        let fixture = Fixture::new();
        fixture.configure("10-net.conflist", config);
        fixture
    }

    /// Writes a configuration list with one plugin.
    pub fn configure(&self, file: &str, config: &Value) {
        self.configure_list(file, &[config]);
    }

    /// Writes a configuration list, with the name and version of the first plugin.
    pub fn configure_list(&self, file: &str, plugins: &[&Value]) {
        let first = plugins[0];
        let list =
            json!({ "cniVersion": first["cniVersion"], "name": first["name"], "plugins": plugins });
        self.write(&format!("{CONF}/{file}"), &list.to_string());
    }

    /// A network with the Go plugins instead of gangplank's.
    pub fn go(&self, config: &Value) -> Network<'_> {
        let mut config = config.clone();
        config["type"] = "go-bridge".into();
        config["ipam"]["type"] = "go-host-local".into();
        self.network(config)
    }

    /// Writes libcni's cache entry of an ADD.
    pub fn write_cache(&self, network: &Network, pod: &Pod, result: &Value) {
        self.write_cache_of((&network.config, &json!({})), pod, result);
    }

    /// Writes libcni's cache entry of an ADD with a configuration and values for capabilities.
    fn write_cache_of(&self, (config, capabilities): (&Value, &Value), pod: &Pod, result: &Value) {
        let name = config["name"].as_str().unwrap();
        let id = pod.id();
        let cache = json!({
            "kind": "cniCacheV1",
            "containerId": id,
            "config": base64(config.to_string().as_bytes()),
            "ifName": "eth0",
            "networkName": name,
            "netns": pod.path,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", format!("{id}-0")]],
            "capabilityArgs": capabilities,
            "result": result,
        });
        self.write(&format!("{CACHE}/{name}-{id}-eth0"), &cache.to_string());
    }

    /// Attaches a pod and writes the cache entry, as a runtime does.
    #[track_caller]
    pub fn run_pod(&self, network: &Network, pod: &Pod) -> Value {
        let result = network.add(pod);
        self.write_cache(network, pod, &result);
        result
    }

    /// Attaches a pod to a list of plugins and writes the cache entry, as a runtime does.
    #[track_caller]
    pub fn run_chain(&self, chain: &Chain, pod: &Pod) -> Value {
        let result = chain.add(pod);
        self.write_cache_of((&chain.list(), chain.capability_args()), pod, &result);
        result
    }

    /// Deletes the cache entry of a pod.
    pub fn delete_cache(&self, network: &str, pod: &str) {
        self.run(&format!("rm {CACHE}/{network}-{pod}-eth0"));
    }

    /// Runs a command of gangplank with an empty stdin.
    pub fn gangplank(&self, line: &str) -> Answer {
        self.gangplank_with_stdin(line, "")
    }

    /// Runs a command of gangplank with a text on stdin.
    pub fn gangplank_with_stdin(&self, line: &str, text: &str) -> Answer {
        let mut command = Command::new(binary());
        command.args(line.split_whitespace());
        self.run_command(command, text)
    }

    /// Runs a command line in which `BINARY` stands for the gangplank binary.
    pub fn under(&self, line: &str) -> Answer {
        let line = line.replace("BINARY", binary().to_str().unwrap());
        self.run_command(command(&line), "")
    }

    fn run_command(&self, mut command: Command, text: &str) -> Answer {
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

    pub fn status(&self, words: &str) -> Answer {
        self.gangplank(&format!("status {words} {}", directory_flags()))
    }

    pub fn reconcile(&self, words: &str) -> Answer {
        self.gangplank(&format!("reconcile {words} {}", directory_flags()))
    }

    pub fn doctor(&self, words: &str) -> Answer {
        self.gangplank(&format!("doctor {words} {}", doctor_flags()))
    }

    /// The findings of `doctor`, whose exit status must match.
    #[track_caller]
    pub fn findings(&self) -> Findings {
        Findings::of(&self.doctor("--json"))
    }

    #[track_caller]
    pub fn fix(&self) -> Findings {
        Findings::of(&self.doctor("--fix --json"))
    }

    #[track_caller]
    pub fn assert_healthy(&self) {
        let findings = self.findings();
        assert!(findings.all.is_empty(), "{:#?}", findings.all);
    }

    /// Sets the modification time of a lease to an hour ago.
    pub fn age(&self, network: &str, address: &str) {
        let file = format!("{LEASES}/{network}/{address}");
        self.run(&format!("touch --no-create --date=-1hour {file}"));
    }
}

/// As Go encodes a byte slice in JSON (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | usize::from(*group.get(at).unwrap_or(&0))
        });
        let digits = (0..=group.len()).map(|at| char::from(alphabet[bits >> (18 - 6 * at) & 63]));
        text.extend(digits);
        text.push_str(&"=="[..3 - group.len()]);
    }
    text
}

/// Flags for `status` and `reconcile`.
pub fn directory_flags() -> String {
    format!("--conf-dir {CONF} --cache-dir {CACHE} --data-dir {LEASES}")
}

/// Flags for `doctor`.
pub fn doctor_flags() -> String {
    format!("{} --cni-path {}", directory_flags(), Node::BIN)
}

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
        let is_unresolved = all.iter().any(|it| it["fixed"] == false);
        let status = if is_unresolved { 3 } else { 0 };
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

    /// The finding IDs, sorted.
    pub fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self
            .all
            .iter()
            .map(|it| it["id"].as_str().unwrap())
            .collect();
        ids.sort();
        ids
    }

    /// The finding with this ID, which must exist, as text.
    #[track_caller]
    pub fn text_of(&self, id: &str) -> String {
        let found = self.all.iter().find(|it| it["id"] == id);
        found
            .unwrap_or_else(|| panic!("no {id} in {:#?}", self.all))
            .to_string()
    }
}
