//! Both parties at work in one directory of leases at the same time: no address is given twice, and the round goes on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{IPTABLES, Implementation, node, ready, remains};
use crate::support::{Pod, leases, small_network};

/// How many containers each party serves at the same time.
const EACH: usize = 20;

/// Who holds which address, as the containers see it: from the answer of ADD until DEL is called.
#[derive(Default)]
struct Holders {
    now: Mutex<BTreeMap<String, String>>,
    all: Mutex<Vec<Ipv4Addr>>,
}

impl Holders {
    fn takes(&self, container: &str, result: &Value) {
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap();
            let mut now = self.now.lock().unwrap();
            if let Some(other) = now.insert(address.to_owned(), container.to_owned()) {
                panic!("{address} was given to {container} while {other} had it");
            }
            let address = address.split('/').next().unwrap();
            self.all.lock().unwrap().extend(address.parse::<Ipv4Addr>());
        }
    }

    fn gives_back(&self, container: &str) {
        let mut now = self.now.lock().unwrap();
        now.retain(|_, holder| holder != container);
    }

    /// All IPv4 addresses that were given, in order.
    fn given(self) -> Vec<Ipv4Addr> {
        let mut given = self.all.into_inner().unwrap();
        given.sort();
        given
    }
}

fn config() -> Value {
    let mut config = small_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd77::/64" }]]);
    config
}

/// Runs both parties' work at the same time, each for its containers.
fn at_once(work: &(dyn Fn(Implementation, &str) + Sync)) {
    std::thread::scope(|scope| {
        for n in 0..EACH {
            for (party, letter) in [(Gangplank, 'o'), (Go, 'r')] {
                scope.spawn(move || work(party, &format!("{letter}{n}")));
            }
        }
    });
}

fn is_the_round(given: &[Ipv4Addr]) {
    let first = u32::from(Ipv4Addr::new(10, 77, 0, 2));
    let count = u32::try_from(given.len()).unwrap();
    let round: Vec<Ipv4Addr> = (first..first + count).map(Ipv4Addr::from).collect();
    assert_eq!(given, round, "an address that came back waits for its turn");
}

fn other(party: Implementation) -> Implementation {
    if party == Gangplank { Go } else { Gangplank }
}

#[test]
fn twenty_processes_of_each_party_with_dels_in_between_never_share_an_address() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    let holders = Holders::default();
    let call = |by: Implementation, verb: &str, container: &str| {
        let call = by.call(&node, "host-local").config(&config());
        let call = call.verb(verb).container(container).ifname("eth0");
        call.netns("/run/netns/none").run().ok()
    };
    at_once(&|party, container| {
        for round in 0..3 {
            holders.takes(container, &call(party, "ADD", container));
            if round < 2 {
                holders.gives_back(container);
                call(other(party), "DEL", container);
            }
        }
    });
    is_the_round(&holders.given());
    assert_eq!(leases(&node, "small").len(), 2 * 2 * EACH);
    at_once(&|party, container| drop(call(other(party), "DEL", container)));
    assert_eq!(leases(&node, "small"), [] as [IpAddr; 0]);
}

#[test]
fn twenty_bridges_of_each_party_with_dels_in_between_never_share_an_address() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    let mut config = config();
    config["ipMasq"] = true.into();
    let holders = Holders::default();
    let call = |by: Implementation, verb: &str, pod: &Pod| {
        let call = by.call_for(&node, &config).verb(verb);
        call.pod(pod).run().ok()
    };
    at_once(&|party, container| {
        let pod = node.pod(container);
        for round in 0..2 {
            holders.takes(container, &call(party, "ADD", &pod));
            holders.gives_back(container);
            let leaver = if round == 0 { party } else { other(party) };
            call(leaver, "DEL", &pod);
        }
    });
    is_the_round(&holders.given());
    assert_eq!(remains(&node, "small", "br0"), [""; 0]);
}
