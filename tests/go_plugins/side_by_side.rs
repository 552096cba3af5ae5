//! The same configuration and container IDs on two nodes, one per implementation: results and the state of the nodes
//! must be equal.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, IPTABLES, Implementation, for_each_case, node, ready};
use crate::normalize;
use crate::support::Node;

/// Versions for gangplank and for the Go plugin: Debian's does not support 1.1.0, whose results have the same format as
/// those of 1.0.0.
const VERSIONS: [(&str, &str); 7] = [
    ("0.1.0", "0.1.0"),
    ("0.2.0", "0.2.0"),
    ("0.3.0", "0.3.0"),
    ("0.3.1", "0.3.1"),
    ("0.4.0", "0.4.0"),
    ("1.0.0", "1.0.0"),
    ("1.1.0", "1.0.0"),
];

const FAMILIES: [&[&str]; 3] = [
    &["10.77.0.0/24"],
    &["fd77::/64"],
    &["10.77.0.0/24", "fd77::/64"],
];

/// A configuration, without the ranges of `ipam`.
struct InterfaceOptions {
    name: &'static str,
    keys: fn() -> Value,
    /// Keys of `ipam`, for these subnets.
    ipam: fn(&[&str]) -> Value,
    args: &'static str,
    iptables: &'static str,
}

const NFT: &str = "xtables-nft-multi";
const LEGACY: &str = "xtables-legacy-multi";

const fn options(name: &'static str, keys: fn() -> Value) -> InterfaceOptions {
    InterfaceOptions {
        name,
        keys,
        ipam: |_| json!({}),
        args: "",
        iptables: NFT,
    }
}

fn all_options() -> Vec<InterfaceOptions> {
    let mut all = vec![
        options("plain", || json!({})),
        options("gateway", || json!({ "isGateway": true })),
        options("default gateway", || json!({ "isDefaultGateway": true })),
        options(
            "hairpin",
            || json!({ "isGateway": true, "hairpinMode": true }),
        ),
        options("promiscuous", || json!({ "promiscMode": true })),
        options("mtu", || json!({ "isDefaultGateway": true, "mtu": 1400 })),
        options(
            "dns",
            || json!({ "dns": { "nameservers": ["10.0.0.53"], "search": ["a.test"], "domain": "b.test" } }),
        ),
        options(
            "masquerade, nft",
            || json!({ "isDefaultGateway": true, "ipMasq": true }),
        ),
        InterfaceOptions {
            iptables: LEGACY,
            ..options(
                "masquerade, legacy",
                || json!({ "isDefaultGateway": true, "ipMasq": true }),
            )
        },
        options("masquerade without a gateway", || json!({ "ipMasq": true })),
        InterfaceOptions {
            ipam: routes,
            ..options("routes", || json!({ "isGateway": true }))
        },
        InterfaceOptions {
            ipam: default_routes,
            ..options(
                "a default route of its own",
                || json!({ "isDefaultGateway": true }),
            )
        },
        options(
            "requested addresses",
            || json!({ "isGateway": true, "runtimeConfig": { "mac": "02:00:00:00:00:07" } }),
        ),
        InterfaceOptions {
            args: "IgnoreUnknown=1;K8S_POD_NAME=web-0;MAC=02:00:00:00:00:08",
            ..options("args", || json!({ "isGateway": true }))
        },
        InterfaceOptions {
            ipam: |_| json!({ "dataDir": "/var/lib/cni/elsewhere" }),
            ..options("a directory of its own", || json!({ "name": "else.where" }))
        },
    ];
    let keys = || json!({ "isGateway": true, "macspoofchk": true });
    all.push(options("spoof check", keys));
    all
}

fn routes(subnets: &[&str]) -> Value {
    let of_family = |subnet: &&str| match subnet.contains(':') {
        false => vec![
            json!({ "dst": "192.0.2.0/24" }),
            json!({ "dst": "198.51.100.0/24", "gw": "10.77.0.77" }),
        ],
        true => vec![
            json!({ "dst": "2001:db8::/32" }),
            json!({ "dst": "2001:db9::/32", "gw": "fd77::77" }),
        ],
    };
    json!({ "routes": subnets.iter().flat_map(of_family).collect::<Vec<Value>>() })
}

