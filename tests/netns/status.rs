//! STATUS: whether an ADD could work now, and if not, why.

use serde_json::{Value, json};

use crate::support::{Footprint, Node, Refusal, needs, small_network, worse_in_go};

fn config() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "1.1.0".into();
    config["ipMasq"] = true.into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

fn status(node: &Node, config: &Value) -> crate::support::Answer {
    let plugin = config["type"].as_str().unwrap();
    node.cni(plugin).verb("STATUS").config(config).run()
}

/// The refusal of a STATUS with code 50; without masquerading, so that it needs nothing else.
#[track_caller]
fn unavailable(node: &Node, config: &Value) -> Refusal {
    let refusal = status(node, config).refused();
    assert_eq!(refusal.code, 50, "{refusal:?}");
    refusal
}

#[test]
fn a_network_that_works_says_nothing_and_nothing_is_touched() {
    needs!("iptables", "ip6tables", "strace");
    let node = Node::new("node");
    let before = Footprint::of(&node);
    assert_eq!(status(&node, &config()).ok(), Value::Null);
    assert_eq!(Footprint::of(&node), before);
    if worse_in_go("it runs host-local, which makes its directory") {
        return;
    }
    // In use it is no different: no process, no lock, no write.
    node.network(config()).add(&node.pod("a"));
    let before = Footprint::of(&node);
    node.write("/run/conf", &config().to_string());
    node.write(
        "/run/traced",
        &format!(
            "CNI_COMMAND=STATUS CNI_PATH=/x strace -f -o /run/trace {}/bridge < /run/conf\n",
            Node::BIN
        ),
    );
    node.run("sh /run/traced");
    let trace = node.read("/run/trace");
    assert_eq!(trace.matches("execve(").count(), 1, "{trace}");
    for call in [
        "O_CREAT", "O_WRONLY", "O_RDWR", "clone(", "clone3(", "flock(", "socket(",
    ] {
        assert!(!trace.contains(call), "{call} in {trace}");
    }
    assert_eq!(Footprint::of(&node), before);
}

#[test]
fn an_exhausted_range_is_named_with_its_holders() {
    needs!();
    if worse_in_go("D4d: it does not look") {
        return;
    }
    for plugin in ["bridge", "host-local"] {
        let node = Node::new("node");
        let mut config = config();
        config["ipMasq"] = false.into();
        config["type"] = plugin.into();
        config["ipam"] = json!({ "type": "host-local", "ranges": [
            [{ "subnet": "fd00:77::/64" }], [{ "subnet": "10.77.0.0/30" }],
        ]});
        let network = node.network(config.clone());
        let pod = node.pod("a");
        status(&node, &config).ok();
        network.add(&pod);
        let refusal = unavailable(&node, &config);
        for word in ["10.77.0.1-10.77.0.2", "container a"] {
            assert!(refusal.text().contains(word), "{refusal:?}");
        }
        // What an ADD would take over does not count.
        let lease = "/var/lib/cni/networks/small/10.77.0.2";
        node.write(lease, "");
        status(&node, &config).ok();
        node.write(lease, "a\r\neth0");
        unavailable(&node, &config);
        let boot = "/proc/sys/kernel/random/boot_id";
        node.write("/run/next-boot", "11111111-2222-3333-4444-555555555555\n");
        node.bind("/run/next-boot", boot);
        status(&node, &config).ok();
        node.unbind(boot);
        network.del(&pod);
        status(&node, &config).ok();
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    needs!();
    if worse_in_go("D4d: it does not look") {
        return;
    }
    let node = Node::new("node");
    node.run_all("mkdir /run/ro\nmount -t tmpfs -o ro tmpfs /run/ro");
    let mut config = config();
    config["ipMasq"] = false.into();
    for directory in ["/run/ro", "/run/ro/deep/down", "/proc/version"] {
        config["ipam"]["dataDir"] = directory.into();
        let refusal = unavailable(&node, &config);
        assert!(refusal.text().contains(directory), "{refusal:?}");
    }
    config["ipam"]["dataDir"] = "/run/deep/down".into();
    status(&node, &config).ok();
    config["ipam"]["resolvConf"] = "/run/resolv.conf".into();
    let refusal = unavailable(&node, &config);
    assert!(refusal.text().contains("/run/resolv.conf"), "{refusal:?}");
}

#[test]
fn a_configuration_that_add_would_refuse_is_refused_with_its_own_code() {
    needs!();
    if worse_in_go("it decodes the JSON and no more") {
        return;
    }
    let node = Node::new("node");
    for (key, value, code) in [
        ("mtu", json!(5), 7),
        ("isGateway", json!("yes"), 6),
        ("ipam", json!({ "type": "host-local" }), 7),
        ("cniVersion", json!("1.0.0"), 1),
    ] {
        let mut config = config();
        config[key] = value;
        assert_eq!(status(&node, &config).refused().code, code, "{key}");
    }
}

#[test]
fn masquerading_needs_the_programs_of_the_ranges_families() {
    needs!("iptables", "ip6tables");
    if worse_in_go("it does not look") {
        return;
    }
    let node = Node::new("node");
    node.run("mkdir /run/sbin");
    node.bind("/run/sbin", "/usr/sbin");
    // Unasked it is nftables, without a program, where there is no iptables.
    status(&node, &config()).ok();
    let mut config = config();
    config["ipMasqBackend"] = "iptables".into();
    let refusal = unavailable(&node, &config);
    assert!(refusal.text().contains("iptables-restore"), "{refusal:?}");
    node.run("touch /run/sbin/iptables-restore /run/sbin/iptables-save");
    let refusal = unavailable(&node, &config);
    assert!(refusal.text().contains("ip6tables-restore"), "{refusal:?}");
    config["ipam"]["ranges"] = json!([]);
    status(&node, &config).ok();
}

#[test]
fn a_delegate_answers_for_itself() {
    needs!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = config();
    config["ipam"] = json!({ "type": "spy" });
    if !worse_in_go("999") {
        let refusal = unavailable(&node, &config);
        assert!(refusal.text().contains("spy"), "{refusal:?}");
    }
    let spy = format!("{}/spy", Node::BIN);
    node.write(&spy, "#!/bin/sh\necho $CNI_COMMAND > /run/verb\n");
    node.run(&format!("chmod 755 {spy}"));
    status(&node, &config).ok();
    assert_eq!(node.read("/run/verb"), "STATUS\n");
    node.write(
        &spy,
        "#!/bin/sh\necho '{\"code\": 51, \"msg\": \"few left\"}'; exit 1\n",
    );
    let refusal = status(&node, &config).refused();
    assert_eq!((refusal.code, refusal.msg.as_str()), (51, "few left"));
    node.write(&spy, "#!/bin/sh\nexit 3\n");
    if !worse_in_go("0") {
        unavailable(&node, &config);
    }
}
