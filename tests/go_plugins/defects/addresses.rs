//! Addresses that host-local must not allocate.

use serde_json::{Value, json};

use super::Fixture;
use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::ready;
use crate::support::small_network;

/// The addresses that host-local allocates until its ranges are exhausted.
fn allocated(implementation: Implementation, ranges: Value) -> Vec<String> {
    let fixture = Fixture::new(implementation);
    let mut config = small_network();
    config["ipam"] = json!({ "type": "host-local", "ranges": ranges });
    let add = |n: usize| {
        let call = implementation
            .call(&fixture.node, "host-local")
            .config(&config);
        let call = call.verb("ADD").container(&format!("c{n}"));
        let answer = call.ifname("eth0").netns("/run/netns/none").run();
        let address = || answer.ok()["ips"][0]["address"].as_str().map(str::to_owned);
        (answer.code == Some(0)).then(address).flatten()
    };
    (0..20).map_while(add).collect()
}

#[test]
fn d17_the_gateway_of_a_range_is_not_allocated_from_another_range() {
    if !ready(&["cni:host-local"]) {
        return;
    }
    // Two ranges of one subnet; the gateway of the first is in the second.
    let ranges = json!([[
        { "subnet": "10.77.0.0/24", "rangeStart": "10.77.0.10", "rangeEnd": "10.77.0.11", "gateway": "10.77.0.21" },
        { "subnet": "10.77.0.0/24", "rangeStart": "10.77.0.20", "rangeEnd": "10.77.0.22" },
    ]]);
    let gangplank = allocated(Gangplank, ranges.clone());
    assert_eq!(
        gangplank,
        [
            "10.77.0.10/24",
            "10.77.0.11/24",
            "10.77.0.20/24",
            "10.77.0.22/24"
        ]
    );
    let go = allocated(Go, ranges);
    assert!(go.contains(&"10.77.0.21/24".to_owned()), "{go:?}");
}
