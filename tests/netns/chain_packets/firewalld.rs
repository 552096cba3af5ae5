//! The backend firewalld of firewall, with a real firewalld.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::firewalld::{Firewalld, ready};
use crate::support::{
    Answer, Chain, Node, Pod, Protocol, require, skip_for_go, small_chain, testing_go,
};

/// The index of firewall in the chain.
const FIREWALL: usize = 2;

const ADDRESSES: [&str; 2] = ["10.77.0.2/32", "fd00:77::2/128"];

/// A node whose firewall plugin has the default backend.
struct Site {
    packages: PathBuf,
    node: Node,
}

impl Site {
    fn new() -> Option<Site> {
        requires_iptables().then_some(())?;
        Some(Site {
            packages: ready()?,
            node: Node::new("node"),
        })
    }

    fn firewalld(&self) -> Firewalld<'_> {
        let mut firewalld = Firewalld::bus(&self.node);
        firewalld.start(&self.packages);
        firewalld.wait_until_started();
        firewalld
    }

    fn chain(&self) -> Chain<'_> {
        self.node
            .chain(&small_chain())
            .with("firewall", "backend", Value::Null)
    }
}

fn requires_iptables() -> bool {
    require(&["iptables", "ip6tables", "cni:firewall"])
}

/// The result of the plugin bridge.
fn bridged(chain: &Chain, pod: &Pod) -> Value {
    chain.call(0, "ADD", &Value::Null).pod(pod).run().ok()
}

fn run(chain: &Chain, verb: &str, prev: &Value, pod: &Pod) -> Answer {
    chain.call(FIREWALL, verb, prev).pod(pod).run()
}

fn zones(firewalld: &Firewalld) -> [String; 2] {
    ADDRESSES.map(|address| firewalld.zone_of(address))
}

fn accepted(node: &Node) -> bool {
    node.run("iptables -S").contains("10.77.0.2/32")
}

#[test]
fn addresses_are_added_to_the_zone_and_removed_from_it() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    let (default, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&default, &pod);
    let configured = default.with("firewall", "backend", "firewalld").with(
        "firewall",
        "firewalldZone",
        "internal",
    );
    for (chain, zone) in [(default, "trusted"), (configured, "internal")] {
        // A repeated ADD succeeds.
        for _ in 0..2 {
            assert_eq!(run(&chain, "ADD", &result, &pod).ok(), result);
            assert_eq!(zones(&firewalld), [zone; 2]);
        }
        assert!(!accepted(&site.node));
        run(&chain, "CHECK", &result, &pod).ok();
        for _ in 0..2 {
            run(&chain, "DEL", &result, &pod).ok();
            assert_eq!(zones(&firewalld), [""; 2]);
        }
    }
}

#[test]
fn packets_of_the_zone_are_forwarded() {
    let Some(site) = Site::new() else { return };
    let _firewalld = site.firewalld();
    let chain = site.chain();
    let pods = ["a", "b"].map(|name| site.node.pod(name));
    let results = pods.each_ref().map(|pod| chain.add(pod));
    pods.iter().for_each(|pod| pod.wait_for_dad());
    let _server = site.node.serve(9000);
    for address in ["10.77.0.1:9000", "[fd00:77::1]:9000"] {
        let ask = |pod: &Pod| pod.asks(Protocol::Tcp, address, super::ANSWER);
        assert!(ask(&pods[0]).is_some(), "{address}");
    }
    // The node rejects packets of other zones, after DEL again.
    run(&chain, "DEL", &results[0], &pods[0]).ok();
    let refused = pods[0].asks(Protocol::Tcp, "10.77.0.1:9000", super::NO_ANSWER);
    assert_eq!(refused, None);
}

