//! Numbers of netlink requests, system calls and programs per call. They do not depend on the machine.

use serde_json::{Value, json};

use crate::support::{Call, Node, requires, skip_for_go, small_chain, small_network};

/// Limit for route netlink requests of an ADD.
const MESSAGES: usize = 12;

/// Limit for system calls of a verb, including those of the process start.
const CALLS: usize = 200;

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    messages: usize,
    calls: usize,
    /// Programs executed besides the plugin.
    programs: usize,
}

/// Runs a call, which must succeed, under strace.
fn traced(node: &Node, call: Call) -> (Value, Cost) {
    let result = call.under("strace -f -qq -o /run/trace").run().ok();
    let trace = node.read("/run/trace");
    let count = |is_meant: &dyn Fn(&str) -> bool| trace.lines().filter(|it| is_meant(it)).count();
    let cost = Cost {
        messages: count(&|line| line.contains("sendto(") && line.contains("nlmsg_len=")),
        calls: count(&|line| line.contains('(') && !line.contains(" resumed>")),
        programs: count(&|line| line.contains("execve") && line.ends_with("= 0")) - 1,
    };
    (result, cost)
}

/// The numbers of programs that ADD, CHECK and DEL run.
fn programs(node: &Node, config: Value) -> [usize; 3] {
    let network = node.network(config);
    // Creates the bridge and all other shared objects.
    network.add(&node.pod("first"));
    let pod = node.pod("a");
    let (result, add) = traced(node, network.call("ADD", &pod));
    let network = network.with("prevResult", result);
    let (_, check) = traced(node, network.call("CHECK", &pod));
    let (_, del) = traced(node, network.call("DEL", &pod));
    [add, check, del].map(|cost| cost.programs)
}

fn masqueraded(backend: &str, ranges: Value) -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipMasqBackend"] = backend.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": ranges });
    config
}

fn v4() -> Value {
    json!([[{ "subnet": "10.77.0.0/24" }]])
}

fn dual() -> Value {
    json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]])
}

#[test]
fn an_attachment_needs_few_requests_and_system_calls() {
    requires!("strace");
    if skip_for_go("it makes thousands of system calls") {
        return;
    }
    let node = Node::new("node");
    let mut config = small_network();
    config["isDefaultGateway"] = true.into();
    let network = node.network(config);
    network.add(&node.pod("first"));
    // Enough pods for the lease index to be created.
    for index in 0..20 {
        let pod = node.pod(&format!("pod{index}"));
        let (_, cost) = traced(&node, network.call("ADD", &pod));
        assert!(
            cost.messages <= MESSAGES && cost.calls <= CALLS && cost.programs == 0,
            "pod {index}: {cost:?}"
        );
        let (_, again) = traced(&node, network.call("DEL", &pod));
        assert!(again.calls <= CALLS && again.programs == 0, "{again:?}");
        network.add(&pod);
    }
}

#[test]
fn ten_thousand_leases_do_not_increase_the_number_of_system_calls() {
    requires!("strace");
    if skip_for_go("it opens each lease file") {
        return;
    }
    let node = Node::new("node");
    let mut config = small_network();
    config["ipam"]["subnet"] = "10.77.0.0/16".into();
    let network = node.network(config);
    node.inside(|| {
        let directory = "/var/lib/cni/networks/small";
        std::fs::create_dir_all(directory).unwrap();
        for index in 0..10_000 {
            let lease = format!(
                "{directory}/10.77.{}.{}",
                100 + index / 250,
                1 + index % 250
            );
            std::fs::write(lease, format!("other{index}\r\neth0")).unwrap();
        }
    });
    // Reads all leases once and creates the index.
    network.add(&node.pod("first"));
    let pod = node.pod("a");
    for verb in ["ADD", "DEL"] {
        let (_, cost) = traced(&node, network.call(verb, &pod));
        assert!(cost.calls <= CALLS, "{verb}: {cost:?}");
    }
}

#[test]
fn iptables_needs_one_program_per_family_for_add_and_none_for_iptables_nft_del() {
    requires!("iptables", "ip6tables", "strace");
    if skip_for_go("it runs one for each rule") {
        return;
    }
    for (ranges, families) in [(v4(), 1), (dual(), 2)] {
        let node = Node::new("node");
        node.use_iptables_variant("xtables-nft-multi");
        let config = masqueraded("iptables", ranges.clone());
        assert_eq!(programs(&node, config), [families, 0, 0]);
        // Legacy rules can only be read with the program.
        let node = Node::new("node");
        node.use_iptables_variant("xtables-legacy-multi");
        let config = masqueraded("iptables", ranges);
        assert_eq!(programs(&node, config), [families; 3]);
    }
}

#[test]
fn nftables_needs_no_program() {
    requires!("strace");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let node = Node::new("node");
    assert_eq!(programs(&node, masqueraded("nftables", dual())), [0; 3]);
}

#[test]
fn tuning_needs_two_lookups_and_one_request_for_each_setting() {
    requires!("strace");
    if skip_for_go("it makes thousands of system calls") {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("a");
    pod.run("ip link add eth0 type veth peer name peer0");
    let network = node.network(json!({
        "cniVersion": "1.0.0", "name": "tuned", "type": "tuning", "mtu": 1400, "promisc": true,
        "prevResult": { "cniVersion": "1.0.0" },
    }));
    for (verb, messages) in [("ADD", 4), ("CHECK", 1), ("DEL", 3)] {
        let (_, cost) = traced(&node, network.call(verb, &pod));
        assert_eq!((cost.messages, cost.programs), (messages, 0), "{verb}");
        assert!(cost.calls <= CALLS, "{verb}: {cost:?}");
    }
}

#[test]
fn portmap_without_ports_sends_only_queries() {
    requires!("strace", "iptables", "nft");
    if skip_for_go("it runs iptables") {
        return;
    }
    let node = Node::new("node");
    let chain = node.chain(&small_chain());
    // Another pod has mapped ports.
    let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    chain.with_ports(mapping).add(&node.pod("first"));
    let pod = node.pod("a");
    let result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
    for verb in ["ADD", "CHECK", "DEL"] {
        let (_, cost) = traced(&node, chain.call(1, verb, &result).pod(&pod));
        assert!(cost.messages <= 9 && cost.programs == 0, "{verb}: {cost:?}");
        let trace = node.read("/run/trace");
        assert!(!trace.contains("BATCH_BEGIN"), "{verb}: {trace}");
    }
}

#[test]
fn portmap_and_firewall_run_one_program_per_family_for_add_with_iptables_and_none_otherwise() {
    requires!("strace", "iptables", "nft");
    if skip_for_go("it runs at least eight programs") {
        return;
    }
    let port = |port: u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" });
    for (backend, expected) in [("iptables", 2), ("nftables", 0)] {
        let node = Node::new("node");
        let chain = node
            .chain(&small_chain())
            .with("portmap", "backend", backend)
            .with("firewall", "backend", backend);
        chain
            .with_ports(json!([port(8080)]))
            .add(&node.pod("first"));
        let pod = node.pod("a");
        let chain = chain.with_ports((8100..8200).map(port).collect());
        let mut result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
        let mut programs = Vec::new();
        for verb in ["ADD", "DEL"] {
            for plugin in [1, 2] {
                let (next, cost) = traced(&node, chain.call(plugin, verb, &result).pod(&pod));
                programs.push(cost.programs);
                if verb == "ADD" {
                    result = next;
                }
            }
        }
        assert_eq!(programs, [expected, expected, 0, 0], "{backend}");
    }
}
