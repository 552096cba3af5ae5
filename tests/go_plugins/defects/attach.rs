//! Defects of ADD and of loopback.

use serde_json::{Value, json};

use super::{Fixture, is_valid_answer, masquerade_network, succeeds, with};
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{BOTH, IPTABLES, ready};
use crate::support::{Answer, Network, NodeState, small_network};

#[test]
fn d5_a_gateway_is_added_to_a_bridge_without_ports() {
    if !ready(&["ping"]) {
        return;
    }
    let scenario = |first: Implementation, then: Implementation| {
        let mut fixture = Fixture::new(first);
        let plain = with(&small_network(), "isGateway", false);
        let (a, b) = (fixture.node.pod("a"), fixture.node.pod("b"));
        fixture.add(&a, &plain);
        fixture.del(&a, &plain);
        fixture.implementation = then;
        let answer = fixture.call("ADD", &b, &small_network());
        if succeeds(&answer) {
            fixture.node.reaches(&Network::address(&answer.ok()));
        }
        succeeds(&answer)
    };
    assert!(scenario(Gangplank, Gangplank));
    assert!(scenario(Go, Gangplank), "a bridge of the Go plugin");
    assert!(scenario(Gangplank, Go), "gangplank has set a MAC address");
    assert!(!scenario(Go, Go));
}

/// ADD with the plugin's own namespace. Returns the answer, and whether the node is unchanged.
fn add_in_own_namespace(implementation: Implementation) -> (Answer, bool) {
    let fixture = Fixture::new(implementation);
    let before = NodeState::of(&fixture.node);
    let call = implementation.call_for(&fixture.node, &small_network());
    let call = call.verb("ADD").container("a").ifname("eth0");
    let answer = call.netns("/proc/self/ns/net").run();
    (answer, NodeState::of(&fixture.node) == before)
}

#[test]
fn d9_the_own_namespace_is_rejected_before_any_change() {
    if !ready(&[]) {
        return;
    }
    let (answer, untouched) = add_in_own_namespace(Gangplank);
    assert_eq!(answer.error().code, 8);
    assert!(untouched);
    // Go plugins 1.1.1 do not check this; newer ones check it last.
    let (_, untouched) = add_in_own_namespace(Go);
    assert!(!untouched);
}

#[test]
fn d11_loopback_results_have_the_requested_version() {
    if !ready(&[]) {
        return;
    }
    let scenario = |implementation: Implementation, version: &str| {
        let fixture = Fixture::new(implementation);
        let config = json!({ "cniVersion": version, "name": "lo", "type": "loopback" });
        fixture.add(&fixture.node.pod("a"), &config)
    };
    for implementation in BOTH {
        let old = scenario(implementation, "0.2.0").get("ip4").is_some();
        let middle = scenario(implementation, "0.4.0")["ips"][0]["version"] == "4";
        let new = scenario(implementation, "1.0.0")["ips"][0]
            .get("version")
            .is_none();
        let right = implementation == Gangplank;
        assert_eq!(
            (old, middle, new),
            (right, right, true),
            "{implementation:?}"
        );
    }
}

/// Runs ADD of `plugin`. Returns whether the answer was valid, and whether an address leaked.
fn add_with(implementation: Implementation, plugin: &str, config: &Value) -> (bool, bool) {
    let fixture = Fixture::new(implementation);
    let pod = fixture.node.pod("a");
    let call = implementation.call(&fixture.node, plugin).config(config);
    let answer = call.verb("ADD").pod(&pod).run();
    let leaked = !succeeds(&answer) && !fixture.leases().is_empty();
    (is_valid_answer(&answer), leaked)
}

#[test]
fn d13_null_elements_cause_no_crash() {
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
        // Go plugins 1.1.1 do not have this key.
        ("bridge", &trunk, false),
    ] {
        assert_eq!(
            add_with(Gangplank, plugin, config),
            (true, false),
            "{config}"
        );
        let (is_valid, _) = add_with(Go, plugin, config);
        assert_eq!(is_valid, !crashes, "Go plugin {plugin}: {config}");
    }
}

/// Whether a failed ADD leaves the node unchanged.
fn fails_without_change(
    implementation: Implementation,
    config: &Value,
    netns: Option<&str>,
) -> bool {
    let fixture = Fixture::new(implementation);
    let before = NodeState::of(&fixture.node);
    let pod = fixture.node.pod("a");
    fixture.node.write("/run/netns/plain", "");
    let call = implementation
        .call_for(&fixture.node, config)
        .verb("ADD")
        .pod(&pod);
    let call = match netns {
        Some(path) => call.netns(path),
        None => call,
    };
    call.run().error();
    NodeState::of(&fixture.node) == before && pod.link("eth0").is_none()
}

#[test]
fn d15_an_invalid_mac_or_namespace_is_rejected_before_the_bridge_is_created() {
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
            fails_without_change(Gangplank, config, netns),
            "{config} {netns:?}"
        );
        assert!(
            !fails_without_change(Go, config, netns),
            "{config} {netns:?}"
        );
    }
    // Go plugins 1.1.1 do not have this key; newer ones check it after everything but the rules was created.
    let backend = with(&masquerade_network(), "ipMasqBackend", "ipchains");
    assert!(fails_without_change(Gangplank, &backend, None));
}
