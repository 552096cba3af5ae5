//! `tuning`, called with the result of a plugin that created the interface.

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, go_is_recent, requires, skip_for_go, small_network};

const BACKUP: &str = "/run/cni/tuning/a_eth0.json";

/// Whether the test must return, because the Go plugin is too old for it.
fn skip_for_old_go() -> bool {
    !go_is_recent() && skip_for_go("version 1.1.1 has neither txQLen nor IFNAME")
}

/// A pod with an interface `eth0`.
fn pod(node: &Node, name: &str) -> Pod {
    let pod = node.pod(name);
    pod.run("ip link add eth0 type veth peer name peer0");
    pod
}

fn network<'n>(node: &'n Node, pod: &Pod, keys: Value) -> Network<'n> {
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "tuned",
        "type": "tuning",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "veth1", "mac": "02:00:00:00:01:00" },
                { "name": "eth0", "mac": "02:00:00:00:01:01", "sandbox": pod.path },
            ],
            "ips": [{ "address": "10.1.2.3/24", "interface": 1 }],
        },
    });
    let keys = keys.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(keys);
    node.network(config)
}

/// MAC address, MTU, queue length, and flags of `eth0`.
fn link(pod: &Pod) -> (String, u64, u64, [bool; 2]) {
    let link = pod.link("eth0").unwrap();
    let flags = link["flags"].as_array().unwrap();
    let number = |key: &str| link[key].as_u64().unwrap_or_default();
    (
        link["address"].as_str().unwrap().to_owned(),
        number("mtu"),
        number("txqlen"),
        ["PROMISC", "ALLMULTI"].map(|flag| flags.contains(&flag.into())),
    )
}

fn sysctl(pod: &Pod, name: &str) -> String {
    pod.run(&format!("sysctl -n {name}"))
        .trim()
        .replace('\t', " ")
}

fn has_backup(node: &Node) -> bool {
    node.try_run(&format!("test -e {BACKUP}")).status.success()
}

fn all_settings() -> Value {
    json!({ "mac": "02:00:00:00:00:0A", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 7 })
}

