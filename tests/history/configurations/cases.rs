//! Configurations used in production.

use serde_json::{Value, json};

use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{Attachment, BOTH, node, ready, remains};
use crate::support::{Answer, Network, Node, Pod, leases, requires, small_network};

/// An IPv6 network with a link-local gateway.
fn link_local() -> Value {
    let mut config = small_network();
    config["isGateway"] = false.into();
    config["ipam"] = json!({
        "type": "host-local", "ranges": [[{ "subnet": "fd00:5::/64", "gateway": "fe80::1" }]],
        "routes": [{ "dst": "::/0" }],
    });
    config
}

/// A host `fd00:9::9` behind the node's interface `up0`.
fn outside_host(node: &Node) -> Node {
    let outside = Node::new("outside");
    crate::support::connect(node, "up0", &outside, "eth0");
    node.run_all(
        "sysctl -qw net.ipv6.conf.all.forwarding=1\nip addr add fd00:9::1/64 dev up0 nodad",
    );
    outside
        .run_all("ip addr add fd00:9::9/64 dev eth0 nodad\nip route add fd00:5::/64 via fd00:9::1");
    node.wait_for_dad();
    outside.wait_for_dad();
    outside
}

/// Runs ADD, CHECK and DEL for two pods, and `probe` while they are attached.
fn attach_and_probe(
    implementation: Implementation,
    node: &Node,
    config: &Value,
    probe: impl Fn(&Pod),
) {
    let pods = ["a", "b"].map(|name| node.pod(&format!("{name}-{implementation:?}")));
    let attach = |pod| {
        let mut attachment = Attachment::new(node, pod, config);
        attachment.try_add(implementation).ok();
        attachment.check(implementation).ok();
        attachment
    };
    let attachments = pods.each_ref().map(attach);
    pods.iter().for_each(&probe);
    for attachment in &attachments {
        attachment.check(implementation).ok();
        attachment.del(implementation).ok();
    }
}

#[test]
fn a_link_local_gateway_on_an_existing_bridge_is_the_next_hop() {
    if !ready(&["ping"]) {
        return;
    }
    for implementation in BOTH {
        let node = node();
        let outside = outside_host(&node);
        node.run_all("ip link add br0 address 02:00:00:00:00:0b type bridge\nip link set br0 up\nip addr add fe80::1/64 dev br0 nodad\nip addr add fd00:5::ffff/64 dev br0 nodad");
        attach_and_probe(implementation, &node, &link_local(), |pod| {
            assert!(
                pod.run("ip -6 route")
                    .contains("default via fe80::1 dev eth0"),
                "{implementation:?}"
            );
            pod.reaches("fd00:9::9");
            assert!(outside.run("ip -6 neigh").contains("fd00:9::1"));
        });
        let left = remains(&node, "small", "br0");
        assert_eq!(left, ["link up0"], "{implementation:?}");
        assert!(
            node.addresses("br0")
                .contains(&"fd00:5::ffff/64".to_owned())
        );
    }
}

#[test]
fn a_link_local_gateway_is_added_to_a_bridge_that_has_a_link_local_address() {
    requires!("ping");
    let node = Node::new("node");
    let outside = outside_host(&node);
    // Once a port is up the kernel assigns a link-local address, with which the ADD of the Go plugin fails.
    node.run_all("ip link add br0 type bridge\nip link add p0 type veth peer name p1\nip link set p0 master br0 up\nip link set p1 up\nip link set br0 up");
    node.wait_for_dad();
    let own = node.run("ip -6 -o addr show dev br0 scope link");
    assert!(own.contains("fe80::"), "{own}");
    let mut config = link_local();
    config["isGateway"] = true.into();
    let network = node.network(config.clone());
    for (id, key) in [("a", "isGateway"), ("b", "isDefaultGateway")] {
        let (pod, network) = (node.pod(id), network.with(key, true));
        let result = network.add(&pod);
        assert_eq!(result["ips"][0]["gateway"], "fe80::1");
        node.run("ip -6 route replace fd00:5::/64 dev br0");
        assert!(
            node.run("ip -6 -o addr show dev br0")
                .contains("fe80::1/64")
        );
        outside.wait_for_dad();
        pod.reaches("fd00:9::9");
        network.check(&pod, &result).ok();
    }
    for id in ["a", "b"] {
        let call = network
            .call_for("DEL", id)
            .netns(&format!("/run/netns/{id}"));
        call.run().ok();
    }
    assert!(leases(&node, "small").is_empty());
    let now = node.run("ip -6 -o addr show dev br0 scope link");
    assert!(
        own.lines()
            .all(|line| now.contains(line.split_whitespace().nth(3).unwrap())),
        "{own}{now}"
    );
}

