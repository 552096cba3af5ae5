//! Options of a pod's interface: MAC address, routes and DNS, and the format of results.

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, requires, skip_for_go, small_network, testing_go};

fn mac_of(pod: &Pod) -> String {
    let link = pod.link("eth0").expect("eth0");
    link["address"].as_str().unwrap().to_owned()
}

#[test]
fn a_mac_address_can_be_requested_in_three_ways_and_runtime_config_wins() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network(small_network());
    let by_args = "IgnoreUnknown=1;MAC=02:00:00:00:00:0a";
    let cases = [
        ("args", by_args, None, None, "02:00:00:00:00:0a"),
        (
            "cni",
            "",
            Some("02:00:00:00:00:0b"),
            None,
            "02:00:00:00:00:0b",
        ),
        (
            "run",
            "",
            None,
            Some("02:00:00:00:00:0c"),
            "02:00:00:00:00:0c",
        ),
        (
            "args-cni",
            by_args,
            Some("02:00:00:00:01:0b"),
            None,
            "02:00:00:00:01:0b",
        ),
        (
            "all",
            by_args,
            Some("02:00:00:00:02:0b"),
            Some("02:00:00:00:02:0c"),
            "02:00:00:00:02:0c",
        ),
        (
            "dash",
            "",
            None,
            Some("02-00-00-00-03-0C"),
            "02:00:00:00:03:0c",
        ),
        (
            "dots",
            "",
            None,
            Some("0200.0000.040c"),
            "02:00:00:00:04:0c",
        ),
    ];
    for (name, args, cni, runtime, expected) in cases {
        let mut network = network.clone();
        if let Some(mac) = cni {
            network = network.with("args", json!({ "cni": { "mac": mac } }));
        }
        if let Some(mac) = runtime {
            network = network.with("runtimeConfig", json!({ "mac": mac }));
        }
        let pod = node.pod(name);
        let result = network.call("ADD", &pod).args(args).run().ok();
        assert_eq!(mac_of(&pod), expected, "{name}");
        assert_eq!(result["interfaces"][2]["mac"], expected, "{name}");
        node.reaches(&Network::address(&result));
    }
}

#[test]
fn an_empty_mac_address_is_ignored() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let network = node
        .network(small_network())
        .with("args", json!({ "cni": { "mac": "02:00:00:00:00:0b" } }))
        .with("runtimeConfig", json!({ "mac": "" }));
    network.add(&pod);
    assert_eq!(mac_of(&pod), "02:00:00:00:00:0b");
}

#[test]
fn a_reused_ip_address_has_the_same_mac_address() {
    requires!("ping");
    if skip_for_go("its MAC addresses are random, so cached neighbour entries are stale") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(small_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    assert_eq!(mac_of(&a), "0a:58:0a:4d:00:02");
    network.del(&a);
    network.call("ADD", &b).args("IP=10.77.0.2").run().ok();
    assert_eq!(mac_of(&b), "0a:58:0a:4d:00:02");
}

#[test]
fn dns_of_the_configuration_replaces_that_of_ipam() {
    requires!();
    let node = Node::new("node");
    node.write(
        "/run/resolv.conf",
        "nameserver 10.0.0.1\nsearch ipam.test\n",
    );
    let mut config = small_network();
    config["ipam"]["resolvConf"] = "/run/resolv.conf".into();
    let network = node.network(config);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let dns = json!({ "nameservers": ["10.0.0.9"], "domain": "d.test", "search": ["s.test"], "options": ["ndots:5"] });
    let result = network.with("dns", dns.clone()).add(&a);
    assert_eq!(result["dns"], dns);
    if skip_for_go("Debian's version drops the dns of ipam") {
        return;
    }
    let result = network.add(&b);
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.0.0.1"], "search": ["ipam.test"] })
    );
}

