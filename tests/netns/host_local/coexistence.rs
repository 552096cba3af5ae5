//! `host-local` called by other plugins, and sharing a directory with the Go plugin.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    Network, Node, go_plugins, leases, note, requires, skip_for_go, small_network,
};

fn network() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "ptp",
        "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" },
    })
}

/// The address that a call of `plugin` returns, or the message of its error.
fn call(node: &Node, plugin: &str, verb: &str, container: &str) -> Result<String, String> {
    let answer = node
        .cni(plugin)
        .verb(verb)
        .container(container)
        .ifname("eth0")
        .netns("/run/netns/none")
        .config(&network())
        .run();
    if answer.code == Some(0) {
        let ip = answer.ok()["ips"][0]["address"].as_str().map(str::to_owned);
        Ok(ip.unwrap_or_default())
    } else {
        Err(answer.error().msg)
    }
}

#[test]
fn three_hundred_allocations_have_the_same_order_as_with_the_go_plugin() {
    requires!("cni:host-local");
    let nodes = [Node::new("ours"), Node::new("theirs")];
    nodes[1].install_go_plugin("host-local");
    let mut seed = 7_u32;
    let mut held = Vec::new();
    for n in 0..300 {
        let name = format!("c{n}");
        let [gangplank, go] = [(&nodes[0], "host-local"), (&nodes[1], "go-host-local")]
            .map(|(node, plugin)| call(node, plugin, "ADD", &name));
        assert_eq!(gangplank.is_ok(), go.is_ok(), "allocation {n}");
        if let (Ok(gangplank), Ok(go)) = (gangplank, go) {
            assert_eq!(gangplank, go, "allocation {n}");
            held.push(name);
        }
        // A Lehmer generator chooses the zero to two containers to delete.
        seed = (u64::from(seed) * 48271 % 2_147_483_647) as u32;
        for _ in 0..seed % 3 {
            if held.len() > 20 {
                let name = held.swap_remove(seed as usize % held.len());
                for (node, plugin) in [(&nodes[0], "host-local"), (&nodes[1], "go-host-local")] {
                    call(node, plugin, "DEL", &name).unwrap();
                }
            }
        }
    }
    let [gangplank, go] = [&nodes[0], &nodes[1]].map(|node| leases(node, "lan"));
    assert_eq!(gangplank, go);
}

#[test]
fn leases_are_respected_and_released_by_the_other_implementation() {
    requires!("cni:host-local");
    let node = Node::new("node");
    node.install_go_plugin("host-local");
    let plugins = ["host-local", "go-host-local"];
    for n in 0..20 {
        let (one, other) = (plugins[n % 2], plugins[(n + 1) % 2]);
        let name = format!("c{n}");
        let address = call(&node, one, "ADD", &name).unwrap();
        assert_eq!(address, format!("10.1.0.{}/24", n + 2));
        call(&node, other, "CHECK", &name).unwrap();
        call(&node, other, "ADD", &name).unwrap_err();
        if n % 3 == 0 {
            call(&node, other, "DEL", &name).unwrap();
            call(&node, one, "CHECK", &name).unwrap_err();
        }
    }
    assert_eq!(leases(&node, "lan").len(), 13);
}

