//! `host-local`: ranges, requested addresses, the order of allocation, and lease files.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

mod coexistence;

use crate::support::{Answer, Call, Node, leases, requires, skip_for_go, testing_go};

/// A configuration for calling `host-local` directly.
fn network(ipam: Value) -> Value {
    let mut ipam = ipam;
    ipam["type"] = "host-local".into();
    json!({ "cniVersion": "1.0.0", "name": "lan", "type": "ptp", "ipam": ipam })
}

fn call<'n>(node: &'n Node, verb: &str, container: &str, config: &Value) -> Call<'n> {
    node.cni("host-local")
        .verb(verb)
        .container(container)
        .ifname("eth0")
        .netns("/run/netns/none")
        .config(config)
}

fn add(node: &Node, container: &str, config: &Value) -> Answer {
    call(node, "ADD", container, config).run()
}

/// The addresses of a result, with their prefix lengths.
#[track_caller]
fn addresses(answer: &Answer) -> Vec<String> {
    let result = answer.ok();
    let ips = result["ips"].as_array().expect("addresses").iter();
    ips.map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_first_address_is_the_one_after_the_gateway() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.2.0/24", "routes": [{ "dst": "0.0.0.0/0" }] }));
    let result = add(&node, "a", &config).ok();
    assert_eq!(
        result["ips"],
        json!([{ "address": "10.1.2.2/24", "gateway": "10.1.2.1" }])
    );
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0" }]));
    assert_eq!(result.get("interfaces"), None);
    assert_eq!(addresses(&add(&node, "b", &config)), ["10.1.2.3/24"]);
}

#[test]
fn all_notations_of_a_range_work() {
    requires!();
    let cases = [
        (
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "rangeEnd": "10.1.0.51", "gateway": "10.1.0.254" }),
            vec!["10.1.0.50/24"],
        ),
        (
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50" }]] }),
            vec!["10.1.0.50/24"],
        ),
        (
            json!({ "ranges": [
                [{ "subnet": "10.1.0.0/24" }, { "subnet": "10.2.0.0/24" }],
                [{ "subnet": "fd00:1::/64", "rangeStart": "fd00:1::50", "rangeEnd": "fd00:1::5f" }],
            ] }),
            vec!["10.1.0.2/24", "fd00:1::50/64"],
        ),
        (
            json!({ "subnet": "10.9.0.0/16", "ranges": [[{ "subnet": "10.1.0.0/24" }]] }),
            vec!["10.9.0.2/16", "10.1.0.2/24"],
        ),
        (json!({ "subnet": "10.1.0.0/30" }), vec!["10.1.0.2/30"]),
        (json!({ "subnet": "fd00:1::/126" }), vec!["fd00:1::2/126"]),
        (
            json!({ "subnet": "FD00:1:0::/64", "rangeStart": "", "gateway": "fd00:1::2" }),
            vec!["fd00:1::1/64"],
        ),
    ];
    for (ipam, expected) in cases {
        let node = Node::new("node");
        let answer = add(&node, "a", &network(ipam.clone()));
        assert_eq!(addresses(&answer), expected, "{ipam}");
    }
}

#[test]
fn ranges_of_the_runtime_precede_those_of_the_configuration() {
    requires!();
    let node = Node::new("node");
    let mut config = network(json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }]] }));
    config["runtimeConfig"] = json!({ "ipRanges": [[{ "subnet": "10.5.0.0/24" }]] });
    assert_eq!(
        addresses(&add(&node, "a", &config)),
        ["10.5.0.2/24", "10.1.0.2/24"]
    );
    let dir = "/var/lib/cni/networks/lan";
    assert_eq!(node.read(&format!("{dir}/last_reserved_ip.0")), "10.5.0.2");
    assert_eq!(node.read(&format!("{dir}/last_reserved_ip.1")), "10.1.0.2");
}

#[test]
fn an_address_can_be_requested_in_three_ways() {
    requires!();
    let node = Node::new("node");
    let config = network(
        json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]] }),
    );
    let by_args = call(&node, "ADD", "a", &config)
        .args("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.1.0.20")
        .run();
    assert_eq!(addresses(&by_args), ["10.1.0.20/24", "fd00:1::2/64"]);
    let mut by_cni = config.clone();
    by_cni["args"] = json!({ "cni": { "ips": ["10.1.0.30/24", "fd00:1::30"] } });
    assert_eq!(
        addresses(&add(&node, "b", &by_cni)),
        ["10.1.0.30/24", "fd00:1::30/64"]
    );
    let mut by_runtime = config.clone();
    by_runtime["runtimeConfig"] = json!({ "ips": ["fd00:1::40", "10.1.0.40"] });
    assert_eq!(
        addresses(&add(&node, "c", &by_runtime)),
        ["10.1.0.40/24", "fd00:1::40/64"]
    );
    // A requested address moves the cursor of the range.
    assert_eq!(
        addresses(&add(&node, "d", &config)),
        ["10.1.0.41/24", "fd00:1::41/64"]
    );
}