#[test]
fn host_local_returns_a_gateway_outside_of_the_subnet() {
    if !ready(&["cni:ptp", "ping"]) {
        return;
    }
    for implementation in BOTH {
        let node = node();
        node.run(&format!(
            "ln -sf {}/ptp {}/ptp",
            crate::support::go_plugins().display(),
            Node::BIN
        ));
        if implementation == Go {
            node.run(&format!(
                "ln -sf {}/host-local {}/host-local",
                crate::support::go_plugins().display(),
                Node::BIN
            ));
        }
        let mut config = link_local();
        config["type"] = "ptp".into();
        let (network, pod) = (node.network(config.clone()), node.pod("a"));
        let result = network.add(&pod);
        assert_eq!(
            result["ips"][0]["address"], "fd00:5::1/64",
            "{implementation:?}: {result}"
        );
        assert_eq!(result["ips"][0]["gateway"], "fe80::1", "{implementation:?}");
        network.del(&pod);
        assert!(leases(&node, "small").is_empty());
        // host-local by itself, as macvlan and ipvlan call it.
        for (subnet, gateway) in [
            ("fd00:5::/64", "fe80::1"),
            ("10.5.0.0/24", "10.6.0.1"),
            ("10.5.0.0/24", "fe80::1"),
            ("fd00:5::/64", "10.5.0.1"),
            ("10.5.0.0/30", "10.5.0.3"),
        ] {
            let mut config = small_network();
            config["type"] = "host-local".into();
            config["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": subnet, "gateway": gateway }]] });
            let result = node.network(config.clone()).add(&pod);
            assert_eq!(result["ips"][0]["gateway"], gateway, "{implementation:?}");
            node.network(config).del(&pod);
        }
    }
}

/// Runs ADD with these keys, then DEL. Returns the answer of ADD.
fn add(implementation: Implementation, node: &Node, plugin: &str, keys: &Value) -> Answer {
    let pod = node.pod(&format!(
        "{implementation:?}-{}",
        node.run("ip netns list").lines().count()
    ));
    let mut config = small_network();
    config["isGateway"] = false.into();
    config["type"] = plugin.into();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    let mut attachment = Attachment::new(node, &pod, &config);
    let answer = attachment.try_add(implementation);
    attachment.del(implementation).ok();
    node.run("rm -rf /var/lib/cni/networks");
    answer
}

fn with_routes(subnet: &str, routes: Value) -> Value {
    json!({ "ipam": { "type": "host-local", "subnet": subnet, "routes": routes } })
}

fn with_range(range: Value) -> Value {
    json!({ "ipam": { "type": "host-local", "ranges": [[range]] } })
}

