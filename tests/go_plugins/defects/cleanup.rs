//! What a DEL must not leave, and what a failed ADD must not.

use serde_json::json;

use super::{Fixture, dual_masqueraded, host_link, masqueraded, succeeds, with};
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{IPTABLES, nft_tables, ready};
use crate::support::small_network;

/// How the way to a pod's addresses is lost before its DEL.
#[derive(Clone, Copy)]
enum Loss {
    /// CNI_NETNS is empty.
    NetnsUntold,
    /// The namespace has ended.
    NetnsGone,
    /// The container's interface was deleted.
    LinkGone,
    /// The host's end was.
    PortGone,
}

/// The rules that are left after a DEL.
fn rules_after(party: Implementation, loss: Loss) -> Vec<String> {
    let fixture = Fixture::new(party);
    let (config, pod) = (dual_masqueraded(), fixture.node.pod("a"));
    let result = fixture.add(&pod, &config);
    assert_eq!(fixture.rules().len(), 8);
    let del = party.call_for(&fixture.node, &config).verb("DEL").pod(&pod);
    let answer = match loss {
        Loss::NetnsUntold => del.netns("").run(),
        Loss::NetnsGone => {
            pod.end();
            del.run()
        }
        Loss::LinkGone => {
            pod.run("ip link del eth0");
            del.run()
        }
        Loss::PortGone => {
            let port = host_link(&result);
            fixture.node.run(&format!("ip link del {port}"));
            del.run()
        }
    };
    answer.ok();
    assert_eq!(fixture.leases(), [""; 0]);
    fixture.rules()
}

#[test]
fn d1_rules_go_though_the_netns_or_the_link_has_gone_before() {
    if !ready(IPTABLES) {
        return;
    }
    for loss in [
        Loss::NetnsUntold,
        Loss::NetnsGone,
        Loss::LinkGone,
        Loss::PortGone,
    ] {
        assert_eq!(rules_after(Gangplank, loss), [""; 0]);
        assert_eq!(rules_after(Go, loss).len(), 8, "all of them stay");
    }
}

#[test]
fn d2_the_first_of_two_interfaces_goes_without_harm_to_the_other() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        let (config, pod) = (masqueraded(), fixture.node.pod("a"));
        fixture.add(&pod, &config);
        let second = party
            .call_for(&fixture.node, &config)
            .pod(&pod)
            .ifname("net1");
        second.clone().verb("ADD").run().ok();
        let first = fixture.call("DEL", &pod, &config);
        let rules = fixture.rules();
        let masqueraded = rules.iter().any(|rule| rule.ends_with("MASQUERADE"));
        second.verb("DEL").run().ok();
        assert_eq!(fixture.rules(), [""; 0]);
        (succeeds(&first), masqueraded)
    };
    assert_eq!(scenario(Gangplank), (true, true));
    assert_eq!(scenario(Go), (false, false));
}

#[test]
fn d3_a_failed_add_leaves_no_link_and_can_be_repeated() {
    if !ready(IPTABLES) {
        return;
    }
    let mut exhausted = masqueraded();
    exhausted["ipam"]["rangeStart"] = "10.77.0.5".into();
    exhausted["ipam"]["rangeEnd"] = "10.77.0.5".into();
    let mut unreachable = masqueraded();
    unreachable["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.99.99.99" }]);
    let scenario = |party: Implementation, config: &serde_json::Value| {
        let fixture = Fixture::new(party);
        if *config == exhausted {
            fixture.add(&fixture.node.pod("neighbour"), config);
        }
        let pod = fixture.node.pod("a");
        fixture.call("ADD", &pod, config).error();
        let left = pod.link("eth0").is_some();
        (left, succeeds(&fixture.call("ADD", &pod, &masqueraded())))
    };
    for config in [&exhausted, &unreachable] {
        assert_eq!(scenario(Gangplank, config), (false, true));
        assert_eq!(scenario(Go, config), (true, false));
    }
}

#[test]
fn d4_rules_go_though_the_pod_has_changed_its_address() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        let (config, pod) = (masqueraded(), fixture.node.pod("a"));
        fixture.add(&pod, &config);
        pod.run("ip addr flush dev eth0");
        pod.run("ip addr add 10.77.0.99/24 dev eth0");
        let del = fixture.call("DEL", &pod, &config);
        (succeeds(&del), fixture.rules().is_empty())
    };
    assert_eq!(scenario(Gangplank), (true, true));
    assert_eq!(scenario(Go), (false, false));
}

