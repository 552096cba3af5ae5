//! Both implementations concurrently in one lease directory: no address is assigned twice, and released addresses are
//! reused last.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{IPTABLES, Implementation, node, ready, remains};
use crate::support::{Pod, leases, small_network};

/// Concurrent containers per implementation.
const CONTAINERS: usize = 20;

/// The container of each assigned address, from the answer of ADD until DEL is called.
#[derive(Default)]
struct Holders {
    current: Mutex<BTreeMap<String, String>>,
    all: Mutex<Vec<Ipv4Addr>>,
}

impl Holders {
    fn assign(&self, container: &str, result: &Value) {
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap();
            let mut current = self.current.lock().unwrap();
            if let Some(other) = current.insert(address.to_owned(), container.to_owned()) {
                panic!("{address} was assigned to {container} and {other}");
            }
            let address = address.split('/').next().unwrap();
            self.all.lock().unwrap().extend(address.parse::<Ipv4Addr>());
        }
    }

    fn release(&self, container: &str) {
        let mut current = self.current.lock().unwrap();
        current.retain(|_, holder| holder != container);
    }

    /// All assigned IPv4 addresses, sorted.
    fn assigned(self) -> Vec<Ipv4Addr> {
        let mut assigned = self.all.into_inner().unwrap();
        assigned.sort();
        assigned
    }
}

fn config() -> Value {
    let mut config = small_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd77::/64" }]]);
    config
}

/// Runs `work` concurrently for the containers of both implementations.
fn at_once(work: &(dyn Fn(Implementation, &str) + Sync)) {
    std::thread::scope(|scope| {
        for n in 0..CONTAINERS {
            for (implementation, letter) in [(Gangplank, 'o'), (Go, 'r')] {
                scope.spawn(move || work(implementation, &format!("{letter}{n}")));
            }
        }
    });
}

fn assert_no_reuse(assigned: &[Ipv4Addr]) {
    let first = u32::from(Ipv4Addr::new(10, 77, 0, 2));
    let count = u32::try_from(assigned.len()).unwrap();
    let round: Vec<Ipv4Addr> = (first..first + count).map(Ipv4Addr::from).collect();
    assert_eq!(assigned, round, "released addresses are reused last");
}

fn other(implementation: Implementation) -> Implementation {
    if implementation == Gangplank {
        Go
    } else {
        Gangplank
    }
}

#[test]
fn twenty_concurrent_host_local_calls_of_each_implementation_never_share_an_address() {
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
    at_once(&|implementation, container| {
        for round in 0..3 {
            holders.assign(container, &call(implementation, "ADD", container));
            if round < 2 {
                holders.release(container);
                call(other(implementation), "DEL", container);
            }
        }
    });
    assert_no_reuse(&holders.assigned());
    assert_eq!(leases(&node, "small").len(), 2 * 2 * CONTAINERS);
    at_once(&|implementation, container| drop(call(other(implementation), "DEL", container)));
    assert_eq!(leases(&node, "small"), [] as [IpAddr; 0]);
}

#[test]
fn twenty_concurrent_bridge_calls_of_each_implementation_never_share_an_address() {
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
    at_once(&|implementation, container| {
        let pod = node.pod(container);
        for round in 0..2 {
            holders.assign(container, &call(implementation, "ADD", &pod));
            holders.release(container);
            let by = if round == 0 {
                implementation
            } else {
                other(implementation)
            };
            call(by, "DEL", &pod);
        }
    });
    assert_no_reuse(&holders.assigned());
    assert_eq!(remains(&node, "small", "br0"), [""; 0]);
}
