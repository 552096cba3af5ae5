//! Which gateways addresses of static have, and what it refuses.

use std::path::Path;

use serde_json::{Value, json};

use super::chained::compare;
use super::is_valid_answer;
use crate::implementation::{Implementation, node_with, ready_for_chains};
use crate::support::Answer;

/// Runs a verb with these keys and CNI_ARGS.
fn call(by: Implementation, go: &Path, verb: &str, (keys, args): (&Value, &str)) -> Answer {
    let node = node_with(go);
    let mut config = json!({ "cniVersion": "1.0.0", "name": "small", "type": "static" });
    let keys = keys.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(keys);
    let call = by.call_for(&node, &config).verb(verb).pod(&node.pod("a"));
    call.args(args).run()
}

fn configured(gateway: &str) -> Value {
    json!({ "ipam": { "addresses": [{ "address": "10.0.0.5/24", "gateway": gateway }] } })
}

#[test]
fn sd1_gateway_of_cni_args_applies_to_configured_addresses() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let gateway = |by| {
        let request = (&configured(""), "GATEWAY=10.0.0.1");
        call(by, &go, "ADD", request).ok()["ips"][0]["gateway"].clone()
    };
    compare(gateway, "10.0.0.1".into(), Value::Null);
}

#[test]
fn sd2_requested_addresses_keep_the_gateway_of_their_subnet() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let requested = json!({ "ips": ["10.0.0.6/24"] });
    for (key, value) in [
        ("runtimeConfig", requested.clone()),
        ("args", json!({ "cni": requested })),
    ] {
        let gateways = |by| {
            [("10.0.0.1", ""), ("", "GATEWAY=10.0.0.1")].map(|(gateway, args)| {
                let mut keys = configured(gateway);
                keys[key] = value.clone();
                call(by, &go, "ADD", (&keys, args)).ok()["ips"][0]["gateway"].clone()
            })
        };
        let gateway = Value::from("10.0.0.1");
        compare(
            gateways,
            [gateway.clone(), gateway],
            [Value::Null, Value::Null],
        );
    }
}

#[test]
fn sd3_check_fails_if_prev_result_lacks_an_address() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let other = json!([{ "address": "10.0.0.6/24", "gateway": "10.0.0.1" }]);
    let prefix = json!([{ "address": "10.0.0.5/16", "gateway": "10.0.0.1" }]);
    let codes = |by| {
        [json!([]), other.clone(), prefix.clone()].map(|ips| {
            let mut keys = configured("10.0.0.1");
            keys["prevResult"] = json!({ "cniVersion": "1.0.0", "ips": ips });
            call(by, &go, "CHECK", (&keys, "")).code
        })
    };
    compare(codes, [Some(1); 3], [Some(0); 3]);
}

#[test]
fn sd4_routes_without_a_destination_are_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for route in [Value::Null, json!({})] {
        let refused = |by| {
            let mut keys = configured("");
            keys["ipam"]["routes"] = json!([route]);
            let answer = call(by, &go, "ADD", (&keys, ""));
            is_valid_answer(&answer) && answer.code == Some(1)
        };
        compare(refused, true, false);
    }
}