#[test]
fn d4_two_ipv6_addresses_of_a_pod_go_in_one_del() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        let mut config = masqueraded();
        config["isGateway"] = false.into();
        let ranges = json!([[{ "subnet": "fd00:77::/64" }], [{ "subnet": "fd00:78::/64" }]]);
        config["ipam"] = json!({ "type": "host-local", "ranges": ranges });
        let pod = fixture.node.pod("a");
        fixture.add(&pod, &config);
        let del = fixture.call("DEL", &pod, &config);
        (succeeds(&del), fixture.rules().is_empty())
    };
    assert_eq!(scenario(Gangplank), (true, true));
    assert!(!scenario(Go).0);
}

#[test]
fn d4c_a_path_that_is_no_namespace_does_not_keep_an_address() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        let (config, pod) = (masqueraded(), fixture.node.pod("a"));
        fixture.add(&pod, &config);
        fixture.node.write("/run/netns/plain", "");
        let del = party.call_for(&fixture.node, &config).verb("DEL").pod(&pod);
        let answer = del.netns("/run/netns/plain").run();
        (
            succeeds(&answer),
            fixture.leases().is_empty(),
            fixture.rules().is_empty(),
        )
    };
    assert_eq!(scenario(Gangplank), (true, true, true));
    assert_eq!(scenario(Go), (false, false, false));
}

/// Takes the programs of ip6tables away from a node.
fn hide_ip6tables(fixture: &Fixture) {
    let node = &fixture.node;
    // What Debian calls ip6tables is a link into /etc/alternatives; without that one it leads nowhere.
    node.run("cp -a /etc/alternatives /run/alternatives");
    for program in ["ip6tables", "ip6tables-restore", "ip6tables-save"] {
        node.run(&format!("rm /run/alternatives/{program}"));
    }
    node.bind("/run/alternatives", "/etc/alternatives");
}

#[test]
fn d18_without_ip6tables_a_dual_stack_pod_is_masqueraded_and_goes_without_trace() {
    if !ready(&[IPTABLES, &["nft"]].concat()) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        hide_ip6tables(&fixture);
        let pod = fixture.node.pod("a");
        let added = succeeds(&fixture.call("ADD", &pod, &dual_masqueraded()));
        let v4_left = !added && fixture.node.run("iptables -t nat -S").contains("CNI-");
        let deleted = succeeds(&fixture.call("DEL", &pod, &dual_masqueraded()));
        fixture.node.unbind("/etc/alternatives");
        let clean = fixture.rules().is_empty() && nft_tables(&fixture.node).is_empty();
        (added, v4_left, deleted && clean)
    };
    assert_eq!(scenario(Gangplank), (true, false, true));
    let (added, v4_left, _) = scenario(Go);
    assert_eq!((added, v4_left), (false, true));
}

#[test]
fn d4b_a_pod_of_nftables_leaves_no_table_of_iptables() {
    if !ready(&["nft"]) {
        return;
    }
    // Debian's 1.1.1 has no nftables backend; the reference of today leaves empty `ip nat` and `ip6 nat`.
    let fixture = Fixture::new(Gangplank);
    let (config, pod) = (dual_masqueraded(), fixture.node.pod("a"));
    let config = with(&config, "ipMasqBackend", "nftables");
    fixture.add(&pod, &config);
    assert!(fixture.node.run("nft list ruleset").contains("masquerade"));
    fixture.del(&pod, &config);
    assert_eq!(fixture.node.run("nft list tables"), "");
}

#[test]
fn d17_a_failed_request_does_not_free_what_the_attachment_had() {
    if !ready(&[]) {
        return;
    }
    let scenario = |party: Implementation| {
        let fixture = Fixture::new(party);
        let mut config = small_network();
        config["ipam"]["ranges"] = json!([[{ "subnet": "10.66.0.0/24" }]]);
        let host_local = |ips: serde_json::Value| {
            let mut config = config.clone();
            config["args"]["cni"]["ips"] = ips;
            let call = party.call(&fixture.node, "host-local").config(&config);
            let call = call.verb("ADD").container("a").ifname("eth0");
            call.netns("/run/netns/a").run()
        };
        host_local(json!([])).ok();
        assert_eq!(fixture.leases(), ["10.66.0.2", "10.77.0.2"]);
        // The first range set has the address that is asked for, the second one's is taken.
        host_local(json!(["10.77.0.9", "10.66.0.2"])).error();
        fixture.leases().len()
    };
    assert_eq!(scenario(Gangplank), 2, "the older leases stay");
    assert_eq!(scenario(Go), 0, "all were freed");
}
