//! Configurations that the Go plugins accept.
//!
//! Whatever they accept ours accept too, with the same result. Configurations are generated, each is given to the Go
//! plugin and to ours on one node, and where they differ, the smallest configuration that shows it is printed.

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
use crate::support::{Answer, Call, Node, Pod, go_plugins, require, say};
use document::Json;
use generate::Case;
use test_random::TestRandom;

/// How many configurations are tried; `GANGPLANK_CONFIGURATIONS` sets another number.
const CASES: usize = 1000;

/// The first number of the generator; `GANGPLANK_SEED` sets another one.
const SEED: u64 = 0x5eed;

/// What ours refuse though the Go plugins accept it: what the error says, and what the migration guide says of it.
const REFUSED: &[(&str, &str)] = &[
    (
        "dst is missing, but a route requires a destination",
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

/// Keys that Go plugins before cniVersion 1.1.0 do not have, so that they accept every value.
const YOUNG: &[&str] = &[
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

/// A node for configurations: what an ADD made there is removed before the next one.
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
            // A dataDir may be relative.
            .under("env -C /run/work")
            .stdin(case.config.render());
        match &case.args {
            Some(args) => call.args(args),
            None => call,
        }
    }

    /// The answer to an ADD, of which nothing is left.
    fn add(&mut self, by: Implementation, case: &Case) -> Answer {
        let answer = self.call(by, "ADD", case).run();
        if case.plugin == "bridge" {
            self.sweep(by, case);
        }
        self.node.inside(|| {
            for directory in ["/var/lib/cni/networks", "/run/leases", "/run/work"] {
                let _ = std::fs::remove_dir_all(directory);
            }
            std::fs::create_dir("/run/work").unwrap();
        });
        answer
    }

    fn sweep(&mut self, by: Implementation, case: &Case) {
        let undone = self.call(by, "DEL", case).run();
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
        // A DEL that failed has left who knows what.
        if undone.code != Some(0) || self.pod.link("eth0").is_some() {
            let is_old = self.is_old;
            *self = Fixture {
                is_old,
                ..Fixture::new()
            };
        }
    }

    /// How the answers differ where the Go plugin succeeds and ours should too.
    fn difference(&mut self, case: &Case) -> Outcome {
        let theirs = self.add(Go, case);
        if theirs.code != Some(0) {
            return Outcome::Refused;
        }
        let ours = self.add(Gangplank, case);
        if ours.code != Some(0) {
            let said = ours.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_known = |(error, _): &&(&str, &str)| said.contains(error);
            let is_young = self.is_old && YOUNG.iter().any(|key| said.contains(key));
            return match REFUSED.iter().any(|known| is_known(&known)) || is_young {
                true => Outcome::Excepted,
                false => Outcome::Differs(said),
            };
        }
        let (theirs, ours) = (self.comparable(&theirs.ok(), None), {
            let theirs = theirs.ok();
            self.comparable(&ours.ok(), Some(&theirs))
        });
        match theirs == ours {
            true => Outcome::Same,
            false if has_edge(&theirs) || has_gateway(&theirs) => Outcome::Excepted,
            false => Outcome::Differs(format!("{ours} instead of {theirs}")),
        }
    }

    /// A result without what is random, what the chain before is passed on of, and what old Go plugins do not have.
    fn comparable(&self, result: &Value, theirs: Option<&Value>) -> Value {
        let mut result = result.clone();
        rounded(&mut result);
        if let Some(theirs) = theirs {
            without_previous(&mut result, theirs);
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

/// What came of a case.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Refused,
    Same,
    Excepted,
    Differs(String),
}

fn list<'v>(value: &'v mut Value, key: &str) -> &'v mut [Value] {
    value
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .map_or(&mut [], |list| list.as_mut_slice())
}

/// Makes each number the nearest floating-point one: the Go library does so on the way to newer shapes of a result.
fn rounded(value: &mut Value) {
    match value {
        Value::Number(number) => *value = number.as_f64().into(),
        Value::Array(items) => items.iter_mut().for_each(rounded),
        Value::Object(entries) => entries.values_mut().for_each(rounded),
        _ => {}
    }
}

/// Takes what was in prevResult from the front of our result's lists: the Go plugin's ADD drops it.
fn without_previous(ours: &mut Value, theirs: &Value) {
    let count = |value: &Value, key: &str| value[key].as_array().map_or(0, Vec::len);
    let shift = count(ours, "interfaces").saturating_sub(count(theirs, "interfaces"));
    for key in ["interfaces", "ips", "routes"] {
        let extra = count(ours, key).saturating_sub(count(theirs, key));
        if let Some(list) = ours.get_mut(key).and_then(Value::as_array_mut) {
            list.drain(..extra);
            if list.is_empty() {
                ours.as_object_mut().unwrap().remove(key);
            }
        }
    }
    for ip in list(ours, "ips") {
        if let Some(index) = ip["interface"].as_f64() {
            ip["interface"] = (index - shift as f64).into();
        }
    }
}

/// Whether an address of a result is the gateway of another one: we do not give these.
fn has_gateway(result: &Value) -> bool {
    let ips = || result["ips"].as_array().into_iter().flatten();
    let gateways: Vec<&str> = ips().filter_map(|ip| ip["gateway"].as_str()).collect();
    ips().any(|ip| {
        let address = ip["address"].as_str().unwrap_or_default();
        gateways.contains(&address.split('/').next().unwrap())
    })
}

/// Whether an address of a result is the network or broadcast address of its subnet: we give these last.
fn has_edge(result: &Value) -> bool {
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

/// The smallest case that differs still.
fn minimised(fixture: &mut Fixture, case: &Case) -> (Case, String) {
    let mut smallest = case.clone();
    let Outcome::Differs(mut how) = fixture.difference(case) else {
        return (smallest, "it did not differ a second time".to_owned());
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

/// Tries generated configurations; the counts of what was refused, the same, excepted.
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
                Outcome::Refused => 0,
                Outcome::Same => 1,
                Outcome::Excepted => 2,
                Outcome::Differs(_) => {
                    let (smallest, how) = minimised(&mut fixture, &case);
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

fn compared(plugins: &[&'static str], cases: usize) {
    let cases = number("GANGPLANK_CONFIGURATIONS", cases as u64) as usize;
    let [refused, same, excepted] = compare(plugins, cases);
    let place = go_plugins();
    say(&format!(
        "{cases} configurations for {} and {plugins:?}: {refused} refused by both or by it alone, {same} the same, {excepted} excepted",
        place.display()
    ));
    // Else the generator makes what nobody uses.
    assert!(same * 6 >= cases, "only {same} of {cases} were accepted");
}

#[test]
fn the_migration_guide_lists_what_is_refused() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/.github/docs/migration.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    for (_, phrase) in REFUSED {
        assert!(guide.contains(phrase), "{phrase}");
    }
}

#[test]
fn what_the_go_plugin_host_local_accepts_ours_accepts_with_the_same_result() {
    if !require(&["cni:host-local"]) {
        return;
    }
    compared(&["host-local"], CASES);
}

#[test]
fn what_the_go_plugin_bridge_accepts_ours_accepts_with_the_same_result() {
    if !require(&["cni:bridge", "cni:host-local", "iptables", "nft"]) {
        return;
    }
    compared(&["bridge"], CASES / 5);
}
