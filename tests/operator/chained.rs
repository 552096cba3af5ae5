//! `status`, `doctor` and `reconcile` with the plugins portmap and firewall, in both backends of portmap.

use serde_json::{Value, json};

use crate::fixture::{CONF, Fixture, LEASES};
use crate::support::implementation::Implementation::{Gangplank, Go};
use crate::support::implementation::ready_for_chains;
use crate::support::{Chain, NodeState, Pod, requires, small_chain};

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// A node with a running pod that has mapped ports: `8080/tcp`, and `5353/udp` on one host address.
struct Attached {
    fixture: Fixture,
    pod: Pod,
    backend: &'static str,
}

impl Attached {
    fn new(backend: &'static str) -> Attached {
        Attached::on(Fixture::new(), backend)
    }

    fn on(fixture: Fixture, backend: &'static str) -> Attached {
        fixture.run("ip addr add 192.0.2.1/32 dev lo");
        let pod = fixture.pod("web");
        let attached = Attached {
            fixture,
            pod,
            backend,
        };
        let list = attached.chain().list();
        attached
            .fixture
            .write(&format!("{}/10-net.conflist", CONF), &list.to_string());
        attached.fixture.run_chain(&attached.chain(), &attached.pod);
        attached
    }

    fn chain(&self) -> Chain<'_> {
        let chain = self.fixture.chain(&small_chain());
        let chain = chain.with("portmap", "backend", self.backend);
        let chain = chain.with("firewall", "backend", self.backend);
        let chain = chain.with("firewall", "ingressPolicy", "same-bridge");
        chain.with_ports(json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" },
        ]))
    }

    /// The rules of both backends, sorted.
    fn rules(&self) -> Vec<String> {
        let in_iptables = ["iptables-save", "ip6tables-save"].map(|it| self.fixture.run(it));
        let in_nftables = self.fixture.run("nft -s list ruleset");
        let own = in_nftables.split("\ntable ");
        let own = own.filter(|table| {
            table
                .trim_start_matches("table ")
                .starts_with("inet gangplank_")
        });
        let rules = in_iptables.iter().flat_map(|it| it.lines());
        let rules = rules.filter(|line| line.starts_with("-A "));
        let own = own.flat_map(|table| table.lines().skip(1));
        let own = own.filter(|line| !line.trim().is_empty());
        let mut lines: Vec<String> = rules.chain(own).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Damages the node, and finds and repairs the damage.
    #[track_caller]
    fn assert_restored(&self, damage: &str, restored: &[&str]) {
        let before = self.rules();
        self.fixture.run_all(&damage.replace("; ", "\n"));
        let damaged = NodeState::of(&self.fixture);
        let dry = self.fixture.reconcile("--dry-run");
        let dry = dry.success();
        for what in restored {
            assert!(dry.contains(what), "{damage}: {dry}");
        }
        assert!(
            dry.lines().all(|line| line.contains("would restore")),
            "{dry}"
        );
        assert_eq!(NodeState::of(&self.fixture), damaged, "{damage}");
        let done = self.fixture.reconcile("");
        assert_eq!(done.success(), dry.replace("would restore", "restored"));
        assert_eq!(self.rules(), before, "{damage}");
        let again = self.fixture.reconcile("");
        assert_eq!(again.success(), "nothing to restore\n", "{damage}");
        self.fixture.assert_healthy();
    }
}

const PORTS: &str = "port mappings of container web interface eth0";
const FILTER: &str = "firewall rules of container web interface eth0";

#[test]
fn a_flushed_ruleset_is_restored() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let attached = Attached::new(backend);
        attached.fixture.assert_healthy();
        attached.assert_restored("nft flush ruleset", &[PORTS, FILTER]);
    }
}

#[test]
fn flushed_chains_are_restored() {
    requires!("iptables", "nft");
    let attached = Attached::new("iptables");
    for damage in [
        "iptables -t nat -F",
        "iptables -t nat -F PREROUTING",
        "iptables -t nat -F CNI-HOSTPORT-DNAT",
        "ip6tables -t nat -F; ip6tables -t nat -X",
    ] {
        attached.assert_restored(damage, &[PORTS]);
    }
    for damage in [
        "iptables -F",
        "iptables -F FORWARD",
        "iptables -F CNI-FORWARD",
        "ip6tables -F; ip6tables -X",
    ] {
        attached.assert_restored(damage, &[FILTER]);
    }
    let attached = Attached::new("nftables");
    for damage in [
        "nft flush chain inet gangplank_portmap hostports",
        "nft flush map inet gangplank_portmap ports4",
        "nft delete table inet gangplank_portmap",
    ] {
        attached.assert_restored(damage, &[PORTS]);
    }
    attached.assert_restored("nft delete table inet gangplank_firewall", &[FILTER]);
    attached.assert_restored("nft flush map inet gangplank_firewall pods4", &[FILTER]);
}

