//! Configurations that the Go plugins accept: gangplank accepts them too, with the same result. Generated
//! configurations are passed to the Go plugin and to gangplank on one node. If the results differ, the smallest
//! configuration that shows the difference is printed.

mod cases;
mod document;
mod generate;
#[path = "../../src/test_random.rs"]
#[allow(dead_code)]
mod test_random;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::support::{Answer, Call, Node, Pod, go_plugins, note, require};
use document::Json;
use generate::Case;
use test_random::TestRandom;

/// Number of generated configurations, unless `GANGPLANK_CONFIGURATIONS` is set.
const CASES: usize = 1000;

/// Seed of the generator, unless `GANGPLANK_SEED` is set.
const SEED: u64 = 0x5eed;

/// Configurations that gangplank rejects and the Go plugins accept: text of the error, and heading in the migration
/// guide.
const REJECTED_BY_GANGPLANK: &[(&str, &str)] = &[
    (
        "dst is missing, but a route needs a destination",
        "A route without a destination",
    ),
    (
        "] is null, but it must be an object",
        "A route without a destination",
    ),
    ("number out of range", "A number beyond 1e308"),
    (
        "ipam.type is missing, though ipam has",
        "An `ipam` without `type`",
    ),
];

/// Errors about keys that Go plugins before cniVersion 1.1.0 do not know, and whose values they therefore do not check.
const UNCHECKED_BY_OLD_GO: &[&str] = &[
    ".mtu is",
    ".advmss is",
    ".priority is",
    ".table is",
    ".scope is",
    "ipMasqBackend is",
    "portIsolation is",
    "disableContainerInterface is",
    "preserveDefaultVlan is",
];

/// A node on which each ADD is del before the next one.
struct Fixture {
    node: Node,
    pod: Pod,
    /// Whether the Go plugins are of a release before cniVersion 1.1.0.
    is_old: bool,
}

impl Fixture {
    fn new() -> Fixture {
        let node = crate::implementation::node();
        let pod = node.pod("pod");
        node.run("mkdir /run/work");
        node.write(
            "/run/resolv.conf",
            "nameserver 10.0.0.53\nsearch a.example b.example\noptions ndots:2\n",
        );
        let version = Go.call(&node, "host-local").verb("VERSION").run();
        let is_old = !version.stdout.contains("1.1.0");
        Fixture { node, pod, is_old }
    }

