//! Mappings of portmap that packets do not reach, or that affect other packets.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::chained::{LIMIT, Site, compare, tcp};
use crate::implementation::Implementation;
use crate::implementation::ready_for_chains;
use crate::support::{Pod, Protocol};

const BACKENDS: [&str; 2] = ["iptables", "nftables"];
fn udp(host: u16) -> Value {
    json!([{ "hostPort": host, "containerPort": 9000, "protocol": "udp" }])
}

#[test]
fn pd1_conditions_apply_to_their_own_network_only() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let site = Site::new(implementation, &go);
        let chain = site.fixture.chain("nftables");
        let pods = ["a", "b"].map(|name| site.pod(name));
        chain.with_ports(tcp(8080)).add(&pods[0]);
        let conditions = json!(["ip", "saddr", "192.0.2.9"]);
        let conditional = chain
            .named("other")
            .with("bridge", "bridge", "br1")
            .with(
                "bridge",
                "ipam",
                json!({ "type": "host-local", "subnet": "10.88.0.0/24" }),
            )
            .with("portmap", "conditionsV4", conditions);
        conditional.with_ports(tcp(8081)).add(&pods[1]);
        let _servers = pods.each_ref().map(|pod| pod.serve(9000));
        [site.reaches(8080), site.reaches(8081)]
    };
    compare(scenario, [true, false], [false, false]);
}

#[test]
fn pd4_rules_of_an_earlier_address_are_replaced() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            let pod = site.pod("a");
            let chain = site.fixture.chain(backend).with_ports(tcp(8080));
            let result = chain.call(0, "ADD", &Value::Null).pod(&pod).run().ok();
            let mut earlier = result.clone();
            earlier["ips"][0]["address"] = "10.77.0.77/24".into();
            for prev in [&earlier, &result] {
                chain.call(1, "ADD", prev).pod(&pod).run().ok();
            }
            let _server = pod.serve(9000);
            site.reaches(8080)
        };
        compare(scenario, true, false);
    }
}

#[test]
fn pd6_del_ends_flows_of_udp() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            let pod = site.pod("a");
            let chain = site.fixture.chain(backend).with_ports(udp(5353));
            let result = chain.add(&pod);
            let _server = pod.serve(9000);
            let client = site.outside.udp_client("172.18.0.5:5353".parse().unwrap());
            let client = client.unwrap();
            client.ask(Duration::from_secs(3)).unwrap();
            chain.call(1, "DEL", &result).pod(&pod).run().ok();
            client.ask(LIMIT).is_ok()
        };
        compare(scenario, false, true);
    }
}

#[test]
fn pd6_add_keeps_flows_of_udp_to_other_addresses() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            let _server = site.fixture.node.serve(5353);
            let client = site.outside.udp_client("172.18.0.5:5353".parse().unwrap());
            let client = client.unwrap();
            // Only a flow whose conntrack entry exists is accepted from now on.
            site.fixture
                .node
                .run("iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT");
            client.ask(Duration::from_secs(3)).unwrap();
            site.fixture.node.run("iptables -A INPUT -p udp -j DROP");
            client.ask(Duration::from_secs(3)).unwrap();
            let mut mappings = udp(5353);
            mappings[0]["hostIP"] = "172.18.0.6".into();
            let chain = site.fixture.chain(backend).with_ports(mappings);
            chain.add(&site.pod("a"));
            client.ask(LIMIT).is_ok()
        };
        compare(scenario, true, false);
    }
}

#[test]
fn pd6_add_ends_flows_of_udp_to_the_mapped_port() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    // A client that sent packets before the ADD reaches the pod after it, with both implementations.
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            site.fixture.node.run("iptables -A INPUT -p udp -j DROP");
            let client = site.outside.udp_client("172.18.0.5:5353".parse().unwrap());
            let client = client.unwrap();
            client.ask(Duration::from_millis(100)).unwrap_err();
            site.fixture.node.run("iptables -D INPUT -p udp -j DROP");
            // The answer, an ICMP error, keeps the entry.
            client.ask(LIMIT).unwrap_err();
            let pod = site.pod("a");
            site.fixture.chain(backend).with_ports(udp(5353)).add(&pod);
            let _server = pod.serve(9000);
            client.ask(Duration::from_secs(3)).is_ok()
        };
        compare(scenario, true, true);
    }
}

