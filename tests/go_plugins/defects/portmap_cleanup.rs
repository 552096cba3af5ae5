//! Mappings that DEL of portmap must remove, and those that it must keep.

use serde_json::{Value, json};

use super::chained::{ChainFixture, compare, tcp};
use crate::implementation::Implementation;
use crate::implementation::ready_for_chains;

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// Whether DEL with a changed configuration succeeds, and whether it leaves rules.
fn del_changed(fixture: &ChainFixture, backend: &str, change: impl Fn(&mut Value)) -> (bool, bool) {
    let pod = fixture.node.pod("a-pod");
    let chain = fixture.chain(backend).with_ports(tcp(8080));
    let result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
    let added = chain.call(1, "ADD", &result).pod(&pod).run().ok();
    assert!(fixture.has_rules_of(&pod, &added));
    let mut config = chain.config(1);
    change(&mut config);
    if config.get("prevResult").is_none() {
        config["prevResult"] = result;
    }
    let del = fixture.implementation.call_for(&fixture.node, &config);
    let answer = del.verb("DEL").pod(&pod).run();
    (answer.code == Some(0), fixture.has_rules_of(&pod, &added))
}

#[test]
fn pd3_del_without_port_mappings_removes_the_rules() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        for mappings in [json!([]), Value::Null] {
            let scenario = |implementation: Implementation| {
                let fixture = ChainFixture::new(implementation, &go);
                del_changed(&fixture, backend, |config| {
                    config["runtimeConfig"]["portMappings"] = mappings.clone();
                })
            };
            compare(scenario, (true, false), (true, true));
        }
    }
}

#[test]
fn pd14_del_of_an_invalid_configuration_removes_the_rules() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let invalid: [(&str, Value); 3] = [
        (
            "runtimeConfig",
            json!({ "portMappings": [{ "hostPort": 0, "containerPort": 1, "protocol": "tcp" }] }),
        ),
        (
            "prevResult",
            json!({ "cniVersion": "1.0.0", "ips": [{ "address": "nowhere" }] }),
        ),
        ("markMasqBit", 32.into()),
    ];
    for (key, value) in &invalid {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            del_changed(&fixture, "iptables", |config| config[*key] = value.clone())
        };
        compare(scenario, (true, false), (false, true));
    }
}

#[test]
fn pd15_del_with_another_backend_removes_the_rules() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for (backend, other) in [("iptables", "nftables"), ("nftables", "iptables")] {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            del_changed(&fixture, backend, |config| config["backend"] = other.into())
        };
        compare(scenario, (true, false), (true, true));
    }
}

#[test]
fn pd16_del_removes_the_rules_of_a_family_whose_program_is_gone() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        let node = &fixture.node;
        node.use_iptables_variant("xtables-nft-multi");
        let pod = node.pod("a-pod");
        let chain = fixture.chain("iptables").with_ports(tcp(8080));
        let result = chain.add(&pod);
        // The programs of both families are one file.
        node.run_before_iptables(
            "/usr/sbin/xtables-nft-multi",
            "case $name in ip6tables) exit 127;; esac",
        );
        let answer = chain.call(1, "DEL", &result).pod(&pod).run();
        node.unbind("/usr/sbin/xtables-nft-multi");
        (answer.code, fixture.rules_with("to-destination").len())
    };
    compare(scenario, (Some(0), 0), (Some(0), 1));
}

#[test]
fn pd11_del_keeps_the_mappings_of_other_attachments_of_the_container() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    // The second attachment is to another network, or of another interface to the same network.
    for (backend, second_network) in [("nftables", "other"), ("iptables", "small")] {
        let scenario = |implementation: Implementation| {
            let fixture = ChainFixture::new(implementation, &go);
            let pod = fixture.node.pod("a-pod");
            let first = fixture.chain(backend).with_ports(tcp(8080));
            let result = first.add(&pod);
            let second = first.named(second_network).with_ports(tcp(8081));
            let mut prev = Value::Null;
            for index in 0..2 {
                let call = second.call(index, "ADD", &prev).pod(&pod).ifname("net1");
                prev = call.run().ok();
            }
            first.call(1, "DEL", &result).pod(&pod).run().ok();
            [8080, 8081].map(|port| has_mapping(&fixture, port))
        };
        compare(scenario, [false, true], [false, false]);
    }
}

/// Whether rules map this host port.
fn has_mapping(fixture: &ChainFixture, port: u16) -> bool {
    let rules = fixture.rules_with(&port.to_string());
    !rules.is_empty()
}

#[test]
fn pd21_del_keeps_the_mappings_of_a_container_whose_chain_has_the_same_name() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let fixture = ChainFixture::new(implementation, &go);
        // The names of the chains derive from network and container ID without a separator.
        let attachments = [("net1", "p1", 8080), ("net", "1p1", 8081)];
        let pods = attachments.map(|(_, id, _)| fixture.node.pod(id));
        let chains = attachments
            .map(|(name, _, port)| fixture.chain("iptables").named(name).with_ports(tcp(port)));
        let first = chains[0].add(&pods[0]);
        chains[1].with("bridge", "bridge", "br1").add(&pods[1]);
        chains[0].call(1, "DEL", &first).pod(&pods[0]).run().ok();
        [8080, 8081].map(|port| has_mapping(&fixture, port))
    };
    compare(scenario, [false, true], [false, false]);
}
