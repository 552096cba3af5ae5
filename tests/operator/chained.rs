//! `status`, `doctor` and `reconcile` with the plugins portmap and firewall, in both backends of portmap.

use serde_json::json;

use crate::fixture::Fixture;
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
        let fixture = Fixture::new();
        fixture.run("ip addr add 192.0.2.1/32 dev lo");
        let pod = fixture.pod("web");
        let attached = Attached {
            fixture,
            pod,
            backend,
        };
        let list = attached.chain().list();
        attached.fixture.write(
            &format!("{}/10-net.conflist", crate::fixture::CONF),
            &list.to_string(),
        );
        attached.fixture.run_chain(&attached.chain(), &attached.pod);
        attached
    }

    fn chain(&self) -> Chain<'_> {
        let chain = self.fixture.chain(&small_chain());
        let chain = chain.with("portmap", "backend", self.backend);
        let chain = chain.with("firewall", "ingressPolicy", "same-bridge");
        chain.with_ports(json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" },
        ]))
    }

    /// The rules of both backends, sorted. That of route_localnet is not restored.
    fn rules(&self) -> Vec<String> {
        let in_iptables = ["iptables-save", "ip6tables-save"].map(|it| self.fixture.run(it));
        let in_nftables = self.fixture.run("nft -s list ruleset");
        let own = in_nftables.split("table inet gangplank_portmap {").nth(1);
        let own = own.and_then(|it| it.split("\n}").next());
        let rules = in_iptables.iter().flat_map(|it| it.lines());
        let rules = rules.filter(|line| line.starts_with("-A "));
        let own = own.map(|it| match it.split_once("\tchain localnet {") {
            Some((before, after)) => format!("{before}{}", after.split_once('}').unwrap().1),
            None => it.to_owned(),
        });
        let own = own.iter().flat_map(|it| it.lines());
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
}
