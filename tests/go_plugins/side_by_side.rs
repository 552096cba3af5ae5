//! The same configuration and the same ids on two fresh nodes, one for each party: what stands there afterwards is
//! the same, and so is what the runtime was told.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, IPTABLES, Implementation, for_each_case, node, ready};
use crate::normal;
use crate::support::Node;

/// A version, and the one that the reference is asked for: Debian's does not know 1.1.0, whose results have the same
/// shape as those of 1.0.0.
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

/// A configuration: the keys it has beside `ipam`'s ranges.
struct Wish {
    name: &'static str,
    keys: fn() -> Value,
    /// Keys of `ipam`, for the families that the network has.
    ipam: fn(&[&str]) -> Value,
    args: &'static str,
    iptables: &'static str,
}

const NFT: &str = "xtables-nft-multi";
const LEGACY: &str = "xtables-legacy-multi";

const fn wish(name: &'static str, keys: fn() -> Value) -> Wish {
    Wish {
        name,
        keys,
        ipam: |_| json!({}),
        args: "",
        iptables: NFT,
    }
}

fn wishes() -> Vec<Wish> {
    let mut wishes = vec![
        wish("plain", || json!({})),
        wish("gateway", || json!({ "isGateway": true })),
        wish("default gateway", || json!({ "isDefaultGateway": true })),
        wish(
            "hairpin",
            || json!({ "isGateway": true, "hairpinMode": true }),
        ),
        wish("promiscuous", || json!({ "promiscMode": true })),
        wish("mtu", || json!({ "isDefaultGateway": true, "mtu": 1400 })),
        wish(
            "dns",
            || json!({ "dns": { "nameservers": ["10.0.0.53"], "search": ["a.test"], "domain": "b.test" } }),
        ),
        wish(
            "masquerade, nft",
            || json!({ "isDefaultGateway": true, "ipMasq": true }),
        ),
        Wish {
            iptables: LEGACY,
            ..wish(
                "masquerade, legacy",
                || json!({ "isDefaultGateway": true, "ipMasq": true }),
            )
        },
        wish("masquerade without a gateway", || json!({ "ipMasq": true })),
        Wish {
            ipam: routes,
            ..wish("routes", || json!({ "isGateway": true }))
        },
        Wish {
            ipam: default_routes,
            ..wish(
                "a default route of its own",
                || json!({ "isDefaultGateway": true }),
            )
        },
        wish(
            "requested addresses",
            || json!({ "isGateway": true, "runtimeConfig": { "mac": "02:00:00:00:00:07" } }),
        ),
        Wish {
            args: "IgnoreUnknown=1;K8S_POD_NAME=web-0;MAC=02:00:00:00:00:08",
            ..wish("args", || json!({ "isGateway": true }))
        },
        Wish {
            ipam: |_| json!({ "dataDir": "/var/lib/cni/elsewhere" }),
            ..wish("a directory of its own", || json!({ "name": "else.where" }))
        },
    ];
    let keys = || json!({ "isGateway": true, "macspoofchk": true });
    wishes.push(wish("spoof check", keys));
    wishes
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

struct Cell<'w> {
    versions: (&'static str, &'static str),
    subnets: &'static [&'static str],
    wish: &'w Wish,
}

impl Cell<'_> {
    fn name(&self) -> String {
        format!(
            "{}, {}, {}",
            self.versions.0,
            self.subnets.join(" and "),
            self.wish.name
        )
    }

    fn config(&self, party: Implementation) -> Value {
        let (ours, theirs) = self.versions;
        let mut config = json!({
            "cniVersion": if party == Gangplank { ours } else { theirs },
            "name": "side",
            "type": "bridge",
            "bridge": "br0",
        });
        merge(&mut config, (self.wish.keys)());
        let ranges: Vec<Value> = self
            .subnets
            .iter()
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect();
        let mut ipam = json!({ "type": "host-local", "ranges": ranges });
        merge(&mut ipam, (self.wish.ipam)(self.subnets));
        config["ipam"] = ipam;
        config
    }

    /// Two pods are added by one party on a fresh node, one of them is deleted: what is seen after each step.
    fn seen(&self, party: Implementation) -> Vec<(&'static str, Value)> {
        let node = node();
        node.use_iptables_variant(self.wish.iptables);
        let config = self.config(party);
        let pods = [node.pod("first"), node.pod("second")];
        let mut seen = Vec::new();
        let mut attached = Vec::new();
        for pod in &pods {
            let mut attachment = Attachment::new(&node, pod, &config);
            let call = attachment.call(party, "ADD").args(self.wish.args);
            let mut result = call.run().ok();
            attachment.result = result.clone();
            result["cniVersion"] = self.versions.0.into();
            seen.push(("the result", normal::result(result)));
            seen.push(("the pod's links", json!(normal::links(pod))));
            seen.push(("the pod's routes", json!(normal::routes(pod))));
            attached.push(attachment);
        }
        seen.extend(on_host(&node));
        attached[0]
            .call(party, "DEL")
            .args(self.wish.args)
            .run()
            .ok();
        seen.push(("the pod's links after DEL", json!(normal::links(&pods[0]))));
        seen.extend(on_host(&node));
        seen
    }

    fn compare(&self) {
        let (ours, theirs) = (self.seen(Gangplank), self.seen(Go));
        for ((what, ours), (_, theirs)) in ours.into_iter().zip(theirs) {
            assert!(ours == theirs, "{what}:\n  ours {ours}\ntheirs {theirs}");
        }
    }
}

fn on_host(node: &Node) -> [(&'static str, Value); 7] {
    let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .map(|key| node.read(&format!("/proc/sys/net/{key}")));
    [
        ("the host's links", json!(normal::links(node))),
        ("the host's routes", json!(normal::routes(node))),
        ("the bridge's ports", json!(normal::ports(node))),
        ("the nat rules", json!(normal::nat(node))),
        ("the spoof rules", json!(normal::spoof_rules(node))),
        ("the leases", json!(normal::files(node))),
        ("forwarding", json!(forwarding)),
    ]
}

fn merge(config: &mut Value, keys: Value) {
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
    }
}

#[test]
fn the_same_call_leaves_the_same_behind() {
    if !ready(&[IPTABLES, &["nft"]].concat()) {
        return;
    }
    let wishes = wishes();
    let mut cells = Vec::new();
    for wish in &wishes {
        for subnets in FAMILIES {
            for versions in VERSIONS {
                // No runtime asks for the oldest ones today; they get both families at once.
                if versions.0 < "0.3.1" && subnets.len() == 1 {
                    continue;
                }
                cells.push(Cell {
                    versions,
                    subnets,
                    wish,
                });
            }
        }
    }
    for_each_case(&cells, Cell::name, Cell::compare);
}