/// Whether a pod reaches port 7000 of the node's loopback address.
fn reaches_loopback_of_node(pod: &Pod) -> bool {
    pod.run_all(
        "sysctl -qw net.ipv4.conf.eth0.route_localnet=1\nip route replace 127.0.0.1/32 via 10.77.0.1",
    );
    pod.asks(Protocol::Tcp, "127.0.0.1:7000", LIMIT).is_some()
}

#[test]
fn pd9_pods_do_not_reach_the_loopback_address_of_the_node() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    for backend in BACKENDS {
        let scenario = |implementation: Implementation| {
            let site = Site::new(implementation, &go);
            let pod = site.pod("a");
            let chain = site.fixture.chain(backend).with_ports(tcp(8080));
            let result = chain.add(&pod);
            let _server = site.fixture.node.serve(7000);
            let is_reached = reaches_loopback_of_node(&pod);
            chain.call(1, "DEL", &result).pod(&pod).run().ok();
            let sysctl = site
                .fixture
                .node
                .read("/proc/sys/net/ipv4/conf/br0/route_localnet");
            (is_reached, sysctl.trim().to_owned())
        };
        compare(scenario, (false, "0".into()), (true, "1".into()));
    }
}

#[test]
fn pd9_route_localnet_is_not_set_for_mappings_that_cannot_use_it() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let site = Site::new(implementation, &go);
        let mut mappings = tcp(8080);
        mappings[0]["hostIP"] = "172.18.0.6".into();
        site.fixture
            .chain("iptables")
            .with_ports(mappings)
            .add(&site.pod("a"));
        let sysctl = site
            .fixture
            .node
            .read("/proc/sys/net/ipv4/conf/br0/route_localnet");
        sysctl.trim().to_owned()
    };
    compare(scenario, "0".into(), "1".into());
}

/// Two pods on one bridge, both with mapped ports. The second ADD comes after `between`.
fn neighbours(
    implementation: Implementation,
    go: &Path,
    between: &str,
    second_keys: &[(&str, Value)],
) -> (Site, [Pod; 2]) {
    let site = Site::new(implementation, go);
    let pods = ["a", "b"].map(|name| site.pod(name));
    let mut chain = site.fixture.chain("iptables");
    chain.with_ports(tcp(8080)).add(&pods[0]);
    site.fixture.node.run_all(between);
    for (key, value) in second_keys {
        chain = chain.with("portmap", key, value.clone());
    }
    chain.with_ports(tcp(8081)).add(&pods[1]);
    (site, pods)
}

#[test]
fn pd18_packets_get_the_mark_of_their_own_network() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let keys = [("markMasqBit", json!(14))];
        let (site, pods) = neighbours(implementation, &go, "", &keys);
        let node = &site.fixture.node;
        node.run("iptables -t mangle -A POSTROUTING -m mark --mark 0x6000/0x6000 -j RETURN");
        let _servers = pods.each_ref().map(|pod| pod.serve(9000));
        // From the neighbour, so that it is masqueraded.
        for (client, port) in [(&pods[1], 8080), (&pods[0], 8081)] {
            let to = format!("172.18.0.5:{port}");
            assert!(client.asks(Protocol::Tcp, &to, LIMIT).is_some(), "{to}");
        }
        let counters = node.run("iptables -t mangle -vnxL POSTROUTING");
        let rule = counters
            .lines()
            .find(|line| line.contains("0x6000"))
            .unwrap();
        rule.split_whitespace().next() == Some("0")
    };
    compare(scenario, true, false);
}

/// Answers between ports of a bridge bypass the node's NAT, as on nodes without the module br_netfilter.
fn without_br_netfilter(site: &Site) {
    let file = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if site.fixture.node.inside(|| std::fs::exists(file).unwrap()) {
        site.fixture.node.write(file, "0");
    }
}

#[test]
fn pd19_the_masquerade_rules_are_moved_in_front_of_others() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let scenario = |implementation: Implementation| {
        let accept = "iptables -t nat -I POSTROUTING 1 -s 10.77.0.0/24 -j ACCEPT";
        let (site, pods) = neighbours(implementation, &go, accept, &[]);
        without_br_netfilter(&site);
        let _server = pods[1].serve(9000);
        pods[0]
            .asks(Protocol::Tcp, "172.18.0.5:8081", LIMIT)
            .is_some()
    };
    compare(scenario, true, false);
}
