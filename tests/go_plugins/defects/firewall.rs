//! The rules of firewall: whose they are, their order, and their removal.

use serde_json::{Value, json};

use super::chained::{ChainFixture, Site, compare, tcp};
use crate::implementation::Implementation::{self, Go};
use crate::implementation::ready_for_chains;
use crate::support::{Answer, Chain, Pod};

fn succeeds(answer: &Answer) -> bool {
    answer.code == Some(0)
}

/// The index of firewall in the chain.
const FIREWALL: usize = 2;

/// A result of the bridge for a pod.
fn bridged(chain: &Chain, pod: &Pod) -> Value {
    chain.call(0, "ADD", &Value::Null).pod(pod).run().ok()
}

fn run(chain: &Chain, verb: &str, prev: &Value, pod: &Pod) -> Answer {
    chain.call(FIREWALL, verb, prev).pod(pod).run()
}

#[test]
fn fd1_an_unknown_backend_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let chain = fixture
            .chain("iptables")
            .with("firewall", "backend", "iptabels");
        let result = bridged(&chain, &pod);
        succeeds(&run(&chain, "ADD", &result, &pod))
    };
    compare(scenario, false, true);
}

#[test]
fn fd1_the_backend_nftables_writes_no_rules_of_iptables() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let chain = fixture
            .chain("iptables")
            .with("firewall", "backend", "nftables");
        let result = bridged(&chain, &pod);
        run(&chain, "ADD", &result, &pod).ok();
        let native = fixture
            .node
            .run("nft list tables")
            .contains("gangplank_firewall");
        (native, fixture.rules_with("CNI-FORWARD").is_empty())
    };
    compare(scenario, (true, true), (false, false));
}

#[test]
fn fd2_del_without_prev_result_removes_the_rules() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a-pod");
        let chain = fixture.chain("iptables");
        let result = bridged(&chain, &pod);
        run(&chain, "ADD", &result, &pod).ok();
        assert!(fixture.has_rules_of(&pod, &result));
        run(&chain, "DEL", &Value::Null, &pod).ok();
        fixture.has_rules_of(&pod, &result)
    };
    compare(scenario, false, true);
}

#[test]
fn fd3_a_late_del_keeps_the_rules_of_the_next_owner_of_the_address() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pods = ["old-pod", "new-pod"].map(|name| fixture.node.pod(name));
        let chain = fixture.chain("iptables");
        let result = bridged(&chain, &pods[0]);
        run(&chain, "ADD", &result, &pods[0]).ok();
        // The runtime lost the first container, and its address is assigned again.
        chain.call(0, "DEL", &result).pod(&pods[0]).run().ok();
        let mut config = chain.config(0);
        config["ipam"]["rangeStart"] = "10.77.0.2".into();
        config["ipam"]["rangeEnd"] = "10.77.0.2".into();
        let chain = chain.with("bridge", "ipam", config["ipam"].clone());
        let next = bridged(&chain, &pods[1]);
        assert_eq!(next["ips"][0]["address"], result["ips"][0]["address"]);
        run(&chain, "ADD", &next, &pods[1]).ok();
        run(&chain, "DEL", &result, &pods[0]).ok();
        let check = run(&chain, "CHECK", &next, &pods[1]);
        (
            succeeds(&check),
            fixture.rules_with("-s 10.77.0.2/32").is_empty(),
        )
    };
    compare(scenario, (true, false), (false, true));
}

#[test]
fn fd4_the_last_del_of_a_bridge_removes_its_isolation() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for policy in ["same-bridge", "isolated"] {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let chain = fixture
                .chain("iptables")
                .with("firewall", "ingressPolicy", policy);
            let pods = ["a", "b"].map(|name| fixture.node.pod(name));
            let results = pods.each_ref().map(|pod| bridged(&chain, pod));
            for (pod, result) in pods.iter().zip(&results) {
                run(&chain, "ADD", result, pod).ok();
            }
            let isolation = || fixture.rules_with("CNI-ISOLATION").is_empty();
            let mut is_empty = Vec::new();
            for (pod, result) in pods.iter().zip(&results) {
                run(&chain, "DEL", result, pod).ok();
                is_empty.push(isolation());
            }
            is_empty
        };
        compare(scenario, vec![false, true], vec![false, false]);
    }
}