#[test]
fn an_unavailable_requested_address_is_named_and_nothing_is_leased() {
    requires!();
    let node = Node::new("node");
    let config = network(
        json!({ "ranges": [[{ "subnet": "fd00:1::/64" }], [{ "subnet": "10.1.0.0/24" }]] }),
    );
    let _ = call(&node, "ADD", "a", &config).args("IP=10.1.0.20").run();
    let before = leases(&node, "lan");
    for requested in ["10.1.0.20", "10.1.0.1", "10.7.0.1", "fd00:2::1"] {
        let answer = call(&node, "ADD", "b", &config)
            .args(&format!("IP={requested}"))
            .run();
        let error = answer.error();
        assert!(error.text().contains(requested), "{requested}: {error:?}");
        assert_eq!(leases(&node, "lan"), before, "{requested}");
    }
}

#[test]
fn a_lease_file_contains_container_and_interface() {
    requires!();
    let node = Node::new("node");
    let config = network(
        json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]] }),
    );
    add(&node, "c1", &config).ok();
    let files = node.files("/var/lib/cni/networks/lan");
    let mut files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.rsplit('/').next().unwrap(), bytes.as_slice()))
        .collect();
    files.retain(|(name, _)| testing_go() || !name.starts_with('.') && *name != "boot_id");
    let expected: [(&str, &[u8]); 5] = [
        ("10.1.0.2", b"c1\r\neth0"),
        ("fd00:1::2", b"c1\r\neth0"),
        ("last_reserved_ip.0", b"10.1.0.2"),
        ("last_reserved_ip.1", b"fd00:1::2"),
        ("lock", b""),
    ];
    for file in expected {
        assert!(files.contains(&file), "{file:?} in {files:?}");
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let parse = |name: &&&str| name.parse::<IpAddr>().is_ok();
    assert_eq!(names.iter().filter(parse).count(), 2, "{names:?}");
    if !testing_go() {
        let modes =
            node.run("stat -c %a /var/lib/cni/networks/lan /var/lib/cni/networks/lan/10.1.0.2");
        assert_eq!(modes, "755\n600\n");
    }
}

#[test]
fn data_dir_sets_the_lease_directory() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24", "dataDir": "/run/my/leases" }));
    add(&node, "a", &config).ok();
    assert_eq!(node.read("/run/my/leases/lan/10.1.0.2"), "a\r\neth0");
    assert_eq!(node.files("/var/lib/cni").len(), 0);
    call(&node, "DEL", "a", &config).run().ok();
    assert!(
        !node
            .files("/run/my/leases")
            .contains_key("/run/my/leases/lan/10.1.0.2")
    );
}

#[test]
fn a_released_address_is_reused_last() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/29" }));
    let next = |name: &str| addresses(&add(&node, name, &config)).remove(0);
    assert_eq!(next("a"), "10.1.0.2/29");
    assert_eq!(next("b"), "10.1.0.3/29");
    call(&node, "DEL", "a", &config).run().ok();
    assert_eq!(next("c"), "10.1.0.4/29");
    assert_eq!(next("d"), "10.1.0.5/29");
    assert_eq!(next("e"), "10.1.0.6/29");
    assert_eq!(next("f"), "10.1.0.2/29");
    let error = add(&node, "g", &config).error();
    assert!(error.text().contains("10.1.0."), "{error:?}");
    assert_eq!(leases(&node, "lan").len(), 5);
}

#[test]
fn an_exhausted_range_set_releases_the_addresses_of_the_other_sets() {
    requires!();
    let node = Node::new("node");
    let config = network(
        json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/30" }]] }),
    );
    add(&node, "a", &config).ok();
    add(&node, "b", &config).error();
    assert_eq!(leases(&node, "lan").len(), 2);
}

#[test]
fn a_repeated_add_fails_and_keeps_the_lease() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    add(&node, "a", &config).ok();
    add(&node, "a", &config).error();
    assert_eq!(node.lease("lan", "10.1.0.2").unwrap(), "a\r\neth0");
    assert_eq!(leases(&node, "lan").len(), 1);
    // Another interface of the same container is a separate attachment.
    let other = call(&node, "ADD", "a", &config).ifname("net1").run();
    assert_eq!(addresses(&other), ["10.1.0.3/24"]);
}