#[test]
fn flushed_chains_of_iptables_legacy_are_restored() {
    requires!("iptables-legacy");
    let fixture = Fixture::new();
    fixture.use_iptables_variant("xtables-legacy-multi");
    let attached = Attached::on(fixture, "iptables");
    attached.assert_restored("iptables -t nat -F", &[PORTS]);
    attached.assert_restored("iptables -F; ip6tables -F", &[FILTER]);
    attached.fixture.delete_cache("small", "web");
    attached.fixture.run("ip6tables -t nat -F PREROUTING");
    let done = attached.fixture.reconcile("");
    let jumps = "all networks: restored the jumps of the IPv6 nat table to the port mappings\n";
    assert_eq!(done.success(), jumps);
    attached.fixture.assert_healthy();
}

#[test]
fn status_lists_the_port_mappings_of_pods() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let attached = Attached::new(backend);
        let status = attached.fixture.status("--json").ok();
        let network = &status[0];
        let mut mappings: Vec<String> = network["pods"][0]["portMappings"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        mappings.sort();
        let mapping = |address: &str| {
            json!({
                "protocol": "tcp", "hostPort": 8080, "containerAddress": address, "containerPort": 80,
                "backend": backend,
            })
        };
        let udp = json!({
            "protocol": "udp", "hostAddress": "192.0.2.1", "hostPort": 5353,
            "containerAddress": "10.77.0.2", "containerPort": 53, "backend": backend,
        });
        let mut expected =
            [mapping("10.77.0.2"), mapping("fd00:77::2"), udp].map(|it| it.to_string());
        expected.sort();
        assert_eq!(mappings, expected);
        assert_eq!(network["otherPortMappings"], json!([]));
        let text = attached.fixture.status("");
        for row in [
            format!("  8080/tcp            10.77.0.2:80      {backend:8}  shop/web-0"),
            format!("  8080/tcp            [fd00:77::2]:80   {backend:8}  shop/web-0"),
            format!("  192.0.2.1:5353/udp  10.77.0.2:53      {backend:8}  shop/web-0"),
        ] {
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
            let row: Vec<String> = words(&row);
            let mut lines = text.success().lines();
            assert!(lines.any(|line| row == words(line)), "{row:?} in {text:?}");
        }
    }
}

#[test]
fn status_lists_port_mappings_of_the_go_plugin_in_nftables_and_of_other_networks() {
    requires!("iptables", "nft");
    let attached = Attached::new("nftables");
    let rule = "nft add rule ip cni_hostport hostports";
    attached.fixture.run_all(&format!(
        "nft add table ip cni_hostport
        nft add chain ip cni_hostport hostports
        {rule} ip daddr 192.0.2.1 tcp dport 9090 dnat to 10.77.0.2:90 comment \"web\"
        {rule} udp dport 9091 dnat to 10.99.0.9:91 comment \"unknown\""
    ));
    let status = attached.fixture.status("--json").ok();
    let pod = status[0]["pods"][0]["portMappings"].as_array().unwrap();
    let go = json!({
        "protocol": "tcp", "hostAddress": "192.0.2.1", "hostPort": 9090,
        "containerAddress": "10.77.0.2", "containerPort": 90, "backend": "nftables",
    });
    assert!(pod.contains(&go), "{pod:?}");
    let other = &status[1]["otherPortMappings"][0];
    assert_eq!(
        (&other["container"], &other["leftOver"]),
        (&"unknown".into(), &true.into())
    );
    let text = attached.fixture.status("");
    assert!(
        text.success()
            .contains("container unknown no longer exists"),
        "{text:?}"
    );
    // Its own DEL removes the other one.
    let findings = attached.fixture.findings();
    assert_eq!(findings.ids(), ["port-mapping-left-over"]);
    assert!(
        findings
            .text_of("port-mapping-left-over")
            .contains("9091/udp to 10.99.0.9:91")
    );
}

