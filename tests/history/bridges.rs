//! Bridges, links and addresses that an administrator or another tool created.

use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
    sendmsg, socket,
};
use serde_json::{Value, json};

use crate::implementation::{Attachment, BOTH, Implementation, node, ready};
use crate::support::{Node, Pod, connect, requires, skip_for_go, small_network};

/// A bridge without addresses: no gateway, no IPAM.
fn layer_2() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br0" })
}

fn attach<'n>(node: &'n Node, pod: &'n Pod, config: &Value, by: Implementation) -> Attachment<'n> {
    let mut attachment = Attachment::new(node, pod, config);
    attachment.try_add(by).ok();
    attachment
}

fn mac(node: &Node, link: &str) -> String {
    node.link(link).unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn host_link(attachment: &Attachment) -> String {
    crate::support::Network::host_link(&attachment.result)
}

/// Sends a router advertisement from a pod (RFC 4861, section 4.2): a default router for half an hour.
fn advertise(pod: &Pod) {
    // The source is the link-local address, which is assigned once there is a carrier.
    let has_address = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        let usable = pod.run("ip -6 addr show dev eth0 scope link -tentative");
        usable.contains("fe80:")
    });
    assert!(has_address, "{}", pod.run("ip addr"));
    pod.inside(|| {
        let link = if_nametoindex("eth0").unwrap();
        let flags = SockFlag::empty();
        let raw = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            flags,
            SockProtocol::IcmpV6,
        )
        .unwrap();
        // Type, code, checksum (computed by the kernel), hop limit, flags, lifetime in seconds, reachable time,
        // retransmission timer.
        let mut packet = [0; 16];
        packet[0] = 134;
        packet[4] = 64;
        packet[6..8].copy_from_slice(&1800_u16.to_be_bytes());
        let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
        let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, link));
        let hops = [ControlMessage::Ipv6HopLimit(&255)];
        let packet = [IoSlice::new(&packet)];
        sendmsg(
            raw.as_raw_fd(),
            &packet,
            &hops,
            MsgFlags::empty(),
            Some(&to),
        )
        .unwrap();
    });
}

/// Whether the host gets an IPv6 default route within a second.
fn has_default_route(node: &Node) -> bool {
    (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !node.run("ip -6 route show default").is_empty()
    })
}

#[test]
fn the_host_ignores_router_advertisements_of_pods_on_an_existing_bridge() {
    if !ready(&[]) {
        return;
    }
    for by in BOTH {
        for accepted in [1, 2] {
            let node = node();
            node.run_all(&format!(
                "ip link add br0 type bridge\nsysctl -qw net.ipv6.conf.br0.accept_ra={accepted}\nip link set br0 up"
            ));
            let pod = node.pod("a");
            let attached = attach(&node, &pod, &small_network(), by);
            advertise(&pod);
            assert!(!has_default_route(&node), "{by:?} {accepted}");
            let port = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", host_link(&attached));
            assert_eq!(node.read(&port), "0\n", "{by:?}");
            // With accept_ra=1 the same advertisement adds a route.
            node.run("sysctl -qw net.ipv6.conf.br0.accept_ra=1");
            advertise(&pod);
            assert!(has_default_route(&node));
        }
    }
}

#[test]
fn every_add_disables_accept_ra_on_the_bridge() {
    if !ready(&[]) {
        return;
    }
    for by in BOTH {
        let node = node();
        let (a, b) = (node.pod("a"), node.pod("b"));
        attach(&node, &a, &small_network(), by);
        // The state after `sysctl --system`, or after an ADD that was killed before it wrote the parameter.
        node.run("sysctl -qw net.ipv6.conf.br0.accept_ra=1");
        attach(&node, &b, &small_network(), by);
        advertise(&a);
        assert!(!has_default_route(&node), "{by:?}");
    }
}

#[test]
fn accept_ra_is_disabled_on_a_bridge_given_by_its_alternative_name() {
    requires!();
    if skip_for_go("it writes to the parameter of the alternative name, which does not exist") {
        return;
    }
    let node = Node::new("node");
    node.run_all(
        "ip link add lan type bridge\nip link property add dev lan altname br0\nip link set lan up",
    );
    let pod = node.pod("a");
    node.network(small_network()).add(&pod);
    advertise(&pod);
    assert!(!has_default_route(&node));
    assert_eq!(node.addresses("lan"), ["10.77.0.1/24"]);
}

