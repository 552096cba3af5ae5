//! `bridge` after another plugin in a chain: prevResult is included in its result.

use serde_json::{Value, json};

use crate::support::{Network, Node, requires, skip_for_go, small_network};

/// The result of a plugin that created `net0` in the pod.
fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "uplink", "mac": "02:00:00:00:00:01" },
            { "name": "net0", "mac": "02:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/a" },
        ],
        "ips": [{ "interface": 1, "address": "192.0.2.7/24", "gateway": "192.0.2.1" }],
        "routes": [{ "dst": "198.51.100.0/24", "gw": "192.0.2.1" }],
        "dns": { "nameservers": ["192.0.2.53"], "domain": "first.example" },
    })
}

fn config() -> Value {
    let mut config = small_network();
    config["isDefaultGateway"] = true.into();
    config["dns"] =
        json!({ "nameservers": ["10.0.0.53", "192.0.2.53"], "domain": "second.example" });
    config["prevResult"] = previous();
    config
}

#[test]
fn the_items_of_prev_result_come_last_in_the_result() {
    requires!("ping");
    if skip_for_go("the result of ADD does not include prevResult") {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("a");
    pod.run_all(
        "ip link add net0 type veth peer name far0\nip link set far0 up\nip addr add 192.0.2.7/24 dev net0\nip link set net0 up\n\
         ip route add 198.51.100.0/24 via 192.0.2.1",
    );
    let network = node.network(config());
    let result = network.add(&pod);
    let names: Vec<&str> = (0..5)
        .map(|index| result["interfaces"][index]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        [names[0], names[2], names[3], names[4]],
        ["br0", "eth0", "uplink", "net0"]
    );
    for index in 0..2 {
        assert_eq!(
            result["interfaces"][index + 3],
            previous()["interfaces"][index]
        );
    }
    let own = json!({ "interface": 2, "address": "10.77.0.2/24", "gateway": "10.77.0.1" });
    assert_eq!(result["ips"][0], own);
    let of_net0 = json!({ "interface": 4, "address": "192.0.2.7/24", "gateway": "192.0.2.1" });
    assert_eq!(result["ips"][1], of_net0);
    assert_eq!(result["routes"][1], previous()["routes"][0]);
    assert_eq!(
        result["routes"][0],
        json!({ "dst": "0.0.0.0/0", "gw": "10.77.0.1" })
    );
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.0.0.53", "192.0.2.53"], "domain": "second.example" })
    );
    // The address of the previous plugin is not added to `eth0`, and CHECK does not expect it there.
    assert_eq!(pod.addresses("eth0"), ["10.77.0.2/24"]);
    network.check(&pod, &result).ok();
    pod.run("ip route del default");
    let error = network.check(&pod, &result).error();
    assert!(error.text().contains("0.0.0.0/0"), "{error:?}");
    network.with("prevResult", result).del(&pod);
    assert!(pod.link("net0").is_some());
}

#[test]
fn prev_result_is_converted_and_ignored_before_0_3_0() {
    requires!();
    if skip_for_go("the result of ADD does not include prevResult") {
        return;
    }
    let node = Node::new("node");
    let mut config = config();
    config["cniVersion"] = "0.4.0".into();
    config["prevResult"]["ips"][0]["version"] = "4".into();
    config["prevResult"]["cniVersion"] = "0.4.0".into();
    let pod = node.pod("a");
    let result = node.network(config.clone()).add(&pod);
    assert_eq!(result["ips"][1]["interface"], 4);
    assert_eq!(result["ips"][1]["version"], "4");
    config["cniVersion"] = "0.2.0".into();
    let pod = node.pod("b");
    let result = node.network(config).add(&pod);
    assert_eq!(Network::address(&result), "10.77.0.3");
}

#[test]
fn a_prev_result_of_the_wrong_type_is_rejected_before_any_change() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    for wrong in [json!(5), json!("x"), json!([]), json!(true)] {
        let network = node.network(config()).with("prevResult", wrong);
        let error = network.call("ADD", &pod).run().error();
        assert!(
            error.text().to_lowercase().contains("prevresult"),
            "{error:?}"
        );
        assert!(node.link("br0").is_none());
    }
    assert!(node.files("/var/lib/cni").is_empty());
    let network = node.network(config()).with("prevResult", Value::Null);
    assert_eq!(Network::address(&network.add(&pod)), "10.77.0.2");
}

#[test]
fn an_unreadable_prev_result_is_ignored() {
    requires!();
    let node = Node::new("node");
    for (pod, wrong) in [
        ("a", json!({ "ips": [{ "address": "nowhere" }] })),
        (
            "b",
            json!({ "cniVersion": "9.9.9", "interfaces": [{ "name": "x" }] }),
        ),
        ("c", json!({ "interfaces": 5 })),
    ] {
        let pod = node.pod(pod);
        let network = node.network(config()).with("prevResult", wrong);
        let result = network.add(&pod);
        assert_eq!(
            result["interfaces"].as_array().unwrap().len(),
            3,
            "{result}"
        );
        network.del(&pod);
        assert!(node.link(&Network::host_link(&result)).is_none());
    }
}
