//! The keys of `tuning`: precedence, valid values, sysctls.

use serde_json::json;

use super::*;

fn parse(keys: Value, args: &str) -> Result<TuningConfig, Error> {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "n", "type": "tuning" });
    let of = config.as_object_mut().unwrap();
    of.extend(keys.as_object().unwrap().clone());
    parse_text(&config.to_string(), args)
}

fn parse_text(config: &str, args: &str) -> Result<TuningConfig, Error> {
    let conf = NetConf::parse(config.into()).unwrap();
    TuningConfig::parse(&conf, &Args::parse(args).unwrap())
}

fn sysctls(config: &TuningConfig) -> Vec<String> {
    let sysctls = config.sysctls(&"eth0.5".parse().unwrap()).unwrap();
    let text = |(sysctl, value): &(NetSysctl, String)| format!("{}={value}", sysctl.path());
    sysctls.iter().map(text).collect()
}

#[test]
fn the_mac_address_of_the_last_source_wins() {
    let mac = |n: u8| format!("02:00:00:00:00:0{n}");
    let mut keys = json!({});
    let expect = |keys: &Value, args: &str, wanted: Option<String>| {
        assert_eq!(
            parse(keys.clone(), args).unwrap().mac,
            wanted,
            "{keys} {args}"
        );
    };
    expect(&keys, "", None);
    keys["mac"] = mac(1).into();
    expect(&keys, "IgnoreUnknown=1;X=y", Some(mac(1)));
    let args = "MAC=02:00:00:00:00:02";
    expect(&keys, args, Some(mac(2)));
    keys["runtimeConfig"] = json!({ "mac": mac(3) });
    expect(&keys, args, Some(mac(3)));
    keys["args"] = json!({ "cni": { "mac": mac(4) } });
    expect(&keys, args, Some(mac(4)));
    keys["args"] = json!({ "cni": { "mac": "" } });
    expect(&keys, args, None);
}

#[test]
fn args_override_the_keys_of_the_configuration_also_with_zero() {
    let keys = json!({ "mtu": 1400, "promisc": true, "allmulti": false, "txQLen": 5,
        "args": { "cni": { "mtu": 0, "promisc": false, "allmulti": true, "txQLen": 0 } } });
    let expected = [
        LinkSetting::AllMulticast(true),
        LinkSetting::TxQueueLength(0),
    ];
    assert_eq!(parse(keys, "").unwrap().settings, expected);
    let keys = json!({ "mtu": 1400, "promisc": true, "txQLen": -1, "mac": "0200.0000.000A" });
    let config = parse(keys, "").unwrap();
    let expected = [
        LinkSetting::Mac("02:00:00:00:00:0a".parse().unwrap()),
        LinkSetting::Promiscuous(true),
        LinkSetting::Mtu(1400),
        LinkSetting::TxQueueLength(u32::MAX),
    ];
    assert_eq!(config.settings, expected);
    assert_eq!(
        config.mac.as_deref(),
        Some("0200.0000.000A"),
        "as configured"
    );
}

#[test]
fn sysctls_are_paths_in_the_order_of_the_configuration() {
    let config = parse_text(
        r#"{"name": "n", "SysCtl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "500",
            "net.ipv4.ip_forward": "", "net.ipv6.conf.IFNAME.accept_ra": null},
            "args": {"cni": {"sysctl": {"net.core.somaxconn": "600", "net.ipv4.tcp_rmem": "1 2 3"}}}}"#,
        "",
    );
    let expected = [
        "net/ipv4/conf/eth0.5/arp_filter=1",
        "net/core/somaxconn=600",
        "net/ipv4/tcp_rmem=1 2 3",
    ];
    assert_eq!(sysctls(&config.unwrap()), expected);
    let of_args = json!({ "args": { "cni": { "sysctl": { "net.core.somaxconn": "1" } } } });
    assert_eq!(
        sysctls(&parse(of_args, "").unwrap()),
        ["net/core/somaxconn=1"]
    );
}

#[test]
fn two_values_of_one_sysctl_are_rejected() {
    let duplicate =
        r#"{"name": "n", "sysctl": {"net.core.somaxconn": "1", "net.core.somaxconn": "1"}}"#;
    let error = parse_text(duplicate, "").unwrap_err();
    assert!(error.msg.contains("duplicated sysctl keys"), "{error}");
    let keys = json!({ "sysctl": { "net.ipv4.conf.IFNAME.rp_filter": "1", "net/ipv4/conf/eth0/rp_filter": "0" } });
    let config = parse(keys, "").unwrap();
    let error = config.sysctls(&"eth0".parse().unwrap()).unwrap_err();
    assert!(
        error.msg.contains("net/ipv4/conf/eth0/rp_filter"),
        "{error}"
    );
    assert!(config.sysctls(&"eth1".parse().unwrap()).is_ok());
}

#[test]
fn invalid_values_are_rejected() {
    for (code, keys) in [
        (7, json!({ "mac": "02:00:00:00:00:0g" })),
        (7, json!({ "mac": "01:00:5e:00:00:01" })),
        (
            7,
            json!({ "runtimeConfig": { "mac": "02:00:00:00:00:00:00:01" } }),
        ),
        (7, json!({ "mtu": -5 })),
        (7, json!({ "args": { "cni": { "mtu": 50 } } })),
        (6, json!({ "mtu": 1.5 })),
        (7, json!({ "txQLen": -2 })),
        (6, json!({ "promisc": "yes" })),
        (6, json!({ "sysctl": { "net.core.somaxconn": 500 } })),
        (6, json!({ "sysctl": ["net.core.somaxconn"] })),
        (6, json!({ "args": { "cni": { "sysctl": 5 } } })),
        (7, json!({ "sysctl": { "kernel.hostname": "x" } })),
        (7, json!({ "sysctl": { "net": "x" } })),
    ] {
        let error = parse(keys.clone(), "").unwrap_err();
        assert_eq!(error.code.0, code, "{keys}: {error}");
    }
}
