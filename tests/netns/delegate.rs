//! IPAM plugins other than host-local, which are executed from CNI_PATH.

use serde_json::{Value, json};

use crate::support::{Network, Node, NodeState, requires, skip_for_go, small_network, testing_go};

fn with_ipam(ipam: Value) -> Value {
    let mut config = small_network();
    config["ipam"] = ipam;
    config
}

/// Installs a shell script as a plugin.
fn script(node: &Node, path: &str, text: &str) {
    node.write_executable(path, &format!("#!/bin/sh\n{text}\n"));
}

#[test]
fn a_delegate_gets_the_same_stdin_and_environment() {
    requires!();
    let node = Node::new("node");
    let path = format!("{}/spy", Node::BIN);
    script(
        &node,
        &path,
        "cat > /run/stdin.$CNI_COMMAND; env > /run/env.$CNI_COMMAND; echo note to self >&2\n\
         echo '{\"cniVersion\": \"0.4.0\", \"ips\": [{\"version\": \"4\", \"address\": \"10.77.0.9/24\"}]}'",
    );
    let pod = node.pod("a");
    // White space and unknown keys are passed on unchanged.
    let config = "{ \"cniVersion\":\"1.0.0\",\n\n \"name\":\"small\", \"type\":\"bridge\", \"bridge\":\"br0\",\
                  \"isGateway\":true, \"ipam\": {\"type\":\"spy\", \"x\": [1, 2.50]} }";
    let network = node.network(small_network());
    for verb in ["ADD", "DEL"] {
        let answer = network
            .call(verb, &pod)
            .stdin(config)
            .args("IgnoreUnknown=1;FOO=bar")
            .run();
        answer.ok();
        assert!(answer.stderr.contains("note to self"), "{answer:?}");
        assert_eq!(node.read(&format!("/run/stdin.{verb}")), config);
        let env = node.read(&format!("/run/env.{verb}"));
        for line in [
            "CNI_CONTAINERID=a".to_owned(),
            "CNI_IFNAME=eth0".to_owned(),
            "CNI_ARGS=IgnoreUnknown=1;FOO=bar".to_owned(),
            format!("CNI_NETNS={}", pod.path),
            format!("CNI_COMMAND={verb}"),
        ] {
            assert!(env.lines().any(|have| have == line), "{line} in {env}");
        }
    }
    assert_eq!(
        node.link("br0").unwrap()["operstate"],
        "DOWN",
        "no port left"
    );
}

#[test]
fn a_result_of_an_older_version_is_converted() {
    requires!();
    let node = Node::new("node");
    let path = format!("{}/old", Node::BIN);
    script(
        &node,
        &path,
        "echo '{\"cniVersion\": \"0.2.0\", \"ip4\": {\"ip\": \"10.77.0.9/24\", \"gateway\": \"10.77.0.1\", \
         \"routes\": [{\"dst\": \"0.0.0.0/0\"}]}}'",
    );
    let pod = node.pod("a");
    let result = node.network(with_ipam(json!({ "type": "old" }))).add(&pod);
    assert_eq!(result["ips"][0]["address"], "10.77.0.9/24");
    assert_eq!(pod.addresses("eth0"), ["10.77.0.9/24"]);
    assert!(pod.run("ip route").contains("default via 10.77.0.1"));
}

#[test]
fn the_first_match_in_cni_path_is_executed() {
    requires!();
    let node = Node::new("node");
    node.run("mkdir -p /run/first /run/second /run/second/dir");
    let answer = |address: &str| {
        format!("echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"{address}\"}}]}}'")
    };
    node.run("mkdir /run/first/mine");
    script(&node, "/run/second/mine", &answer("10.77.0.22/24"));
    script(
        &node,
        &format!("{}/mine", Node::BIN),
        &answer("10.77.0.33/24"),
    );
    let pod = node.pod("a");
    let network = node.network(with_ipam(json!({ "type": "mine" })));
    let path = format!("/run/nowhere:/run/first:/run/second:{}", Node::BIN);
    let result = network.call("ADD", &pod).env("CNI_PATH", &path).run().ok();
    assert_eq!(Network::address(&result), "10.77.0.22");
}

#[test]
fn a_missing_delegate_is_an_error_with_the_searched_path() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node.network(with_ipam(json!({ "type": "absent" })));
    let error = network.call("ADD", &pod).run().error();
    for word in ["absent", Node::BIN] {
        assert!(error.text().contains(word), "{word}: {error:?}");
    }
    assert!(pod.link("eth0").is_none() || testing_go());
}

#[test]
fn the_error_of_a_delegate_is_passed_on_unchanged() {
    requires!();
    let node = Node::new("node");
    let path = format!("{}/no", Node::BIN);
    script(
        &node,
        &path,
        "echo '{\"code\": 111, \"msg\": \"none left\", \"details\": \"ask later\"}'; exit 1",
    );
    let pod = node.pod("a");
    let network = node.network(with_ipam(json!({ "type": "no" })));
    let error = network.call("ADD", &pod).run().error();
    assert_eq!(error.code, 111);
    assert!(error.msg.contains("none left"));
    assert!(error.details.contains("ask later"));
}

#[test]
fn a_repeated_add_fails_before_the_delegate_is_called() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("its undo releases the address of the first ADD") {
        return;
    }
    for backend in ["iptables", "nftables"] {
        let node = Node::new("node");
        let pod = node.pod("a");
        script(
            &node,
            &format!("{}/always", Node::BIN),
            "echo $CNI_COMMAND >>/run/asked\n\
             echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.77.0.9/24\"}]}'",
        );
        let mut config = with_ipam(json!({ "type": "always" }));
        config["ipMasq"] = true.into();
        config["ipMasqBackend"] = backend.into();
        let network = node.network(config);
        let result = network.add(&pod);
        let before = NodeState::of(&node);
        let error = network.call("ADD", &pod).run().error();
        for word in ["eth0", "already exists", "run DEL"] {
            assert!(error.text().contains(word), "{word}: {error:?}");
        }
        // It also fails with another interface name or namespace, because the host end of this attachment exists.
        pod.run_all("ip link set eth0 down\nip link set eth0 name old0");
        let error = network.call("ADD", &pod).run().error();
        assert!(error.text().contains("on the host"), "{error:?}");
        pod.run_all("ip link set old0 name eth0\nip link set eth0 up");
        assert_eq!(node.read("/run/asked"), "ADD\n", "{backend}");
        assert_eq!(NodeState::of(&node), before, "{backend}");
        network.check(&pod, &result).ok();
        network.del(&pod);
    }
}
