//! `gangplank routes`: routes between the pods of several nodes.

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::support::{Answer, connect, requires, small_network};

/// Three nodes on one network: 192.0.2.11, .12 and .13, connected by a bridge on the first.
struct Cluster {
    nodes: Vec<Fixture>,
}

impl Cluster {
    fn new() -> Cluster {
        let nodes: Vec<Fixture> = (0..3).map(|_| Fixture::new()).collect();
        for node in &nodes {
            // Neighbour solicitations use link-local addresses, for which duplicate address detection takes a second.
            node.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        }
        nodes[0].run_all("ip link add lan type bridge\nip link set lan up");
        for (at, node) in nodes.iter().enumerate() {
            let link = if at == 0 { "lan" } else { "eth0" };
            if at > 0 {
                connect(&nodes[0], &format!("p{at}"), node, "eth0");
                nodes[0].run(&format!("ip link set p{at} master lan"));
            }
            node.run(&format!("ip addr add 192.0.2.1{}/24 dev {link}", at + 1));
            node.run(&format!(
                "ip addr add fd00::1{}/64 dev {link} nodad",
                at + 1
            ));
        }
        Cluster { nodes }
    }

    fn routes(&self, at: usize, words: &str, list: &str) -> Answer {
        self.nodes[at].gangplank_with_stdin(&format!("routes {words}"), list)
    }

    /// With `gangplank` the routes of gangplank (protocol 71), otherwise all other routes.
    fn table(&self, at: usize, which: &str) -> Vec<String> {
        let node = &self.nodes[at];
        let mut lines: Vec<String> = [node.run("ip -4 route"), node.run("ip -6 route")]
            .concat()
            .lines()
            .filter(|line| line.contains("proto 71") == (which == "gangplank"))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        lines
    }
}

fn node(number: u8, ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("n{number}"), "labels": {} },
        "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges, "providerID": "x" },
        "status": { "addresses": [
            { "type": "Hostname", "address": format!("n{number}") },
            { "type": "ExternalIP", "address": "203.0.113.5" },
            { "type": "InternalIP", "address": format!("192.0.2.1{number}") },
            { "type": "InternalIP", "address": format!("fd00::1{number}") },
        ], "images": [] },
    })
}

fn list(nodes: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": nodes, "metadata": { "resourceVersion": "" } }).to_string()
}

fn three() -> String {
    list(&[
        node(1, &["10.244.1.0/24", "fd10:1::/64"]),
        node(2, &["10.244.2.0/24", "fd10:2::/64"]),
        node(3, &["10.244.3.0/24", "fd10:3::/64"]),
    ])
}

#[test]
fn pods_of_different_nodes_reach_each_other() {
    requires!("ping");
    let cluster = Cluster::new();
    let mut pods = Vec::new();
    for (at, fixture) in cluster.nodes.iter().enumerate() {
        let number = at + 1;
        let mut config = small_network();
        config["isDefaultGateway"] = true.into();
        config["ipam"] = json!({ "type": "host-local", "ranges": [
            [{ "subnet": format!("10.244.{number}.0/24") }], [{ "subnet": format!("fd10:{number}::/64") }],
        ] });
        let pod = fixture.pod("a");
        fixture.network(config).add(&pod);
        pods.push(pod);
    }
    pods[0].does_not_reach("10.244.3.2");
    for at in 0..3 {
        let report = cluster.routes(at, "--json", &three()).ok();
        assert_eq!(report["node"], format!("n{}", at + 1));
        assert_eq!(report["changes"].as_array().unwrap().len(), 4, "{report}");
    }
    for (from, to) in [(0, 2), (1, 2), (2, 0)] {
        assert_eq!(pods[from].reaches(&format!("10.244.{}.2", to + 1)), 62);
        assert_eq!(pods[from].reaches(&format!("fd10:{}::2", to + 1)), 62);
        // The source address is not translated.
        let seen = pods[from].seen_as(&pods[to], &format!("10.244.{}.2", to + 1));
        assert_eq!(seen, format!("10.244.{}.2", from + 1));
    }
}