#[test]
fn ingress_policies_apply_with_a_firewalld_that_is_starting() {
    let Some(site) = Site::new() else { return };
    let mut firewalld = Firewalld::bus(&site.node);
    firewalld.start(&site.packages);
    let chain = site
        .chain()
        .with("firewall", "ingressPolicy", "same-bridge");
    let pod = site.node.pod("a");
    let result = bridged(&chain, &pod);
    run(&chain, "ADD", &result, &pod).ok();
    run(&chain, "CHECK", &result, &pod).ok();
    for program in ["iptables", "ip6tables"] {
        let rules = site.node.run(&format!("{program} -S"));
        assert!(rules.contains("-A CNI-ISOLATION-STAGE-2 -o br0"), "{rules}");
    }
    run(&chain, "DEL", &result, &pod).ok();
    if !testing_go() {
        assert!(!site.node.run("iptables -S").contains("CNI-ISOLATION"));
    }
}

#[test]
fn a_configured_firewalld_that_is_not_running_is_an_error() {
    let Some(site) = Site::new() else { return };
    let chain = site.chain().with("firewall", "backend", "firewalld");
    let pod = site.node.pod("a");
    let result = bridged(&chain, &pod);
    let error = run(&chain, "ADD", &result, &pod).error();
    assert!(error.msg.contains("/system_bus_socket"), "{}", error.msg);
    let _bus = Firewalld::bus(&site.node);
    let error = run(&chain, "ADD", &result, &pod).error();
    assert!(error.msg.contains("FirewallD1"), "{}", error.msg);
    if !skip_for_go("without a bus every verb fails") {
        run(&chain, "DEL", &result, &pod).ok();
    }
}

#[test]
fn status_reports_a_zone_that_does_not_exist() {
    if skip_for_go("it has no STATUS") {
        return;
    }
    let Some(site) = Site::new() else { return };
    let _firewalld = site.firewalld();
    let status = |zone: &str| {
        let chain = site.chain().version("1.1.0");
        let config = chain
            .with("firewall", "firewalldZone", zone)
            .config(FIREWALL);
        site.node
            .cni("firewall")
            .verb("STATUS")
            .config(&config)
            .run()
    };
    status("internal").ok();
    let error = status("nowhere").error();
    assert_eq!(error.code, 50);
    assert!(error.msg.contains("INVALID_ZONE: nowhere"), "{}", error.msg);
}

#[test]
fn a_message_bus_that_hangs_is_a_temporary_error() {
    if skip_for_go("it waits for ever") {
        return;
    }
    let Some(site) = Site::new() else { return };
    let bus = Firewalld::bus(&site.node);
    let chain = site.chain().with("firewall", "backend", "firewalld");
    let pod = site.node.pod("a");
    let result = bridged(&chain, &pod);
    bus.hang();
    let start = Instant::now();
    let error = run(&chain, "ADD", &result, &pod).error();
    assert_eq!(error.code, 11, "{}", error.msg);
    assert!(start.elapsed() < Duration::from_secs(9));
}

#[test]
fn iptables_is_the_default_while_firewalld_does_not_run() {
    let Some(site) = Site::new() else { return };
    let mut firewalld = Firewalld::bus(&site.node);
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&chain, &pod);
    run(&chain, "ADD", &result, &pod).ok();
    assert!(accepted(&site.node));
    run(&chain, "DEL", &result, &pod).ok();
    assert!(!accepted(&site.node));
    firewalld.start(&site.packages);
    run(&chain, "ADD", &result, &pod).ok();
    assert_eq!(zones(&firewalld), ["trusted"; 2]);
}

/// FD11. firewalld answers ZONE_CONFLICT, which the Go plugin reports too, without the name of the zone.
#[test]
fn an_address_of_another_zone_is_an_error_that_names_it() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    firewalld.zone_call("addSource string:drop string:fd00:77::2/128");
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&chain, &pod);
    let error = run(&chain, "ADD", &result, &pod).error();
    assert!(error.msg.contains("fd00:77::2"), "{}", error.msg);
    if !testing_go() {
        assert!(error.details.contains("zone drop"), "{}", error.details);
        // Nothing remains of the failed ADD.
        assert_eq!(zones(&firewalld), ["", "drop"]);
    }
    run(&chain, "DEL", &result, &pod).ok();
    assert_eq!(zones(&firewalld), ["", "drop"]);
}

