//! Hot swap of ptp: pods of one implementation are checked and deleted by the other, and reach each other meanwhile.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, BOTH, nat_rules, node_with, ready_for_chains};
use crate::normalize;
use crate::support::Network;

fn config(families: &Value, backend: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "type": "ptp",
        "ipMasq": !backend.is_empty(),
        "ipMasqBackend": backend,
        "mtu": 1400,
        "ipam": {
            "type": "host-local",
            "ranges": families,
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.77.0.1" }],
        },
    })
}

#[test]
fn pods_of_ptp_are_checked_and_deleted_by_the_other_implementation() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let v4 = json!([[{ "subnet": "10.77.0.0/24" }]]);
    let dual = json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]]);
    for (families, backend) in [(&v4, ""), (&v4, "nftables"), (&dual, "iptables")] {
        let config = config(families, backend);
        let mut results = Vec::new();
        for (add, del) in [
            (Go, Go),
            (Go, Gangplank),
            (Gangplank, Go),
            (Gangplank, Gangplank),
        ] {
            if (backend, del) == ("nftables", Go) {
                continue;
            }
            let what = format!("{add:?}, then {del:?}: {config}");
            let node = node_with(&go);
            let (pod, other) = (node.pod("a"), node.pod("b"));
            let mut attachment = Attachment::new(&node, &pod, &config);
            let mut neighbour = Attachment::new(&node, &other, &config);
            results.push(normalize::result(attachment.try_add(add).ok()));
            let of_neighbour = neighbour.try_add(del).ok();
            pod.wait_for_dad();
            pod.reaches(&Network::address(&of_neighbour));
            other.reaches(&Network::address(&attachment.result));
            for by in BOTH {
                attachment.check(by).ok();
            }
            // DEL of the Go plugin fails after an ADD with nftables if iptables has no such chain.
            let del_of_neighbour = if backend == "nftables" {
                Gangplank
            } else {
                add
            };
            for answer in [attachment.del(del), neighbour.del(del_of_neighbour)] {
                assert_eq!(answer.code, Some(0), "{what}: {answer:?}");
            }
            assert!(pod.link("eth0").is_none(), "{what}");
            assert_eq!(node.run("ip -o link show type veth"), "", "{what}");
            let rules = nat_rules(&node);
            assert!(
                !rules.iter().any(|rule| rule.contains("10.77.0")),
                "{what}: {rules:?}"
            );
            let leases = crate::support::leases(&node, "small");
            assert!(leases.is_empty(), "{what}: {leases:?}");
        }
        assert!(results.iter().all(|it| *it == results[0]), "{results:#?}");
    }
}

#[test]
fn a_pod_of_the_go_plugin_is_removed_without_its_namespace() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let config = config(&json!([[{ "subnet": "10.77.0.0/24" }]]), "iptables");
    for has_prev_result in [true, false] {
        let node = node_with(&go);
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &config);
        attachment.try_add(Go).ok();
        if !has_prev_result {
            attachment.result = Value::Null;
        }
        attachment
            .call(Gangplank, "DEL")
            .unset("CNI_NETNS")
            .run()
            .ok();
        assert_eq!(node.run("ip -o link show type veth"), "");
        let rules = nat_rules(&node);
        assert!(!rules.iter().any(|rule| rule.contains("CNI-")), "{rules:?}");
    }
}
