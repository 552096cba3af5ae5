//! Invalid inputs: values of the right JSON type that are not allowed.

use serde_json::{Value, json};

use crate::invalid_inputs::InvalidInput;

fn invalid(name: &'static str, words: &[&'static str]) -> InvalidInput {
    InvalidInput::new(name, &[7], words)
}

pub fn of_the_bridge() -> Vec<InvalidInput> {
    let mac = |what, mac: &'static str| {
        invalid(what, &["mac", mac]).set("/runtimeConfig", json!({ "mac": mac }))
    };
    let mut without_type = invalid("ipam without a type", &["ipam", "type"]).accepted_by_go();
    let ipam = without_type.config["ipam"].as_object_mut().unwrap();
    ipam.remove("type");
    vec![
        without_type,
        invalid("a bridge without a name", &["bridge", "\"\""]).set("/bridge", "".into()),
        invalid("a bridge name of 16 bytes", &["bridge", "abcdefghijklmnop"])
            .set("/bridge", "abcdefghijklmnop".into()),
        invalid("a bridge name with a slash", &["bridge", "a/b"]).set("/bridge", "a/b".into()),
        invalid("a bridge name with a NUL", &["bridge"])
            .set("/bridge", "a\0b".into())
            .accepted_by_go(),
        invalid("an MTU too small for IPv4", &["mtu", "67"]).set("/mtu", json!(67)),
        invalid("an MTU above what a veth takes", &["mtu", "65536"]).set("/mtu", json!(65536)),
        invalid("a VLAN below zero", &["vlan", "-1"]).set("/vlan", json!(-1)),
        invalid("a VLAN above 4094", &["vlan", "4095"]).set("/vlan", json!(4095)),
        invalid("hairpin with promisc", &["hairpinMode", "promiscMode"])
            .set("/hairpinMode", true.into())
            .set("/promiscMode", true.into()),
        invalid("an invalid masquerade backend", &["ipMasqBackend", "pf"])
            .set("/ipMasqBackend", "pf".into())
            .set("/ipMasq", true.into())
            .accepted_by_go(),
        mac("an invalid MAC", "zz"),
        mac("a MAC of eight bytes", "02:00:00:00:00:00:00:01"),
        mac("a multicast MAC", "01:00:5e:00:00:01"),
        mac("a MAC of zeros", "00:00:00:00:00:00"),
        invalid("an invalid MAC in args.cni", &["mac", "02:00"])
            .set("/args", json!({ "cni": { "mac": "02:00" } })),
        InvalidInput::new("an IPAM plugin that is missing", &[4, 7, 999], &["dhcpd"])
            .set("/ipam", json!({ "type": "dhcpd" })),
        invalid("an IPAM plugin with a slash", &["ipam.type", "../bin/sh"])
            .set("/ipam", json!({ "type": "../bin/sh" })),
    ]
}

