//! `static`, as the IPAM plugin of bridge and as a program.

use serde_json::{Value, json};

use crate::support::{
    Call, Network, Node, NodeState, go_plugins, requires, skip_for_go, small_network, testing_go,
};

fn bridge(ipam: Value) -> Value {
    let mut config = small_network();
    config["ipam"] = ipam;
    config
}

fn addresses() -> Value {
    json!({
        "type": "static",
        "addresses": [
            { "address": "10.77.0.55/24", "gateway": "10.77.0.1" },
            { "address": "fd00:77::55/64" },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": { "nameservers": ["10.0.0.53"] },
    })
}

/// A call of the program for the pod `a`.
fn call<'n>(node: &'n Node, verb: &str, keys: Value) -> Call<'n> {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "small", "type": "macvlan" });
    let keys = keys.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(keys);
    let call = node.cni("static").verb(verb).container("a");
    call.ifname("eth0").netns("/run/netns/a").config(&config)
}

#[test]
fn bridge_assigns_the_configured_addresses() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network(bridge(addresses()));
    let pod = node.pod("a");
    let result = network.add(&pod);
    assert_eq!(pod.addresses("eth0"), ["10.77.0.55/24", "fd00:77::55/64"]);
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24", "fd00:77::1/64"]);
    assert_eq!(result["ips"][1]["gateway"], "fd00:77::1");
    assert!(pod.run("ip route").contains("default via 10.77.0.1"));
    if !testing_go() {
        assert_eq!(result["dns"], json!({ "nameservers": ["10.0.0.53"] }));
    }
    node.reaches("10.77.0.55");
    network.check(&pod, &result).ok();
    network.del(&pod);
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
}

#[test]
fn bridge_executes_no_program() {
    requires!();
    if skip_for_go("it executes static") {
        return;
    }
    let node = Node::new("node");
    node.run(&format!("rm {}/static", Node::BIN));
    let network = node
        .network(bridge(addresses()))
        .with("cniVersion", "1.1.0");
    let pod = node.pod("a");
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    network.call("STATUS", &pod).run().ok();
    let gc = network.with("cni.dev/valid-attachments", json!([]));
    gc.call("GC", &pod).run().ok();
    network.del(&pod);
    assert_eq!(node.run("ls /var/lib/cni"), "", "no lease");
}

#[test]
fn bridge_assigns_the_addresses_that_the_runtime_requests() {
    requires!();
    let node = Node::new("node");
    let network = node.network(bridge(addresses()));
    for (name, key, value) in [
        ("a", "runtimeConfig", json!({ "ips": ["10.77.0.66/24"] })),
        ("b", "args", json!({ "cni": { "ips": ["10.77.0.67/24"] } })),
    ] {
        let pod = node.pod(name);
        let address = match key {
            "args" => &value["cni"]["ips"][0],
            _ => &value["ips"][0],
        };
        let result = network.with(key, value.clone()).add(&pod);
        assert_eq!(result["ips"][0]["address"], *address);
        assert_eq!(pod.addresses("eth0"), [address.as_str().unwrap()]);
        network.del(&pod);
    }
    let pod = node.pod("c");
    let call = network.call("ADD", &pod);
    let result = call
        .args("IgnoreUnknown=1;IP=10.77.0.68/24;GATEWAY=10.77.0.1")
        .run()
        .ok();
    assert_eq!(result["ips"][2]["address"], "10.77.0.68/24");
    assert_eq!(result["ips"][2]["gateway"], "10.77.0.1");
}

#[test]
fn without_an_address_bridge_changes_nothing() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(bridge(json!({ "type": "static" })));
    let before = NodeState::of(&node);
    let error = network.call("ADD", &pod).run().error();
    if skip_for_go("its message names no key, and the bridge remains") {
        return;
    }
    assert!(error.text().contains("runtimeConfig.ips"), "{error:?}");
    assert_eq!(NodeState::of(&node), before);
    let status = network.with("cniVersion", "1.1.0");
    status.call("STATUS", &pod).run().ok();
}

#[test]
fn a_second_add_of_bridge_is_refused() {
    requires!("iptables", "ip6tables", "nft");
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(bridge(addresses())).with("ipMasq", true);
    let result = network.add(&pod);
    let before = NodeState::of(&node);
    network.call("ADD", &pod).run().error();
    if skip_for_go("its undo removes the masquerading of the first ADD") {
        return;
    }
    assert_eq!(NodeState::of(&node), before);
    network.check(&pod, &result).ok();
}