#[test]
fn del_releases_only_its_attachment_and_can_be_repeated() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    call(&node, "DEL", "never", &config).run().ok();
    for name in ["a", "b"] {
        add(&node, name, &config).ok();
    }
    let other = call(&node, "ADD", "a", &config).ifname("net1").run();
    other.ok();
    for _ in 0..2 {
        call(&node, "DEL", "a", &config)
            .unset("CNI_NETNS")
            .run()
            .ok();
        let left: Vec<String> = leases(&node, "lan").iter().map(IpAddr::to_string).collect();
        assert_eq!(left, ["10.1.0.3", "10.1.0.4"]);
    }
}

#[test]
fn leases_in_the_format_of_older_plugins_are_recognized() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    let dir = "/var/lib/cni/networks/lan";
    node.run(&format!("mkdir -p {dir}"));
    node.write(&format!("{dir}/10.1.0.2"), "old");
    node.write(&format!("{dir}/10.1.0.3"), "new\r\neth0\n");
    node.write(&format!("{dir}/last_reserved_ip.0"), "10.1.0.1");
    assert_eq!(addresses(&add(&node, "a", &config)), ["10.1.0.4/24"]);
    for name in ["old", "new"] {
        call(&node, "CHECK", name, &config).run().ok();
        add(&node, name, &config).error();
        call(&node, "DEL", name, &config).run().ok();
        call(&node, "CHECK", name, &config).run().error();
    }
    assert_eq!(leases(&node, "lan").len(), 1);
}

#[test]
fn resolv_conf_becomes_the_dns_of_the_result() {
    requires!();
    let node = Node::new("node");
    node.write(
        "/run/resolv.conf",
        "# comment\n; another\n  nameserver   10.0.0.1  ignored\nnameserver fd00::1\ndomain one.test\n\
         domain two.test\nsearch a.test b.test\nsearch c.test\noptions ndots:2 rotate\nsortlist x\nnameserver\n",
    );
    let config = network(json!({ "subnet": "10.1.0.0/24", "resolvConf": "/run/resolv.conf" }));
    let result = add(&node, "a", &config).ok();
    assert_eq!(
        result["dns"],
        json!({
            "nameservers": ["10.0.0.1", "fd00::1"],
            "domain": "two.test",
            "search": ["a.test", "b.test", "c.test"],
            "options": ["ndots:2", "rotate"],
        })
    );
    let config = network(json!({ "subnet": "10.1.0.0/24", "resolvConf": "/run/absent.conf" }));
    let error = add(&node, "b", &config).error();
    assert!(error.text().contains("/run/absent.conf"), "{error:?}");
    assert_eq!(leases(&node, "lan").len(), 1);
}

#[test]
fn twenty_concurrent_processes_get_twenty_addresses() {
    requires!();
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    let given: Vec<String> = std::thread::scope(|scope| {
        let (node, config) = (&node, &config);
        let calls: Vec<_> = (0..20)
            .map(|n| scope.spawn(move || addresses(&add(node, &format!("c{n}"), config))))
            .collect();
        calls
            .into_iter()
            .flat_map(|call| call.join().unwrap())
            .collect()
    });
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!(distinct.len(), 20, "{given:?}");
    assert_eq!(leases(&node, "lan").len(), 20);
}

#[test]
fn the_host_namespace_is_rejected_unless_allowed() {
    requires!();
    if skip_for_go("Debian's version does not check this") {
        return;
    }
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    let own = call(&node, "ADD", "a", &config).netns("/proc/self/ns/net");
    assert_eq!(own.run().error().code, 8);
    assert_eq!(leases(&node, "lan").len(), 0);
    own.env("CNI_NETNS_OVERRIDE", "True").run().ok();
    assert_eq!(leases(&node, "lan").len(), 1);
}

#[test]
fn a_lock_timeout_is_error_11_and_names_the_holder() {
    requires!();
    if skip_for_go("it waits forever") {
        return;
    }
    let node = Node::new("node");
    let config = network(json!({ "subnet": "10.1.0.0/24" }));
    add(&node, "a", &config).ok();
    let path = "/var/lib/cni/networks/lan/lock";
    let file = node.inside(|| std::fs::File::open(path)).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    let error = add(&node, "b", &config).error();
    assert_eq!(error.code, 11);
    assert!(error.text().contains(path), "{error:?}");
    let holder = std::process::id().to_string();
    assert!(error.text().contains(&holder), "{error:?}");
    drop(lock);
    add(&node, "b", &config).ok();
}
