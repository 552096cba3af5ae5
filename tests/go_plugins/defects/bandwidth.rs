//! What bandwidth limits, removes and compares.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::chained::compare;
use crate::implementation::{Implementation, node_with, ready_for_chains};
use crate::support::flows::{Flow, bandwidth, connected_pod};
use crate::support::{Answer, Node, Pod, Protocol};

/// A pod whose bandwidth is of one implementation.
struct Fixture {
    node: Node,
    pod: Pod,
    implementation: Implementation,
}

fn limits(rate: u64, burst: u64) -> Value {
    json!({ "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst })
}

fn egress(rate: u64, burst: u64) -> Value {
    json!({ "egressRate": rate, "egressBurst": burst })
}

impl Fixture {
    fn new(implementation: Implementation, go: &Path) -> Fixture {
        let node = node_with(go);
        let pod = connected_pod(&node, "a");
        Fixture {
            node,
            pod,
            implementation,
        }
    }

    fn call(&self, verb: &str, keys: &Value) -> Answer {
        let config = bandwidth(&self.pod, keys);
        let call = self.implementation.call_for(&self.node, &config).verb(verb);
        call.pod(&self.pod).run()
    }

    /// A UDP flood to the pod.
    fn flow(&self, duration: Duration) -> Flow {
        let to = (&*self.pod, "10.1.0.2:5001".parse().unwrap());
        self.node.flow(Protocol::Udp, to, duration)
    }

    fn ifbs(&self) -> usize {
        self.node.run("ip -o link show type ifb").lines().count()
    }

    fn reaches_host(&self) -> bool {
        self.pod.ping("10.1.0.1").is_some()
    }

    /// The handles and kinds of the qdiscs of the host end.
    fn qdiscs(&self) -> Vec<String> {
        let list = self.node.run("tc qdisc show dev veth0");
        let words = list.lines().map(|line| line.split(' ').skip(1).take(2));
        words
            .map(|words| words.collect::<Vec<_>>().join(" "))
            .collect()
    }
}

#[test]
fn bd1_bd2_the_burst_of_runtimes_defeats_the_limit_and_queues_delay_other_flows() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let measured = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let second = Duration::from_secs(1);
        // What runtimes pass if only a rate is given.
        let mut keys = limits(10_000_000, 2_147_483_647);
        keys["lowLatency"] = true.into();
        fixture.call("ADD", &keys).ok();
        let first = fixture.flow(second / 2).rate(Duration::ZERO, second / 2);
        fixture.call("DEL", &keys).ok();
        let fixture = Fixture::new(implementation, &go);
        let mut keys = limits(10_000_000, 1_000_000);
        keys["lowLatency"] = true.into();
        fixture.call("ADD", &keys).ok();
        let longest = std::thread::scope(|scope| {
            let flow = scope.spawn(|| fixture.flow(second));
            std::thread::sleep(second / 5);
            let pings = fixture.node.round_trips("10.1.0.2", 20);
            flow.join().unwrap();
            pings
        });
        // The Go plugin drops the requests too, when its queue is full.
        let is_slow = longest.average > Duration::from_millis(20) || longest.lost > 50.0;
        [first > 50_000_000.0, is_slow]
    };
    compare(measured, [false; 2], [true; 2]);
}

#[test]
fn bd3_large_numbers_do_not_wrap() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let passes = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        fixture.call("ADD", &egress(1000, 34_359_738_352)).ok();
        fixture.reaches_host()
    };
    compare(passes, true, false);
}

#[test]
fn bd4_del_removes_the_limits_of_a_running_pod_and_add_can_be_repeated() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let keys = limits(10_000_000, 1_000_000);
    let outcome = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        fixture.call("ADD", &keys).ok();
        fixture.call("DEL", &keys).ok();
        let reaches = fixture.reaches_host();
        let codes = [(); 2].map(|()| fixture.call("ADD", &keys).code);
        (reaches, codes)
    };
    let go_codes = [Some(1); 2];
    compare(outcome, (true, [Some(0); 2]), (false, go_codes));
}

#[test]
fn bd5_bd12_each_attachment_has_an_ifb() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let outcome = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let Fixture { node, pod, .. } = &fixture;
        let keys = egress(10_000_000, 1_000_000);
        fixture.call("ADD", &keys).ok();
        node.run("ip link add veth1 type veth peer name peer1");
        node.run("ip link set peer1 netns a name net1");
        let mut config = bandwidth(pod, &keys);
        config["prevResult"]["interfaces"] =
            json!([{ "name": "veth1" }, { "name": "net1", "sandbox": pod.path }]);
        let call = |verb: &str| {
            let call = implementation.call_for(node, &config).verb(verb);
            call.pod(pod).ifname("net1").run()
        };
        let second = call("ADD").code == Some(0);
        call("DEL").ok();
        let kept = fixture.reaches_host();
        // Of network "limited" and container "a", and of "limite" and "da".
        config["name"] = "limite".into();
        let call = implementation.call_for(node, &config).verb("DEL");
        call.container("da").netns("").ifname("eth0").run().ok();
        (second, kept, fixture.ifbs())
    };
    compare(outcome, (true, true, 1), (false, false, 0));
}