#[test]
fn routes_are_added_as_configured() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let mut config = small_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config["ipam"]["routes"] = json!([
        { "dst": "192.0.2.0/24" },
        { "dst": "198.51.100.0/24", "gw": "10.77.0.77" },
        { "dst": "2001:db8::/32" },
        { "dst": "2001:db9::/32", "gw": "fd00:77::77" },
    ]);
    let result = node.network(config.clone()).add(&pod);
    assert_eq!(result["routes"], config["ipam"]["routes"]);
    let v4 = pod.run("ip -4 route");
    let v6 = pod.run("ip -6 route");
    for (routes, expected) in [
        (&v4, "192.0.2.0/24 via 10.77.0.1 dev eth0"),
        (&v4, "198.51.100.0/24 via 10.77.0.77 dev eth0"),
        (&v6, "2001:db8::/32 via fd00:77::1 dev eth0"),
        (&v6, "2001:db9::/32 via fd00:77::77 dev eth0"),
    ] {
        assert!(routes.contains(expected), "{expected} in:\n{routes}");
    }
}

#[test]
fn route_attributes_are_set_and_reported() {
    requires!();
    if skip_for_go("D12: mtu and advmss are not set; Debian's drops the others too") {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("a");
    let mut config = small_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config["ipam"]["routes"] = json!([
        { "dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200 },
        { "dst": "198.51.100.0/24", "priority": 77, "table": 100 },
        { "dst": "203.0.113.0/24", "table": 1000 },
        { "dst": "203.0.112.0/24", "scope": 253 },
        { "dst": "2001:db8::/32", "mtu": 1300, "advmss": 1200, "priority": 55 },
    ]);
    let result = node.network(config.clone()).add(&pod);
    assert_eq!(result["routes"], config["ipam"]["routes"]);
    let routes = pod.run("ip route show table all") + &pod.run("ip -6 route show table all");
    for expected in [
        "192.0.2.0/24 via 10.77.0.1 dev eth0 mtu 1300 advmss 1200",
        "198.51.100.0/24 via 10.77.0.1 dev eth0 table 100 metric 77",
        "203.0.113.0/24 via 10.77.0.1 dev eth0 table 1000",
        "203.0.112.0/24 dev eth0 scope link",
    ] {
        assert!(routes.contains(expected), "{expected} in:\n{routes}");
    }
    let v6 = routes
        .lines()
        .find(|line| line.starts_with("2001:db8::/32 via fd00:77::1 dev eth0"))
        .unwrap_or_else(|| panic!("{routes}"));
    for word in ["mtu 1300", "advmss 1200", "metric 55"] {
        assert!(v6.contains(word), "{word} in {v6}");
    }
}

/// The result with placeholders for values that differ between runs.
fn normalized(mut result: Value) -> Value {
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        assert!(interface["mac"].as_str().unwrap().len() == 17);
        interface["mac"] = "MAC".into();
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = "VETH".into();
        }
    }
    result
}