/// Keys that the Go plugins ignore, and `mtu`.
pub fn of_gangplank_keys() -> Vec<InvalidInput> {
    let gangplank_key = |what, words: &[&'static str], path, value: Value| {
        invalid(what, words).set(path, value).accepted_by_go()
    };
    let non_masquerade = |what, words: &[&'static str], list: Value| {
        gangplank_key(what, words, "/nonMasqueradeCIDRs", list)
    };
    let snat = |what, words: &[&'static str], list: Value| {
        gangplank_key(what, words, "/snatAddresses", list)
    };
    let many: Vec<String> = (0..1025)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    vec![
        non_masquerade(
            "a destination without a prefix",
            &["nonMasqueradeCIDRs[0]", "10.0.0.0"],
            json!(["10.0.0.0"]),
        ),
        non_masquerade(
            "host bits in a destination",
            &["nonMasqueradeCIDRs[1]", "10.0.0.0/8"],
            json!(["fd00::/8", "10.1.0.0/8"]),
        ),
        non_masquerade(
            "a destination that is a number",
            &["nonMasqueradeCIDRs[0]", "10"],
            json!([10]),
        )
        .codes(&[6]),
        non_masquerade(
            "one destination without a list",
            &["nonMasqueradeCIDRs", "a list"],
            json!("10.0.0.0/8"),
        )
        .codes(&[6]),
        non_masquerade(
            "too many destinations",
            &["nonMasqueradeCIDRs", "1025", "1024"],
            json!(many),
        ),
        snat(
            "a source that is a network",
            &["snatAddresses[0]", "203.0.113.0/24"],
            json!(["203.0.113.0/24"]),
        ),
        snat(
            "two sources of a family",
            &["snatAddresses[1]", "203.0.113.6"],
            json!(["203.0.113.5", "203.0.113.6"]),
        ),
        snat(
            "a multicast source",
            &["snatAddresses[0]", "224.0.0.5"],
            json!(["224.0.0.5"]),
        ),
        snat(
            "a link-local source",
            &["snatAddresses[0]", "fe80::5"],
            json!(["fe80::5"]),
        ),
        gangplank_key(
            "random ports: a string",
            &["ipMasqRandomFully", "yes"],
            "/ipMasqRandomFully",
            "yes".into(),
        )
        .codes(&[6]),
        gangplank_key(
            "forwardAccept: a number",
            &["forwardAccept", "1"],
            "/forwardAccept",
            json!(1),
        )
        .codes(&[6]),
        invalid(
            "an MTU that is an unknown word",
            &["mtu", "\"automatic\"", "\"auto\""],
        )
        .set("/mtu", "automatic".into()),
        gangplank_key(
            "forwardAccept with a pattern for a bridge",
            &["bridge", "br+", "forwardAccept"],
            "/bridge",
            "br+".into(),
        )
        .set("/forwardAccept", true.into()),
        gangplank_key(
            "a relative log path",
            &["logFile", "a.log", "absolute"],
            "/logFile",
            "a.log".into(),
        ),
        gangplank_key(
            "the root directory as log path",
            &["logFile", "\"/\""],
            "/logFile",
            "/".into(),
        ),
        gangplank_key("a log: a number", &["logFile", "5"], "/logFile", json!(5)).codes(&[6]),
        gangplank_key(
            "an invalid level",
            &["logLevel", "verbose", "debug"],
            "/logLevel",
            "verbose".into(),
        ),
    ]
}