#[test]
fn bd6_bd7_small_bursts_let_frames_pass_and_small_rates_are_rejected() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let outcome = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let too_low = fixture.call("ADD", &egress(7, 8000)).error().msg;
        fixture.call("DEL", &json!({})).ok();
        let fixture = Fixture::new(implementation, &go);
        fixture.call("ADD", &egress(10_000_000, 8000)).ok();
        let large = "ping -n -c 1 -W 1 -s 1400 10.1.0.1";
        let passes = fixture.pod.try_run(large).status.success();
        (too_low.contains("egressRate"), passes)
    };
    compare(outcome, (true, true), (false, false));
}

#[test]
fn bd8_a_failed_add_is_undone_and_clsact_of_others_is_kept() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let outcome = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let keys = limits(10_000_000, 1_000_000);
        fixture.node.run("tc qdisc add dev veth0 clsact");
        let with_clsact = fixture.call("ADD", &keys).code;
        let reaches = fixture.reaches_host();
        fixture.call("DEL", &keys).ok();
        fixture.node.run("tc qdisc del dev veth0 clsact");
        let fixture = Fixture::new(implementation, &go);
        // The ifb cannot be created if its name is taken, for gangplank both names.
        for _ in 0..2 {
            let answer = fixture.call("ADD", &keys);
            if answer.code == Some(0) {
                let ifb = answer.ok()["interfaces"][2]["name"].clone();
                fixture.call("DEL", &keys).ok();
                let dummy = format!("ip link add {} type bridge", ifb.as_str().unwrap());
                fixture.node.run(&dummy);
                if implementation == Implementation::Go {
                    fixture
                        .node
                        .run_all("tc qdisc del dev veth0 root\ntc qdisc del dev veth0 ingress");
                }
            }
        }
        fixture.call("ADD", &keys).error();
        (with_clsact, reaches, fixture.qdiscs())
    };
    let clean = vec!["noqueue 0:".to_owned()];
    compare(
        outcome,
        (Some(0), true, clean),
        (Some(1), true, vec!["tbf 1:".to_owned()]),
    );
}

#[test]
fn bd9_del_needs_no_valid_limits_and_gc_removes_stale_ifbs() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let outcome = |implementation: Implementation| {
        let fixture = Fixture::new(implementation, &go);
        let keys = egress(10_000_000, 1_000_000);
        fixture.call("ADD", &keys).ok();
        let code = fixture.call("DEL", &egress(10_000_000, 0)).code;
        let after_del = fixture.ifbs();
        let fixture = Fixture::new(implementation, &go);
        fixture.call("ADD", &keys).ok();
        let gc = |valid: Value| {
            let mut config = bandwidth(&fixture.pod, &json!({}));
            config["cniVersion"] = "1.1.0".into();
            config["cni.dev/valid-attachments"] = valid;
            let call = implementation.call_for(&fixture.node, &config).verb("GC");
            call.run().ok();
            fixture.ifbs()
        };
        let kept = gc(json!([{ "containerID": "a", "ifname": "eth0" }]));
        (code, after_del, kept, gc(json!([])), fixture.reaches_host())
    };
    compare(outcome, (Some(0), 0, 1, 0, true), (Some(1), 1, 1, 1, true));
}

#[test]
fn bd10_a_missing_result_is_an_error() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let code = |implementation: Implementation| {
        let fixture = Fixture::new(implementation, &go);
        let config = json!({ "cniVersion": "1.0.0", "name": "limited", "type": "bandwidth" });
        let call = implementation.call_for(&fixture.node, &config).verb("ADD");
        call.pod(&fixture.pod).run().code
    };
    compare(code, Some(1), Some(2));
}

#[test]
fn bd11_check_compares_every_part() {
    let Some(go) = ready_for_chains(&["tc"]) else {
        return;
    };
    let keys = limits(10_000_000, 1_000_000);
    let codes = |implementation: Implementation| {
        [
            "true",
            "tc filter del dev veth0 parent ffff:",
            "tc qdisc del dev veth0 ingress",
            "tc qdisc del dev veth0 root",
            "tc qdisc replace dev veth0 root handle 2: htb",
        ]
        .map(|change| {
            let fixture = Fixture::new(implementation, &go);
            fixture.call("ADD", &keys).ok();
            fixture.node.run(change);
            fixture.call("CHECK", &keys).code
        })
    };
    let [ok, error] = [Some(0), Some(1)];
    compare(codes, [ok, error, error, error, error], [ok; 5]);
}