/// FD10.
#[test]
fn check_reports_an_address_that_the_zone_lost() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&chain, &pod);
    run(&chain, "ADD", &result, &pod).ok();
    firewalld.zone_call("removeSource string:trusted string:10.77.0.2/32");
    let check = run(&chain, "CHECK", &result, &pod);
    if testing_go() {
        check.ok();
        return;
    }
    let message = check.error().msg;
    let lost = "10.77.0.2 is not in the firewalld zone trusted";
    assert!(message.contains(lost), "{message}");
}

/// FD15.
#[test]
fn del_removes_what_another_backend_added() {
    let Some(site) = Site::new() else { return };
    let mut firewalld = site.firewalld();
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let iptables = chain.with("firewall", "backend", "iptables");
    let result = bridged(&chain, &pod);

    run(&iptables, "ADD", &result, &pod).ok();
    assert_eq!(
        (accepted(&site.node), zones(&firewalld)),
        (true, Default::default())
    );
    run(&chain, "DEL", &result, &pod).ok();
    assert_eq!(accepted(&site.node), testing_go());

    run(&chain, "ADD", &result, &pod).ok();
    assert_eq!(zones(&firewalld), ["trusted"; 2]);
    run(&iptables, "DEL", &result, &pod).ok();
    let zone = if testing_go() { "trusted" } else { "" };
    assert_eq!(zones(&firewalld), [zone; 2]);

    run(&chain, "ADD", &result, &pod).ok();
    firewalld.stop();
    run(&chain, "DEL", &result, &pod).ok();
}

/// FD2.
#[test]
fn del_without_prev_result_removes_addresses_from_the_zone() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&chain, &pod);
    run(&chain, "ADD", &result, &pod).ok();
    run(&chain, "DEL", &Value::Null, &pod).ok();
    let zone = if testing_go() { "trusted" } else { "" };
    assert_eq!(zones(&firewalld), [zone; 2]);
}

/// FD3.
#[test]
fn a_late_del_keeps_the_next_owner_of_the_address_in_the_zone() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    let (chain, pods) = (site.chain(), ["a", "b"].map(|name| site.node.pod(name)));
    let result = bridged(&chain, &pods[0]);
    for pod in &pods {
        run(&chain, "ADD", &result, pod).ok();
    }
    run(&chain, "DEL", &result, &pods[0]).ok();
    let zone = if testing_go() { "" } else { "trusted" };
    assert_eq!(zones(&firewalld), [zone; 2]);
    run(&chain, "DEL", &result, &pods[1]).ok();
    assert_eq!(zones(&firewalld), [""; 2]);
}

#[test]
fn gc_removes_addresses_of_stale_attachments_from_the_zone() {
    if skip_for_go("it has no GC") {
        return;
    }
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    let (chain, pods) = (
        site.chain().version("1.1.0"),
        ["a", "b"].map(|name| site.node.pod(name)),
    );
    for pod in &pods {
        run(&chain, "ADD", &bridged(&chain, pod), pod).ok();
    }
    let mut config = chain.config(FIREWALL);
    config["cni.dev/valid-attachments"] =
        json!([{ "containerID": pods[1].id(), "ifname": "eth0" }]);
    site.node
        .cni("firewall")
        .verb("GC")
        .config(&config)
        .run()
        .ok();
    assert_eq!(zones(&firewalld), [""; 2]);
    assert_eq!(firewalld.zone_of("10.77.0.3/32"), "trusted");
}

#[test]
fn the_bus_address_is_that_of_the_environment() {
    let Some(site) = Site::new() else { return };
    let firewalld = site.firewalld();
    site.node
        .run("mv /run/dbus/system_bus_socket /run/dbus/else%where");
    let (chain, pod) = (site.chain(), site.node.pod("a"));
    let result = bridged(&chain, &pod);
    let address = "unix:path=/nowhere;unix:path=/run/dbus/else%25where";
    let call = chain.call(FIREWALL, "ADD", &result).pod(&pod);
    call.env("DBUS_SYSTEM_BUS_ADDRESS", address).run().ok();
    site.node
        .run("mv /run/dbus/else%where /run/dbus/system_bus_socket");
    assert_eq!(zones(&firewalld), ["trusted"; 2]);
}
