//! Hot swap of firewall with the backend firewalld.

use serde_json::Value;

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{node_with, ready_for_chains};
use crate::support::firewalld::{self, Firewalld};
use crate::support::small_chain;

#[test]
fn addresses_of_a_zone_are_checked_and_removed_by_the_other_implementation() {
    let (Some(go), Some(packages)) = (ready_for_chains(&[]), firewalld::ready()) else {
        return;
    };
    let node = node_with(&go);
    let mut firewalld = Firewalld::bus(&node);
    firewalld.start(&packages);
    for (policy, backend) in [("open", Value::Null), ("same-bridge", "firewalld".into())] {
        for (first, second) in [(Go, Go), (Go, Gangplank), (Gangplank, Go)] {
            let chain = node
                .chain(&small_chain())
                .with("firewall", "backend", backend.clone())
                .with("firewall", "ingressPolicy", policy);
            let pod = node.pod(&format!("{policy}-{first:?}-{second:?}"));
            let result = chain.by(&[Gangplank, Gangplank, first]).add(&pod);
            let zones = || {
                let ips = result["ips"].as_array().expect("addresses").iter();
                let address = |ip: &Value| {
                    let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
                    let prefix = if address.contains(':') { 128 } else { 32 };
                    firewalld.zone_of(&format!("{address}/{prefix}"))
                };
                ips.map(address).collect::<Vec<_>>()
            };
            assert_eq!(zones(), ["trusted"; 2], "{first:?}");
            let chain = chain.by(&[Gangplank, Gangplank, second]);
            chain.check(&pod, &result).ok();
            chain.del(&pod, &result);
            assert_eq!(zones(), [""; 2], "{second:?}");
            node.run(&format!("ip netns del {}", pod.name));
        }
    }
}