pub fn of_ranges() -> Vec<InvalidInput> {
    let sets = |what, words: &[&'static str], ranges: Value| {
        invalid(what, words).set("/ipam", json!({ "type": "host-local", "ranges": ranges }))
    };
    let one = |what, words: &[&'static str], range: Value| sets(what, words, json!([[range]]));
    let subnet =
        |what, subnet: &'static str| one(what, &["subnet", subnet], json!({ "subnet": subnet }));
    let net = "10.1.2.0/24";
    vec![
        invalid("no range at all", &["ipam", "range"])
            .set("/ipam", json!({ "type": "host-local" })),
        sets("an empty list of sets", &["range"], json!([])),
        sets("an empty set", &["ranges[0]"], json!([[]])),
        sets("a set that is null", &["ranges[0]"], json!([null])).codes(&[6, 7]),
        sets("a range that is null", &["ranges[0][0]"], json!([[null]])).codes(&[6, 7]),
        one(
            "a range without a subnet",
            &["subnet"],
            json!({ "rangeStart": "10.1.2.5" }),
        ),
        one(
            "host bits in a subnet",
            &["subnet", "10.1.2.3/24", "10.1.2.0/24"],
            json!({ "subnet": "10.1.2.3/24" }),
        ),
        subnet("a subnet without a prefix", "10.1.2.0"),
        subnet("a subnet with a prefix too long", "10.1.2.0/33"),
        subnet("a subnet with a mask", "10.1.2.0/255.255.255.0"),
        subnet("a subnet with leading zeros", "010.1.2.0/24"),
        subnet("a subnet of two addresses", "10.1.2.0/31"),
        subnet("a subnet of one address", "10.1.2.1/32"),
        subnet("an IPv6 subnet of two addresses", "fd00::/127"),
        subnet("a subnet in words", "ten"),
        one(
            "a start outside the subnet",
            &["rangeStart", "10.1.3.5"],
            json!({ "subnet": net, "rangeStart": "10.1.3.5" }),
        ),
        one(
            "an end outside the subnet",
            &["rangeEnd", "10.1.3.5"],
            json!({ "subnet": net, "rangeEnd": "10.1.3.5" }),
        ),
        one(
            "a start that is not an address",
            &["rangeStart", "ten"],
            json!({ "subnet": net, "rangeStart": "ten" }),
        ),
        one(
            "an end of the other family",
            &["rangeEnd", "fd00::5"],
            json!({ "subnet": net, "rangeEnd": "fd00::5" }),
        ),
        one(
            "an inverted range",
            &["rangeStart", "10.1.2.9", "10.1.2.5"],
            json!({ "subnet": net, "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.5" }),
        ),
        one(
            "a gateway that is not an address",
            &["gateway", "gate"],
            json!({ "subnet": net, "gateway": "gate" }),
        ),
        sets(
            "ranges of a set that overlap",
            &["10.1.2.", "overlap"],
            json!([[{ "subnet": net }, { "subnet": "10.1.2.128/25" }]]),
        ),
        sets(
            "ranges of two sets that overlap",
            &["10.1.2.", "overlap"],
            json!([[{ "subnet": net }], [{ "subnet": net, "rangeStart": "10.1.2.50" }]]),
        ),
        sets(
            "two families in a set",
            &["ranges[0]", "famil"],
            json!([[{ "subnet": net }, { "subnet": "fd00::/64" }]]),
        ),
        invalid("a legacy range that overlaps", &["10.1.2.", "overlap"])
            .set("/ipam/subnet", net.into()),
        invalid(
            "a range of the runtime that overlaps",
            &["10.1.2.", "overlap"],
        )
        .set(
            "/runtimeConfig",
            json!({ "ipRanges": [[{ "subnet": net }]] }),
        ),
        invalid(
            "a range of the runtime with host bits",
            &["ipRanges", "10.9.9.9/24"],
        )
        .set(
            "/runtimeConfig",
            json!({ "ipRanges": [[{ "subnet": "10.9.9.9/24" }]] }),
        ),
    ]
}

pub fn of_requests() -> Vec<InvalidInput> {
    let by_args = |what, words: &[&'static str], args: &'static str| {
        InvalidInput::new(what, &[4, 7], words).var("CNI_ARGS", args)
    };
    let by_cni = |what, words: &[&'static str], ips: Value| {
        invalid(what, words).set("/args", json!({ "cni": { "ips": ips } }))
    };
    let by_runtime = |what, words: &[&'static str], ips: Value| {
        invalid(what, words).set("/runtimeConfig", json!({ "ips": ips }))
    };
    let mut types = by_runtime("an address that is a number", &["ips"], json!([5]));
    types.codes = vec![6];
    vec![
        types,
        by_args(
            "an address outside every range",
            &["10.9.9.9"],
            "IP=10.9.9.9",
        ),
        by_args(
            "the gateway's own address",
            &["10.1.2.1", "gateway"],
            "IP=10.1.2.1",
        ),
        by_args(
            "an address of the other family",
            &["fd00::5"],
            "IgnoreUnknown=1;IP=fd00::5",
        ),
        by_cni(
            "an address outside, in args.cni",
            &["10.9.9.9"],
            json!(["10.9.9.9/24"]),
        ),
        by_cni(
            "an empty address in args.cni",
            &["ips", "\"\""],
            json!([""]),
        ),
        by_cni(
            "a textual address in args.cni",
            &["ips", "ten"],
            json!(["ten"]),
        ),
        by_runtime(
            "an address outside, from the runtime",
            &["10.9.9.9"],
            json!(["10.9.9.9"]),
        ),
        by_runtime(
            "two addresses where there is one set",
            &["10.1.2.6"],
            json!(["10.1.2.5", "10.1.2.6"]),
        ),
        InvalidInput::new(
            "a resolv.conf that is missing",
            &[5, 7, 999],
            &["/run/no-resolv.conf"],
        )
        .set("/ipam/resolvConf", "/run/no-resolv.conf".into()),
        invalid("a data directory that is a file", &["/run/plain"])
            .set("/ipam/dataDir", "/run/plain".into())
            .codes(&[5, 7, 999]),
    ]
}

pub fn of_routes() -> Vec<InvalidInput> {
    let route = |what, words: &[&'static str], route: Value| {
        invalid(what, words).set("/ipam/routes", json!([route]))
    };
    vec![
        route(
            "a route without a destination",
            &["dst"],
            json!({ "gw": "10.1.2.1" }),
        ),
        route(
            "a route to an address without prefix",
            &["dst", "192.0.2.0"],
            json!({ "dst": "192.0.2.0" }),
        ),
        route(
            "a route with host bits",
            &["dst", "192.0.2.5/24"],
            json!({ "dst": "192.0.2.5/24" }),
        ),
        route(
            "a route with an invalid next hop",
            &["gw", "gate"],
            json!({ "dst": "192.0.2.0/24", "gw": "gate" }),
        ),
        route(
            "a route by a next hop of the other family",
            &["gw", "fd00::1"],
            json!({ "dst": "192.0.2.0/24", "gw": "fd00::1" }),
        ),
    ]
}