#[test]
fn entries_of_containers_that_no_longer_exist_are_found_and_removed() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let Attached { fixture, pod, .. } = Attached::new(backend);
        pod.end();
        fixture.run(&format!(
            "rm {LEASES}/small/10.77.0.2 {LEASES}/small/fd00:77::2"
        ));
        fixture.delete_cache("small", "web");
        fixture.wait_until_veths_are_deleted();
        let text = fixture.status("");
        assert!(
            text.success().contains("container web no longer exists"),
            "{text:?}"
        );
        let status = fixture.status("--json").ok();
        let others = status[0]["otherPortMappings"].as_array().unwrap();
        assert_eq!(others.len(), 3);
        assert!(
            others
                .iter()
                .all(|it| it["leftOver"] == true && it["container"] == "web")
        );
        let findings = fixture.findings();
        assert_eq!(
            findings.ids(),
            ["firewall-left-over", "port-mapping-left-over"]
        );
        assert!(
            findings
                .text_of("port-mapping-left-over")
                .contains("8080/tcp to 10.77.0.2:80")
        );
        assert!(fixture.fix().all.iter().all(|it| it["fixed"] == true));
        fixture.assert_healthy();
        let left = fixture.run("nft list ruleset");
        for trace in [
            "CNI-HOSTPORT",
            "CNI-DN",
            "CNI-FORWARD",
            "GANGPLANK",
            "gangplank_portmap",
        ] {
            assert!(!left.contains(trace), "{left}");
        }
        assert_eq!(
            fixture.read("/proc/sys/net/ipv4/conf/br0/route_localnet"),
            "0\n"
        );
    }
}

#[test]
fn a_stale_lease_is_released_with_port_mappings_and_firewall_rules() {
    requires!("iptables", "nft");
    let Attached { fixture, pod, .. } = Attached::new("iptables");
    pod.end();
    fixture.wait_until_veths_are_deleted();
    for address in ["10.77.0.2", "fd00:77::2"] {
        fixture.age("small", address);
    }
    assert_eq!(fixture.findings().ids(), ["stale-lease"]);
    assert_eq!(fixture.fix().ids(), ["stale-lease"]);
    let left = fixture.run("iptables-save");
    assert!(
        !left.contains("CNI-DN") && !left.contains("GANGPLANK-FW"),
        "{left}"
    );
}

#[test]
fn missing_entries_of_running_containers_are_found_and_repaired() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let attached = Attached::new(backend);
        let before = attached.rules();
        attached.fixture.run("nft flush ruleset");
        let findings = attached.fixture.findings();
        assert_eq!(findings.ids(), ["firewall-missing", "port-mapping-missing"]);
        assert!(
            attached
                .fixture
                .fix()
                .all
                .iter()
                .all(|it| it["fixed"] == true)
        );
        attached.fixture.assert_healthy();
        assert_eq!(attached.rules(), before);
    }
}

#[test]
fn what_containers_share_is_restored_without_a_cached_result() {
    requires!("iptables", "nft");
    for (backend, damage) in [
        (
            "iptables",
            "iptables -t nat -F PREROUTING; iptables -t nat -F OUTPUT",
        ),
        (
            "nftables",
            "nft flush chain inet gangplank_portmap hostports",
        ),
    ] {
        let attached = Attached::new(backend);
        attached.fixture.delete_cache("small", "web");
        attached.fixture.assert_healthy();
        let before = attached.rules();
        attached.fixture.run_all(&damage.replace("; ", "\n"));
        assert_eq!(attached.fixture.findings().ids(), ["port-mapping-missing"]);
        let done = attached.fixture.reconcile("");
        assert!(
            done.success().starts_with("all networks: restored the "),
            "{done:?}"
        );
        assert_eq!(attached.rules(), before);
        assert_eq!(
            attached.fixture.reconcile("").success(),
            "nothing to restore\n"
        );
        attached.fixture.run_all(&damage.replace("; ", "\n"));
        assert_eq!(attached.fixture.fix().all[0]["fixed"], true);
        assert_eq!(attached.rules(), before);
    }
}

#[test]
fn flushed_entries_without_a_cached_result_are_found() {
    requires!("iptables", "nft");
    let attached = Attached::new("iptables");
    attached.fixture.delete_cache("small", "web");
    attached.fixture.run("iptables -t nat -F");
    let findings = attached.fixture.findings();
    assert_eq!(findings.ids(), ["port-mapping-missing"]);
    let text = findings.text_of("port-mapping-missing");
    assert!(
        text.contains("restart the pod") && text.contains("CNI-DN-"),
        "{text}"
    );
    attached.fixture.run("iptables -F CNI-FORWARD");
    let findings = attached.fixture.findings();
    assert_eq!(findings.ids(), ["firewall-missing", "port-mapping-missing"]);
}

#[test]
fn isolation_of_a_missing_bridge_is_found_and_removed() {
    requires!("iptables");
    let attached = Attached::new("iptables");
    let before = attached.rules();
    let comment = "-m comment --comment x";
    attached.fixture.run_all(&format!(
        "iptables -I CNI-ISOLATION-STAGE-1 -i gone0 ! -o gone0 {comment} -j CNI-ISOLATION-STAGE-2
        iptables -I CNI-ISOLATION-STAGE-2 -o gone0 {comment} -j DROP"
    ));
    let findings = attached.fixture.findings();
    assert_eq!(findings.ids(), ["firewall-left-over"]);
    assert!(findings.text_of("firewall-left-over").contains("gone0"));
    assert_eq!(attached.fixture.fix().all[0]["fixed"], true);
    assert_eq!(attached.rules(), before);
}

