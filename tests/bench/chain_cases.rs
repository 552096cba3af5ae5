//! The measured cases of portmap, firewall and the chain bridge, portmap and firewall.

use serde_json::{Value, json};

use crate::Side;
use crate::cases::{Case, bridge, case, v4, with_result};
use crate::existing_pods::Fill;
use crate::timed;

/// Host ports of the existing mappings; those of the measured pods are below.
const EXISTING_PORTS: usize = 20_000;

/// Ports of one existing container.
const PORTS_EACH: usize = 100;

pub fn all() -> Vec<Case> {
    let portmap = |name, config| Case {
        plugins: &["portmap"],
        iptables: Some("xtables-nft-multi"),
        fills: [&[Fill::Mappings]; 2],
        pod_counts: &[0, 1000],
        previous: bridged,
        ..case(name, config)
    };
    let firewall = |name, config| Case {
        plugins: &["firewall"],
        iptables: Some("xtables-nft-multi"),
        pod_counts: &[0],
        previous: bridged,
        ..case(name, config)
    };
    vec![
        portmap("portmap-no-port", |_| vec![portmap_config(None, 0, 0)]),
        portmap("portmap-1-iptables", |index| {
            vec![portmap_config(Some("iptables"), index, 1)]
        }),
        portmap("portmap-1-nftables", |index| {
            vec![portmap_config(Some("nftables"), index, 1)]
        }),
        portmap("portmap-100-iptables", |index| {
            vec![portmap_config(Some("iptables"), 100 * index, 100)]
        }),
        portmap("portmap-100-nftables", |index| {
            vec![portmap_config(Some("nftables"), 100 * index, 100)]
        }),
        firewall("firewall-iptables", |_| vec![firewall_config("iptables")]),
        // The Go plugin firewall has no nftables backend: compared with its iptables backend.
        firewall("firewall-nftables", |_| vec![firewall_config("nftables")]),
        Case {
            plugins: &["bridge", "portmap", "firewall"],
            previous: |_| Value::Null,
            ..firewall("chain", |_| chain("iptables"))
        },
        Case {
            plugins: &["bridge", "portmap", "firewall"],
            previous: |_| Value::Null,
            theirs: Some(|_| chain("iptables")),
            ..firewall("chain-nftables", |_| chain("nftables"))
        },
        Case {
            plugins: &["bridge", "portmap", "firewall", "tuning"],
            previous: |_| Value::Null,
            ..firewall("nerdctl", |_| {
                let mut plugins = chain("iptables");
                plugins.push(of_type("tuning"));
                plugins
            })
        },
        Case {
            plugins: &["ptp", "portmap"],
            previous: |_| Value::Null,
            ..firewall("kind", |_| kind())
        },
        Case {
            plugins: &["flannel", "portmap", "bandwidth"],
            files: &[("/run/flannel/subnet.env", FLANNEL_SUBNET)],
            previous: |_| Value::Null,
            ..firewall("k3s", |_| k3s())
        },
    ]
}

/// What flanneld writes.
const FLANNEL_SUBNET: &str = "FLANNEL_NETWORK=10.64.0.0/12\nFLANNEL_SUBNET=10.64.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn of_type(plugin: &str) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "bench", "type": plugin })
}

/// A pod of kind without host ports.
fn kind() -> Vec<Value> {
    let mut ptp = of_type("ptp");
    ptp["mtu"] = 1500.into();
    ptp["ipMasq"] = false.into();
    ptp["ipam"] = json!({
        "type": "host-local", "dataDir": "/run/cni-ipam-state", "ranges": v4(), "routes": [{ "dst": "0.0.0.0/0" }],
    });
    vec![ptp, portmap_config(None, 0, 0)]
}

/// A pod of k3s without host ports and limits.
fn k3s() -> Vec<Value> {
    let mut flannel = of_type("flannel");
    flannel["delegate"] =
        json!({ "hairpinMode": true, "forceAddress": true, "isDefaultGateway": true });
    let mut plugins = vec![flannel, portmap_config(None, 0, 0), of_type("bandwidth")];
    for plugin in &mut plugins {
        // flannel 0.9 supports no newer version.
        plugin["cniVersion"] = "0.4.0".into();
    }
    plugins
}

/// The default chain of nerdctl, without ports.
fn chain(backend: &str) -> Vec<Value> {
    let keys = json!({
        "isGateway": true, "ipMasq": true, "ipMasqBackend": backend, "hairpinMode": true,
    });
    let mut chain = bridge(keys, v4());
    chain.extend([
        portmap_config(Some(backend), 0, 0),
        firewall_config(backend),
    ]);
    chain
}

/// `count` ports from `first` on, counted from the first one of the measured pods.
fn portmap_config(backend: Option<&str>, first: usize, count: usize) -> Value {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "bench", "type": "portmap" });
    if let Some(backend) = backend {
        config["backend"] = backend.into();
    }
    let mapping =
        |port: usize| json!({ "hostPort": 10_000 + port, "containerPort": 80, "protocol": "tcp" });
    let mappings: Vec<Value> = (first..first + count).map(mapping).collect();
    config["runtimeConfig"]["portMappings"] = mappings.into();
    config
}

fn firewall_config(backend: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "firewall", "backend": backend, "ingressPolicy": "same-bridge",
    })
}

/// The result of the bridge for the pod with an index. Pods of the chained plugins have no links.
fn bridged(index: usize) -> Value {
    let address = format!("10.64.{}.{}/16", 1 + index / 250, 1 + index % 250);
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "bench0", "mac": "02:00:00:00:00:01" },
            { "name": "veth0", "mac": "02:00:00:00:00:02" },
            { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/pod" },
        ],
        "ips": [{ "interface": 2, "address": address, "gateway": "10.64.0.1" }],
    })
}

/// Maps `count` ports of other containers, with the plugin and backend of the case.
pub fn map_ports(side: &Side, count: usize) {
    let own = side.setting.configs(0).remove(0);
    for container in 0..count / PORTS_EACH {
        let pod = side.node.pod(&format!("existing{container}"));
        let first = EXISTING_PORTS + PORTS_EACH * container;
        let config = portmap_config(own["backend"].as_str(), first, PORTS_EACH);
        let config = with_result(config, &bridged(5000 + container));
        timed::call(
            &side.node,
            &side.setting.call("portmap", "ADD", &pod, config),
        );
    }
}