#[test]
fn fd5_check_changes_nothing() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let chain = fixture.chain("iptables");
        let result = bridged(&chain, &pod);
        let before = fixture.ruleset();
        run(&chain, "CHECK", &result, &pod).error();
        fixture.ruleset() == before
    };
    compare(scenario, true, false);
}

#[test]
fn fd6_a_network_of_ipv4_does_not_need_ip6tables() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let node = &fixture.node;
        node.use_iptables_variant("xtables-nft-multi");
        let script = "case $name in ip6tables*) exit 127;; esac";
        node.run_before_iptables("/usr/sbin/xtables-nft-multi", script);
        let pod = node.pod("a");
        let ipam = json!({ "type": "host-local", "subnet": "10.77.0.0/24" });
        let chain = fixture.chain("iptables").with("bridge", "ipam", ipam);
        let result = bridged(&chain, &pod);
        ["ADD", "CHECK", "DEL"].map(|verb| succeeds(&run(&chain, verb, &result, &pod)))
    };
    compare(scenario, [true; 3], [false; 3]);
}

#[test]
fn fd8_mapped_ports_are_accepted_if_forward_drops() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for policy in ["open", "same-bridge", "isolated"] {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            site.fixture.node.run("iptables -P FORWARD DROP");
            let chain = site.fixture.chain("iptables").with_ports(tcp(8080));
            let pod = site.pod("a");
            chain.with("firewall", "ingressPolicy", policy).add(&pod);
            let _server = pod.serve(9000);
            site.reaches(8080)
        };
        compare(scenario, true, false);
    }
}

#[test]
fn fd9_the_accept_rules_come_before_a_reject_again() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let site = Site::new(implementation, &go);
        let chain = site.fixture.chain("iptables");
        chain.add(&site.pod("a"));
        site.fixture.node.run("iptables -I FORWARD 1 -j REJECT");
        let pod = site.pod("b");
        chain.add(&pod);
        site.outside.run("ip route add 10.77.0.0/24 via 172.18.0.5");
        let _server = site.outside.serve(9000);
        let to = "172.18.0.9:9000";
        pod.asks(crate::support::Protocol::Tcp, to, super::chained::LIMIT)
            .is_some()
    };
    compare(scenario, true, false);
}

#[test]
fn fd9_isolation_comes_before_the_accept_rules_again() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let chain = fixture
            .chain("iptables")
            .with("firewall", "ingressPolicy", "same-bridge");
        let pods = ["a", "b"].map(|name| fixture.node.pod(name));
        let results = pods.each_ref().map(|pod| bridged(&chain, pod));
        run(&chain, "ADD", &results[0], &pods[0]).ok();
        let rules = fixture.node.run("iptables -S FORWARD");
        let jump = rules
            .lines()
            .find(|rule| rule.ends_with("CNI-FORWARD"))
            .unwrap();
        fixture.node.write(
            "/run/delete",
            &format!("iptables {}", jump.replacen("-A", "-D", 1)),
        );
        fixture.node.run("sh /run/delete");
        run(&chain, "ADD", &results[1], &pods[1]).ok();
        let rules = fixture.node.run("iptables -S FORWARD");
        let position = |target: &str| rules.lines().position(|rule| rule.ends_with(target));
        position("CNI-ISOLATION-STAGE-1") < position("CNI-FORWARD")
    };
    compare(scenario, true, false);
}