#[test]
fn configurations_that_the_go_plugins_accept_give_the_same_addresses_and_routes() {
    if !ready(&[]) {
        return;
    }
    let v4 = "10.77.0.0/24";
    let (bridge, host_local_only) = (
        ["bridge", "host-local"].as_slice(),
        ["host-local"].as_slice(),
    );
    let cases = [
        (
            bridge,
            with_routes("fd00:5::/64", json!([{ "dst": "fd09::7/64" }])),
        ),
        (
            host_local_only,
            with_routes(v4, json!([{ "dst": "10.9.0.7/16" }])),
        ),
        (
            host_local_only,
            with_routes(
                v4,
                json!([{ "dst": "10.9.0.0/16" }, { "dst": "10.9.0.0/16" }]),
            ),
        ),
        (
            bridge,
            with_routes(
                v4,
                json!([{ "dst": "10.9.0.0/16" }, { "dst": "10.9.0.0/16", "gw": "10.77.0.9" }]),
            ),
        ),
        (
            host_local_only,
            with_routes(v4, json!([{ "dst": "10.9.0.0/16", "gw": "fe80::1" }])),
        ),
        (
            host_local_only,
            with_routes(v4, json!([{ "dst": "::/0", "gw": "10.77.0.1" }])),
        ),
        (
            bridge,
            with_routes(v4, json!([{ "dst": "10.9.0.0/16", "scope": 256 }])),
        ),
        (
            bridge,
            with_routes(
                v4,
                json!([{ "dst": "10.9.0.0/16", "mtu": -5, "advmss": -1, "priority": -2, "table": -1 }]),
            ),
        ),
        (
            bridge,
            with_range(json!({ "subnet": v4, "rangeStart": "10.77.0.0", "rangeEnd": "10.77.0.0" })),
        ),
        (
            bridge,
            with_range(
                json!({ "subnet": v4, "rangeStart": "10.77.0.255", "rangeEnd": "10.77.0.255" }),
            ),
        ),
        (
            bridge,
            with_range(json!({ "subnet": v4, "rangeStart": "10.77.0.255" })),
        ),
        (
            bridge,
            with_range(
                json!({ "subnet": "fd00::/64", "rangeStart": "fd00::", "rangeEnd": "fd00::" }),
            ),
        ),
        (bridge, json!({ "mtu": -1 })),
        (bridge, json!({ "ipMasqBackend": "ipvs" })),
        (
            bridge,
            json!({ "prevResult": { "ips": [{ "address": "nowhere" }], "interfaces": 5 } }),
        ),
        (bridge, json!({ "prevResult": { "cniVersion": "9.9.9" } })),
    ];
    let node = node();
    for (plugins, keys) in &cases {
        for plugin in *plugins {
            let [gangplank, go] =
                BOTH.map(|implementation| add(implementation, &node, plugin, keys).ok());
            for key in ["address", "gateway"] {
                assert_eq!(
                    gangplank["ips"][0][key], go["ips"][0][key],
                    "{plugin} {keys}"
                );
            }
            let routes = |result: &Value| -> Vec<Value> {
                let routes = result["routes"].as_array().into_iter().flatten();
                routes
                    .map(|route| json!([route["dst"], route["gw"]]))
                    .collect()
            };
            assert_eq!(routes(&gangplank), routes(&go), "{plugin} {keys}");
        }
    }
}

#[test]
fn routes_that_the_kernel_would_reject_are_rejected_before_any_change() {
    if !ready(&[]) {
        return;
    }
    for (routes, word) in [
        (json!([{ "dst": "10.9.0.7/16" }]), "10.9.0.0/16"),
        (
            json!([{ "dst": "10.9.0.0/16", "gw": "fe80::1" }]),
            "fe80::1",
        ),
    ] {
        let node = node();
        let keys = with_routes("10.77.0.0/24", routes);
        let _ = add(Go, &node, "bridge", &keys).error();
        node.run("ip link del br0");
        let error = add(Gangplank, &node, "bridge", &keys).error();
        assert!(error.code == 7 && error.text().contains(word), "{error:?}");
        assert!(node.link("br0").is_none());
    }
}

#[test]
fn duplicate_routes_are_added_once() {
    requires!();
    let node = Node::new("node");
    let mut config = small_network();
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16" }, { "dst": "10.9.0.0/16", "gw": "10.77.0.1" }, { "dst": "10.9.0.0/16" }]);
    let (network, pod) = (node.network(config), node.pod("a"));
    let result = network.add(&pod);
    assert_eq!(result["routes"].as_array().unwrap().len(), 3);
    assert_eq!(pod.run("ip route show 10.9.0.0/16").lines().count(), 1);
    network.check(&pod, &result).ok();
    network.del(&pod);
}

