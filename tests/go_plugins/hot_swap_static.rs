//! Hot swap of static, as a program and as the IPAM plugin of bridge: the results are the same.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{
    Attachment, BOTH, Implementation, nat_rules, node_with, ready_for_chains,
};
use crate::normalize;
use crate::support::small_network;

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// Keys and CNI_ARGS.
fn requests() -> Vec<(Value, &'static str)> {
    let ipam = json!({
        "type": "static",
        "addresses": [
            { "address": "10.77.0.5/24", "gateway": "10.77.0.1" },
            { "address": "fd00:77::5/64", "gateway": "fd00:77::1" },
        ],
        "routes": [
            { "dst": "0.0.0.0/0" },
            { "dst": "10.9.0.0/16", "gw": "10.77.0.9", "mtu": 1400, "priority": 7 },
            { "dst": "2001:db8::/32" },
        ],
        "dns": { "nameservers": ["10.0.0.53"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:1"] },
    });
    let plain = json!({ "ipam": ipam });
    let with = |key: &str, value: Value| {
        let mut keys = plain.clone();
        keys[key] = value;
        keys
    };
    let other = json!({ "ips": ["10.78.0.7/24"] });
    vec![
        (plain.clone(), ""),
        (plain.clone(), "IgnoreUnknown=1;K8S_POD_NAME=web"),
        (with("runtimeConfig", other.clone()), ""),
        (with("args", json!({ "cni": other })), ""),
        (
            json!({ "ipam": { "type": "static" } }),
            "IP=10.78.0.7/24,fd00:78::7/64;GATEWAY=10.78.0.1,10.78.0.2",
        ),
    ]
}

#[test]
fn results_are_the_same_text() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let node = node_with(&go);
    let pod = node.pod("a");
    for version in VERSIONS {
        for (keys, args) in requests() {
            let mut config = json!({ "cniVersion": version, "name": "small", "type": "static" });
            let keys = keys.as_object().unwrap().clone();
            config.as_object_mut().unwrap().extend(keys);
            let run = |by: Implementation, verb: &str, config: &Value| {
                let call = by.call_for(&node, config).verb(verb).pod(&pod);
                call.args(args).run()
            };
            let results = BOTH.map(|by| run(by, "ADD", &config));
            assert_eq!(results[0].stdout, results[1].stdout, "{config} {args}");
            config["prevResult"] = results[0].ok();
            for by in BOTH {
                if version >= "0.4.0" {
                    run(by, "CHECK", &config).ok();
                }
                run(by, "DEL", &config).ok();
            }
        }
    }
}

#[test]
fn pods_of_bridge_are_checked_and_deleted_by_the_other_implementation() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let (keys, _) = requests().remove(0);
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = keys["ipam"].clone();
    let mut results = Vec::new();
    for (add, del) in [
        (Go, Go),
        (Go, Gangplank),
        (Gangplank, Go),
        (Gangplank, Gangplank),
    ] {
        let node = node_with(&go);
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &config);
        results.push(normalize::result(attachment.try_add(add).ok()));
        for by in BOTH {
            attachment.check(by).ok();
        }
        attachment.del(del).ok();
        assert!(pod.link("eth0").is_none(), "{add:?}, then {del:?}");
        let rules = nat_rules(&node);
        let mut of_pod = rules.iter().filter(|rule| rule.contains("10.77.0.5"));
        assert_eq!(of_pod.next(), None, "{add:?}, then {del:?}");
    }
    assert!(results.iter().all(|it| *it == results[0]), "{results:#?}");
}
