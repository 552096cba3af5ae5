//! Generated configurations: mostly valid, with up to two mutations.

use crate::configurations::document::Json::{self, List};
use crate::configurations::document::{mutate, unusual_value};
use crate::configurations::test_random::TestRandom;

#[derive(Clone, Debug)]
pub struct Case {
    pub plugin: &'static str,
    pub config: Json,
    /// CNI_ARGS.
    pub args: Option<String>,
}

const VERSIONS: &[&str] = &[
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.0.0", "1.1.0", "1.1.0", "",
];

const SUBNETS: &[&str] = &[
    "10.1.0.0/24",
    "10.2.0.0/16",
    "10.3.0.0/30",
    "10.4.0.128/25",
    "fd00:1::/64",
    "fd00:2::/126",
    "fd00:3::/112",
    "172.16.0.0/12",
    "10.5.0.0/024",
];

const DESTINATIONS: &[&str] = &[
    "0.0.0.0/0",
    "::/0",
    "10.99.0.0/16",
    "10.99.0.7/16",
    "fd99::/64",
    "fd99::7/64",
    "192.0.2.1/32",
    "fd98::1/128",
    "::ffff:10.97.0.0/112",
    "10.96.0.0/016",
];

/// A deterministic function of the generator's state.
pub fn case(random: &mut TestRandom, plugins: &[&'static str]) -> Case {
    let plugin = random.choose(plugins);
    let mut config = Json::object([
        ("cniVersion", Json::text(random.choose(VERSIONS))),
        ("name", Json::text(random.choose(&["net", "a..b", "N-1_x"]))),
        ("type", Json::text(plugin)),
    ]);
    if random.below(20) == 0 {
        config.set("capabilities", unusual_value(random));
    }
    if random.below(4) == 0 {
        config.set("prevResult", previous(random));
    }
    if random.below(10) == 0 {
        config.set("args", Json::object([("cni", requests(random))]));
    }
    if random.below(10) == 0 {
        config.set("runtimeConfig", requests(random));
    }
    if random.below(4) == 0 {
        config.set("dns", dns(random));
    }
    if plugin == "bridge" {
        bridge(&mut config, random);
    }
    if plugin == "host-local" || random.below(8) > 0 {
        config.set("ipam", ipam(random));
    }
    for _ in 0..random.choose(&[0, 0, 1, 1, 1, 2]) {
        mutate(&mut config, random);
    }
    let args = (random.below(8) == 0).then(|| args(random));
    Case {
        plugin,
        config,
        args,
    }
}

fn bridge(config: &mut Json, random: &mut TestRandom) {
    let flags = [
        "isGateway",
        "isDefaultGateway",
        "forceAddress",
        "hairpinMode",
        "promiscMode",
        "macspoofchk",
        "enabledad",
        "disableContainerInterface",
        "portIsolation",
        "preserveDefaultVlan",
    ];
    for flag in flags {
        // Duplicate address detection takes seconds, and few combinations are valid with a link that is down.
        let often = match flag {
            "isGateway" => 2,
            "enabledad" | "disableContainerInterface" => 40,
            _ => 8,
        };
        if random.below(often) == 0 {
            config.set(
                flag,
                Json::literal(random.choose(&["true", "true", "false", "null"])),
            );
        }
    }
    if random.below(3) > 0 {
        config.set(
            "bridge",
            Json::text(random.choose(&["br0", "br\u{fc}", "br.x", "abcdefghijklmno"])),
        );
    }
    if random.below(10) == 0 {
        config.set("ipMasq", Json::literal("true"));
    }
    if random.below(12) == 0 {
        config.set(
            "ipMasqBackend",
            Json::text(random.choose(&["iptables", "nftables", "", "ipvs"])),
        );
    }
    if random.below(4) == 0 {
        config.set(
            "mtu",
            Json::literal(random.choose(&[
                0,
                -1,
                67,
                68,
                1280,
                1400,
                9000,
                65535,
                65536,
                i64::MIN,
            ])),
        );
    }
    if random.below(12) == 0 {
        config.set("vlan", Json::literal(0));
    }
}

fn ipam(random: &mut TestRandom) -> Json {
    let mut ipam = Json::object([("type", Json::text("host-local"))]);
    // The ranges of a set are of one family, and no range is in two sets.
    let mut families: Vec<Vec<&str>> = [false, true]
        .map(|v6| {
            SUBNETS
                .iter()
                .copied()
                .filter(|it| it.contains(':') == v6)
                .collect()
        })
        .into();
    let mut ranges = |random: &mut TestRandom, count: usize| -> Vec<Json> {
        let subnets = &mut families[random.choose(&[0, 0, 1])];
        let count = count.min(subnets.len());
        let mut subnet = |random: &mut TestRandom| subnets.swap_remove(random.below(subnets.len()));
        (0..count).map(|_| range(subnet(random), random)).collect()
    };
    let has_subnet = random.below(4) == 0;
    if has_subnet && let Some(Json::Object(entries)) = ranges(random, 1).pop() {
        for (key, value) in entries {
            ipam.set(&key, value);
        }
    }
    if !has_subnet || random.below(4) == 0 {
        let count = random.choose(&[1, 1, 1, 1, 2, 3]);
        let mut sets = Vec::new();
        for _ in 0..count {
            let size = random.choose(&[1, 1, 1, 2]);
            sets.push(List(ranges(random, size)));
        }
        ipam.set("ranges", List(sets));
    }
    if random.below(3) == 0 {
        let routes = random.choose(&[0, 1, 1, 2, 3]);
        ipam.set("routes", List((0..routes).map(|_| route(random)).collect()));
    }
    if random.below(6) == 0 {
        ipam.set(
            "dataDir",
            Json::text(random.choose(&["", "/run/leases", "/run/leases/a b"])),
        );
    }
    if random.below(8) == 0 {
        ipam.set(
            "resolvConf",
            Json::text(random.choose(&["", "/run/resolv.conf", "/run/none"])),
        );
    }
    ipam
}

fn range(subnet: &str, random: &mut TestRandom) -> Json {
    let mut range = Json::object([("subnet", Json::text(subnet))]);
    let (network, _) = subnet.split_once('/').unwrap();
    let near = |random: &mut TestRandom| {
        let last = random.choose(&["", "1", "1", "2", "2", "3"]);
        match network.contains(':') {
            true => format!("{network}{last}"),
            false => {
                let (front, end) = network.rsplit_once('.').unwrap();
                let end: u32 = end.parse().unwrap();
                format!("{front}.{}", end + last.parse::<u32>().unwrap_or(0))
            }
        }
    };
    for key in ["rangeStart", "rangeEnd"] {
        if random.below(6) == 0 {
            range.set(key, Json::text(&near(random)));
        }
    }
    match random.below(8) {
        0 => range.set("gateway", Json::text(&near(random))),
        1 => {
            let gateway = random.choose(&[
                "fe80::1",
                "10.200.0.1",
                "fd00:77::1",
                "::ffff:10.1.0.1",
                "",
                "0.0.0.0",
                "::",
            ]);
            range.set("gateway", Json::text(gateway));
        }
        _ => {}
    }
    range
}

fn route(random: &mut TestRandom) -> Json {
    let mut route = Json::object([("dst", Json::text(random.choose(DESTINATIONS)))]);
    if random.below(4) == 0 {
        let gateways = [
            "",
            "10.1.0.1",
            "10.1.0.9",
            "fd00:1::9",
            "fe80::9",
            "10.200.0.9",
            "::ffff:10.1.0.9",
        ];
        route.set("gw", Json::text(random.choose(&gateways)));
    }
    for key in ["mtu", "advmss", "priority", "table", "scope"] {
        if random.below(6) == 0 {
            let numbers = [
                0,
                1,
                100,
                253,
                254,
                255,
                256,
                1400,
                -1,
                -5,
                4294967295,
                4294967296,
                i64::MAX,
                i64::MIN,
            ];
            route.set(key, Json::literal(random.choose(&numbers)));
        }
    }
    route
}

fn requests(random: &mut TestRandom) -> Json {
    let mut requests = Json::object([]);
    if random.below(2) == 0 {
        let macs = [
            "02:00:00:00:00:07",
            "02-00-00-00-00-08",
            "0200.0000.0009",
            "",
            "zz",
            "01:00:00:00:00:00",
        ];
        requests.set("mac", Json::text(random.choose(&macs)));
    }
    if random.below(6) == 0 {
        let ips = [
            "10.1.0.7",
            "10.1.0.7/24",
            "fd00:1::7",
            "10.1.0.1",
            "::ffff:10.1.0.8",
            "10.2.0.0/8",
        ];
        let count = random.choose(&[0, 1, 1, 2]);
        requests.set(
            "ips",
            List(
                (0..count)
                    .map(|_| Json::text(random.choose(&ips)))
                    .collect(),
            ),
        );
    }
    if random.below(6) == 0 {
        requests.set(
            "ipRanges",
            List(vec![List(vec![range("10.55.0.0/24", random)])]),
        );
    }
    requests
}

fn dns(random: &mut TestRandom) -> Json {
    let mut dns = Json::object([]);
    for key in ["nameservers", "search", "options"] {
        if random.below(3) == 0 {
            let count = random.below(3);
            let items = ["10.0.0.10", "a.example", "ndots:5", "\u{fc}<>&", ""];
            dns.set(
                key,
                List(
                    (0..count)
                        .map(|_| Json::text(random.choose(&items)))
                        .collect(),
                ),
            );
        }
    }
    if random.below(3) == 0 {
        dns.set("domain", Json::text(random.choose(&["example.org", ""])));
    }
    dns
}

fn previous(random: &mut TestRandom) -> Json {
    let mut previous = Json::object([]);
    if random.below(2) == 0 {
        previous.set("cniVersion", Json::text(random.choose(VERSIONS)));
    }
    let one = |key, value| List(vec![Json::object([(key, value)])]);
    if random.below(2) == 0 {
        let name = if random.below(4) == 0 {
            unusual_value(random)
        } else {
            Json::text("up0")
        };
        previous.set("interfaces", one("name", name));
    }
    if random.below(2) == 0 {
        let address = if random.below(4) == 0 {
            unusual_value(random)
        } else {
            Json::text("10.88.0.2/24")
        };
        previous.set("ips", one("address", address));
    }
    if random.below(4) == 0 {
        previous.set("routes", one("dst", Json::text("10.87.0.0/24")));
    }
    if random.below(8) == 0 {
        previous.set("dns", unusual_value(random));
    }
    previous
}

fn args(random: &mut TestRandom) -> String {
    let pieces = [
        "IgnoreUnknown=1",
        "IgnoreUnknown=true",
        "IgnoreUnknown=0",
        "IgnoreUnknown=x",
        "MAC=02:00:00:00:00:05",
        "MAC=",
        "MAC=zz",
        "IP=10.1.0.9",
        "IP=10.1.0.9/24",
        "IP=",
        "IP=ten",
        "K8S_POD_NAME=web",
        "K8S_POD_NAMESPACE=shop",
        "X=y",
        "X=",
        "=",
        "",
        "A=b=c",
        "GATEWAY=10.1.0.1",
    ];
    let mut chosen = vec![random.choose(&["IgnoreUnknown=1", "IgnoreUnknown=TRUE", "IP=10.1.0.8"])];
    for _ in 0..random.below(3) {
        chosen.push(random.choose(&pieces));
    }
    chosen.join(";")
}
