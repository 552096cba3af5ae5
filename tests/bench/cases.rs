//! The measured networks and verbs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::existing_pods::Fill;
use crate::support::{Node, Pod};
use crate::timed::Call;

pub struct Case {
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    plugin: &'static str,
    /// The variant of iptables on the case's nodes.
    iptables: Option<&'static str>,
    /// What existing pods have besides leases: with gangplank, and with the other plugins.
    pub fills: [&'static [Fill]; 2],
    /// Default numbers of existing pods.
    pub pod_counts: [usize; 3],
    config: fn() -> Value,
}

/// A case with one set of plugins.
pub struct Setting {
    program: PathBuf,
    path: PathBuf,
    config: Value,
}

const V4: Fill = Fill::Rules("iptables-restore");
const V6: Fill = Fill::Rules("ip6tables-restore");

const ALL_VERBS: &[&str] = &["ADD", "CHECK", "DEL"];

pub fn all() -> Vec<Case> {
    let case = |name, config| Case {
        name,
        verbs: ALL_VERBS,
        plugin: "bridge",
        iptables: None,
        fills: [&[], &[]],
        pod_counts: [0, 500, 4000],
        config,
    };
    vec![
        // CHECK of the Go plugin fails for networks without IPAM.
        Case {
            verbs: &["ADD", "DEL"],
            ..case("layer-2", || bridge(json!({}), Value::Null))
        },
        case("gateway", || bridge(json!({"isGateway": true}), v4())),
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[V4], &[V4]],
            ..case("masquerade-iptables-nft", || {
                bridge(json!({"isGateway": true, "ipMasq": true}), v4())
            })
        },
        Case {
            iptables: Some("xtables-legacy-multi"),
            fills: [&[V4], &[V4]],
            ..case("masquerade-iptables-legacy", || {
                bridge(json!({"isGateway": true, "ipMasq": true}), v4())
            })
        },
        // Debian's Go plugin has no nftables backend: compared with its iptables backend.
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[Fill::Elements], &[V4]],
            ..case("masquerade-nftables", || {
                let keys = json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables"});
                bridge(keys, v4())
            })
        },
        Case {
            iptables: Some("xtables-nft-multi"),
            fills: [&[V4, V6], &[V4, V6]],
            ..case("masquerade-dual-stack", || {
                bridge(json!({"isGateway": true, "ipMasq": true}), dual())
            })
        },
        Case {
            plugin: "host-local",
            pod_counts: [0, 1000, 10_000],
            ..case("host-local", || bridge(json!({}), v4()))
        },
    ]
}

fn v4() -> Value {
    json!([[{"subnet": "10.64.0.0/16"}]])
}

fn dual() -> Value {
    json!([[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd64::/64"}]])
}

fn bridge(keys: Value, ranges: Value) -> Value {
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
    config
}

impl Case {
    pub fn prepare(&self, node: &Node) {
        if let Some(variant) = self.iptables {
            node.use_iptables_variant(variant);
        }
    }

    /// The case with the plugins of a directory, or with gangplank.
    pub fn setting(&self, plugins: Option<&PathBuf>) -> Setting {
        let path = plugins.cloned().unwrap_or_else(|| Node::BIN.into());
        Setting {
            program: path.join(self.plugin),
            path,
            config: (self.config)(),
        }
    }
}

impl Setting {
    /// The call of a verb for a pod. CHECK and DEL get the result of ADD.
    pub fn command(&self, verb: &str, pod: &Pod, prev: Option<&str>) -> Call {
        let mut config = self.config.clone();
        if let Some(prev) = prev {
            config["prevResult"] = serde_json::from_str(prev).expect("a result");
        }
        Call {
            program: self.program.clone(),
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