#[test]
fn routes_are_added_replaced_and_removed_and_foreign_ones_kept() {
    requires!();
    let cluster = Cluster::new();
    cluster.nodes[0].run_all(
        "ip route add 10.9.0.0/16 via 192.0.2.12 proto static\nip route add 10.244.9.0/24 via 192.0.2.13\nip route add blackhole 10.10.0.0/16\n\
         ip route add 10.244.2.0/24 via 192.0.2.12 table 100 proto 71",
    );
    let others = cluster.table(0, "others");
    let dry = cluster.routes(0, "--dry-run", &three());
    assert!(
        dry.success()
            .contains("add     10.244.2.0/24 via 192.0.2.12  node n2"),
        "{dry:?}"
    );
    assert!(
        dry.success()
            .ends_with("4 would be changed, 0 right already, 0 failed\n"),
        "{dry:?}"
    );
    assert_eq!(cluster.table(0, "gangplank"), [""; 0]);
    let done = cluster.routes(0, "", &three());
    assert!(
        done.success()
            .ends_with("4 changed, 0 right already, 0 failed\n"),
        "{done:?}"
    );
    let table = cluster.table(0, "gangplank");
    assert_eq!(
        table,
        [
            "10.244.2.0/24 via 192.0.2.12 dev lan proto 71",
            "10.244.3.0/24 via 192.0.2.13 dev lan proto 71",
            "fd10:2::/64 via fd00::12 dev lan proto 71 metric 1024 pref medium",
            "fd10:3::/64 via fd00::13 dev lan proto 71 metric 1024 pref medium",
        ]
    );
    let again = cluster.routes(0, "", &three());
    assert_eq!(again.success(), "0 changed, 4 right already, 0 failed\n");
    // The nodes swap their ranges, and one gets a new range.
    let swapped = list(&[
        node(1, &["10.244.1.0/24"]),
        node(2, &["10.244.3.0/24", "fd10:3::/64"]),
        node(3, &["10.244.5.0/24", "fd10:2::/64"]),
    ]);
    let report = cluster.routes(0, "--json", &swapped).ok();
    let actions: Vec<&str> = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        ["remove", "replace", "replace", "add", "replace"],
        "{report}"
    );
    assert_eq!(
        cluster.table(0, "gangplank"),
        [
            "10.244.3.0/24 via 192.0.2.12 dev lan proto 71",
            "10.244.5.0/24 via 192.0.2.13 dev lan proto 71",
            "fd10:2::/64 via fd00::13 dev lan proto 71 metric 1024 pref medium",
            "fd10:3::/64 via fd00::12 dev lan proto 71 metric 1024 pref medium",
        ]
    );
    assert_eq!(
        cluster.routes(0, "", &swapped).success(),
        "0 changed, 4 right already, 0 failed\n"
    );
    let alone = list(&[node(1, &["10.244.1.0/24"])]);
    assert!(
        cluster
            .routes(0, "", &alone)
            .success()
            .ends_with("4 changed, 0 right already, 0 failed\n")
    );
    assert_eq!(cluster.table(0, "gangplank"), [""; 0]);
    assert_eq!(cluster.table(0, "others"), others);
    assert!(
        cluster.nodes[0]
            .run("ip route show table 100")
            .contains("10.244.2.0/24")
    );
}

#[test]
fn a_metric_is_set_changed_and_removed() {
    requires!();
    let cluster = Cluster::new();
    for (words, wanted) in [
        (
            "--metric 50",
            "10.244.2.0/24 via 192.0.2.12 dev eth0 proto 71 metric 50",
        ),
        (
            "--metric 70",
            "10.244.2.0/24 via 192.0.2.12 dev eth0 proto 71 metric 70",
        ),
        ("", "10.244.2.0/24 via 192.0.2.12 dev eth0 proto 71"),
    ] {
        let done = cluster.routes(2, words, &three());
        assert!(
            done.success()
                .ends_with("4 changed, 0 right already, 0 failed\n"),
            "{done:?}"
        );
        let table = cluster.table(2, "gangplank");
        assert_eq!(table.len(), 4, "{table:?}");
        assert!(table.contains(&wanted.to_owned()), "{table:?}");
        assert_eq!(
            cluster.routes(2, words, &three()).success(),
            "0 changed, 4 right already, 0 failed\n"
        );
    }
}