    fn call<'n>(&'n self, by: Implementation, verb: &str, case: &Case) -> Call<'n> {
        let call = by
            .call(&self.node, case.plugin)
            .verb(verb)
            .pod(&self.pod)
            // dataDir may be a relative path.
            .under("env -C /run/work")
            .stdin(case.config.render());
        match &case.args {
            Some(args) => call.args(args),
            None => call,
        }
    }

    /// Runs ADD, then removes all it created.
    fn add(&mut self, by: Implementation, case: &Case) -> Answer {
        let answer = self.call(by, "ADD", case).run();
        if case.plugin == "bridge" {
            self.remove_all(by, case);
        }
        self.node.inside(|| {
            for directory in ["/var/lib/cni/networks", "/run/leases", "/run/work"] {
                let _ = std::fs::remove_dir_all(directory);
            }
            std::fs::create_dir("/run/work").unwrap();
        });
        answer
    }

    fn remove_all(&mut self, by: Implementation, case: &Case) {
        let del = self.call(by, "DEL", case).run();
        let links = self.node.run("ip -o link");
        let mut links = links.lines().filter_map(|line| line.split(": ").nth(1));
        let bridges: Vec<String> = links
            .by_ref()
            .filter(|name| *name != "lo")
            .map(|name| name.split('@').next().unwrap().to_owned())
            .collect();
        for bridge in &bridges {
            self.node.try_run(&format!("ip link del {bridge}"));
        }
        // After a failed DEL the state of the node is unknown: start with a new one.
        if del.code != Some(0) || self.pod.link("eth0").is_some() {
            let is_old = self.is_old;
            *self = Fixture {
                is_old,
                ..Fixture::new()
            };
        }
    }

    /// Compares the results of both implementations if the Go plugin succeeds.
    fn difference(&mut self, case: &Case) -> Outcome {
        let go = self.add(Go, case);
        if go.code != Some(0) {
            return Outcome::Rejected;
        }
        let gangplank = self.add(Gangplank, case);
        if gangplank.code != Some(0) {
            let message = gangplank
                .stdout
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            let is_known = |(error, _): &&(&str, &str)| message.contains(error);
            let is_unchecked_by_go =
                self.is_old && UNCHECKED_BY_OLD_GO.iter().any(|key| message.contains(key));
            return match REJECTED_BY_GANGPLANK.iter().any(|known| is_known(&known))
                || is_unchecked_by_go
            {
                true => Outcome::KnownException,
                false => Outcome::Differs(message),
            };
        }
        let (go, gangplank) = (self.comparable(&go.ok(), None), {
            let go = go.ok();
            self.comparable(&gangplank.ok(), Some(&go))
        });
        match go == gangplank {
            true => Outcome::Same,
            false if has_network_or_broadcast_address(&go) || has_gateway(&go) => {
                Outcome::KnownException
            }
            false => Outcome::Differs(format!("{gangplank} instead of {go}")),
        }
    }

    /// A result without random values, without the items taken from prevResult, and without the keys that old Go
    /// plugins do not know.
    fn comparable(&self, result: &Value, go: Option<&Value>) -> Value {
        let mut result = result.clone();
        round_numbers(&mut result);
        if let Some(go) = go {
            remove_previous(&mut result, go);
        }
        for (at, interface) in list(&mut result, "interfaces").iter_mut().enumerate() {
            interface["mac"] = "*".into();
            if at == 1 {
                interface["name"] = "*".into();
            }
        }
        if self.is_old {
            for route in list(&mut result, "routes") {
                for key in ["mtu", "advmss", "priority", "table", "scope"] {
                    route.as_object_mut().unwrap().remove(key);
                }
            }
            result.as_object_mut().unwrap().remove("dns");
        }
        result
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Rejected,
    Same,
    KnownException,
    Differs(String),
}

fn list<'v>(value: &'v mut Value, key: &str) -> &'v mut [Value] {
    value
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .map_or(&mut [], |list| list.as_mut_slice())
}

/// Converts numbers to floating point, as the Go library does when it converts a result to a newer version.
fn round_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => *value = number.as_f64().into(),
        Value::Array(items) => items.iter_mut().for_each(round_numbers),
        Value::Object(entries) => entries.values_mut().for_each(round_numbers),
        _ => {}
    }
}

/// Removes the items of prevResult, which come last in gangplank's lists: the Go plugin's ADD drops them.
fn remove_previous(gangplank: &mut Value, go: &Value) {
    let count = |value: &Value, key: &str| value[key].as_array().map_or(0, Vec::len);
    for key in ["interfaces", "ips", "routes"] {
        let own = count(go, key);
        if let Some(list) = gangplank.get_mut(key).and_then(Value::as_array_mut) {
            list.truncate(own);
            if list.is_empty() {
                gangplank.as_object_mut().unwrap().remove(key);
            }
        }
    }
}

/// Whether an address of a result is the gateway of another one. Gangplank does not allocate those.
fn has_gateway(result: &Value) -> bool {
    let ips = || result["ips"].as_array().into_iter().flatten();
    let gateways: Vec<&str> = ips().filter_map(|ip| ip["gateway"].as_str()).collect();
    ips().any(|ip| {
        let address = ip["address"].as_str().unwrap_or_default();
        gateways.contains(&address.split('/').next().unwrap())
    })
}

