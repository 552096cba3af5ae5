//! STATUS: reports whether an ADD could succeed now.

use serde_json::{Value, json};

use crate::support::{CniError, Node, NodeState, requires, skip_for_go, small_network};

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

/// Asserts that STATUS fails with code 50. Without masquerading, so that no program is required.
#[track_caller]
fn unavailable(node: &Node, config: &Value) -> CniError {
    let error = status(node, config).error();
    assert_eq!(error.code, 50, "{error:?}");
    error
}

#[test]
fn status_of_a_usable_network_succeeds_without_any_change() {
    requires!("iptables", "ip6tables", "strace");
    let node = Node::new("node");
    let before = NodeState::of(&node);
    assert_eq!(status(&node, &config()).ok(), Value::Null);
    assert_eq!(NodeState::of(&node), before);
    if skip_for_go("it runs host-local, which creates its directory") {
        return;
    }
    // The same with an attached pod: no process, no lock, no write.
    node.network(config()).add(&node.pod("a"));
    let before = NodeState::of(&node);
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
    // Calls are counted only if the file exists.
    let is_counting = |line: &&str| line.contains("\"/run/gangplank/metrics\"");
    let trace: Vec<&str> = trace.lines().filter(|line| !is_counting(line)).collect();
    let trace = trace.join("\n");
    for call in [
        "O_CREAT", "O_WRONLY", "O_RDWR", "clone(", "clone3(", "flock(", "socket(",
    ] {
        assert!(!trace.contains(call), "{call} in {trace}");
    }
    assert_eq!(NodeState::of(&node), before);
}

#[test]
fn an_exhausted_range_is_not_reported() {
    requires!();
    for plugin in ["bridge", "host-local"] {
        let node = Node::new("node");
        let mut config = config();
        config["ipMasq"] = false.into();
        config["type"] = plugin.into();
        config["ipam"] = json!({ "type": "host-local", "ranges": [
            [{ "subnet": "fd00:77::/64" }], [{ "subnet": "10.77.0.0/30" }],
        ]});
        let older = node.network(config.clone()).with("cniVersion", "1.0.0");
        older.add(&node.pod("a"));
        let error = older.call("ADD", &node.pod("b")).run().error();
        assert!(error.msg.contains("no IP addresses available"), "{error:?}");
        status(&node, &config).ok();
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    requires!();
    if skip_for_go("D4d: it does not check this") {
        return;
    }
    let node = Node::new("node");
    node.run_all("mkdir /run/ro\nmount -t tmpfs -o ro tmpfs /run/ro");
    let mut config = config();
    config["ipMasq"] = false.into();
    for directory in ["/run/ro", "/run/ro/deep/down", "/proc/version"] {
        config["ipam"]["dataDir"] = directory.into();
        let error = unavailable(&node, &config);
        assert!(error.text().contains(directory), "{error:?}");
    }
    config["ipam"]["dataDir"] = "/run/deep/down".into();
    status(&node, &config).ok();
    config["ipam"]["resolvConf"] = "/run/resolv.conf".into();
    let error = unavailable(&node, &config);
    assert!(error.text().contains("/run/resolv.conf"), "{error:?}");
    node.write("/run/resolv.conf", "nameserver 10.0.0.1\n");
    status(&node, &config).ok();
    node.run("ln -s /run/nowhere /run/dangling");
    config["ipam"]["dataDir"] = "/run/dangling".into();
    let error = unavailable(&node, &config);
    assert!(error.text().contains("/run/dangling"), "{error:?}");
}

#[test]
fn temporary_conditions_are_not_reported() {
    requires!("strace", "flock");
    if skip_for_go("D4d: it does not check this") {
        return;
    }
    let node = Node::new("node");
    let mut config = config();
    config["ipMasq"] = false.into();
    config["ipam"]["resolvConf"] = "/run/resolv.conf".into();
    node.write("/run/resolv.conf", "nameserver 10.0.0.1\n");
    node.network(config.clone())
        .with("cniVersion", "1.0.0")
        .add(&node.pod("a"));
    let injected = |call: &str, path: &str, errno: &str| {
        let inject = format!("strace -o /dev/null -P {path} -e inject={call}:error={errno}");
        node.cni("bridge")
            .verb("STATUS")
            .config(&config)
            .under(&inject)
            .run()
    };
    let directory = "/var/lib/cni/networks/small";
    for errno in ["ENOSPC", "EDQUOT", "EIO", "ENOMEM", "ESTALE"] {
        injected("access,faccessat,faccessat2", directory, errno).ok();
    }
    for errno in ["EMFILE", "ENFILE", "EIO", "ENOMEM"] {
        injected("openat", "/run/resolv.conf", errno).ok();
    }
    for errno in ["EACCES", "EROFS"] {
        let error = injected("access,faccessat,faccessat2", directory, errno).error();
        assert_eq!(error.code, 50, "{error:?}");
    }
    // A held lock, and a full disk.
    node.run_all("mkdir /run/full\nmount -t tmpfs -o size=4k tmpfs /run/full");
    node.try_run("dd if=/dev/zero of=/run/full/zero bs=4096 count=2");
    config["ipam"]["dataDir"] = "/run/full".into();
    status(&node, &config).ok();
    config["ipam"]["dataDir"] = "/var/lib/cni/networks".into();
    node.write("/run/conf", &config.to_string());
    let plugin = format!("{}/bridge", Node::BIN);
    node.write(
        "/run/call",
        &format!("CNI_COMMAND=STATUS CNI_PATH=/x {plugin} < /run/conf\n"),
    );
    node.run(&format!("flock {directory}/lock sh /run/call"));
}

#[test]
fn an_invalid_configuration_is_rejected_with_the_error_code_of_add() {
    requires!();
    if skip_for_go("it only decodes the JSON") {
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
        assert_eq!(status(&node, &config).error().code, code, "{key}");
    }
}

#[test]
fn masquerading_requires_the_programs_of_the_address_families() {
    requires!("iptables", "ip6tables");
    if skip_for_go("it does not check this") {
        return;
    }
    let node = Node::new("node");
    node.run("mkdir /run/sbin");
    node.bind("/run/sbin", "/usr/sbin");
    // Without iptables the default is nftables, which needs no program.
    status(&node, &config()).ok();
    let mut config = config();
    config["ipMasqBackend"] = "iptables".into();
    let error = unavailable(&node, &config);
    assert!(error.text().contains("iptables-restore"), "{error:?}");
    node.run("touch /run/sbin/iptables-restore /run/sbin/iptables-save");
    let error = unavailable(&node, &config);
    assert!(error.text().contains("ip6tables-restore"), "{error:?}");
    config["ipam"]["ranges"] = json!([]);
    status(&node, &config).ok();
}

#[test]
fn status_of_a_delegate_is_passed_on() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = config();
    config["ipam"] = json!({ "type": "spy" });
    if !skip_for_go("it reports error 999 for a missing delegate") {
        let error = unavailable(&node, &config);
        assert!(error.text().contains("spy"), "{error:?}");
    }
    let spy = format!("{}/spy", Node::BIN);
    node.write_executable(&spy, "#!/bin/sh\necho $CNI_COMMAND > /run/verb\n");
    status(&node, &config).ok();
    assert_eq!(node.read("/run/verb"), "STATUS\n");
    node.write(
        &spy,
        "#!/bin/sh\necho '{\"code\": 51, \"msg\": \"few left\"}'; exit 1\n",
    );
    let error = status(&node, &config).error();
    assert_eq!((error.code, error.msg.as_str()), (51, "few left"));
    node.write(&spy, "#!/bin/sh\nexit 3\n");
    if !skip_for_go("it ignores a failed delegate without output") {
        unavailable(&node, &config);
    }
}