#[test]
fn the_ingress_policy_of_the_last_add_is_restored() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let attached = Attached::new(backend);
        let fixture = &attached.fixture;
        let chain = attached
            .chain()
            .with("firewall", "ingressPolicy", "isolated");
        let list = chain.list().to_string();
        fixture.write(&format!("{CONF}/10-net.conflist"), &list);
        let alone = fixture.pod("alone");
        fixture.run_chain(&chain.with_ports(json!([])), &alone);
        fixture.assert_healthy();
        let before = attached.rules();
        fixture.run("nft flush ruleset");
        assert_eq!(fixture.reconcile("").success().lines().count(), 3);
        assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
        let isolation = |rules: Vec<String>| -> Vec<String> {
            let rules = rules.into_iter();
            rules.filter(|rule| rule.contains("ISOLATION")).collect()
        };
        assert_eq!(isolation(attached.rules()), isolation(before));
        fixture.assert_healthy();
    }
}

#[test]
fn invalid_keys_of_chained_plugins_are_found() {
    requires!();
    for (plugin, key, value) in [
        ("portmap", "backend", json!("ipfw")),
        ("portmap", "markMasqBit", json!(32)),
        ("firewall", "ingressPolicy", json!("closed")),
        ("firewall", "backend", json!(5)),
    ] {
        let fixture = Fixture::new();
        let chain = fixture.chain(&small_chain()).with(plugin, key, value);
        fixture.write(
            &format!("{CONF}/10-net.conflist"),
            &chain.list().to_string(),
        );
        let findings = fixture.findings();
        assert_eq!(findings.ids(), ["unusable-configuration"], "{key}");
        assert!(findings.text_of("unusable-configuration").contains(key));
    }
}

#[test]
fn entries_of_the_go_plugins_are_listed_and_restored() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let fixture = Fixture::new();
        for plugin in ["portmap", "firewall"] {
            fixture.install_go_plugin_of(&go, plugin);
        }
        let chain = fixture.chain(&small_chain());
        let chain = chain.with("portmap", "backend", backend);
        let chain = chain.by(&[Gangplank, Go, Go]).with_ports(json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        ]));
        fixture.write(
            &format!("{CONF}/10-net.conflist"),
            &chain.list().to_string(),
        );
        let pod = fixture.pod("web");
        fixture.run_chain(&chain, &pod);
        fixture.assert_healthy();
        let ports = || {
            let status = fixture.status("--json").ok();
            let ports = status[0]["pods"][0]["portMappings"].clone();
            ports.as_array().unwrap().len()
        };
        assert_eq!(ports(), 2, "{backend}");
        assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
        fixture.run("nft flush ruleset");
        assert_eq!(ports(), 0);
        let done = fixture.reconcile("");
        assert!(
            done.success().contains(PORTS) && done.stdout.contains(FILTER),
            "{done:?}"
        );
        assert_eq!(ports(), 2, "{backend}");
        fixture.assert_healthy();
    }
}

#[test]
fn concurrent_adds_and_dels_of_chains_leave_nothing_to_repair() {
    requires!("iptables", "nft");
    for backend in BACKENDS {
        let attached = Attached::new(backend);
        let fixture = &attached.fixture;
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let chain = attached.chain().with_ports(json!([
                    { "hostPort": 9000 + worker, "containerPort": 80, "protocol": "tcp" },
                ]));
                scope.spawn(move || {
                    for turn in 0..6 {
                        let pod = fixture.pod(&format!("p{worker}-{turn}"));
                        let result = fixture.run_chain(&chain, &pod);
                        chain.del(&pod, &result);
                        fixture.delete_cache("small", pod.id());
                    }
                });
            }
            for _ in 0..4 {
                let done = fixture.reconcile("");
                for what in ["port mappings", "firewall rules"] {
                    assert!(!done.stdout.contains(what), "{done:?}");
                }
                let fixed = fixture.fix();
                assert!(fixed.all.is_empty(), "{:#?}", fixed.all);
            }
        });
        fixture.assert_healthy();
        let left = fixture.run("nft list ruleset");
        assert!(!left.contains("p0-") && !left.contains("p1-"), "{left}");
    }
}

#[test]
fn an_ifb_without_redirected_packets_is_found_and_deleted() {
    requires!("iptables");
    let attached = Attached::new("iptables");
    let create = "ip link add bwp0123456789ab type ifb";
    attached.fixture.run_all(create);
    let findings = attached.fixture.findings();
    assert_eq!(findings.ids(), ["bandwidth-left-over"]);
    assert_eq!(attached.fixture.fix().all[0]["fixed"], true);
    assert_eq!(attached.fixture.findings().ids(), [""; 0]);
}
