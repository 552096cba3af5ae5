//! Resources that DEL and a failed ADD must not leave.

use serde_json::json;

use super::{Fixture, dual_stack_masquerade, host_link, masquerade_network, succeeds, with};
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{IPTABLES, nft_tables, ready};
use crate::support::small_network;

/// How DEL loses access to the pod's addresses.
#[derive(Clone, Copy)]
enum Loss {
    /// CNI_NETNS is empty.
    NetnsUntold,
    /// The namespace was deleted.
    NetnsGone,
    /// The container's interface was deleted.
    LinkGone,
    /// The host end was deleted.
    PortGone,
}

/// The rules that remain after DEL.
fn rules_after(implementation: Implementation, loss: Loss) -> Vec<String> {
    let fixture = Fixture::new(implementation);
    let (config, pod) = (dual_stack_masquerade(), fixture.node.pod("a"));
    let result = fixture.add(&pod, &config);
    assert_eq!(fixture.rules().len(), 8);
    let del = implementation
        .call_for(&fixture.node, &config)
        .verb("DEL")
        .pod(&pod);
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
fn d1_rules_are_removed_after_the_netns_or_the_link_was_deleted() {
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
fn d2_del_of_one_of_two_interfaces_keeps_the_rules_of_the_other() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let (config, pod) = (masquerade_network(), fixture.node.pod("a"));
        fixture.add(&pod, &config);
        let second = implementation
            .call_for(&fixture.node, &config)
            .pod(&pod)
            .ifname("net1");
        second.clone().verb("ADD").run().ok();
        let first = fixture.call("DEL", &pod, &config);
        let rules = fixture.rules();
        let masquerade_network = rules.iter().any(|rule| rule.ends_with("MASQUERADE"));
        second.verb("DEL").run().ok();
        assert_eq!(fixture.rules(), [""; 0]);
        (succeeds(&first), masquerade_network)
    };
    assert_eq!(scenario(Gangplank), (true, true));
    assert_eq!(scenario(Go), (false, false));
}

#[test]
fn d3_a_failed_add_leaves_no_link_and_can_be_repeated() {
    if !ready(IPTABLES) {
        return;
    }
    let mut exhausted = masquerade_network();
    exhausted["ipam"]["rangeStart"] = "10.77.0.5".into();
    exhausted["ipam"]["rangeEnd"] = "10.77.0.5".into();
    let mut unreachable = masquerade_network();
    unreachable["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.99.99.99" }]);
    let scenario = |implementation: Implementation, config: &serde_json::Value| {
        let fixture = Fixture::new(implementation);
        if *config == exhausted {
            fixture.add(&fixture.node.pod("neighbour"), config);
        }
        let pod = fixture.node.pod("a");
        fixture.call("ADD", &pod, config).error();
        let left = pod.link("eth0").is_some();
        (
            left,
            succeeds(&fixture.call("ADD", &pod, &masquerade_network())),
        )
    };
    for config in [&exhausted, &unreachable] {
        assert_eq!(scenario(Gangplank, config), (false, true));
        assert_eq!(scenario(Go, config), (true, false));
    }
}

#[test]
fn d4_rules_are_removed_after_the_pod_changed_its_address() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let (config, pod) = (masquerade_network(), fixture.node.pod("a"));
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
fn d4_one_del_removes_the_rules_of_two_ipv6_addresses() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let mut config = masquerade_network();
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
fn d4c_del_with_a_path_that_is_no_namespace_releases_the_address() {
    if !ready(IPTABLES) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let (config, pod) = (masquerade_network(), fixture.node.pod("a"));
        fixture.add(&pod, &config);
        fixture.node.write("/run/netns/plain", "");
        let del = implementation
            .call_for(&fixture.node, &config)
            .verb("DEL")
            .pod(&pod);
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

/// Removes ip6tables from a node.
fn hide_ip6tables(fixture: &Fixture) {
    let node = &fixture.node;
    // /usr/sbin/ip6tables is a symbolic link to /etc/alternatives.
    node.run("cp -a /etc/alternatives /run/alternatives");
    for program in ["ip6tables", "ip6tables-restore", "ip6tables-save"] {
        node.run(&format!("rm /run/alternatives/{program}"));
    }
    node.bind("/run/alternatives", "/etc/alternatives");
}

#[test]
fn d18_dual_stack_masquerade_works_without_ip6tables() {
    if !ready(&[IPTABLES, &["nft"]].concat()) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        hide_ip6tables(&fixture);
        let pod = fixture.node.pod("a");
        let added = succeeds(&fixture.call("ADD", &pod, &dual_stack_masquerade()));
        let v4_left = !added && fixture.node.run("iptables -t nat -S").contains("CNI-");
        let deleted = succeeds(&fixture.call("DEL", &pod, &dual_stack_masquerade()));
        fixture.node.unbind("/etc/alternatives");
        let clean = fixture.rules().is_empty() && nft_tables(&fixture.node).is_empty();
        (added, v4_left, deleted && clean)
    };
    assert_eq!(scenario(Gangplank), (true, false, true));
    let (added, v4_left, _) = scenario(Go);
    assert_eq!((added, v4_left), (false, true));
}

#[test]
fn d4b_the_nftables_backend_leaves_no_iptables_tables() {
    if !ready(&["nft"]) {
        return;
    }
    // Go plugins 1.1.1 have no nftables backend; newer ones leave empty tables `ip nat` and `ip6 nat`.
    let fixture = Fixture::new(Gangplank);
    let (config, pod) = (dual_stack_masquerade(), fixture.node.pod("a"));
    let config = with(&config, "ipMasqBackend", "nftables");
    fixture.add(&pod, &config);
    assert!(fixture.node.run("nft list ruleset").contains("masquerade"));
    fixture.del(&pod, &config);
    assert_eq!(fixture.node.run("nft list tables"), "");
}

#[test]
fn d17_a_failed_request_keeps_the_existing_leases_of_the_attachment() {
    if !ready(&[]) {
        return;
    }
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let mut config = small_network();
        config["ipam"]["ranges"] = json!([[{ "subnet": "10.66.0.0/24" }]]);
        let host_local = |ips: serde_json::Value| {
            let mut config = config.clone();
            config["args"]["cni"]["ips"] = ips;
            let call = implementation
                .call(&fixture.node, "host-local")
                .config(&config);
            let call = call.verb("ADD").container("a").ifname("eth0");
            call.netns("/run/netns/a").run()
        };
        host_local(json!([])).ok();
        assert_eq!(fixture.leases(), ["10.66.0.2", "10.77.0.2"]);
        // The address requested from the first range set is free, that from the second is taken.
        host_local(json!(["10.77.0.9", "10.66.0.2"])).error();
        fixture.leases().len()
    };
    assert_eq!(scenario(Gangplank), 2, "existing leases are kept");
    assert_eq!(scenario(Go), 0, "all were released");
}