#[test]
fn twenty_concurrent_processes_of_each_implementation_share_a_directory() {
    requires!("cni:host-local");
    let node = Node::new("node");
    node.install_go_plugin("host-local");
    let given: Vec<String> = std::thread::scope(|scope| {
        let node = &node;
        let calls: Vec<_> = (0..40)
            .map(|n| {
                let plugin = ["host-local", "go-host-local"][n % 2];
                scope.spawn(move || call(node, plugin, "ADD", &format!("c{n}")).unwrap())
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!(distinct.len(), 40, "{given:?}");
    let given: Vec<Result<String, String>> = std::thread::scope(|scope| {
        let node = &node;
        let calls: Vec<_> = (0..40)
            .map(|n| {
                let plugin = ["go-host-local", "host-local"][n % 2];
                scope.spawn(move || call(node, plugin, "DEL", &format!("c{n}")))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(given.iter().all(Result::is_ok), "{given:?}");
    assert_eq!(leases(&node, "lan").len(), 0);
}

#[test]
fn the_ptp_plugin_works_with_host_local() {
    requires!("ping", "cni:ptp");
    let node = Node::new("node");
    node.replace_plugin("ptp", &go_plugins().join("ptp"));
    let mut config = network();
    config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
    let network = node.network(config);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let results = [network.add(&a), network.add(&b)];
    assert_eq!(Network::address(&results[1]), "10.1.0.3");
    assert_eq!(node.lease("lan", "10.1.0.2").unwrap(), "a\r\neth0");
    a.reaches("10.1.0.3");
    network.check(&a, &results[0]).ok();
    network.del(&a);
    assert_eq!(node.lease("lan", "10.1.0.2"), None);
}

#[test]
fn the_macvlan_plugin_works_with_host_local() {
    requires!("ping", "cni:macvlan");
    let node = Node::new("node");
    node.run("ip link add eth9 type veth peer name far9");
    node.run_all("ip link set eth9 up\nip link set far9 up");
    let probe = node.try_run("ip link add probe link eth9 type macvlan mode bridge");
    if !probe.status.success() {
        note("cannot run: this kernel has no macvlan");
        return;
    }
    node.run("ip link del probe");
    node.install("macvlan");
    let mut config = network();
    config["type"] = "macvlan".into();
    config["master"] = "eth9".into();
    let network = node.network(config);
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    assert_eq!(Network::address(&network.add(&b)), "10.1.0.3");
    a.reaches("10.1.0.3");
    network.del(&a);
    assert_eq!(node.lease("lan", "10.1.0.2"), None);
}

#[test]
fn running_pods_migrate_from_the_go_plugins() {
    requires!(
        "ping",
        "iptables",
        "ip6tables",
        "cni:bridge",
        "cni:host-local"
    );
    let node = Node::new("node");
    node.install_go_plugin("bridge");
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["ipMasq"] = true.into();
    let gangplank = node.network(config);
    let go = gangplank.with("type", "go-bridge");
    let (a, b) = (node.pod("a"), node.pod("b"));
    let at_a = go.add(&a);
    let at_b = gangplank.add(&b);
    assert_eq!(Network::address(&at_b), "10.77.0.3");
    b.reaches("10.77.0.2");
    gangplank.check(&a, &at_a).ok();
    go.check(&b, &at_b).ok();
    gangplank.del(&a);
    go.del(&b);
    assert_eq!(node.nat("iptables"), [""; 0]);
    assert_eq!(leases(&node, "small").len(), 0);
}

#[test]
fn leases_are_released_after_a_reboot() {
    requires!();
    if skip_for_go("its leases are never released") {
        return;
    }
    let node = Node::new("node");
    for name in ["a", "b"] {
        call(&node, "host-local", "ADD", name).unwrap();
    }
    node.write("/run/next-boot", "11111111-2222-3333-4444-555555555555\n");
    node.bind("/run/next-boot", "/proc/sys/kernel/random/boot_id");
    let address = call(&node, "host-local", "ADD", "c").unwrap();
    let held = leases(&node, "lan");
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(address, format!("{}/24", held[0]));
}

#[test]
fn an_empty_lease_file_reserves_no_address() {
    requires!();
    if skip_for_go("D21: an empty file left by a crash is never removed") {
        return;
    }
    let node = Node::new("node");
    call(&node, "host-local", "ADD", "a").unwrap();
    node.write("/var/lib/cni/networks/lan/10.1.0.3", "");
    let address = call(&node, "host-local", "ADD", "b").unwrap();
    assert_eq!(address, "10.1.0.3/24");
    assert_eq!(node.lease("lan", "10.1.0.3").unwrap(), "b\r\neth0");
}

#[test]
fn leases_that_the_go_plugin_allocated_since_the_reboot_are_kept() {
    requires!("ping", "cni:bridge", "cni:host-local");
    if skip_for_go("its leases are never released") {
        return;
    }
    let node = Node::new("node");
    for plugin in ["bridge", "host-local"] {
        node.install_go_plugin(plugin);
    }
    let gangplank = node.network(small_network());
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["type"] = "go-bridge".into();
    config["ipam"]["type"] = "go-host-local".into();
    let go = node.network(config);
    // Existing leases are kept when gangplank uses the directory for the first time.
    node.run("mkdir -p /var/lib/cni/networks/small");
    node.write("/var/lib/cni/networks/small/10.77.0.9", "gone\r\neth0");
    let before = node.pod("before");
    gangplank.add(&before);
    assert_eq!(leases(&node, "small").len(), 2);
    // After a reboot, the Go plugin is the first to allocate an address.
    before.end();
    node.wait_until_veths_are_deleted();
    node.write("/run/next-boot", "11111111-2222-3333-4444-555555555555\n");
    node.bind("/run/next-boot", "/proc/sys/kernel/random/boot_id");
    let (c, d, e) = (node.pod("c"), node.pod("d"), node.pod("e"));
    let result_c = go.add(&c);
    gangplank.add(&d);
    let held = leases(&node, "small");
    let held: Vec<String> = held.iter().map(ToString::to_string).collect();
    assert_eq!(held, ["10.77.0.3", "10.77.0.4"]);
    gangplank
        .with("cniVersion", "0.4.0")
        .check(&c, &result_c)
        .ok();
    d.reaches("10.77.0.3");
    // No further lease is released during this boot.
    gangplank.add(&e);
    assert_eq!(leases(&node, "small").len(), 3);
}