fn default_routes(subnets: &[&str]) -> Value {
    let of_family = |subnet: &&str| match subnet.contains(':') {
        false => json!({ "dst": "0.0.0.0/0", "gw": "10.77.0.9" }),
        true => json!({ "dst": "::/0", "gw": "fd77::9" }),
    };
    json!({ "routes": subnets.iter().map(of_family).collect::<Vec<Value>>() })
}

struct Case<'w> {
    versions: (&'static str, &'static str),
    subnets: &'static [&'static str],
    options: &'w InterfaceOptions,
}

impl Case<'_> {
    fn name(&self) -> String {
        format!(
            "{}, {}, {}",
            self.versions.0,
            self.subnets.join(" and "),
            self.options.name
        )
    }

    fn config(&self, implementation: Implementation) -> Value {
        let (gangplank, go) = self.versions;
        let mut config = json!({
            "cniVersion": if implementation == Gangplank { gangplank } else { go },
            "name": "side",
            "type": "bridge",
            "bridge": "br0",
        });
        merge(&mut config, (self.options.keys)());
        let ranges: Vec<Value> = self
            .subnets
            .iter()
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect();
        let mut ipam = json!({ "type": "host-local", "ranges": ranges });
        merge(&mut ipam, (self.options.ipam)(self.subnets));
        config["ipam"] = ipam;
        config
    }

    /// Adds two pods on a new node and deletes one. Returns what is observed after each step.
    fn observe(&self, implementation: Implementation) -> Vec<(&'static str, Value)> {
        let node = node();
        node.use_iptables_variant(self.options.iptables);
        let config = self.config(implementation);
        let pods = [node.pod("first"), node.pod("second")];
        let mut observed = Vec::new();
        let mut attached = Vec::new();
        for pod in &pods {
            let mut attachment = Attachment::new(&node, pod, &config);
            let call = attachment
                .call(implementation, "ADD")
                .args(self.options.args);
            let mut result = call.run().ok();
            attachment.result = result.clone();
            result["cniVersion"] = self.versions.0.into();
            observed.push(("the result", normalize::result(result)));
            observed.push(("the pod's links", json!(normalize::links(pod))));
            observed.push(("the pod's routes", json!(normalize::routes(pod))));
            attached.push(attachment);
        }
        observed.extend(on_host(&node));
        attached[0]
            .call(implementation, "DEL")
            .args(self.options.args)
            .run()
            .ok();
        observed.push((
            "the pod's links after DEL",
            json!(normalize::links(&pods[0])),
        ));
        observed.extend(on_host(&node));
        observed
    }

    fn compare(&self) {
        let (gangplank, go) = (self.observe(Gangplank), self.observe(Go));
        for ((what, gangplank), (_, go)) in gangplank.into_iter().zip(go) {
            assert!(
                gangplank == go,
                "{what}:\ngangplank: {gangplank}\nGo plugin: {go}"
            );
        }
    }
}

fn on_host(node: &Node) -> [(&'static str, Value); 7] {
    let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .map(|key| node.read(&format!("/proc/sys/net/{key}")));
    [
        ("the host's links", json!(normalize::links(node))),
        ("the host's routes", json!(normalize::routes(node))),
        ("the bridge's ports", json!(normalize::ports(node))),
        ("the nat rules", json!(normalize::nat(node))),
        ("the spoof rules", json!(normalize::spoof_rules(node))),
        ("the leases", json!(normalize::files(node))),
        ("forwarding", json!(forwarding)),
    ]
}

fn merge(config: &mut Value, keys: Value) {
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
    }
}

#[test]
fn both_implementations_give_the_same_results_and_state() {
    if !ready(&[IPTABLES, &["nft"]].concat()) {
        return;
    }
    let all = all_options();
    let mut cases = Vec::new();
    for options in &all {
        for subnets in FAMILIES {
            for versions in VERSIONS {
                // The oldest versions are only tested with dual-stack.
                if versions.0 < "0.3.1" && subnets.len() == 1 {
                    continue;
                }
                cases.push(Case {
                    versions,
                    subnets,
                    options,
                });
            }
        }
    }
    for_each_case(&cases, Case::name, Case::compare);
}
