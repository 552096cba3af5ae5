//! Hot swap of tuning: what one implementation set is checked, changed and restored by the other.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{BOTH, node_with, ready_for_chains};
use crate::support::{Network, Node, Pod, small_network};

const BACKUP: &str = "/run/cni/tuning/a_eth0.json";

fn config(version: &str, pod: &Pod) -> Value {
    json!({
        "cniVersion": version,
        "name": "tuned",
        "type": "tuning",
        "mac": "02:00:00:00:00:0a",
        "mtu": 1400,
        "promisc": true,
        "allmulti": true,
        "txQLen": 7,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500" },
        "prevResult": {
            "cniVersion": version,
            "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.path }],
            "ips": [{ "version": "4", "address": "10.1.2.3/24", "interface": 0 }],
        },
    })
}

fn pod(node: &Node) -> Pod {
    let pod = node.pod("a");
    pod.run("ip link add eth0 type veth peer name peer0");
    pod.run("ip link set eth0 address 02:00:00:00:00:01");
    pod
}

fn has_backup(node: &Node) -> bool {
    node.try_run(&format!("test -e {BACKUP}")).status.success()
}

/// A result without the MTU, which only gangplank updates.
fn without_mtu(mut result: Value) -> Value {
    result["interfaces"][0]
        .as_object_mut()
        .unwrap()
        .remove("mtu");
    result
}

#[test]
fn both_implementations_restore_what_the_other_one_set() {
    let Some(go) = ready_for_chains(&["sysctl"]) else {
        return;
    };
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut results = Vec::new();
        for (add, rest) in [
            (Go, Go),
            (Gangplank, Gangplank),
            (Go, Gangplank),
            (Gangplank, Go),
        ] {
            let node = node_with(&go);
            let pod = pod(&node);
            let config = config(version, &pod);
            let before = pod.link("eth0");
            let call = |by: crate::implementation::Implementation, verb: &str| {
                by.call_for(&node, &config).verb(verb).pod(&pod).run()
            };
            results.push(without_mtu(call(add, "ADD").ok()));
            assert!(has_backup(&node));
            for by in BOTH {
                call(by, "CHECK").ok();
            }
            call(rest, "DEL").ok();
            assert_eq!(pod.link("eth0"), before, "{add:?}, then {rest:?}");
            assert!(!has_backup(&node), "{add:?}, then {rest:?}");
            let sysctl = pod.run("sysctl -n net.core.somaxconn");
            if [add, rest] == [Gangplank; 2] {
                assert_ne!(sysctl.trim(), "500");
            }
        }
        assert!(
            results.iter().all(|result| *result == results[0]),
            "{results:#?}"
        );
    }
}

#[test]
fn the_backup_files_have_the_same_text_except_for_gangplanks_keys() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let file = |by: crate::implementation::Implementation| {
        let node = node_with(&go);
        let pod = pod(&node);
        let call = by.call_for(&node, &config("1.0.0", &pod));
        call.verb("ADD").pod(&pod).run().ok();
        node.read(BACKUP)
    };
    let theirs = file(Go);
    let common = theirs.strip_suffix("\n}").expect("an object");
    assert!(file(Gangplank).starts_with(&format!("{common},\n \"sysctl\": {{")));
}

#[test]
fn gangplank_keeps_the_backup_of_the_go_plugin_when_add_is_repeated() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for del in BOTH {
        let node = node_with(&go);
        let pod = pod(&node);
        let before = pod.link("eth0");
        let config = config("1.0.0", &pod);
        for (by, verb) in [(Go, "ADD"), (Gangplank, "ADD"), (del, "DEL")] {
            by.call_for(&node, &config).verb(verb).pod(&pod).run().ok();
        }
        assert_eq!(pod.link("eth0"), before);
    }
}

#[test]
fn bridge_and_tuning_may_be_of_different_implementations() {
    let Some(go) = ready_for_chains(&["ping"]) else {
        return;
    };
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "plugins": [
            small_network(),
            { "type": "tuning", "mac": "02:00:00:00:00:0a", "mtu": 1400, "promisc": true },
        ],
    });
    let all = BOTH.map(|bridge| BOTH.map(|tuning| [bridge, tuning]));
    for add in all.as_flattened() {
        for rest in all.as_flattened() {
            let node = node_with(&go);
            let pod = node.pod("a");
            let chain = node.chain(&list);
            let result = chain.by(add).add(&pod);
            node.reaches(&Network::address(&result));
            let chain = chain.by(rest);
            let checked = chain.check(&pod, &result);
            assert_eq!(checked.code, Some(0), "{add:?}, then {rest:?}: {checked:?}");
            chain.del(&pod, &result);
            assert!(pod.link("eth0").is_none() && !has_backup(&node));
        }
    }
}