#[test]
fn nodes_can_be_listed_as_plain_lines() {
    requires!();
    let cluster = Cluster::new();
    let text = "# our three\n192.0.2.11 10.244.1.0/24\n192.0.2.12 10.244.2.0/24 # the second\n\n192.0.2.13\t10.244.3.0/24\n192.0.2.13 10.244.4.0/24\nfd00::13 fd10:3::/64\n";
    let done = cluster.routes(0, "", text);
    assert!(
        done.success()
            .ends_with("4 changed, 0 right already, 0 failed\n"),
        "{done:?}"
    );
    // On a machine that is not in the list.
    let all = cluster.routes(
        2,
        "",
        "192.0.2.11 10.244.1.0/24\n192.0.2.12 10.244.2.0/24\r\n",
    );
    assert!(
        all.success()
            .ends_with("2 changed, 0 right already, 0 failed\n"),
        "{all:?}"
    );
}

#[test]
fn the_local_node_is_found_by_address_or_by_name() {
    requires!();
    let cluster = Cluster::new();
    let answer = cluster.routes(1, "--json --dry-run", &three()).ok();
    assert_eq!(answer["node"], "n2");
    let answer = cluster
        .routes(1, "--json --dry-run --node n3", &three())
        .ok();
    assert_eq!(answer["node"], "n3");
    let answer = cluster.routes(1, "--node n9", &three());
    assert!(
        answer
            .failure()
            .contains("no node is named \"n9\" (the list has n1, n2, n3"),
        "{answer:?}"
    );
    let unknown_nodes = list(&[node(4, &["10.244.4.0/24"])]);
    let answer = cluster.routes(1, "", &unknown_nodes);
    assert!(answer.failure().contains("--node NAME"), "{answer:?}");
    assert_eq!(cluster.table(1, "gangplank"), [""; 0]);
}

#[test]
fn a_range_of_two_nodes_is_rejected_with_both_names_before_any_change() {
    requires!();
    let cluster = Cluster::new();
    cluster.routes(0, "", &three()).success();
    let before = cluster.table(0, "gangplank");
    for (two, three, wanted) in [
        (
            "10.244.2.0/24",
            "10.244.2.0/24",
            ["n2", "n3", "10.244.2.0/24"],
        ),
        (
            "10.244.0.0/16",
            "10.244.2.0/24",
            ["n2", "n1", "10.244.0.0/16"],
        ),
        (
            "10.244.2.128/25",
            "10.244.2.0/24",
            ["n2", "n3", "10.244.2.128/25"],
        ),
        (
            "10.244.1.128/25",
            "10.244.3.0/24",
            ["n1", "n2", "10.244.1.0/24"],
        ),
    ] {
        let text = list(&[
            node(1, &["10.244.1.0/24"]),
            node(2, &[two]),
            node(3, &[three]),
        ]);
        let answer = cluster.routes(0, "", &text);
        for word in wanted {
            assert!(answer.failure().contains(word), "{answer:?}");
        }
        assert_eq!(cluster.table(0, "gangplank"), before);
    }
    let mut twin = node(3, &["10.244.3.0/24"]);
    twin["status"] = node(2, &[])["status"].clone();
    let answer = cluster.routes(
        0,
        "",
        &list(&[node(1, &[]), node(2, &["10.244.2.0/24"]), twin]),
    );
    assert!(answer.failure().contains("192.0.2.12"), "{answer:?}");
    for text in [
        "",
        "{}",
        "{\"kind\": \"NodeList\", \"items\": []}",
        "{\"kind\": \"List\", \"items\": null}",
        "Error from server (Forbidden)",
        "[1]",
    ] {
        let answer = cluster.routes(0, "", text);
        assert!(!answer.failure().is_empty(), "{text}");
        assert_eq!(cluster.table(0, "gangplank"), before, "{text}");
    }
}

