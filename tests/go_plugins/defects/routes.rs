//! Routes and gateways.

use serde_json::{Value, json};

use super::{Fixture, masquerade_network, succeeds, with};
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{IPTABLES, ready};
use crate::support::small_network;

#[test]
fn d7_is_default_gateway_works_with_a_default_route_without_gw() {
    if !ready(&[]) {
        return;
    }
    let mut config = with(&small_network(), "isDefaultGateway", true);
    config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let pod = fixture.node.pod("a");
        let answer = fixture.call("ADD", &pod, &config);
        let routes = pod.run("ip route show default");
        (succeeds(&answer), routes.lines().count())
    };
    assert_eq!(scenario(Gangplank), (true, 1));
    assert!(!scenario(Go).0);
}

#[test]
fn d10_the_second_address_of_a_family_is_not_masqueraded_within_its_subnet() {
    if !ready(IPTABLES) {
        return;
    }
    let mut config = with(&masquerade_network(), "isGateway", false);
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.78.0.0/24" }]]);
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        fixture.add(&fixture.node.pod("a"), &config);
        let rules = fixture.rules();
        let position = |end: &str| rules.iter().rposition(|rule| rule.ends_with(end)).unwrap();
        position("ACCEPT") < position("MASQUERADE")
    };
    assert!(scenario(Gangplank));
    assert!(!scenario(Go));
}

#[test]
fn d10b_a_bridge_can_be_the_gateway_of_several_ipv4_subnets() {
    if !ready(&["ping"]) {
        return;
    }
    let mut config = small_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.78.0.0/24" }]]);
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let pods = [fixture.node.pod("a"), fixture.node.pod("b")];
        for pod in &pods {
            if !succeeds(&fixture.call("ADD", pod, &config)) {
                return false;
            }
        }
        for address in ["10.77.0.2", "10.78.0.3"] {
            fixture.node.reaches(address);
        }
        fixture.node.addresses("br0") == ["10.77.0.1/24", "10.78.0.1/24"]
    };
    assert!(scenario(Gangplank));
    assert!(!scenario(Go));
}

/// The route to 192.0.2.0/24 in a pod whose network has it with these attributes.
fn route_with(implementation: Implementation, attributes: Value) -> Option<String> {
    let fixture = Fixture::new(implementation);
    let mut config = small_network();
    let mut route = attributes;
    route["dst"] = "192.0.2.0/24".into();
    config["ipam"]["routes"] = json!([route]);
    let pod = fixture.node.pod("a");
    succeeds(&fixture.call("ADD", &pod, &config)).then(|| {
        let routes = pod.run("ip -d route show table all");
        let line = routes.lines().find(|line| line.contains("192.0.2.0/24"));
        line.unwrap_or_else(|| panic!("{routes}")).to_owned()
    })
}

#[test]
fn d12_route_attributes_are_set() {
    if !ready(&[]) {
        return;
    }
    // Go plugins 1.1.1 set none of these, newer ones not the first two.
    for (attributes, words) in [
        (json!({ "mtu": 1300 }), "mtu 1300"),
        (json!({ "advmss": 1200 }), "advmss 1200"),
        (json!({ "priority": 77 }), "metric 77"),
        (json!({ "table": 1000 }), "table 1000"),
    ] {
        let gangplank = route_with(Gangplank, attributes.clone()).unwrap();
        assert!(gangplank.contains(words), "{words}: {gangplank}");
        let go = route_with(Go, attributes).unwrap();
        assert!(!go.contains(words), "{words}: {go}");
    }
}

#[test]
fn d12_a_route_of_link_scope_gets_no_gateway() {
    if !ready(&[]) {
        return;
    }
    let gangplank = route_with(Gangplank, json!({ "scope": 253 })).unwrap();
    assert!(
        gangplank.contains("scope link") && !gangplank.contains("via"),
        "{gangplank}"
    );
    // Go plugins 1.1.1 ignore `scope`; newer ones fail.
    let go = route_with(Go, json!({ "scope": 253 })).unwrap();
    assert!(go.contains("via 10.77.0.1"), "{go}");
}

#[test]
fn d20_the_ipv6_gateway_is_usable_when_add_returns() {
    if !ready(&["ping"]) {
        return;
    }
    let mut config = small_network();
    config["ipam"] = json!({ "type": "host-local", "subnet": "fd00:77::/64" });
    let scenario = |implementation: Implementation| {
        let fixture = Fixture::new(implementation);
        let pod = fixture.node.pod("a");
        fixture.add(&pod, &config);
        let tentative = fixture.node.run("ip -6 addr show dev br0 tentative");
        let gateway = !tentative.contains("fd00:77::1");
        if gateway {
            pod.run("ping -n -c 1 -W 1 fd00:77::1");
        }
        gateway
    };
    assert!(scenario(Gangplank));
    // It is usable after a second or two, which may have passed on a busy machine.
    assert!((0..3).any(|_| !scenario(Go)));
}