#[test]
fn settings_of_the_interface_are_in_effect_until_del() {
    requires!();
    if skip_for_old_go() {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let before = link(&pod);
    let network = network(&node, &pod, all_settings());
    let result = network.add(&pod);
    let tuned = ("02:00:00:00:00:0a".to_owned(), 1400, 7, [true; 2]);
    assert_eq!(link(&pod), tuned);
    let interfaces = &result["interfaces"];
    assert_eq!(interfaces[1]["mac"], "02:00:00:00:00:0A", "as configured");
    assert_eq!(
        interfaces[0]["mac"], "02:00:00:00:01:00",
        "another interface"
    );
    assert_eq!(result["ips"], network.config["prevResult"]["ips"]);
    let backup: Value = serde_json::from_str(&node.read(BACKUP)).unwrap();
    let (mac, mtu, length, [promisc, allmulti]) = &before;
    for (key, value) in [
        ("mac", json!(mac)),
        ("promisc", json!(promisc)),
        ("mtu", json!(mtu)),
        ("allmulti", json!(allmulti)),
        ("txQLen", json!(length)),
    ] {
        assert_eq!(backup[key], value, "{key}");
    }
    network.del(&pod);
    assert_eq!(link(&pod), before);
    assert!(!has_backup(&node));
    network.del(&pod);
    if skip_for_go("TD10: CHECK compares the text of the MAC address; the result has the old MTU") {
        return;
    }
    assert_eq!(interfaces[1]["mtu"], 1400);
    let result = network.add(&pod);
    network.check(&pod, &result).ok();
}

#[test]
fn check_fails_if_a_setting_changed() {
    requires!();
    if skip_for_old_go() {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let mut keys = all_settings();
    keys["mac"] = "02:00:00:00:00:0a".into();
    keys["sysctl"] = json!({ "net.ipv4.conf.IFNAME.arp_filter": "1" });
    let network = network(&node, &pod, keys);
    let result = network.add(&pod);
    for (change, revert) in [
        (
            "ip link set eth0 address 02:00:00:00:00:0b",
            "ip link set eth0 address 02:00:00:00:00:0a",
        ),
        ("ip link set eth0 mtu 1300", "ip link set eth0 mtu 1400"),
        (
            "ip link set eth0 promisc off",
            "ip link set eth0 promisc on",
        ),
        (
            "ip link set eth0 allmulticast off",
            "ip link set eth0 allmulticast on",
        ),
        (
            "ip link set eth0 txqueuelen 9",
            "ip link set eth0 txqueuelen 7",
        ),
        (
            "sysctl -q net.ipv4.conf.eth0.arp_filter=0",
            "sysctl -q net.ipv4.conf.eth0.arp_filter=1",
        ),
    ] {
        network.check(&pod, &result).ok();
        pod.run(change);
        let error = network.check(&pod, &result).error();
        assert!(error.msg.contains("Tuning"), "{change}: {error:?}");
        pod.run(revert);
    }
    pod.run("ip link del eth0");
    network.check(&pod, &result).error();
}

#[test]
fn sysctls_are_written_by_name_or_path() {
    requires!("sysctl");
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let network = network(
        &node,
        &pod,
        json!({
            "sysctl": {
                "net.core.somaxconn": "500",
                "net.ipv4.conf.IFNAME.arp_filter": "1",
                "net/ipv4/conf/eth0/arp_ignore": "2",
                "net.ipv4.ip_local_port_range": "2000\t3000",
                "net.ipv4.conf.all.arp_announce": "",
            },
            "args": { "cni": { "sysctl": { "net.core.somaxconn": "600" } } },
        }),
    );
    let host = node.run("sysctl -n net.core.somaxconn");
    let result = network.add(&pod);
    assert_eq!(
        result["interfaces"],
        network.config["prevResult"]["interfaces"]
    );
    let values = || {
        [
            "net.core.somaxconn",
            "net.ipv4.conf.eth0.arp_filter",
            "net.ipv4.conf.eth0.arp_ignore",
            "net.ipv4.ip_local_port_range",
        ]
        .map(|name| sysctl(&pod, name))
    };
    assert_eq!(values(), ["600", "1", "2", "2000 3000"]);
    assert_eq!(node.run("sysctl -n net.core.somaxconn"), host);
    if skip_for_go("TD2: DEL does not restore sysctls") {
        return;
    }
    network.check(&pod, &result).ok();
    network.del(&pod);
    assert_eq!(values(), [host.trim(), "0", "0", "32768 60999"]);
    assert!(!has_backup(&node));
}

#[test]
fn sysctls_outside_of_net_and_unknown_ones_are_rejected() {
    requires!("sysctl");
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let somaxconn = sysctl(&pod, "net.core.somaxconn");
    for name in ["kernel.hostname", "net..", "net.core.nonexistent", "net"] {
        let keys = json!({ "sysctl": { name: "1" } });
        network(&node, &pod, keys).call("ADD", &pod).run().error();
    }
    let value = json!({ "sysctl": { "net.core.somaxconn": "many" } });
    let error = network(&node, &pod, value).call("ADD", &pod).run().error();
    assert_eq!(sysctl(&pod, "net.core.somaxconn"), somaxconn);
    if skip_for_go("its messages name less") {
        return;
    }
    for word in ["many", "net/core/somaxconn", &pod.path] {
        assert!(error.msg.contains(word), "{error:?}");
    }
}

#[test]
fn the_allowlist_limits_sysctls() {
    requires!("sysctl");
    if skip_for_old_go() {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    node.run_all("mount -t tmpfs tmpfs /etc\nmkdir -p /etc/cni/tuning");
    let add = |keys: Value| network(&node, &pod, keys).call("ADD", &pod).run();
    let sysctl = |name: &str| json!({ "sysctl": { name: "1" } });
    let list = "/etc/cni/tuning/allowlist.conf";
    add(sysctl("net.ipv4.conf.IFNAME.arp_filter")).ok();
    node.write(
        list,
        " ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]+$ \n\nsomaxconn\n",
    );
    add(sysctl("net.ipv4.conf.IFNAME.arp_filter")).ok();
    add(json!({ "args": { "cni": { "sysctl": { "net.core.somaxconn": "9" } } }, "sysctl": {} }))
        .ok();
    let error = add(sysctl("net.ipv4.conf.eth0.arp_filter")).error();
    assert!(
        error
            .msg
            .contains("Sysctl net.ipv4.conf.eth0.arp_filter is not allowed"),
        "{error:?}"
    );
    node.write(list, "");
    add(sysctl("net.core.somaxconn")).error();
    add(json!({ "mtu": 1400 })).ok();
    node.write(list, "(\nsomaxconn");
    add(sysctl("net.core.somaxconn")).error();
    if skip_for_go("its STATUS does nothing") {
        return;
    }
    let status = network(&node, &pod, sysctl("net.core.somaxconn")).with("cniVersion", "1.1.0");
    let error = status.call("STATUS", &pod).run().error();
    assert_eq!(error.code, 50);
    assert!(error.text().contains(list), "{error:?}");
}

#[test]
fn without_a_prev_result_add_and_check_fail() {
    requires!();
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let network = network(&node, &pod, all_settings()).with("prevResult", Value::Null);
    for verb in ["ADD", "CHECK"] {
        let error = network.call(verb, &pod).run().error();
        assert!(
            error.msg.contains("Required prevResult missing"),
            "{error:?}"
        );
    }
    assert!(!has_backup(&node));
    network.del(&pod);
}

#[test]
fn an_interface_or_namespace_that_does_not_exist_is_an_error() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = network(&node, &pod, json!({ "mtu": 1400 }));
    network.call("ADD", &pod).run().error();
    let call = network.call_for("ADD", "a").netns("/run/netns/gone");
    call.run().error();
    assert!(!has_backup(&node));
}

#[test]
fn a_failed_add_changes_nothing() {
    requires!("sysctl");
    if skip_for_go("TD2, TD4: it leaves what was set before the failure") {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let state = || {
        (
            link(&pod),
            sysctl(&pod, "net.core.somaxconn"),
            has_backup(&node),
        )
    };
    let before = state();
    // The limit of veth is 65535.
    let keys = json!({ "sysctl": { "net.core.somaxconn": "500" }, "mac": "02:00:00:00:00:0a", "mtu": 70_000 });
    let failing = network(&node, &pod, keys);
    let error = failing.call("ADD", &pod).run().error();
    assert!(error.msg.contains("MTU 70000 of eth0"), "{error:?}");
    assert_eq!(state(), before);
    // An earlier ADD of the chain keeps its values and its backup.
    let earlier = network(&node, &pod, json!({ "mtu": 1400, "txQLen": 3 }));
    earlier.add(&pod);
    let backup = node.read(BACKUP);
    failing.call("ADD", &pod).run().error();
    assert_eq!((link(&pod).1, node.read(BACKUP)), (1400, backup));
    earlier.del(&pod);
    assert_eq!(state(), before);
}

#[test]
fn gc_removes_the_backup_files_of_stale_attachments_of_the_network() {
    requires!();
    if skip_for_go("its GC does nothing") {
        return;
    }
    let node = Node::new("node");
    let pods = ["stale", "valid", "other"].map(|name| pod(&node, name));
    for (pod, name) in pods.iter().zip(["tuned", "tuned", "else"]) {
        network(&node, pod, json!({ "mtu": 1400 }))
            .with("name", name)
            .add(pod);
    }
    node.write("/run/cni/tuning/old_eth0.json", "{\n \"mtu\": 1500\n}");
    let gc = network(&node, &pods[0], json!({})).with("cniVersion", "1.1.0");
    gc.call("GC", &pods[0]).run().ok();
    assert_eq!(node.run("ls /run/cni/tuning").lines().count(), 4);
    let valid = json!([{ "containerID": "valid", "ifname": "eth0" }]);
    gc.with("cni.dev/valid-attachments", valid)
        .call("GC", &pods[0])
        .run()
        .ok();
    let left = node.run("ls /run/cni/tuning");
    let left: Vec<&str> = left.lines().collect();
    assert_eq!(
        left,
        ["old_eth0.json", "other_eth0.json", "valid_eth0.json"]
    );
}

#[test]
fn data_dir_is_created_and_closed_to_other_users() {
    requires!();
    if skip_for_go("TD7: its directories lack the permission to search") {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let network = network(&node, &pod, json!({ "mtu": 1400, "dataDir": "/run/x/y/z" }));
    network.add(&pod);
    let modes = node.run("stat -c %a /run/x /run/x/y /run/x/y/z /run/x/y/z/a_eth0.json");
    assert_eq!(
        modes.split_whitespace().collect::<Vec<_>>(),
        ["755", "755", "700", "600"]
    );
    let files = node.run("ls -A /run/x/y/z");
    assert_eq!(files.trim(), "a_eth0.json");
    network.del(&pod);
    assert_eq!(node.run("ls -A /run/x/y/z"), "");
}

#[test]
fn a_bridged_pod_is_reachable_and_valid_after_tuning() {
    requires!("ping");
    let node = Node::new("node");
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "plugins": [
            small_network(),
            { "type": "tuning", "mac": "02:00:00:00:00:0a", "mtu": 1400,
              "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } },
        ],
    });
    let chain = node.chain(&list);
    let pod = node.pod("a");
    let result = chain.add(&pod);
    assert_eq!(
        (link(&pod).0.as_str(), link(&pod).1),
        ("02:00:00:00:00:0a", 1400)
    );
    node.reaches(&Network::address(&result));
    chain.check(&pod, &result).ok();
    chain.del(&pod, &result);
    assert!(pod.link("eth0").is_none());
    assert!(!has_backup(&node));
    // The namespace is gone at DEL.
    let pod = node.pod("b");
    let result = chain.add(&pod);
    node.run("ip netns del b");
    chain.del(&pod, &result);
    assert_eq!(node.run("ls /run/cni/tuning"), "");
}

#[test]
fn del_restores_what_a_killed_add_set() {
    requires!("strace", "sysctl");
    if skip_for_go("TD2: it saves no sysctls, and nothing before the first change") {
        return;
    }
    let node = Node::new("node");
    let pod = pod(&node, "a");
    let mut keys = all_settings();
    keys["sysctl"] = json!({ "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1" });
    let network = network(&node, &pod, keys);
    let state = || (link(&pod), sysctl(&pod, "net.core.somaxconn"));
    let before = state();
    let mut killed = 0;
    for (call, times) in [("sendto", 10), ("write", 5), ("rename", 1), ("setns", 6)] {
        for number in 1..=times {
            let strace =
                format!("strace -f -o /dev/null --inject={call}:signal=KILL:when={number}");
            let answer = network.call("ADD", &pod).under(&strace).run();
            killed += u32::from(answer.code.is_none());
            network.del(&pod);
            assert_eq!(state(), before, "killed at {call} {number}");
            let left = node.run("find /run/cni -name *_eth0*");
            assert_eq!(left, "", "killed at {call} {number}");
        }
    }
    assert!(killed > 15, "{killed}");
}
