//! Which mappings ADD of portmap writes and accepts, and what CHECK examines.

use serde_json::{Value, json};

use super::chained::{ChainFixture, compare, tcp};
use crate::implementation::Implementation::{self, Go};
use crate::implementation::ready_for_chains;
use crate::support::Answer;

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// Whether a plugin succeeded; errors must be of the chained plugin.
fn succeeds(answer: &Answer) -> bool {
    answer.code == Some(0)
}

#[test]
fn pd2_a_repeated_add_changes_nothing() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let chain = fixture.chain("nftables").with_ports(tcp(8080));
        let result = chain.add(&pod);
        let once = fixture.ruleset();
        chain.call(1, "ADD", &result).pod(&pod).run().ok();
        fixture.ruleset() == once
    };
    compare(scenario, true, false);
}

#[test]
fn pd5_a_host_port_of_another_container_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let pods = ["holder", "other"].map(|name| fixture.node.pod(name));
            let chain = fixture.chain(backend).with_ports(tcp(8080));
            chain.add(&pods[0]);
            let before = fixture.ruleset();
            let answer = chain.try_add(&pods[1]);
            let names_holder = !succeeds(&answer) && answer.error().text().contains("holder");
            (names_holder, fixture.ruleset() == before)
        };
        compare(scenario, (true, true), (false, false));
    }
}

/// Values that the Go plugin accepts or refuses too late.
fn invalid_values() -> Vec<(&'static str, Value)> {
    let mapping = |key: &str, value: Value| {
        let mut mappings = tcp(8080);
        mappings[0][key] = value;
        ("portMappings", mappings)
    };
    vec![
        mapping("hostPort", 70_000.into()),
        mapping("containerPort", 70_000.into()),
        mapping("hostIP", "bogus".into()),
        mapping("protocol", Value::Null),
        mapping("protocol", "icmp".into()),
        ("externalSetMarkChain", "MISSING".into()),
        ("conditionsV4", json!([""])),
    ]
}

#[test]
fn pd12_invalid_values_are_refused_before_any_change() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for (key, value) in invalid_values() {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let pod = fixture.node.pod("a");
            let chain = fixture.chain("iptables").with_ports(tcp(8080));
            let result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
            let before = fixture.ruleset();
            let chain = match key {
                "portMappings" => chain.with_ports(value.clone()),
                _ => chain.with("portmap", key, value.clone()),
            };
            let answer = chain.call(1, "ADD", &result).pod(&pod).run();
            (succeeds(&answer), fixture.ruleset() == before)
        };
        assert!(
            scenario(Go) != (false, true),
            "the Go plugin refuses {key} {value}"
        );
        assert_eq!(
            scenario(Implementation::Gangplank),
            (false, true),
            "{key} {value}"
        );
    }
}

#[test]
fn pd10_a_mapping_of_the_loopback_address_of_ipv6_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let mut mappings = tcp(8080);
            mappings[0]["hostIP"] = "::1".into();
            let chain = fixture.chain(backend).with_ports(mappings);
            succeeds(&chain.try_add(&fixture.node.pod("a")))
        };
        compare(scenario, false, true);
    }
}

#[test]
fn pd13_a_result_without_an_address_of_the_interface_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let pod = fixture.node.pod("a");
        let chain = fixture.chain("iptables").with_ports(tcp(8080));
        let mut result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
        for ip in result["ips"].as_array_mut().unwrap() {
            ip["interface"] = 0.into();
        }
        succeeds(&chain.call(1, "ADD", &result).pod(&pod).run())
    };
    compare(scenario, false, true);
}

#[test]
fn pd17_concurrent_first_adds_write_shared_rules_once() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let copies = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let chain = fixture.chain("iptables");
        let pods: Vec<_> = (0..6)
            .map(|n| fixture.node.pod(&format!("pod{n}")))
            .collect();
        let bridged = |pod| chain.call(0, "ADD", &Value::Null).pod(pod).run().ok();
        let results: Vec<Value> = pods.iter().map(bridged).collect();
        std::thread::scope(|scope| {
            for (n, (pod, result)) in pods.iter().zip(&results).enumerate() {
                let chain = chain.with_ports(tcp(8080 + n as u16));
                scope.spawn(move || chain.call(1, "ADD", result).pod(pod).run());
            }
        });
        let shared = [
            "-j CNI-HOSTPORT-DNAT",
            "-j CNI-HOSTPORT-MASQ",
            "-j MASQUERADE",
            "-j MARK",
        ];
        // iptables-save prints each rule of both families once; nft lists them too.
        let copies = shared.map(|target| {
            let rules = fixture.rules_with(target);
            rules.iter().filter(|rule| rule.starts_with("-A ")).count()
        });
        pods.iter()
            .zip(&results)
            .for_each(|(pod, result)| drop(chain.try_del(pod, result)));
        copies
    };
    // PREROUTING and OUTPUT of both families.
    let once = [4, 2, 2, 2];
    assert!(
        (0..8).any(|_| copies(Go) != once),
        "the Go plugin wrote them once"
    );
    for _ in 0..3 {
        assert_eq!(copies(Implementation::Gangplank), once);
    }
}

#[test]
fn pd20_check_reports_lost_jumps() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let pod = fixture.node.pod("a");
            let chain = fixture.chain(backend).with_ports(tcp(8080));
            let result = chain.add(&pod);
            chain.check(&pod, &result).ok();
            fixture.node.run(match (backend, implementation) {
                ("iptables", _) => "iptables -t nat -F PREROUTING",
                (_, Go) => "nft flush chain ip cni_hostport prerouting",
                _ => "nft flush chain inet gangplank_portmap prerouting",
            });
            succeeds(&chain.check(&pod, &result))
        };
        compare(scenario, false, true);
    }
}

#[test]
fn pd22_gc_removes_mappings_of_invalid_attachments() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let pods = ["stale-pod", "valid-pod"].map(|name| fixture.node.pod(name));
            let chain = fixture.chain(backend).with_ports(tcp(8080));
            chain.add(&pods[0]);
            let chain = chain.with_ports(tcp(8081));
            chain.add(&pods[1]);
            let valid_attachments = json!([{ "containerID": "valid-pod", "ifname": "eth0" }]);
            let gc = chain.with("portmap", "cni.dev/valid-attachments", valid_attachments);
            gc.version("1.1.0").call(1, "GC", &Value::Null).run().ok();
            [8080, 8081].map(|port| !fixture.rules_with(&port.to_string()).is_empty())
        };
        compare(scenario, [false, true], [true, true]);
    }
}
