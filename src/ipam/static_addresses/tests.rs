//! The addresses of static: precedence and gateways.

use serde_json::{Value, json};

use super::*;

const CONFIGURED: [&str; 2] = ["10.0.0.5/24", "10.0.0.1"];

fn conf(keys: Value) -> NetConf {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "n", "ipam": { "type": "static" } });
    let all = config.as_object_mut().unwrap();
    all.extend(keys.as_object().unwrap().clone());
    NetConf::parse(config.to_string().into()).unwrap()
}

fn parse(keys: Value, args: &str) -> Result<StaticAddresses, Error> {
    StaticAddresses::parse(&conf(keys), &Args::parse(args)?)
}

fn ipam(addresses: &[[&str; 2]]) -> Value {
    let addresses = addresses.iter();
    let keys =
        addresses.map(|[address, gateway]| json!({ "address": address, "gateway": gateway }));
    json!({ "addresses": keys.collect::<Vec<_>>() })
}

/// Addresses with their gateways.
fn ips(keys: Value, args: &str) -> Vec<String> {
    let parsed = parse(keys, args).unwrap();
    let text = |ip: &IpConfig| match ip.gateway {
        Some(gateway) => format!("{} via {gateway}", ip.address),
        None => ip.address.to_string(),
    };
    parsed.lease.ips.iter().map(text).collect()
}

#[test]
fn the_last_source_that_is_not_empty_wins() {
    let mut keys = json!({ "ipam": ipam(&[CONFIGURED, ["fd00::5/64", ""]]) });
    let configured = ["10.0.0.5/24 via 10.0.0.1", "fd00::5/64"];
    assert_eq!(ips(keys.clone(), ""), configured);
    let with_args = [&configured[..], &["10.1.0.5/24 via 10.1.0.1"]].concat();
    let args = "IP= 10.1.0.5/24 ;GATEWAY=10.1.0.1";
    assert_eq!(ips(keys.clone(), args), with_args);
    keys["args"] = json!({ "cni": { "ips": ["10.2.0.5/24"] } });
    assert_eq!(ips(keys.clone(), args), ["10.2.0.5/24"]);
    keys["runtimeConfig"] = json!({ "ips": ["10.3.0.5/24", "::ffff:10.4.0.5/120"] });
    // Not parsed, because it is replaced.
    keys["ipam"]["addresses"][0]["address"] = "x".into();
    assert_eq!(ips(keys, args), ["10.3.0.5/24", "10.4.0.5/24"]);
    assert_eq!(ips(json!({}), ""), [""; 0]);
}

#[test]
fn addresses_without_a_gateway_get_that_of_their_subnet() {
    let keys = json!({ "ipam": ipam(&[["10.0.0.5/24", ""], ["10.5.0.5/24", "10.5.0.9"]]) });
    let args = "GATEWAY=10.0.0.9,10.0.0.1, 10.5.0.1";
    let expected = ["10.0.0.5/24 via 10.0.0.1", "10.5.0.5/24 via 10.5.0.9"];
    assert_eq!(ips(keys.clone(), args), expected);
    let mut requested = keys;
    requested["runtimeConfig"] = json!({ "ips": ["10.5.0.7/24", "10.6.0.7/24"] });
    assert_eq!(
        ips(requested.clone(), ""),
        ["10.5.0.7/24 via 10.5.0.9", "10.6.0.7/24"]
    );
    let expected = ["10.5.0.7/24 via 10.5.0.1", "10.6.0.7/24"];
    assert_eq!(ips(requested, args), expected, "CNI_ARGS take precedence");
}

#[test]
fn invalid_values_are_rejected() {
    for (code, ipam) in [
        (7, ipam(&[["10.0.0.5", ""]])),
        (7, ipam(&[["10.0.0.5/24", "x"]])),
        (7, json!({ "addresses": [{}] })),
        (6, json!({ "addresses": [null] })),
        (6, json!({ "routes": [null] })),
        (7, json!({ "routes": [{}] })),
        (6, json!({ "dns": { "nameservers": "10.0.0.53" } })),
        (6, json!(5)),
        (7, Value::Null),
    ] {
        let error = parse(json!({ "ipam": ipam.clone() }), "").unwrap_err();
        assert_eq!(error.code.0, code, "{ipam}: {error}");
    }
    for args in ["IP=10.0.0.5", "IP=10.0.0.5/24,", "GATEWAY=x"] {
        assert_eq!(parse(json!({}), args).unwrap_err().code.0, 4, "{args}");
    }
}

#[test]
fn old_versions_have_one_address_of_each_family() {
    let addresses = [["fd00::5/64", ""], CONFIGURED];
    let mut ipam = ipam(&addresses);
    ipam["routes"] = json!([{ "dst": "10.9.0.0/16", "mtu": 1400 }]);
    let keys = json!({ "cniVersion": "0.2.0", "ipam": ipam });
    let parsed = parse(keys, "").unwrap();
    assert_eq!(parsed.families(), Family::BOTH);
    assert_eq!(parsed.lease.ips[0].address.family(), Family::V4);
    assert_eq!(parsed.routes()[0].mtu, None);
    let addresses = [CONFIGURED, ["10.0.0.6/24", ""]];
    let ipam = super::tests::ipam(&addresses);
    let keys = |version: &str| json!({ "cniVersion": version, "ipam": ipam });
    assert!(parse(keys("0.2.0"), "").is_err());
    assert!(parse(keys("0.3.0"), "").is_ok());
}

#[test]
fn check_compares_addresses_and_gateways_with_prev_result() {
    let check = |ips: Value| {
        let ipam = ipam(&[CONFIGURED, ["fd00::5/64", ""]]);
        let previous = json!({ "cniVersion": "1.0.0", "ips": ips });
        let keys = json!({ "ipam": ipam, "prevResult": previous });
        parse(keys, "").unwrap().check()
    };
    let v4 = json!({ "address": "10.0.0.5/24", "gateway": "10.0.0.1" });
    let v6 = json!({ "address": "fd00::5/64", "gateway": "fd00::1" });
    let without_gateway = json!({ "address": "10.0.0.5/24" });
    let other_prefix = json!({ "address": "10.0.0.5/16", "gateway": "10.0.0.1" });
    assert_eq!(check(json!([v4, v6])), Ok(()));
    for ips in [
        json!([v4]),
        json!([without_gateway, v6]),
        json!([other_prefix, v6]),
    ] {
        let error = check(ips.clone()).unwrap_err();
        assert!(error.msg.contains("Failed to match addr"), "{ips}: {error}");
    }
    assert!(parse(json!({}), "").unwrap().check().is_err());
}