/// Whether an address of a result is the network or broadcast address of its subnet. Gangplank allocates those last.
fn has_network_or_broadcast_address(result: &Value) -> bool {
    let ips = result["ips"].as_array().into_iter().flatten();
    let of_lists = ips.filter_map(|ip| ip["address"].as_str());
    let of_blocks = ["ip4", "ip6"]
        .into_iter()
        .filter_map(|key| result[key]["ip"].as_str());
    let mut all = of_lists.chain(of_blocks);
    all.any(|cidr| {
        let network: ipnetwork::IpNetwork = cidr.parse().unwrap();
        let is_broadcast = network.is_ipv4() && network.ip() == network.broadcast();
        network.ip() == network.network() || is_broadcast
    })
}

/// The smallest case that still shows a difference.
fn minimize(fixture: &mut Fixture, case: &Case) -> (Case, String) {
    let mut smallest = case.clone();
    let Outcome::Differs(mut how) = fixture.difference(case) else {
        return (smallest, "not reproducible".to_owned());
    };
    'again: loop {
        let without_args = smallest.args.is_some().then(|| Case {
            args: None,
            ..smallest.clone()
        });
        let smaller = smallest
            .config
            .smaller()
            .into_iter()
            .map(|config: Json| Case {
                config,
                ..smallest.clone()
            });
        for smaller in without_args.into_iter().chain(smaller) {
            if let Outcome::Differs(still) = fixture.difference(&smaller) {
                (smallest, how) = (smaller, still);
                continue 'again;
            }
        }
        return (smallest, how);
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|e| panic!("{variable}: {e}"))
    })
}

/// Compares generated configurations. Returns how many were rejected, had the same result, and are known exceptions.
fn compare(plugins: &[&'static str], cases: usize) -> [usize; 3] {
    let seed = number("GANGPLANK_SEED", SEED);
    let next = AtomicUsize::new(0);
    let (counts, failures) = (Mutex::new([0; 3]), Mutex::new(Vec::new()));
    let work = || {
        let mut fixture = Fixture::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= cases || failures.lock().unwrap().len() >= 20 {
                return;
            }
            let mut random =
                TestRandom((seed ^ (at as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let case = generate::case(&mut random, plugins);
            let outcome = match fixture.difference(&case) {
                Outcome::Rejected => 0,
                Outcome::Same => 1,
                Outcome::KnownException => 2,
                Outcome::Differs(_) => {
                    let (smallest, how) = minimize(&mut fixture, &case);
                    let args = smallest.args.as_deref().unwrap_or_default();
                    let config = smallest.config.render();
                    let config: String = config.chars().take(600).collect();
                    failures.lock().unwrap().push(format!(
                        "{at}: {} {args:?} {config}\n    {how}",
                        case.plugin
                    ));
                    continue;
                }
            };
            counts.lock().unwrap()[outcome] += 1;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {cases} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
    counts.into_inner().unwrap()
}

fn compare_generated(plugins: &[&'static str], cases: usize) {
    let cases = number("GANGPLANK_CONFIGURATIONS", cases as u64) as usize;
    let [rejected, same, exceptions] = compare(plugins, cases);
    let directory = go_plugins();
    note(&format!(
        "{cases} configurations compared with {}, {plugins:?}: {rejected} rejected by the Go plugin, {same} with the same result, {exceptions} known exceptions",
        directory.display()
    ));
    // Otherwise the generator produces too few valid configurations.
    assert!(same * 6 >= cases, "only {same} of {cases} were accepted");
}

#[test]
fn the_migration_guide_lists_the_rejected_configurations() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/.github/docs/migration.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    for (_, phrase) in REJECTED_BY_GANGPLANK {
        assert!(guide.contains(phrase), "{phrase}");
    }
}

#[test]
fn host_local_accepts_what_the_go_plugin_accepts_with_the_same_result() {
    if !require(&["cni:host-local"]) {
        return;
    }
    compare_generated(&["host-local"], CASES);
}

#[test]
fn bridge_accepts_what_the_go_plugin_accepts_with_the_same_result() {
    if !require(&["cni:bridge", "cni:host-local", "iptables", "nft"]) {
        return;
    }
    compare_generated(&["bridge"], CASES / 5);
}
