//! The measured networks and verbs.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::existing_pods::Fill;
use crate::support::{Node, Pod};
use crate::timed::Call;

pub struct Case {
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    /// The measured plugins, in the order of ADD.
    pub plugins: &'static [&'static str],
    /// The variant of iptables on the case's nodes.
    pub iptables: Option<&'static str>,
    /// Files that the plugins read, with their content.
    pub files: &'static [(&'static str, &'static str)],
    /// What existing pods have besides leases: with gangplank, and with the other plugins.
    pub fills: [&'static [Fill]; 2],
    /// Default numbers of existing pods.
    pub pod_counts: &'static [usize],
    /// The configurations of the plugins for the pod with an index.
    pub config: fn(usize) -> Vec<Value>,
    /// The configurations for the other plugins, if different.
    pub theirs: Option<fn(usize) -> Vec<Value>>,
    /// The result of the plugins before, which are not measured.
    pub previous: fn(usize) -> Value,
}

/// A case with one set of plugins.
pub struct Setting {
    pub path: PathBuf,
    plugins: &'static [&'static str],
    config: fn(usize) -> Vec<Value>,
    previous: fn(usize) -> Value,
}

const V4: Fill = Fill::Rules("iptables-restore");
const V6: Fill = Fill::Rules("ip6tables-restore");

const ALL_VERBS: &[&str] = &["ADD", "CHECK", "DEL"];

pub fn all() -> Vec<Case> {
    let mut cases = of_bridge();
    cases.extend(crate::chain_cases::all());
    cases
}

/// A case of bridge alone.
pub fn case(name: &'static str, config: fn(usize) -> Vec<Value>) -> Case {
    Case {
        name,
        verbs: ALL_VERBS,
        plugins: &["bridge"],
        iptables: None,
        files: &[],
        fills: [&[], &[]],
        pod_counts: &[0, 500, 4000],
        config,
        theirs: None,
        previous: |_| Value::Null,
    }
}

fn of_bridge() -> Vec<Case> {
    vec![
        // CHECK of the Go plugin fails for networks without IPAM.
        Case {
            verbs: &["ADD", "DEL"],
            ..case("layer-2", |_| bridge(json!({}), Value::Null))
        },
        case("gateway", |_| bridge(json!({"isGateway": true}), v4())),
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[V4], &[V4]],
            ..case("masquerade-iptables-nft", |_| {
                bridge(json!({"isGateway": true, "ipMasq": true}), v4())
            })
        },
        Case {
            iptables: Some("xtables-legacy-multi"),
            fills: [&[V4], &[V4]],
            ..case("masquerade-iptables-legacy", |_| {
                bridge(json!({"isGateway": true, "ipMasq": true}), v4())
            })
        },
        // Debian's Go plugin has no nftables backend: compared with its iptables backend.
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[Fill::Elements], &[V4]],
            ..case("masquerade-nftables", |_| {
                let keys = json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables"});
                bridge(keys, v4())
            })
        },
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[V4, V6], &[V4, V6]],
            ..case("masquerade-dual-stack", |_| {
                bridge(json!({"isGateway": true, "ipMasq": true}), dual())
            })
        },
        Case {
            plugins: &["host-local"],
            pod_counts: &[0, 1000, 10_000],
            ..case("host-local", |_| bridge(json!({}), v4()))
        },
    ]
}

pub fn v4() -> Value {
    json!([[{"subnet": "10.64.0.0/16"}]])
}

fn dual() -> Value {
    json!([[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd64::/64"}]])
}

pub fn bridge(keys: Value, ranges: Value) -> Vec<Value> {
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bridge",
        "bridge": "bench0",
    });
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
    }
    if !ranges.is_null() {
        config["ipam"] = json!({
            "type": "host-local",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
        });
    }
    vec![config]
}

impl Case {
    pub fn prepare(&self, node: &Node) {
        if let Some(variant) = self.iptables {
            node.use_iptables_variant(variant);
        }
        for (file, content) in self.files {
            node.run(&format!("mkdir -p $(dirname {file})"));
            node.write(file, content);
        }
        if !(self.previous)(0).is_null() {
            node.run_all(
                "ip link add bench0 type bridge\nip addr add 10.64.0.1/16 dev bench0\nip link set bench0 up\n\
                 sysctl -qw net.ipv4.ip_forward=1",
            );
        }
    }

    /// The case with the plugins of a directory, or with gangplank.
    pub fn setting(&self, plugins: Option<&PathBuf>) -> Setting {
        Setting {
            path: plugins.cloned().unwrap_or_else(|| Node::BIN.into()),
            plugins: self.plugins,
            config: match plugins {
                Some(_) => self.theirs.unwrap_or(self.config),
                None => self.config,
            },
            previous: self.previous,
        }
    }
}

impl Setting {
    /// The configurations for the pod with an index.
    pub fn configs(&self, index: usize) -> Vec<Value> {
        (self.config)(index)
    }

    /// The ADD of the first plugin for the pod with an index.
    pub fn first_add(&self, pod: &Pod, index: usize) -> Call {
        let config = (self.config)(index).remove(0);
        self.call(
            self.plugins[0],
            "ADD",
            pod,
            with_result(config, &(self.previous)(index)),
        )
    }

    /// Runs a verb of each plugin for a pod, DEL in reverse order. CHECK and DEL get the `result` of ADD. `how` returns
    /// the measured value and stdout. Returns the sum of the values, and the result.
    pub fn run<T: Sum>(
        &self,
        verb: &str,
        (pod, index): (&Pod, usize),
        result: Option<&Value>,
        how: impl Fn(&Call) -> (T, String),
    ) -> (T, Value) {
        let mut result = result.cloned().unwrap_or_else(|| (self.previous)(index));
        let configs = (self.config)(index);
        let mut order: Vec<(&str, Value)> = self.plugins.iter().copied().zip(configs).collect();
        if verb == "DEL" {
            order.reverse();
        }
        let measure = |(plugin, config): (&str, Value)| {
            let call = self.call(plugin, verb, pod, with_result(config, &result));
            let (measured, stdout) = how(&call);
            if verb == "ADD" {
                result = serde_json::from_str(&stdout).expect("a result");
            }
            measured
        };
        (order.into_iter().map(measure).sum(), result)
    }

    /// A call of one plugin.
    pub fn call(&self, plugin: &str, verb: &str, pod: &Pod, config: Value) -> Call {
        Call {
            program: self.path.join(plugin),
            env: BTreeMap::from([
                ("CNI_COMMAND", verb.to_owned()),
                ("CNI_CONTAINERID", pod.id().to_owned()),
                ("CNI_NETNS", pod.path.clone()),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_PATH", self.path.display().to_string()),
            ]),
            stdin: config.to_string(),
        }
    }
}

/// A configuration with `prevResult`, unless the result is null.
pub fn with_result(mut config: Value, result: &Value) -> Value {
    if !result.is_null() {
        config["prevResult"] = result.clone();
    }
    config
}