#[test]
fn an_unreachable_next_hop_is_reported_and_other_routes_are_added() {
    requires!();
    let cluster = Cluster::new();
    cluster.nodes[0].run("ip route add 198.51.100.0/24 via 192.0.2.13");
    let text = "192.0.2.11 10.244.1.0/24\n198.51.100.7 10.244.7.0/24\n192.0.2.12 10.244.2.0/24\n203.0.113.9 10.244.9.0/24\n";
    for words in ["--dry-run", "", ""] {
        let answer = cluster.routes(0, words, text);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.stdout.contains("198.51.100.7 is not on a network that this machine is connected to (packets to it go through 192.0.2.13)"), "{answer:?}");
        assert!(answer.stdout.contains("203.0.113.9 is not on a network that this machine is connected to (there is no route to it)"), "{answer:?}");
        assert!(answer.stdout.ends_with(", 2 failed\n"), "{answer:?}");
    }
    assert_eq!(
        cluster.table(0, "gangplank"),
        ["10.244.2.0/24 via 192.0.2.12 dev lan proto 71"]
    );
}

#[test]
fn an_existing_foreign_route_to_the_same_range_is_kept() {
    requires!();
    let cluster = Cluster::new();
    cluster.nodes[0].run_all("ip route add 10.244.2.0/24 via 192.0.2.12 proto static\nip route add 10.244.3.0/24 via 192.0.2.12 proto static");
    let others = cluster.table(0, "others");
    let answer = cluster.routes(0, "", &three());
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.stdout.contains("node n3: 10.244.3.0/24 has a route via 192.0.2.12 already, made by an administrator (proto static)"), "{answer:?}");
    assert!(
        answer
            .stdout
            .ends_with("2 changed, 1 right already, 1 failed\n"),
        "{answer:?}"
    );
    assert_eq!(cluster.table(0, "others"), others);
}

#[test]
fn foreign_unreachable_and_prohibit_routes_are_kept() {
    requires!();
    let cluster = Cluster::new();
    let node = &cluster.nodes[0];
    let others = || {
        let v4 = node.run("ip route show type blackhole");
        [v4, node.run("ip -6 route show type unreachable")]
    };
    node.run_all("ip route add blackhole 10.244.2.0/24 proto bird\nip -6 route add unreachable fd10:2::/64 proto bird");
    let before = others();
    assert!(before.iter().all(|it| it.contains("10")), "{before:?}");
    for _ in 0..2 {
        let answer = cluster.routes(0, "", "192.0.2.12 10.244.2.0/24\nfd00::12 fd10:2::/64\n");
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let failed = "it exists already, and is not ours";
        assert_eq!(answer.stdout.matches(failed).count(), 2, "{answer:?}");
        assert_eq!(others(), before);
    }
}

#[test]
fn an_interrupted_change_of_metric_is_completed() {
    requires!();
    let cluster = Cluster::new();
    for (metric, wanted) in [("70", " metric 70"), ("0", "")] {
        cluster.nodes[0].run_all("ip route flush proto 71\nip route add 10.244.2.0/24 via 192.0.2.12 proto 71\nip route add 10.244.2.0/24 via 192.0.2.12 proto 71 metric 70");
        let answer = cluster.routes(
            0,
            &format!("--metric {metric}"),
            "192.0.2.12 10.244.2.0/24\n",
        );
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let left = format!("10.244.2.0/24 via 192.0.2.12 dev lan proto 71{wanted}");
        assert_eq!(cluster.table(0, "gangplank"), [left], "{answer:?}");
    }
}

#[test]
fn a_node_without_ranges_or_without_an_address_of_the_family_is_skipped() {
    requires!();
    let cluster = Cluster::new();
    let mut two = node(2, &["10.244.2.0/24", "fd10:2::/64"]);
    two["status"]["addresses"].as_array_mut().unwrap().pop();
    let mut three = node(3, &[]);
    three["spec"] = json!({ "podCIDR": "10.244.3.0/24" });
    let mut four = node(4, &[]);
    four["spec"] = json!({});
    let answer = cluster.routes(
        0,
        "",
        &list(&[node(1, &["10.244.1.0/24"]), two, three, four]),
    );
    assert_eq!(answer.code, Some(1));
    assert!(
        answer.stdout.contains(
            "node n2: pods have fd10:2::/64, but the node has no IPv6 address (InternalIP)"
        ),
        "{answer:?}"
    );
    assert!(
        answer
            .stdout
            .ends_with("2 changed, 0 right already, 1 failed\n"),
        "{answer:?}"
    );
}
