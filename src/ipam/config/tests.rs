use super::*;

fn parse_with(ipam: &str, more: &str, args: &str) -> Result<Config, Error> {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"net","ipam":{ipam}{more}}}"#);
    let conf = NetConf::parse(text.into_bytes())?;
    Config::parse(&conf, &Args::parse(args)?)
}

fn sets(config: &Config) -> Vec<String> {
    let sets = config.pools.iter().map(|pool| pool.set.to_string());
    sets.collect()
}

#[test]
fn range_sets_are_numbered_in_one_list() {
    let ipam = r#"{"ranges":[[{"subnet":"10.3.0.0/24"},{"subnet":"10.4.0.0/24"}],[{"subnet":"fd00::/64"}]],
                       "subnet":"10.2.0.0/24","rangeEnd":"10.2.0.9","gateway":"10.2.0.8"}"#;
    let runtime = r#","runtimeConfig":{"ipRanges":[[{"subnet":"10.1.0.0/24"}]]}"#;
    let config = parse_with(ipam, runtime, "").unwrap();
    assert_eq!(
        sets(&config),
        [
            "10.1.0.1-10.1.0.254",
            "10.2.0.1-10.2.0.9",
            "10.3.0.1-10.3.0.254,10.4.0.1-10.4.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
        ]
    );
    let gateways: Vec<_> = config.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(
        gateways,
        ["10.1.0.1", "10.2.0.8", "10.3.0.1", "10.4.0.1", "fd00::1"]
    );
}

#[test]
fn addresses_are_requested_by_three_keys() {
    let ipam = r#"{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd00::/64"}]]}"#;
    let more = r#","args":{"cni":{"ips":["fd00::7/64","10.1.0.9"]}},"runtimeConfig":{"ips":["10.2.0.9/24","fd00:0::7"]}"#;
    let config = parse_with(ipam, more, "IP=10.1.0.9/8").unwrap();
    let requested: Vec<_> = config.pools.iter().map(|pool| pool.requested).collect();
    let expected = ["10.1.0.9", "10.2.0.9", "fd00::7"].map(|ip| ip.parse().ok());
    assert_eq!(requested, expected);
}

#[test]
fn routes_and_paths_are_parsed() {
    let ipam = r#"{"subnet":"10.1.0.0/24","resolvConf":"/etc/resolv.conf","routes":[
            {"dst":"0.0.0.0/0"},{"dst":"0.0.0.0/0","priority":5},{"dst":"0.0.0.0/0","table":7},{"dst":"::/0","gw":"fd00::1"}]}"#;
    let config = parse_with(ipam, "", "").unwrap();
    assert_eq!(config.routes.len(), 4);
    assert_eq!(config.resolv_conf, Some(PathBuf::from("/etc/resolv.conf")));
}

#[test]
fn routes_are_not_modified() {
    let ipam = r#"{"subnet":"10.1.0.0/24","routes":[{"dst":"10.9.0.1/8","mtu":-5,"scope":256,"table":-1},
            {"dst":"10.9.0.1/8","gw":"fd00::1"},{"dst":"10.9.0.1/8","gw":"fd00::1"},{"dst":"fd00::1/64","mtu":0}]}"#;
    let config = parse_with(ipam, "", "").unwrap();
    let routes = serde_json::to_string(&config.routes).unwrap();
    assert_eq!(
        routes,
        r#"[{"dst":"10.9.0.1/8","mtu":-5,"table":-1,"scope":256},{"dst":"10.9.0.1/8","gw":"fd00::1"},{"dst":"10.9.0.1/8","gw":"fd00::1"},{"dst":"fd00::1/64"}]"#
    );
}