/// Pings an address every 20 ms while `work` runs. Returns the number of echo requests without a reply.
fn pings_lost_while(from: &Pod, address: &str, work: impl FnOnce() + Send) -> u64 {
    let ping = format!("ping -n -i 0.02 -W 1 -w 60 {address}");
    let ping_process = from.inside(|| {
        crate::support::command(&ping)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    std::thread::sleep(Duration::from_millis(200));
    work();
    std::thread::sleep(Duration::from_millis(200));
    let id = ping_process.id();
    from.run(&format!("kill -INT {id}"));
    let output = ping_process.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let summary = text
        .lines()
        .find(|line| line.contains("packets transmitted"));
    let summary = summary.unwrap_or_else(|| panic!("{text}"));
    let mut numbers = summary
        .split_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    let (sent, received) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(sent > 20, "{summary}");
    // The last request may still be in flight.
    (sent - received).saturating_sub(1)
}

/// Adds fourteen pods and deletes them in another order. Checks the bridge's MAC address after each step.
fn bridge_mac_stays(node: &Node, config: &Value, by: Implementation, expected: &str) {
    let pods: Vec<Pod> = (0..14).map(|at| node.pod(&format!("pod{at}"))).collect();
    let mut attachments: Vec<Attachment> = Vec::new();
    for pod in &pods {
        attachments.push(attach(node, pod, config, by));
        assert_eq!(
            mac(node, "br0"),
            expected,
            "{by:?} after the ADD of {}",
            pod.id()
        );
    }
    for at in [3, 0, 7, 13, 1, 2, 12, 4, 5, 6, 8, 9, 10, 11] {
        attachments[at].del(by).ok();
        assert_eq!(
            mac(node, "br0"),
            expected,
            "{by:?} after the DEL of pod{at}"
        );
    }
}

#[test]
fn an_existing_bridge_keeps_its_mac_address_and_pods_reach_the_gateway_without_interruption() {
    if !ready(&["ping"]) {
        return;
    }
    for by in BOTH {
        for bridge in [
            "ip link add br0 type bridge",
            "ip link add br0 type bridge\nip link set br0 up",
            "ip link add br0 type bridge stp_state 0\nip link set br0 address 02:00:00:00:00:99",
        ] {
            let node = node();
            node.run_all(bridge);
            let expected = mac(&node, "br0");
            let watcher = node.pod("watcher");
            attach(&node, &watcher, &small_network(), by);
            let work = || bridge_mac_stays(&node, &small_network(), by, &expected);
            assert_eq!(
                pings_lost_while(&watcher, "10.77.0.1", work),
                0,
                "{by:?}: {bridge}"
            );
        }
    }
}

#[test]
fn a_flat_layer_2_bridge_keeps_the_mac_address_of_its_uplink() {
    requires!("ping");
    if skip_for_go("without a gateway the MAC address of the bridge changes with its ports") {
        return;
    }
    let (node, outside) = (Node::new("node"), Node::new("outside"));
    connect(&node, "up0", &outside, "eth0");
    // A bridge without a fixed address takes the lowest MAC address of its ports, so each new port would change it.
    node.run_all("ip link set up0 address fe:ff:ff:ff:ff:01\nip link add br0 type bridge\nip link set up0 master br0\nip addr add 192.0.2.1/24 dev br0\nip link set br0 up");
    outside.run("ip addr add 192.0.2.2/24 dev eth0");
    outside.reaches("192.0.2.1");
    bridge_mac_stays(
        &node,
        &layer_2(),
        Implementation::Gangplank,
        "fe:ff:ff:ff:ff:01",
    );
    outside.reaches("192.0.2.1");
}

#[test]
fn a_bridge_that_lost_all_ports_gets_a_mac_address_and_keeps_it() {
    requires!();
    if skip_for_go("it sets the all-zero address that the kernel reports") {
        return;
    }
    let node = Node::new("node");
    node.run_all("ip link add br0 type bridge\nip link add x0 type veth peer name x1\nip link set x0 master br0\nip link del x0");
    assert_eq!(mac(&node, "br0"), "00:00:00:00:00:00");
    let first = node.pod("first");
    node.network(small_network()).add(&first);
    let expected = mac(&node, "br0");
    assert_ne!(expected, "00:00:00:00:00:00");
    bridge_mac_stays(
        &node,
        &small_network(),
        Implementation::Gangplank,
        &expected,
    );
}

#[test]
fn concurrent_first_adds_report_the_same_bridge_mac_address() {
    requires!();
    if skip_for_go("an ADD sets the address that it read before another port was added") {
        return;
    }
    for bridge in ["", "ip link add br0 type bridge"] {
        let node = Node::new("node");
        node.run_all(bridge);
        let pods: Vec<Pod> = (0..4).map(|at| node.pod(&format!("pod{at}"))).collect();
        let network = node.network(small_network());
        let results: Vec<Value> = std::thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(|| network.add(pod)))
                .collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        let expected = mac(&node, "br0");
        for result in results {
            assert_eq!(result["interfaces"][0]["mac"], expected, "{bridge:?}");
        }
    }
}

#[test]
fn add_keeps_the_neighbour_entries_of_a_bridge_with_a_fixed_mac_address() {
    requires!("ping");
    // In the last case the fixed MAC address equals that of a port, so only addr_assign_type in /sys shows that it is
    // fixed.
    for prepare in [
        "",
        "ip link add br0 address 02:00:00:00:00:07 type bridge",
        "mount -t sysfs none /sys\nip link add x0 type veth peer name x1\nip link set x1 up\nip link set x0 address 02:00:00:00:00:08 up\nip link add br0 type bridge\nip link set x0 master br0\nip link set br0 address 02:00:00:00:00:08",
    ] {
        let node = Node::new("node");
        node.run_all(prepare);
        let network = node.network(small_network());
        let first = node.pod("first");
        network.add(&first);
        node.run("ip neigh add 10.77.0.200 lladdr 02:00:00:00:00:c8 nud permanent dev br0");
        for name in ["a", "b"] {
            let pod = node.pod(name);
            network.add(&pod);
            network.del(&pod);
        }
        let neighbours = node.run("ip neigh show dev br0 nud permanent");
        assert!(
            neighbours.contains("10.77.0.200"),
            "{prepare}: {neighbours}"
        );
    }
}

/// Two networks that attach the same interface name.
fn networks(version: &str) -> [Value; 2] {
    let mut one = small_network();
    one["cniVersion"] = version.into();
    let mut other = one.clone();
    other["name"] = "other".into();
    [one, other]
}

#[test]
fn del_after_a_failed_add_keeps_the_interface_of_the_other_network() {
    if !ready(&["ping"]) {
        return;
    }
    for version in ["0.3.1", "1.0.0"] {
        for by in BOTH {
            for same_bridge in [true, false] {
                let node = node();
                let [one, mut other] = networks(version);
                if !same_bridge {
                    other["bridge"] = "br1".into();
                    other["ipam"]["subnet"] = "10.78.0.0/24".into();
                }
                let pod = node.pod("a");
                let first = attach(&node, &pod, &one, by);
                let mut second = Attachment::new(&node, &pod, &other);
                assert_ne!(second.try_add(Implementation::Gangplank).code, Some(0));
                for _ in 0..2 {
                    second.del(Implementation::Gangplank).ok();
                }
                pod.reaches("10.77.0.1");
                first.del(Implementation::Gangplank).ok();
                assert!(pod.link("eth0").is_none(), "{version} {by:?} {same_bridge}");
            }
        }
    }
}

#[test]
fn a_repeated_del_keeps_the_interface_of_the_pod_that_now_has_the_netns_path() {
    if !ready(&["ping"]) {
        return;
    }
    for version in ["0.3.1", "1.0.0"] {
        for (made_before, made_now) in [
            (Implementation::Gangplank, Implementation::Gangplank),
            (Implementation::Gangplank, Implementation::Go),
            (Implementation::Go, Implementation::Go),
        ] {
            let node = node();
            let [config, _] = networks(version);
            let pod = node.pod("a");
            let first = attach(&node, &pod, &config, made_before);
            first.del(Implementation::Gangplank).ok();
            let mut repeated_config = config.clone();
            if version != "0.3.1" {
                repeated_config["prevResult"] = first.result.clone();
            }
            drop(first);
            let path = pod.path.clone();
            pod.end();
            let next = node.pod("a");
            assert_eq!(next.path, path);
            let mut attached = Attachment::new(&node, &next, &config);
            let add = attached.call(made_now, "ADD").container("b").run();
            attached.result = add.ok();
            let again = Implementation::Gangplank
                .call_for(&node, &repeated_config)
                .verb("DEL");
            again.container("a").netns(&path).ifname("eth0").run().ok();
            let what = format!("{version} {made_before:?} {made_now:?}");
            assert!(next.link("eth0").is_some(), "{what}");
            next.reaches("10.77.0.1");
            attached
                .call(Implementation::Gangplank, "DEL")
                .container("b")
                .run()
                .ok();
            assert!(next.link("eth0").is_none(), "{what}");
        }
    }
}

#[test]
fn del_removes_the_interface_of_a_go_pod_with_and_without_prev_result() {
    if !ready(&[]) {
        return;
    }
    let mut flat = layer_2();
    for version in ["0.3.1", "1.0.0"] {
        flat["cniVersion"] = version.into();
        for config in [&networks(version)[0], &flat] {
            for has_prev_result in [false, true] {
                let node = node();
                let pod = node.pod("a");
                let mut attachment = attach(&node, &pod, config, Implementation::Go);
                let port = host_link(&attachment);
                if !has_prev_result {
                    attachment.result = Value::Null;
                }
                attachment.del(Implementation::Gangplank).ok();
                let what = format!("{version} {config} {has_prev_result}");
                assert!(
                    pod.link("eth0").is_none() && node.link(&port).is_none(),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn del_removes_the_link_if_its_host_end_was_renamed() {
    if !ready(&[]) {
        return;
    }
    for by in BOTH {
        for (bridge, has_prev_result) in [("br0", true), ("br0", false), ("renamed", true)] {
            let node = node();
            let pod = node.pod("a");
            let mut attachment = attach(&node, &pod, &small_network(), by);
            let port = host_link(&attachment);
            node.run_all(&format!(
                "ip link set {port} down\nip link set {port} name web0 up"
            ));
            if bridge != "br0" {
                node.run_all(&format!(
                    "ip link set br0 down\nip link set br0 name {bridge} up"
                ));
            }
            if !has_prev_result {
                attachment.result = Value::Null;
            }
            attachment.del(Implementation::Gangplank).ok();
            assert!(
                node.link("web0").is_none(),
                "{by:?} {bridge} {has_prev_result}"
            );
        }
    }
}

#[test]
fn del_removes_the_link_of_a_go_pod_if_its_interface_was_renamed() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    let pod = node.pod("a");
    let attachment = attach(&node, &pod, &small_network(), Implementation::Go);
    pod.run_all("ip link set eth0 down\nip link set eth0 name net0 up");
    attachment.del(Implementation::Gangplank).ok();
    assert!(pod.link("net0").is_none() && node.link(&host_link(&attachment)).is_none());
}

#[test]
fn del_keeps_an_interface_of_another_type_or_tool() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    let [config, _] = networks("1.0.0");
    for link in [
        "ip link add eth0 type bridge",
        "ip link add eth0 type veth peer name x0",
        "ip link add net0 type bridge\nip link property add dev net0 altname eth0",
    ] {
        let pod = node.pod("a");
        pod.run_all(link);
        assert_ne!(
            Attachment::new(&node, &pod, &config)
                .try_add(Implementation::Gangplank)
                .code,
            Some(0)
        );
        Attachment::new(&node, &pod, &config)
            .del(Implementation::Gangplank)
            .ok();
        assert!(pod.link("eth0").is_some(), "{link}");
        pod.end();
    }
    // A veth pair whose host end is on no bridge.
    let pod = node.pod("a");
    node.run("ip link add x0 type veth peer name eth0 netns a");
    Attachment::new(&node, &pod, &config)
        .del(Implementation::Gangplank)
        .ok();
    assert!(pod.link("eth0").is_some());
}

#[test]
fn add_works_on_bridges_that_are_down_or_have_stp_or_other_ports() {
    if !ready(&["ping"]) {
        return;
    }
    for by in BOTH {
        for bridge in [
            "ip link add br0 type bridge stp_state 1 forward_delay 200\nip link set br0 up",
            "ip link add br0 type bridge\nip link add x0 type veth peer name x1\nip link set x0 master br0\nip link set x0 alias other up\nip addr add fd00::7/64 dev br0",
            "ip link add br0 type bridge\nip link add br1 type bridge\nip link add x0 type veth peer name x1\nip link set x0 master br1\nip link set br0 alias kept down",
        ] {
            let node = node();
            node.run_all(bridge);
            let port = |node: &Node| {
                node.link("x0")
                    .map(|it| (it["master"].clone(), it["ifalias"].clone()))
            };
            let before = port(&node);
            let pod = node.pod("a");
            let attachment = attach(&node, &pod, &small_network(), by);
            // A port forwards frames after twice the forward delay.
            std::thread::sleep(Duration::from_secs(
                u64::from(bridge.contains("stp_state")) * 5,
            ));
            pod.reaches("10.77.0.1");
            attachment.del(by).ok();
            assert!(node.link("br0").is_some(), "{by:?} {bridge}");
            assert_eq!(port(&node), before, "{by:?} {bridge}");
        }
    }
}

#[test]
fn an_ipv6_gateway_works_with_policy_routing_for_locally_sent_packets() {
    if !ready(&["ping"]) {
        return;
    }
    for by in BOTH {
        let node = node();
        // As VPN clients configure it: received packets use the local table first, packets sent by the host do not.
        node.run_all(
            "ip -6 rule add pref 200 table local\nip -6 rule add pref 100 iif lo table 100\nip -6 rule del pref 0\nip -6 route add unreachable default table 100",
        );
        let mut config = small_network();
        config["ipam"]["subnet"] = "fd77::/64".into();
        let pod = node.pod("a");
        let began = Instant::now();
        attach(&node, &pod, &config, by);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{by:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(node.addresses("br0"), ["fd77::1/64"]);
    }
}

#[test]
fn plugins_work_on_a_kernel_without_strict_dump_filtering() {
    requires!("strace", "ping");
    if skip_for_go("the test traces gangplank") {
        return;
    }
    // Before 4.20 there is no NETLINK_GET_STRICT_CHK.
    let old_kernel = "strace -f -qq -o /run/trace -e inject=setsockopt:error=ENOPROTOOPT";
    let node = Node::new("node");
    node.run_all("ip link add other type veth peer name x1\nip addr add 10.77.0.1/24 dev other\nip addr add fd77::1/64 dev other nodad");
    let mut config = small_network();
    config["isDefaultGateway"] = true.into();
    config["mtu"] = "auto".into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    let network = node.network(config);
    let pod = node.pod("a");
    let result = network.call("ADD", &pod).under(old_kernel).run().ok();
    assert!(node.read("/run/trace").contains("INJECTED"));
    assert_eq!(node.addresses("br0"), ["10.77.0.1/24", "fd77::1/64"]);
    // Addresses and routes of other interfaces do not satisfy CHECK.
    pod.run_all("ip link add x0 type veth peer name x1\nip addr add 10.99.0.1/24 dev x0\nip link set x0 up\nip link set x1 up");
    let with_result = network.with("prevResult", result);
    with_result.call("CHECK", &pod).under(old_kernel).run().ok();
    pod.run("ip addr del 10.77.0.2/24 dev eth0");
    pod.run("ip addr add 10.77.0.2/24 dev x0");
    with_result
        .call("CHECK", &pod)
        .under(old_kernel)
        .run()
        .error();
    // Only for the first socket: the nf_tables socket sets another option.
    let first = format!("{old_kernel}:when=1");
    with_result.call("DEL", &pod).under(&first).run().ok();
    assert!(pod.link("eth0").is_none());
    let loopback = node.network(json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" }));
    for verb in ["ADD", "DEL"] {
        let call = loopback.call(verb, &pod).ifname("lo").under(old_kernel);
        call.run().ok();
    }
}

#[test]
fn a_bridge_gets_its_link_local_address_if_the_pod_interface_stays_down() {
    if !ready(&[]) {
        return;
    }
    for by in BOTH {
        let node = node();
        let mut config = layer_2();
        config["disableContainerInterface"] = true.into();
        let pod = node.pod("a");
        attach(&node, &pod, &config, by);
        let has_address = (0..40).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            node.run("ip -6 addr show dev br0").contains("fe80:")
        });
        assert!(has_address, "{by:?}");
    }
}
