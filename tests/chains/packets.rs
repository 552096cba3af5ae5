//! Packets of the pods of a chain.

use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{Attachment, Scene};
use crate::support::{Network, Protocol};
use crate::table::Source;

const ANSWER: Duration = Duration::from_secs(3);
const NO_ANSWER: Duration = Duration::from_millis(400);

/// A family: the addresses of the node and of the host outside.
struct Family {
    node: &'static str,
    outside: &'static str,
    everywhere: &'static str,
}

impl Family {
    /// The pod's address of this family, if it has a default route too. nerdctl's IPv6 networks have none.
    fn address(&self, result: &Value) -> Option<String> {
        let routes = result["routes"].as_array()?;
        let has_route = routes.iter().any(|route| route["dst"] == self.everywhere);
        let is_v6 = self.node.contains(':');
        let mut addresses = addresses(result).into_iter();
        addresses.find(|address| has_route && address.contains(':') == is_v6)
    }
}

const FAMILIES: [Family; 2] = [
    Family {
        node: "172.18.0.5",
        outside: "172.18.0.9",
        everywhere: "0.0.0.0/0",
    },
    Family {
        node: "fd18::5",
        outside: "fd18::9",
        everywhere: "::/0",
    },
];

/// An address with a port.
fn at(address: &str, port: usize) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// The addresses that the pod has on the interface of this chain.
fn addresses(result: &Value) -> Vec<String> {
    let interfaces = &result["interfaces"];
    let is_of_eth0 = |ip: &&Value| match ip["interface"].as_u64() {
        Some(index) => interfaces[index as usize]["name"] == "eth0",
        None => true,
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    let texts = ips
        .filter(is_of_eth0)
        .filter_map(|ip| ip["address"].as_str());
    texts
        .map(|address| address.split('/').next().unwrap().to_owned())
        .collect()
}

impl Scene<'_> {
    pub fn pods_reach_what_they_should(&mut self) {
        let pods = [self.add(), self.add()];
        for to in &pods {
            self.check(to);
        }
        if addresses(&pods[0].result).is_empty() {
            for to in &pods {
                to.pod
                    .run(&format!("ip addr add 10.99.0.{}/24 dev eth0", to.number));
            }
        }
        let list = self.runtime().list().to_string();
        let has = |key: &str| list.contains(key);
        if addresses(&pods[0].result).iter().any(|it| it.contains(':')) {
            self.node.wait_for_dad();
            pods.iter().for_each(|to| to.pod.wait_for_dad());
        }
        self.pods_reach_each_other(&pods);
        for family in &FAMILIES {
            if let Some(address) = family.address(&pods[1].result) {
                self.leaves_the_node(&pods[1], &address, family);
                if has("portMappings") {
                    self.is_reached_at_its_host_port(&pods[1], family);
                }
            }
        }
        if has("same-bridge") {
            self.is_isolated_from_other_bridges(&pods[0]);
        }
        if has("macspoofchk") {
            self.cannot_spoof(&pods);
        }
        if has("bandwidth") {
            let qdiscs = self.node.run("tc qdisc show");
            assert_eq!(
                qdiscs.matches("qdisc tbf").count(),
                4,
                "two per pod: {qdiscs}"
            );
        }
        if has("somaxconn") {
            assert_eq!(
                pods[0].pod.read("/proc/sys/net/core/somaxconn").trim(),
                "500"
            );
            assert!(pods[0].pod.run("ip link show eth0").contains("mtu 1400"));
        }
        self.delete_in_order(pods.into());
        if has("portMappings") {
            let entries = self.node.run("conntrack -L -p udp --orig-port-dst 8003");
            assert_eq!(entries, "", "UDP connections to the mapped port");
        }
    }

    fn pods_reach_each_other(&self, pods: &[Attachment; 2]) {
        let _servers = pods.each_ref().map(|it| it.pod.serve(9000));
        for (from, to) in [(0, 1), (1, 0)] {
            let mut all = addresses(&pods[to].result);
            if all.is_empty() {
                all.push(format!("10.99.0.{}", pods[to].number));
            }
            for address in all {
                let seen = pods[from]
                    .pod
                    .asks(Protocol::Tcp, &at(&address, 9000), ANSWER);
                assert!(seen.is_some(), "{} from another pod", address);
            }
        }
    }

    fn leaves_the_node(&self, from: &Attachment, address: &str, family: &Family) {
        let expected = match self.runtime().seen_as {
            Source::Nobody => return,
            Source::Node => family.node,
            Source::Pod => address,
        };
        let lists_firewall = self.runtime().programs().contains(&"firewall".into());
        let set_policy = |policy: &str| {
            for program in ["iptables", "ip6tables"] {
                self.node.run(&format!("{program} -P FORWARD {policy}"));
            }
        };
        // The plugin firewall accepts packets of the pod, and answers.
        if lists_firewall {
            set_policy("DROP");
        }
        assert_eq!(from.pod.seen_as(&self.outside, family.outside), expected);
        set_policy("ACCEPT");
    }

    fn is_reached_at_its_host_port(&self, to: &Attachment, family: &Family) {
        let _server = to.pod.serve(9000);
        let port = at(family.node, 8000 + to.number);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let seen = self.outside.asks(protocol, &port, ANSWER);
            assert!(seen.is_some(), "{port} {protocol:?} from outside");
        }
        let seen = self.node.asks(Protocol::Tcp, &port, ANSWER);
        assert!(seen.is_some(), "{port} from the node");
    }

    fn is_isolated_from_other_bridges(&mut self, from: &Attachment) {
        let chain = self.chain(99).named("other");
        let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.99.1.0/24" }]] });
        let chain = chain
            .with("bridge", "bridge", "other0")
            .with("bridge", "ipam", ipam);
        let pod = self.node.pod("other");
        let result = chain.add(&pod);
        let _server = pod.serve(9000);
        let to = at(&Network::address(&result), 9000);
        let seen = from.pod.asks(Protocol::Tcp, &to, NO_ANSWER);
        assert_eq!(seen, None, "a pod on another bridge");
        chain.del(&pod, &result);
        self.node.run("ip link del other0");
        self.node.run("rm -r /var/lib/cni/networks/other");
    }

    fn cannot_spoof(&self, pods: &[Attachment; 2]) {
        let to = format!("10.99.0.{}", pods[1].number);
        pods[0].pod.reaches(&to);
        let address = pods[0].pod.link("eth0").unwrap()["address"]
            .as_str()
            .unwrap()
            .to_owned();
        pods[0]
            .pod
            .run("ip link set eth0 address 02:00:00:00:99:99");
        pods[0].pod.does_not_reach(&to);
        pods[0]
            .pod
            .run(&format!("ip link set eth0 address {address}"));
    }
}
