//! The plugin ptp.

use std::path::Path;

use serde_json::{Value, json};

use super::chained::compare;
use super::{succeeds, with};
use crate::implementation::{Implementation, nat_rules, node_with, ready_for_chains};
use crate::support::{Answer, Network, Node, Pod};

struct Fixture {
    node: Node,
    implementation: Implementation,
}

impl Fixture {
    fn new(implementation: Implementation, go: &Path) -> Fixture {
        Fixture {
            node: node_with(go),
            implementation,
        }
    }

    fn call(&self, verb: &str, pod: &Pod, config: &Value) -> Answer {
        let call = self.implementation.call_for(&self.node, config);
        call.verb(verb).pod(pod).run()
    }

    fn del_without_netns(&self, pod: &Pod, config: &Value) {
        let call = self.implementation.call_for(&self.node, config);
        call.verb("DEL").pod(pod).unset("CNI_NETNS").run().ok();
    }

    fn veths(&self) -> usize {
        self.node.run("ip -o link show type veth").lines().count()
    }

    fn leases(&self) -> usize {
        crate::support::leases(&self.node, "small").len()
    }
}

fn ptp() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "type": "ptp",
        "ipam": { "type": "host-local", "subnet": "10.77.0.0/29", "routes": [{ "dst": "0.0.0.0/0" }] },
    })
}

fn of_static(addresses: &Value) -> Value {
    let ipam =
        json!({ "type": "static", "addresses": addresses, "routes": [{ "dst": "0.0.0.0/0" }] });
    with(&ptp(), "ipam", ipam)
}

#[test]
fn ptp_pd1_del_without_a_namespace_removes_link_and_masquerading() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let left = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let config = with(&ptp(), "ipMasq", true);
        fixture.call("ADD", &pod, &config).ok();
        fixture.del_without_netns(&pod, &config);
        let rules = nat_rules(&fixture.node);
        let chains = rules.iter().filter(|rule| rule.contains("CNI-"));
        (fixture.veths(), chains.count() > 0, fixture.leases())
    };
    compare(left, (0, false, 0), (1, true, 0));
}

#[test]
fn ptp_pd2_the_next_owner_of_an_address_is_reachable() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let is_reachable = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let config = of_static(&json!([{ "address": "10.77.0.2/29", "gateway": "10.77.0.1" }]));
        // A link that a killed runtime left behind.
        fixture.node.run_all(
            "ip link add old0 type veth peer name old1\nip link set old0 up\nip link set old1 up\n\
             ip route add 10.77.0.2/32 dev old0 scope host",
        );
        let pod = fixture.node.pod("a");
        fixture.call("ADD", &pod, &config).ok();
        fixture.node.ping("10.77.0.2").is_some()
    };
    compare(is_reachable, true, false);
}

#[test]
fn ptp_pd3_pd4_pd5_addresses_without_gateway_with_full_prefix_and_with_a_shared_gateway() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let outcomes = |implementation| {
        [
            json!([{ "address": "10.77.0.2/24" }]),
            json!([{ "address": "10.77.0.2/32", "gateway": "10.77.0.1" }]),
            json!([
                { "address": "10.77.0.2/24", "gateway": "10.77.0.1" },
                { "address": "10.77.0.3/24", "gateway": "10.77.0.1" },
            ]),
        ]
        .map(|addresses| {
            let fixture = Fixture::new(implementation, &go);
            let pod = fixture.node.pod("a");
            let answer = fixture.call("ADD", &pod, &of_static(&addresses));
            // Whether it fails without a trace, or succeeds.
            (succeeds(&answer), pod.link("eth0").is_some())
        })
    };
    let gangplank = [(false, false), (true, true), (true, true)];
    compare(outcomes, gangplank, [(false, true); 3]);
}

#[test]
fn ptp_pd6_pd7_a_failed_add_is_undone() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let left = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let mut config = ptp();
        config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.77" }]);
        fixture.call("ADD", &pod, &config).error();
        let is_left = pod.link("eth0").is_some();
        let second = fixture.call("ADD", &pod, &ptp());
        config["ipam"]["routes"] = json!([null]);
        let other = fixture.node.pod("b");
        let code = fixture.call("ADD", &other, &config).code;
        assert_ne!(code, Some(0));
        let of_other = crate::support::leases(&fixture.node, "small").len();
        (is_left, succeeds(&second), of_other)
    };
    compare(left, (false, true, 1), (true, false, 1));
}

#[test]
fn ptp_pd8_the_ipv6_gateway_answers_at_once() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let is_tentative = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let addresses = json!([{ "address": "fd00:77::2/64", "gateway": "fd00:77::1" }]);
        let mut config = of_static(&addresses);
        config["ipam"]["routes"] = json!([{ "dst": "::/0" }]);
        let result = fixture.call("ADD", &pod, &config).ok();
        let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let shown = fixture
            .node
            .run(&format!("ip -6 -o addr show dev {host} tentative"));
        shown.contains("fd00:77::1")
    };
    compare(is_tentative, false, true);
}

#[test]
fn ptp_pd11_gc_removes_stale_attachments() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let left = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let config = with(&with(&ptp(), "ipMasq", true), "cniVersion", "1.1.0");
        fixture.call("ADD", &pod, &config).ok();
        let gc = with(&config, "cni.dev/valid-attachments", json!([]));
        let gc = implementation.call_for(&fixture.node, &gc).verb("GC");
        gc.run().ok();
        (fixture.veths(), fixture.leases())
    };
    compare(left, (0, 0), (1, 1));
}

#[test]
fn ptp_check_sees_the_host_side() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let notices = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let result = fixture.call("ADD", &pod, &ptp()).ok();
        let address = Network::address(&result);
        fixture.node.run(&format!("ip route del {address}"));
        let config = with(&ptp(), "prevResult", result);
        !succeeds(&fixture.call("CHECK", &pod, &config))
    };
    compare(notices, true, false);
}
