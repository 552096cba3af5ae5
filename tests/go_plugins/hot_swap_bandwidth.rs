//! Hot swap of bandwidth: limits of one implementation are checked and removed by the other, and hold meanwhile.

use std::time::Duration;

use serde_json::{Value, json};

use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{BOTH, node_with, ready_for_chains};
use crate::support::Protocol;
use crate::support::flows::{bandwidth, connected_pod};

fn limits(rate: u64, burst: u64) -> Value {
    json!({ "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst })
}

#[test]
fn both_implementations_check_and_remove_the_limits_of_the_other() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let mut low_latency = limits(10_000_000, 200_000);
    low_latency["lowLatency"] = true.into();
    // Without a large burst, in the Go plugin's numbers too.
    for (keys, rate) in [(limits(10_000_000, 200_000), 1e7), (low_latency, 1e7)] {
        let mut results = Vec::new();
        for (add, del) in [(Go, Gangplank), (Gangplank, Go), (Gangplank, Gangplank)] {
            if add == Go && keys["lowLatency"] == true {
                continue;
            }
            let node = node_with(&go);
            let pod = connected_pod(&node, "a");
            let call = |by: Implementation, verb: &str| {
                let config = bandwidth(&pod, &keys);
                by.call_for(&node, &config).verb(verb).pod(&pod).run()
            };
            let mut result = call(add, "ADD").ok();
            // The MAC address of the ifb is random.
            result["interfaces"][2]["mac"].take();
            results.push(result.to_string().replace(&pod.path, "NETNS"));
            for by in BOTH {
                call(by, "CHECK").ok();
            }
            let to = (&*node, "10.1.0.1:5001".parse().unwrap());
            let flow = pod.flow(Protocol::Udp, to, Duration::from_millis(600));
            let steady = flow.steady_rate();
            assert!((steady / rate - 1.0).abs() < 0.2, "{add:?}: {steady}");
            call(del, "DEL").ok();
            assert_eq!(node.run("ip -o link show type ifb"), "");
            if del == Gangplank {
                assert_eq!(node.run("tc qdisc show dev veth0").lines().count(), 1);
                pod.reaches("10.1.0.1");
            }
        }
        results.dedup();
        assert_eq!(results.len(), 1, "{results:#?}");
    }
}

#[test]
fn what_the_go_plugin_leaves_after_del_is_removed() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let node = node_with(&go);
    let pod = connected_pod(&node, "a");
    let config = bandwidth(&pod, &limits(10_000_000, 200_000));
    let call =
        |by: Implementation, verb: &str| by.call_for(&node, &config).verb(verb).pod(&pod).run();
    for repair in ["DEL", "ADD"] {
        call(Go, "ADD").ok();
        call(Go, "DEL").ok();
        pod.does_not_reach("10.1.0.1");
        call(Gangplank, repair).ok();
        pod.reaches("10.1.0.1");
        call(Gangplank, "DEL").ok();
        assert_eq!(node.run("tc qdisc show dev veth0").lines().count(), 1);
    }
}