/// The answer of an ADD with this text on stdin.
fn add_text(implementation: Implementation, node: &Node, plugin: &str, text: &str) -> Answer {
    let pod = node.pod(&format!(
        "{implementation:?}-{}",
        node.run("ip netns list").lines().count()
    ));
    let call = |verb| {
        implementation
            .call(node, plugin)
            .verb(verb)
            .pod(&pod)
            .stdin(text)
            .run()
    };
    let answer = call("ADD");
    call("DEL").ok();
    node.run("rm -rf /var/lib/cni/networks");
    answer
}

#[test]
fn deeply_nested_json_and_unpaired_surrogates_are_parsed_as_by_go() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    };
    for (what, junk) in [
        ("128 lists", nested("[", "]", 128)),
        ("9,990 lists", nested("[", "]", 9_990)),
        ("9,990 objects", nested("{\"a\":", "}", 9_990)),
        (
            "half of a pair",
            r#"{"\ud800": "\udc00\ud800x", "a": "\ud83d\ude00"}"#.to_owned(),
        ),
    ] {
        for (plugin, ipam) in [
            (
                "host-local",
                r#"{"type":"host-local","subnet":"10.5.0.0/24"}"#,
            ),
            ("bridge", "{}"),
        ] {
            let text = format!(
                r#"{{"x":{junk},"cniVersion":"1.0.0","name":"n","type":"{plugin}","bridge":"br0","dns":{{"domain":"\ud800."}},"ipam":{ipam}}}"#
            );
            let [gangplank, go] =
                BOTH.map(|implementation| add_text(implementation, &node, plugin, &text).ok());
            for key in ["dns", "ips"] {
                // Debian's plugins are older and print empty values.
                let empty =
                    |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
                let [gangplank, go] = [&gangplank[key], &go[key]].map(|it| {
                    (!empty(it))
                        .then_some(it)
                        .filter(|it| key == "dns" || it.is_array())
                });
                assert_eq!(
                    gangplank.filter(|it| !it.is_null()),
                    go.filter(|it| !it.is_null()),
                    "{what}: {plugin}"
                );
            }
        }
    }
    // Deeper than encoding/json accepts. Must not overflow the stack.
    let text = format!(r#"{{"x":{},"name":"n"}}"#, nested("[", "]", 1_500_000));
    let answer = node.cni("bridge").verb("STATUS").stdin(text).run();
    assert_eq!(answer.error().code, 1, "STATUS needs 1.1.0");
    for wrong in [
        format!("{{\"x\":{}", "[".repeat(200_000)),
        nested("[", "", 200_000),
    ] {
        assert_eq!(
            node.cni("bridge")
                .verb("STATUS")
                .stdin(wrong)
                .run()
                .error()
                .code,
            6
        );
    }
}

#[test]
fn cni_args_of_other_plugins_may_be_invalid() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    for implementation in BOTH {
        let pod = node.pod(&format!("{implementation:?}"));
        let mut host_local = small_network();
        host_local["type"] = "host-local".into();
        let mut layer_2 = small_network();
        layer_2["ipam"] = json!({});
        layer_2["isGateway"] = false.into();
        for (config, args) in [
            (&host_local, "IgnoreUnknown=1;MAC=zz"),
            (&layer_2, "IgnoreUnknown=1;IP=ten"),
        ] {
            let call = |verb| {
                implementation
                    .call_for(&node, config)
                    .verb(verb)
                    .pod(&pod)
                    .args(args)
                    .run()
            };
            call("ADD").ok();
            call("DEL").ok();
        }
        let wrong = implementation
            .call_for(&node, &host_local)
            .verb("ADD")
            .pod(&pod);
        let _ = wrong.args("IgnoreUnknown=1;IP=ten").run().error();
    }
    assert!(leases(&node, "small").is_empty());
    let network = Network::new(&node, small_network());
    let pod = node.pod("mac");
    let error = network.call("ADD", &pod).args("MAC=zz").run().error();
    assert!(error.code == 4 && error.text().contains("zz"), "{error:?}");
}