#[test]
fn fd10_check_reports_lost_isolation() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let chain = fixture
            .chain("iptables")
            .with("firewall", "ingressPolicy", "same-bridge");
        let pod = fixture.node.pod("a");
        let result = bridged(&chain, &pod);
        run(&chain, "ADD", &result, &pod).ok();
        run(&chain, "CHECK", &result, &pod).ok();
        fixture.node.run("iptables -F CNI-ISOLATION-STAGE-1");
        succeeds(&run(&chain, "CHECK", &result, &pod))
    };
    compare(scenario, false, true);
}

#[test]
fn fd12_a_changed_policy_replaces_the_rules_of_the_bridge() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pods = ["a", "b", "c"].map(|name| fixture.node.pod(name));
        for (pod, policy) in pods.iter().zip(["same-bridge", "isolated", "same-bridge"]) {
            let chain = fixture
                .chain("iptables")
                .with("firewall", "ingressPolicy", policy);
            let result = bridged(&chain, pod);
            run(&chain, "ADD", &result, pod).ok();
        }
        fixture.rules_with("-i br0 -o br0").len()
    };
    // One for each family.
    compare(scenario, 0, 2);
}

#[test]
fn fd13_an_interface_that_is_no_bridge_of_the_node_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        fixture
            .node
            .run("ip link add eth0 type veth peer name eth1");
        let chain = fixture
            .chain("iptables")
            .with("firewall", "ingressPolicy", "same-bridge");
        let pod = fixture.node.pod("a");
        let mut result = bridged(&chain, &pod);
        result["interfaces"] = json!([result["interfaces"][2]]);
        for ip in result["ips"].as_array_mut().unwrap() {
            ip["interface"] = 0.into();
        }
        let before = fixture.ruleset();
        let answer = run(&chain, "ADD", &result, &pod);
        (succeeds(&answer), fixture.ruleset() == before)
    };
    compare(scenario, (false, true), (true, false));
}

#[test]
fn fd14_an_unknown_policy_is_refused_before_any_change_and_does_not_prevent_del() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let chain = fixture
            .chain("iptables")
            .with("firewall", "ingressPolicy", "closed");
        let pod = fixture.node.pod("a");
        let result = bridged(&chain, &pod);
        let before = fixture.ruleset();
        let added = run(&chain, "ADD", &result, &pod);
        let is_unchanged = fixture.ruleset() == before;
        let deleted = run(&chain, "DEL", &result, &pod);
        (succeeds(&added), is_unchanged, succeeds(&deleted))
    };
    compare(scenario, (false, true, true), (false, false, false));
}

#[test]
fn fd16_concurrent_first_adds_write_shared_rules_once() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let copies = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let chain = fixture
            .chain("iptables")
            .with("firewall", "ingressPolicy", "isolated");
        let pods: Vec<Pod> = (0..6)
            .map(|n| fixture.node.pod(&format!("pod{n}")))
            .collect();
        let results: Vec<Value> = pods.iter().map(|pod| bridged(&chain, pod)).collect();
        std::thread::scope(|scope| {
            for (pod, result) in pods.iter().zip(&results) {
                let chain = &chain;
                scope.spawn(move || run(chain, "ADD", result, pod));
            }
        });
        let of_both = |rule: &&String| rule.starts_with("-A ");
        let count = |text: &str| fixture.rules_with(text).iter().filter(of_both).count();
        [
            count("-j CNI-FORWARD"),
            count("-j CNI-ADMIN"),
            count("-j CNI-ISOLATION-STAGE-1"),
            count("-j RETURN"),
            count("-j DROP"),
        ]
    };
    // STAGE-1 and STAGE-2 have a RETURN, and a DROP with this policy, in both families.
    let once = [2, 2, 2, 4, 4];
    assert!(
        (0..8).any(|_| copies(Go) != once),
        "the Go plugin wrote them once"
    );
    for _ in 0..3 {
        assert_eq!(copies(Implementation::Gangplank), once);
    }
}
