//! Baseline: the netlink requests of an attachment with a gateway, from one process.
//! It has no parsing, no IPAM, no checks and no undo. The benchmark executes itself for it, so that whole processes are
//! compared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gangplank::kernel::netlink::{Detection, Netlink, NewVeth, PortFlags, SubnetRoute};
use gangplank::kernel::netns::{Netns, OwnNetns};
use gangplank::net::{IfName, Route};

use crate::support::Pod;
use crate::timed::Call;

/// The environment variable with the verb, which makes this program run the baseline.
pub const VERB_VARIABLE: &str = "BASELINE_VERB";

/// The call that runs the requests of a verb for a pod.
pub fn command(verb: &str, pod: &Pod, index: usize) -> Call {
    let address = format!("10.64.{}.{}/16", 1 + index / 250, 1 + index % 250);
    Call {
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
        env: BTreeMap::from([
            (VERB_VARIABLE, verb.to_owned()),
            ("NETNS", pod.path.clone()),
            ("HOST", format!("base{index}")),
            ("ADDRESS", address),
        ]),
        stdin: String::new(),
    }
}

/// Runs the requests of a verb, with parameters from the environment.
pub fn run(verb: &str) {
    let var = |name| std::env::var(name).unwrap_or_default();
    let host_end: IfName = var("HOST").parse().expect("a name");
    let host = Netlink::open().expect("a socket");
    if verb == "DEL" {
        return host.delete_link(&host_end).expect("delete link");
    }
    let name = |text: &str| text.parse::<IfName>().expect("a name");
    let netns = Netns::open(var("NETNS"), OwnNetns::Refused).expect("a namespace");
    let pod = Netlink::open_in(&netns).expect("a socket");
    let bridge = host
        .link(&name("bench0"))
        .expect("an answer")
        .expect("a bridge");
    let veth = NewVeth {
        port: &host_end,
        bridge: Some(bridge.index),
        end: &name("eth0"),
        mac: "0a:58:0a:40:00:02".parse().expect("a MAC address"),
        mtu: None,
    };
    host.create_veth(&veth, Some(&netns)).expect("a pair");
    host.start_link(&host_end, Some(PortFlags::default()), "baseline")
        .expect("a port");
    let pair = host.link(&host_end).expect("an answer").expect("a pair");
    let container = pair.peer.expect("the other end");
    let address = var("ADDRESS").parse().expect("an address");
    pod.add_address(container, address, (Detection::Skipped, SubnetRoute::Added))
        .expect("the address");
    pod.set_up(container).expect("up");
    let default = Route::new(
        "0.0.0.0/0".parse().expect("a prefix"),
        "10.64.0.1".parse().ok(),
    );
    pod.add_route(container, &default).expect("the route");
    host.link(&host_end).expect("an answer");
}