#[test]
fn the_program_prints_addresses_routes_and_dns() {
    requires!();
    let node = Node::new("node");
    let mut ipam = addresses();
    ipam["routes"] = json!([
        { "dst": "10.9.1.1/16" },
        { "dst": "::/0", "gw": "fd00:77::9", "mtu": 1400, "table": 0, "scope": 0, "priority": 0 },
    ]);
    let result = call(&node, "ADD", json!({ "ipam": ipam })).run().ok();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "ips": [
                { "address": "10.77.0.55/24", "gateway": "10.77.0.1" },
                { "address": "fd00:77::55/64" },
            ],
            "routes": [
                { "dst": "10.9.1.1/16" },
                if testing_go() && !crate::support::go_is_recent() {
                    json!({ "dst": "::/0", "gw": "fd00:77::9" })
                } else {
                    json!({ "dst": "::/0", "gw": "fd00:77::9", "mtu": 1400, "table": 0, "scope": 0 })
                },
            ],
            "dns": { "nameservers": ["10.0.0.53"] },
        })
    );
    let empty = call(&node, "ADD", json!({ "ipam": {} })).run().ok();
    assert!(empty.get("ips").is_none(), "{empty}");
}

#[test]
fn requested_addresses_replace_or_extend_the_configured_ones() {
    requires!();
    let node = Node::new("node");
    let ips = |keys: &Value, args: &str| {
        let result = call(&node, "ADD", keys.clone()).args(args).run().ok();
        let ips = result["ips"].as_array().unwrap().iter();
        let ips = ips.map(|ip| ip["address"].as_str().unwrap().to_owned());
        ips.collect::<Vec<_>>()
    };
    let mut keys = json!({ "ipam": addresses() });
    let args = "IgnoreUnknown=1;X=y;IP= 10.1.0.5/24, 10.2.0.5/24;GATEWAY=10.2.0.1,10.9.9.9";
    let configured = ["10.77.0.55/24", "fd00:77::55/64"];
    assert_eq!(ips(&keys, ""), configured);
    let extended = [&configured[..], &["10.1.0.5/24", "10.2.0.5/24"]].concat();
    assert_eq!(ips(&keys, args), extended);
    keys["args"] = json!({ "cni": { "ips": ["10.3.0.5/24"] } });
    assert_eq!(ips(&keys, args), ["10.3.0.5/24"]);
    keys["runtimeConfig"] = json!({ "ips": ["::ffff:10.4.0.5/120"] });
    assert_eq!(ips(&keys, args), ["10.4.0.5/24"]);
}

#[test]
fn invalid_values_are_refused() {
    requires!();
    let node = Node::new("node");
    let address = |keys: Value| json!({ "ipam": { "addresses": [keys] } });
    for keys in [
        json!({}),
        address(json!({})),
        address(json!({ "address": "10.77.0.5" })),
        address(json!({ "address": "10.77.0.5/24", "gateway": "x" })),
        json!({ "ipam": { "routes": [{ "dst": "x" }] } }),
        json!({ "cniVersion": "0.2.0", "ipam": {} }),
    ] {
        call(&node, "ADD", keys).run().error();
    }
    for args in ["IP=10.77.0.5", "GATEWAY=x", "X=y"] {
        call(&node, "ADD", json!({ "ipam": {} }))
            .args(args)
            .run()
            .error();
    }
    let two = json!([{ "address": "10.77.0.5/24" }, { "address": "10.77.0.6/24" }]);
    for version in ["0.2.0", "0.3.0"] {
        let keys = json!({ "cniVersion": version, "ipam": { "addresses": two } });
        let answer = call(&node, "ADD", keys).run();
        assert_eq!(answer.code == Some(0), version == "0.3.0", "{answer:?}");
    }
}

#[test]
fn del_always_succeeds_and_check_compares_with_prev_result() {
    requires!();
    let node = Node::new("node");
    call(&node, "DEL", json!({ "ipam": 5 })).run().ok();
    call(&node, "DEL", json!({})).unset("CNI_NETNS").run().ok();
    let keys = json!({ "ipam": addresses() });
    let result = call(&node, "ADD", keys.clone()).run().ok();
    let check = |result: &Value| {
        let mut keys = keys.clone();
        keys["prevResult"] = result.clone();
        call(&node, "CHECK", keys).run()
    };
    check(&result).ok();
    check(&Value::Null).error();
    let mut changed = result.clone();
    changed["ips"][0]["gateway"] = "10.77.0.9".into();
    let error = check(&changed).error();
    assert!(error.msg.contains("10.77.0.55"), "{error:?}");
    assert_eq!(Network::address(&result), "10.77.0.55");
}

#[test]
fn the_ptp_plugin_works_with_static() {
    requires!("ping", "cni:ptp");
    let node = Node::new("node");
    node.replace_plugin("ptp", &go_plugins().join("ptp"));
    let pod = node.pod("a");
    let network = node.network(bridge(addresses())).with("type", "ptp");
    let mut ipam = addresses();
    ipam["addresses"].as_array_mut().unwrap().truncate(1);
    let network = network.with("ipam", ipam);
    let result = network.add(&pod);
    assert_eq!(pod.addresses("eth0"), ["10.77.0.55/24"]);
    pod.reaches("10.77.0.1");
    network.check(&pod, &result).ok();
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
}
