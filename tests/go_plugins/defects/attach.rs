//! ADDs that did damage, or none of their work.

use serde_json::{Value, json};

use super::{Fixture, is_in_order, masqueraded, succeeds, with};
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{BOTH, IPTABLES, ready};
use crate::support::{Answer, Network, NodeState, small_network};

#[test]
fn d5_a_gateway_comes_to_a_bridge_without_ports() {
    if !ready(&["ping"]) {
        return;
    }
    let scenario = |first: Implementation, then: Implementation| {
        let mut fixture = Fixture::new(first);
        let plain = with(&small_network(), "isGateway", false);
        let (a, b) = (fixture.node.pod("a"), fixture.node.pod("b"));
        fixture.add(&a, &plain);
        fixture.del(&a, &plain);
        fixture.party = then;
        let answer = fixture.call("ADD", &b, &small_network());
        if succeeds(&answer) {
            fixture.node.reaches(&Network::address(&answer.ok()));
        }
        succeeds(&answer)
    };
    assert!(scenario(Gangplank, Gangplank));
    assert!(scenario(Go, Gangplank), "the bridge is the reference's");
    assert!(scenario(Gangplank, Go), "ours has given it a MAC");
    assert!(!scenario(Go, Go));
}

/// ADD into the namespace that the plugin itself runs in: its answer, and whether the node is as it was.
fn add_at_home(party: Implementation) -> (Answer, bool) {
    let fixture = Fixture::new(party);
    let before = NodeState::of(&fixture.node);
    let call = party.call_for(&fixture.node, &small_network());
    let call = call.verb("ADD").container("a").ifname("eth0");
    let answer = call.netns("/proc/self/ns/net").run();
    (answer, NodeState::of(&fixture.node) == before)
}

#[test]
fn d9_its_own_namespace_is_refused_before_anything_is_touched() {
    if !ready(&[]) {
        return;
    }
    let (answer, untouched) = add_at_home(Gangplank);
    assert_eq!(answer.error().code, 8);
    assert!(untouched);
    // Debian's 1.1.1 does not notice at all; the reference of today does when all is done.
    let (_, untouched) = add_at_home(Go);
    assert!(!untouched);
}

#[test]
fn d11_loopback_answers_in_the_shape_that_was_asked_for() {
    if !ready(&[]) {
        return;
    }
    let scenario = |party: Implementation, version: &str| {
        let fixture = Fixture::new(party);
        let config = json!({ "cniVersion": version, "name": "lo", "type": "loopback" });
        fixture.add(&fixture.node.pod("a"), &config)
    };
    for party in BOTH {
        let old = scenario(party, "0.2.0").get("ip4").is_some();
        let middle = scenario(party, "0.4.0")["ips"][0]["version"] == "4";
        let new = scenario(party, "1.0.0")["ips"][0].get("version").is_none();
        let right = party == Gangplank;
        assert_eq!((old, middle, new), (right, right, true), "{party:?}");
    }
}

/// What came of an ADD by `plugin`: whether its answer was in order, and whether an address leaked that nobody was told.
fn add_with(party: Implementation, plugin: &str, config: &Value) -> (bool, bool) {
    let fixture = Fixture::new(party);
    let pod = fixture.node.pod("a");
    let call = party.call(&fixture.node, plugin).config(config);
    let answer = call.verb("ADD").pod(&pod).run();
    let leaked = !succeeds(&answer) && !fixture.leases().is_empty();
    (is_in_order(&answer), leaked)
}

#[test]
fn d13_null_elements_crash_nothing() {
    if !ready(&[]) {
        return;
    }
    let mut routes = small_network();
    routes["ipam"]["routes"] = json!([null]);
    let ips = with(&small_network(), "runtimeConfig", json!({ "ips": [null] }));
    let args = with(
        &small_network(),
        "args",
        json!({ "cni": { "ips": [null] } }),
    );
    let mut ranges = small_network();
    ranges["ipam"]["ranges"] = json!([null]);
    let mut range = small_network();
    range["ipam"]["ranges"] = json!([[null]]);
    let trunk = with(&small_network(), "vlanTrunk", json!([null]));
    for (plugin, config, crashes) in [
        ("bridge", &routes, true),
        ("host-local", &ips, true),
        ("host-local", &args, true),
        ("host-local", &ranges, false),
        ("host-local", &range, false),
        // Debian's 1.1.1 does not know the key yet.
        ("bridge", &trunk, false),
    ] {
        assert_eq!(
            add_with(Gangplank, plugin, config),
            (true, false),
            "{config}"
        );
        let (in_order, _) = add_with(Go, plugin, config);
        assert_eq!(in_order, !crashes, "the reference's {plugin}: {config}");
    }
}

/// Whether a refused ADD leaves its node as it was.
fn refused_early(party: Implementation, config: &Value, netns: Option<&str>) -> bool {
    let fixture = Fixture::new(party);
    let before = NodeState::of(&fixture.node);
    let pod = fixture.node.pod("a");
    fixture.node.write("/run/netns/plain", "");
    let call = party.call_for(&fixture.node, config).verb("ADD").pod(&pod);
    let call = match netns {
        Some(path) => call.netns(path),
        None => call,
    };
    call.run().error();
    NodeState::of(&fixture.node) == before && pod.link("eth0").is_none()
}

#[test]
fn d15_a_bad_mac_or_namespace_is_refused_before_there_is_a_bridge() {
    if !ready(IPTABLES) {
        return;
    }
    let mac = with(&small_network(), "runtimeConfig", json!({ "mac": "02:00" }));
    for (config, netns) in [
        (&mac, None),
        (&small_network(), Some("/run/netns/gone")),
        (&small_network(), Some("/run/netns/plain")),
    ] {
        assert!(
            refused_early(Gangplank, config, netns),
            "{config} {netns:?}"
        );
        assert!(!refused_early(Go, config, netns), "{config} {netns:?}");
    }
    // Debian's 1.1.1 does not know this key yet; the reference of today has made all but the rules by then.
    let backend = with(&masqueraded(), "ipMasqBackend", "ipchains");
    assert!(refused_early(Gangplank, &backend, None));
}