#[test]
fn invalid_configurations_are_rejected() {
    let good = r#"{"subnet":"10.1.0.0/24"}"#;
    let two = r#"{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/25"}]]}"#;
    for (ipam, more, args, code, expected) in [
        ("null", "", "", 7, "ipam is missing"),
        ("5", "", "", 6, "ipam is 5"),
        ("{}", "", "", 7, "ipam.ranges is missing"),
        (
            r#"{"rangeStart":"10.1.0.1"}"#,
            "",
            "",
            7,
            "ipam.ranges is missing",
        ),
        (r#"{"ranges":{}}"#, "", "", 6, "ipam.ranges is {}"),
        (r#"{"ranges":[[]]}"#, "", "", 7, "ipam.ranges[0] is empty"),
        (r#"{"ranges":[null]}"#, "", "", 6, "ipam.ranges[0] is null"),
        (
            r#"{"ranges":[[null]]}"#,
            "",
            "",
            6,
            "ipam.ranges[0][0] is null",
        ),
        (
            r#"{"ranges":[{"subnet":"10.1.0.0/24"}]}"#,
            "",
            "",
            6,
            "must be a list",
        ),
        (
            r#"{"ranges":[[{"subnet":"10.1.0.9/24"}]]}"#,
            "",
            "",
            7,
            "ipam.ranges[0][0].subnet is 10.1.0.9/24",
        ),
        (
            r#"{"ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]}"#,
            "",
            "",
            7,
            "one family",
        ),
        (
            r#"{"ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.0/25"}]]}"#,
            "",
            "",
            7,
            "must not overlap",
        ),
        (
            two,
            "",
            "",
            7,
            "in range set 0 and 10.1.0.1-10.1.0.126 in set 1",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.1","rangeEnd":"10.1.0.1"}"#,
            "",
            "",
            7,
            "no address",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","dataDir":5}"#,
            "",
            "",
            6,
            "ipam.dataDir is 5",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","dataDir":"/a\u0000b"}"#,
            "",
            "",
            7,
            "ipam.dataDir",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","resolvConf":[]}"#,
            "",
            "",
            6,
            "ipam.resolvConf is []",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","routes":[null]}"#,
            "",
            "",
            6,
            "ipam.routes[0] is null",
        ),
        (
            r#"{"subnet":"10.1.0.0/24","routes":[{}]}"#,
            "",
            "",
            7,
            "ipam.routes[0].dst is missing",
        ),
        (
            good,
            "",
            "IP=10.2.0.1",
            4,
            "CNI_ARGS: IP is 10.2.0.1, but it must lie in 10.1.0.1-10.1.0.254",
        ),
        (good, "", "IP=10.1.0.1", 4, "gateway's own"),
        (
            good,
            "",
            "IP=10.1.0.7,10.1.0.8",
            4,
            "10.1.0.7 is requested as well",
        ),
        (
            good,
            r#","args":{"cni":{"ips":["fd00::1"]}}"#,
            "",
            7,
            "args.cni.ips[0] is fd00::1",
        ),
        (
            good,
            r#","args":{"cni":{"ips":[""]}}"#,
            "",
            7,
            r#"args.cni.ips[0] is """#,
        ),
        (
            good,
            r#","args":{"cni":{"ips":[null]}}"#,
            "",
            6,
            "args.cni.ips[0] is null",
        ),
        (good, r#","args":{"cni":5}"#, "", 6, "args.cni is 5"),
        (
            good,
            r#","runtimeConfig":{"ips":["10.1.0.255"]}"#,
            "",
            7,
            "runtimeConfig.ips[0] is 10.1.0.255",
        ),
        (
            good,
            r#","runtimeConfig":{"ips":"10.1.0.5"}"#,
            "",
            6,
            "runtimeConfig.ips is",
        ),
        (
            good,
            r#","runtimeConfig":{"ipRanges":[[{"subnet":"10.1.0.0/16"}]]}"#,
            "",
            7,
            "must not overlap",
        ),
    ] {
        let error = parse_with(ipam, more, args).unwrap_err();
        assert!(error.msg.contains(expected), "{ipam}{more}: {error}");
        assert_eq!(error.code.0, code, "{ipam}{more}: {error}");
    }
}

#[test]
fn versions_before_0_3_allow_one_address_per_family() {
    let parse = |version: &str| {
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"net","ipam":{{"ranges":
                [[{{"subnet":"10.1.0.0/24"}}],[{{"subnet":"10.2.0.0/24"}}],[{{"subnet":"fd00::/64"}}]]}}}}"#
        );
        Config::parse(
            &NetConf::parse(text.into_bytes()).unwrap(),
            &Args::default(),
        )
    };
    assert!(parse("0.3.0").is_ok());
    let error = parse("0.2.0").unwrap_err();
    assert!(error.msg.contains("more than one IPv4 set"), "{error}");
}

#[test]
fn a_network_name_longer_than_a_file_name_is_rejected() {
    let text = format!(
        r#"{{"name":"{}","ipam":{{"subnet":"10.1.0.0/24"}}}}"#,
        "n".repeat(256)
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    let error = Config::parse(&conf, &Args::default()).unwrap_err();
    assert!(error.msg.contains("256 bytes long"), "{error}");
}

#[test]
fn long_lists_are_rejected() {
    let subnet = |i: usize| {
        format!(
            r#"{{"subnet":"10.{}.{}.{}/30"}}"#,
            i >> 14,
            (i >> 6) & 255,
            (i & 63) * 4
        )
    };
    let many = |element: &dyn Fn(usize) -> String, count| -> String {
        (0..count).map(element).collect::<Vec<_>>().join(",")
    };
    let route = |i: usize| format!(r#"{{"dst":"10.{}.{}.0/24"}}"#, i >> 8, i & 255);
    let sets = format!(
        "[{}],[{}]",
        many(&subnet, 3000),
        many(&|i| subnet(i + 3000), 3000)
    );
    for (ipam, expected) in [
        (
            format!(r#"{{"ranges":[[{}]]}}"#, many(&subnet, 5000)),
            "ranges[0] is a list of 5000",
        ),
        (
            format!(r#"{{"ranges":[{sets}]}}"#),
            "ranges is a list of 6000",
        ),
        (
            format!(
                r#"{{"subnet":"10.1.0.0/24","routes":[{}]}}"#,
                many(&route, 5000)
            ),
            "routes is a list of 5000",
        ),
    ] {
        let error = parse_with(&ipam, "", "").unwrap_err();
        assert!(error.msg.contains(expected), "{}", error.msg);
    }
}
