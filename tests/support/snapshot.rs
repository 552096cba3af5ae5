//! The state of a node, read with iproute2, iptables and nft.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use sha2::{Digest, Sha512};

use super::Node;

/// The state that a failed call must not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    pub links: Vec<String>,
    /// All addresses except link-local ones.
    pub addresses: Vec<String>,
    /// The iptables nat rules and chains of both families.
    pub rules: Vec<String>,
    /// The contents of the files under /var/lib/cni.
    pub files: BTreeMap<String, Vec<u8>>,
    /// net.ipv4.ip_forward.
    pub forwarding: String,
}

impl NodeState {
    pub fn of(node: &Node) -> NodeState {
        let links = node.run("ip -o link");
        let addresses = node.run("ip -o addr");
        let column = |text: &str, column: usize| -> Vec<String> {
            let words = |line: &str| line.split_whitespace().nth(column).map(str::to_owned);
            let mut column: Vec<String> = text.lines().filter_map(words).collect();
            column.sort();
            column
        };
        NodeState {
            links: column(&links, 1),
            addresses: column(&addresses, 3)
                .into_iter()
                .filter(|address| !address.starts_with("fe80:"))
                .collect(),
            rules: [node.nat("iptables"), node.nat("ip6tables")].concat(),
            files: node.files("/var/lib/cni"),
            forwarding: node.read("/proc/sys/net/ipv4/ip_forward"),
        }
    }

    /// The state without lease cursors, locks and other files that remain after the last pod.
    pub fn of_pods(node: &Node) -> NodeState {
        let mut footprint = NodeState::of(node);
        footprint.files.retain(|path, _| is_lease(path));
        footprint
    }
}

fn is_lease(path: &str) -> bool {
    let name = Path::new(path).file_name().unwrap_or_default();
    name.to_string_lossy().parse::<IpAddr>().is_ok()
}

pub fn leases(node: &Node, network: &str) -> Vec<IpAddr> {
    node.leases(network)
}

/// The name of a container's masquerade chain.
pub fn chain_of(network: &str, container: &str) -> String {
    let hash = Sha512::digest(format!("{network}{container}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("CNI-{}", &hex[..24])
}

impl Node {
    /// The output of `iptables -t nat -S` without policies.
    pub fn nat(&self, program: &str) -> Vec<String> {
        let table = self.inside(|| {
            iptables::new(program == "ip6tables")
                .unwrap()
                .list_table("nat")
                .unwrap()
        });
        let ours = |line: &String| !line.is_empty() && !line.starts_with("-P ");
        table.into_iter().filter(ours).collect()
    }

    /// The contents of all files below a directory.
    pub fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        fn walk(dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, files);
                } else {
                    let content = fs::read(&path).unwrap();
                    files.insert(path.to_str().unwrap().to_owned(), content);
                }
            }
        }
        let mut files = BTreeMap::new();
        self.inside(|| walk(Path::new(dir), &mut files));
        files
    }

    /// The content of a lease file.
    pub fn lease(&self, network: &str, address: &str) -> Option<String> {
        let path = format!("/var/lib/cni/networks/{network}/{address}");
        self.inside(|| fs::read_to_string(path)).ok()
    }
}
