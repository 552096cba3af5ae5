//! How Nomad and nerdctl, which cannot be installed here, query and call plugins. The comments name the file of each
//! project from which this was learned.

use serde_json::{Value, json};

use crate::support::{Chain, Network, Node, PLUGINS, Pod, Protocol, example, requires};

fn list(name: &str) -> Value {
    serde_json::from_str(&example(&format!("chains/{name}.conflist"))).unwrap()
}

/// Major, minor and patch version of a semantic version, which may have build metadata.
fn semantic(word: &str) -> Option<[u32; 3]> {
    let core = word.trim_start_matches('v').split(['-', '+']).next()?;
    let numbers: Result<Vec<u32>, _> = core.split('.').map(str::parse).collect();
    numbers.ok()?.try_into().ok()
}

/// hashicorp/nomad, client/fingerprint/plugins_cni.go (306de280e9): executes each file of the directory without arguments and
/// with the environment of the agent, for at most 3 s, and takes the first semantic version in its output.
#[test]
fn nomad_finds_a_version_of_each_plugin() {
    requires!();
    let node = Node::new("node");
    for plugin in PLUGINS {
        let file = format!("{}/{plugin}", Node::BIN);
        let output = node.try_run(&format!("timeout 3 {file}"));
        assert!(output.status.success(), "{output:?}");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        let version = text.split_whitespace().find_map(semantic);
        // A job with bridge mode requires 0.4.0 of bridge, firewall, host-local, loopback and portmap
        // (nomad/job_endpoint_hooks.go), CHECK 1.3.0 of bridge.
        assert!(version >= Some([1, 3, 0]), "{text}");
    }
}

/// containerd/nerdctl, `FirewallPluginGEQVersion` in pkg/netutil/netutil_unix.go: parses stderr of firewall, after this prefix, to the end of the
/// line. It requires 1.1.0 for same-bridge and 1.7.1 for isolated.
#[test]
fn nerdctl_finds_the_version_of_firewall_alone_on_its_line() {
    requires!();
    let node = Node::new("node");
    let answer = node.cni("firewall").run();
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""));
    let mut lines = answer.stderr.lines();
    let version = lines.find_map(|line| line.strip_prefix("CNI firewall plugin "));
    let version = version.expect("a line with the prefix");
    assert!(!version.contains(char::is_whitespace), "{version}");
    assert!(semantic(version) >= Some([1, 7, 1]), "{version}");
}

/// hashicorp/nomad, client/allocrunner/networking_cni.go (eb31ad1a94): `Setup` of go-cni with the ID of the allocation and each
/// port for TCP and UDP, `Remove` with the same ports. If DEL fails, Nomad looks for the masquerade rule with a regular
/// expression, and deletes rule and chain.
#[test]
fn nomad_reads_the_result_and_finds_the_masquerade_rule_of_an_allocation() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let pod = node.pod("6b235529-8111-4bbe-520b-d639b1d2a94e");
    let port = |protocol: &str| json!({ "hostPort": 8080, "containerPort": 9000, "protocol": protocol, "hostIP": "" });
    let chain = node
        .chain(&list("nomad"))
        .with_args("IgnoreUnknown=true")
        .with_ports(json!([port("tcp"), port("udp")]));
    let other = node.pod("other");
    let first = chain.add(&other);
    let refused = chain.try_add(&pod).error();
    assert!(refused.text().contains("8080"), "{refused:?}");
    chain.del(&other, &first);
    chain.del(&pod, &Value::Null);
    let result = chain.add(&pod);
    let address = Network::address(&result);
    assert_eq!(first_address_of_the_first_sandbox(&result), address);
    let _server = pod.serve(9000);
    let limit = std::time::Duration::from_secs(3);
    assert!(
        node.asks(Protocol::Tcp, "172.26.64.1:8080", limit)
            .is_some()
    );
    let rules = node.run("iptables -t nat -S POSTROUTING");
    let comment = format!(
        r#"-m comment --comment "name: \"nomad\" id: \"{}\"""#,
        pod.id()
    );
    let begin = format!("-A POSTROUTING -s {address}/32 {comment} -j CNI-");
    let hash = rules.lines().find_map(|rule| rule.strip_prefix(&begin));
    let hash = hash.unwrap_or_else(|| panic!("no {begin} in {rules}"));
    assert!(hash.chars().all(|c| c.is_ascii_hexdigit()), "{hash}");
    // DEL after this cleanup misses nothing of it.
    let rule = &begin["-A ".len()..];
    node.write(
        "/run/cleanup",
        &format!(
            "set -e; iptables -t nat -D {rule}{hash}\n\
             iptables -t nat -F CNI-{hash}; iptables -t nat -X CNI-{hash}"
        ),
    );
    node.run("sh /run/cleanup");
    chain.del(&pod, &result);
    let left = node.run("iptables-save -t nat");
    assert!(!left.contains(pod.id()), "{left}");
}

/// `cniToAllocNet` in the same file: of the interfaces sorted by name, the first one with a sandbox and an IPv4 address.
fn first_address_of_the_first_sandbox(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap();
    let mut names: Vec<(&str, usize)> = interfaces
        .iter()
        .enumerate()
        .filter(|(_, it)| it["sandbox"].as_str().is_some_and(|path| !path.is_empty()))
        .map(|(index, it)| (it["name"].as_str().unwrap(), index))
        .collect();
    names.sort_unstable();
    let addresses_of = |index: usize| {
        let ips = result["ips"].as_array().unwrap().iter();
        ips.filter(move |ip| ip["interface"] == index)
            .filter_map(|ip| ip["address"].as_str())
            .find(|address| address.contains('.'))
    };
    let address = names.iter().find_map(|(_, index)| addresses_of(*index));
    address.unwrap().split('/').next().unwrap().to_owned()
}

/// containerd/nerdctl, pkg/netutil/netutil_unix.go: networks with IPv6 declare the capability `ips` of bridge. The container
/// ID is `NAMESPACE-ID`, which the OCI hook passes to go-cni. libcni caches result, capabilities and arguments for DEL; if
/// the cache was removed, DEL has none of them.
#[test]
fn nerdctl_requests_addresses_and_deletes_with_and_without_its_cache() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let id = |n: usize| format!("default-{}", format!("{n}f").repeat(32));
    let list = list("nerdctl-ipv6");
    let mapping =
        json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" }]);
    for (n, is_cached) in [(1, true), (2, false)] {
        let pod: Pod = node.pod(&id(n));
        let chain: Chain = node
            .chain(&list)
            .with_args("IgnoreUnknown=1;MAC=02:00:00:00:00:07")
            .with_capability("ips", json!(["10.4.1.77/24", "fd00:4:1::77/64"]))
            .with_ports(mapping.clone());
        let result = chain.add(&pod);
        assert_eq!(Network::address(&result), "10.4.1.77");
        assert_eq!(pod.link("eth0").unwrap()["address"], "02:00:00:00:00:07");
        match is_cached {
            true => chain.del(&pod, &result),
            false => node.chain(&list).del(&pod, &Value::Null),
        }
        let left = node.run("iptables-save");
        assert!(!left.contains(pod.id()), "{left}");
        assert!(!left.contains("10.4.1.77"), "{left}");
        assert!(node.leases("dual").is_empty());
    }
}