#[test]
fn results_have_the_format_of_the_requested_version() {
    requires!();
    let node = Node::new("node");
    let versions = [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ];
    for version in versions {
        if testing_go() && version == "1.1.0" {
            continue;
        }
        let name = format!("v{}", version.replace('.', ""));
        let pod = node.pod(&name);
        let mut config = small_network();
        config["cniVersion"] = version.into();
        config["name"] = version.into();
        config["bridge"] = name.into();
        config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
        config["ipam"]["routes"] =
            json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00:77::1" }]);
        config["dns"] = json!({ "nameservers": ["10.0.0.9"] });
        let network = node.network(config);
        let answer = network.call("ADD", &pod).run();
        let result = normalized(answer.ok());
        assert!(answer.stdout.starts_with("{\n    \"cniVersion\""));
        assert!(answer.stdout.ends_with('}'), "no newline at the end");
        let expected = match version {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": version,
                "ip4": { "ip": "10.77.0.2/24", "gateway": "10.77.0.1", "routes": [{ "dst": "0.0.0.0/0" }] },
                "ip6": { "ip": "fd00:77::2/64", "gateway": "fd00:77::1",
                         "routes": [{ "dst": "::/0", "gw": "fd00:77::1" }] },
                "dns": { "nameservers": ["10.0.0.9"] },
            }),
            _ => {
                let mut ips = json!([
                    { "address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 2 },
                    { "address": "fd00:77::2/64", "gateway": "fd00:77::1", "interface": 2 },
                ]);
                if version < "1.0.0" {
                    ips[0]["version"] = "4".into();
                    ips[1]["version"] = "6".into();
                }
                json!({
                    "cniVersion": version,
                    "interfaces": [
                        { "name": format!("v{}", version.replace('.', "")), "mac": "MAC" },
                        { "name": "VETH", "mac": "MAC" },
                        { "name": "eth0", "mac": "MAC", "sandbox": pod.path },
                    ],
                    "ips": ips,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00:77::1" }],
                    "dns": { "nameservers": ["10.0.0.9"] },
                })
            }
        };
        assert_eq!(result, expected, "{version}");
        network.del(&pod);
    }
}

#[test]
fn an_empty_dns_is_printed_only_before_1_0_0() {
    requires!();
    let node = Node::new("node");
    for (version, printed) in [
        ("0.1.0", true),
        ("0.4.0", true),
        ("1.0.0", false),
        ("1.1.0", false),
    ] {
        if testing_go() && !printed {
            continue;
        }
        let pod = node.pod(&format!("p{version}"));
        let network = node.network(small_network()).with("cniVersion", version);
        let result = network.add(&pod);
        let expected = printed.then(|| json!({}));
        assert_eq!(result.get("dns").cloned(), expected, "{version}");
    }
}

#[test]
fn macs_and_names_in_the_result_match_the_kernel() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let result = node.network(small_network()).add(&pod);
    let of_host = |name: &str| node.link(name).unwrap()["address"].clone();
    let interfaces = &result["interfaces"];
    assert_eq!(interfaces[0]["mac"], of_host("br0"));
    assert_eq!(interfaces[1]["mac"], of_host(&Network::host_link(&result)));
    assert_eq!(interfaces[2]["mac"], mac_of(&pod));
}

#[test]
fn the_host_end_has_a_derived_name_and_an_alias() {
    requires!();
    if skip_for_go("its names are random and without an alias") {
        return;
    }
    let node = Node::new("node");
    let network = node.network(small_network());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let first = Network::host_link(&network.add(&a));
    network.del(&a);
    assert_eq!(Network::host_link(&network.add(&a)), first);
    assert_eq!(node.link(&first).unwrap()["ifalias"], "a");
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    let result = network.call("ADD", &b).args(args).run().ok();
    let second = Network::host_link(&result);
    assert_ne!(first, second);
    assert_eq!(node.link(&second).unwrap()["ifalias"], "shop/web-0");
    // The longest pod name of Kubernetes exceeds the length limit of an alias.
    let (c, long) = (node.pod("c"), "w".repeat(253));
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={long}");
    let result = network.call("ADD", &c).args(&args).run().ok();
    let alias = node.link(&Network::host_link(&result)).unwrap()["ifalias"].clone();
    assert_eq!(alias.as_str(), format!("shop/{long}").get(..255));
}

#[test]
fn keys_are_case_insensitive_and_null_means_absent() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    let config = r#"{ "cniversion": "1.0.0", "NAME": "small", "type": "bridge", "Bridge": "br0", "mtu": null,
        "ISGATEWAY": true, "IPAM": { "TYPE": "host-local", "SubNet": "10.77.0.0/24", "routes": null } }"#;
    let call = node.cni("bridge").verb("ADD").pod(&pod).stdin(config);
    assert_eq!(Network::address(&call.run().ok()), "10.77.0.2");
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24"]);
}
