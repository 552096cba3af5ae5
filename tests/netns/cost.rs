//! What an attachment costs in messages to the kernel, system calls and programs: numbers that do not depend on the
//! machine.

use serde_json::{Value, json};

use crate::support::{Call, Node, requires, skip_for_go, small_network};

/// Messages of route netlink that an ADD may send.
const MESSAGES: usize = 12;

/// System calls that a verb may make, the start of the process included.
const CALLS: usize = 200;

/// What a call asked of the system.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    messages: usize,
    calls: usize,
    /// Programs run besides the plugin.
    programs: usize,
}

/// Makes a call that must succeed; its result, and what it cost.
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

/// The programs that ADD, CHECK and DEL of a pod run.
fn programs(node: &Node, config: Value) -> [usize; 3] {
    let network = node.network(config);
    // Makes the bridge and what all pods share.
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
fn each_further_pod_costs_few_messages_and_system_calls() {
    requires!("strace");
    if skip_for_go("it makes thousands of system calls") {
        return;
    }
    let node = Node::new("node");
    let mut config = small_network();
    config["isDefaultGateway"] = true.into();
    let network = node.network(config);
    network.add(&node.pod("first"));
    // So many that the index of leases is made on the way.
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
fn ten_thousand_leases_cost_no_more_system_calls() {
    requires!("strace");
    if skip_for_go("it opens each of them") {
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
            std::fs::write(lease, format!("crowd{index}\r\neth0")).unwrap();
        }
    });
    // Makes the index: once all of them are read.
    network.add(&node.pod("first"));
    let pod = node.pod("a");
    for verb in ["ADD", "DEL"] {
        let (_, cost) = traced(&node, network.call(verb, &pod));
        assert!(cost.calls <= CALLS, "{verb}: {cost:?}");
    }
}

#[test]
fn one_program_a_family_changes_iptables_and_none_where_netlink_does() {
    requires!("iptables", "ip6tables", "strace");
    if skip_for_go("it runs one for each rule") {
        return;
    }
    for (ranges, families) in [(v4(), 1), (dual(), 2)] {
        let node = Node::new("node");
        node.use_iptables_variant("xtables-nft-multi");
        let config = masqueraded("iptables", ranges.clone());
        assert_eq!(programs(&node, config), [families, 0, 0]);
        // What the kernel has of the legacy variant only the program can tell.
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
