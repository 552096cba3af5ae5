//! `loopback`.

use serde_json::{Value, json};

use crate::support::{Node, Pod, requires, skip_for_go, testing_go};

fn config(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "lo", "type": "loopback" })
}

fn flags(pod: &Pod) -> Value {
    pod.link("lo").unwrap()["flags"].clone()
}

fn is_up(pod: &Pod) -> bool {
    flags(pod).as_array().unwrap().contains(&"UP".into())
}

#[test]
fn add_sets_lo_up_and_reports_its_addresses() {
    requires!("ping");
    let node = Node::new("node");
    let pod = node.pod("a");
    pod.does_not_reach("127.0.0.1");
    let result = node.network(config("1.0.0")).add(&pod);
    pod.reaches("127.0.0.1");
    pod.reaches("::1");
    assert_eq!(
        result["interfaces"],
        json!([{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path }])
    );
    assert_eq!(
        result["ips"],
        json!([
            { "address": "127.0.0.1/8", "interface": 0 },
            { "address": "::1/128", "interface": 0 },
        ])
    );
}

#[test]
fn version_0_2_0_with_eth0_works_as_dockershim_calls_it() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let result = node.network(config("0.2.0")).add(&pod);
    assert!(is_up(&pod));
    assert_eq!(result["cniVersion"], "0.2.0");
    if skip_for_go("D11: the result has the format of 1.x") {
        return;
    }
    assert_eq!(result["ip4"], json!({ "ip": "127.0.0.1/8" }));
    assert_eq!(result["ip6"], json!({ "ip": "::1/128" }));
}

#[test]
fn results_have_the_format_of_the_requested_version() {
    requires!();
    if skip_for_go("D11: the result has the format of 1.x") {
        return;
    }
    let node = Node::new("node");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.1.0"] {
        let pod = node.pod(version);
        let result = node.network(config(version)).add(&pod);
        assert_eq!(result["cniVersion"], version);
        let expected = if version < "1.0.0" {
            json!("4")
        } else {
            Value::Null
        };
        assert_eq!(result["ips"][0]["version"], expected, "{version}");
    }
}

#[test]
fn prev_result_is_passed_on() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let prev = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.path }],
        "ips": [{ "address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0 }],
        "dns": { "nameservers": ["10.0.0.1"] },
    });
    let network = node
        .network(config("1.0.0"))
        .with("prevResult", prev.clone());
    assert_eq!(network.add(&pod), prev);
    assert!(is_up(&pod));
}

#[test]
fn check_fails_if_lo_is_down() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(config("1.0.0"));
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
    pod.run("ip link set lo down");
    let error = network.check(&pod, &result).error();
    assert!(error.text().contains("lo") || testing_go(), "{error:?}");
}

#[test]
fn del_can_be_repeated_and_needs_no_namespace() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(config("0.3.1"));
    network.add(&pod);
    network.del(&pod);
    assert!(!is_up(&pod));
    network.del(&pod);
    network.call("DEL", &pod).netns("").run().ok();
    network.call_for("DEL", "a").run().ok();
    network
        .call_for("DEL", "a")
        .netns("/run/netns/gone")
        .run()
        .ok();
    if skip_for_go("a path that is no namespace is always an error") {
        return;
    }
    node.write("/run/netns/plain", "");
    network
        .call_for("DEL", "a")
        .netns("/run/netns/plain")
        .run()
        .ok();
}

#[test]
fn add_without_a_namespace_fails() {
    requires!();
    let node = Node::new("node");
    let call = node.network(config("1.0.0")).call_for("ADD", "a");
    let error = call.clone().netns("/run/netns/gone").run().error();
    assert!(error.text().contains("/run/netns/gone"), "{error:?}");
    let error = call.run().error();
    assert!(error.text().contains("CNI_NETNS"), "{error:?}");
}