#[test]
fn a_delegate_without_status_is_checked_by_its_versions() {
    requires!("cni:static");
    if skip_for_go("it reports an error, and the runtime marks the node as not ready") {
        return;
    }
    let node = Node::new("node");
    let mut config = config();
    config["ipMasq"] = false.into();
    config["ipam"] = json!({ "type": "spy" });
    let spy = format!("{}/spy", Node::BIN);
    let answer = |versions: &str, output: &str| {
        let versions = format!(r#"{{"cniVersion":"1.0.0","supportedVersions":[{versions}]}}"#);
        node.write_executable(
            &spy,
            &format!(
                "#!/bin/sh\nif [ $CNI_COMMAND = VERSION ]; then echo '{versions}'; else {output}; exit 1; fi\n"
            ),
        );
        status(&node, &config)
    };
    let old = r#"echo '{"code": 4, "msg": "missing containerID"}'"#;
    for unknown in [
        old,
        r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND: STATUS"}'"#,
        "echo usage",
    ] {
        answer(r#""1.0.0","1.1.0""#, unknown).ok();
        let error = answer(r#""0.4.0","1.0.0""#, unknown).error();
        assert_eq!(error.code, 50);
        for word in ["1.0.0", "1.1.0", "lower cniVersion"] {
            assert!(error.text().contains(word), "{error:?}");
        }
    }
    // Debian's static plugin, whose ADD rejects 1.1.0 too.
    node.install_go_plugin("static");
    config["ipam"] = json!({ "type": "go-static", "addresses": [{ "address": "10.77.0.2/24" }] });
    let add = node
        .network(config.clone())
        .call("ADD", &node.pod("a"))
        .run();
    assert_eq!(
        add.code == Some(0),
        status(&node, &config).code == Some(0),
        "{add:?}"
    );
}

#[test]
fn status_of_chained_plugins_names_the_missing_program() {
    requires!("iptables", "nft");
    if skip_for_go("STATUS of portmap and firewall checks nothing") {
        return;
    }
    let node = Node::new("node");
    let config = |plugin: &str, backend: &str| {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "small", "type": plugin });
        config["backend"] = backend.into();
        config
    };
    let mut conditional = config("portmap", "nftables");
    conditional["conditionsV4"] = json!(["ip", "saddr", "192.0.2.9"]);
    let iptables = [
        config("portmap", "iptables"),
        config("firewall", "iptables"),
    ];
    let nftables = [
        config("portmap", "nftables"),
        config("firewall", "nftables"),
    ];
    for config in iptables.iter().chain(&nftables).chain([&conditional]) {
        assert_eq!(status(&node, config).ok(), Value::Null, "{config}");
    }
    node.run("mkdir /run/none");
    node.bind("/run/none", "/usr/sbin");
    for config in &iptables {
        let error = unavailable(&node, config);
        assert!(error.text().contains("iptables-restore"), "{error:?}");
    }
    for config in &nftables {
        assert_eq!(status(&node, config).ok(), Value::Null, "{config}");
    }
    let error = unavailable(&node, &conditional);
    assert!(error.text().contains("program nft"), "{error:?}");
}
