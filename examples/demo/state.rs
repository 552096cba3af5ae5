//! The state of nodes and links, read from the kernel and from the lease directory.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use gangplank::kernel::netlink::Netlink;
use gangplank::kernel::process;
use gangplank::net::{Cidr, Family, Mac};
use nix::net::if_::{Interface, if_nameindex};

use crate::Failure;
use crate::namespace::Namespace;

/// The time limit for listing rules.
const LIMIT: Duration = Duration::from_secs(10);

/// The resources on a node that a DEL could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeState {
    /// The names of all links.
    pub links: BTreeSet<String>,
    /// The leased addresses of a network.
    pub leases: Vec<IpAddr>,
    /// The rules of the nat table; `None` if iptables is not installed.
    pub rules: Option<Vec<String>>,
}

impl NodeState {
    pub fn observe(node: &Namespace, network: &str) -> Result<NodeState, Failure> {
        let names = || -> nix::Result<BTreeSet<String>> {
            let links = if_nameindex()?;
            let name = |link: &Interface| link.name().to_string_lossy().into_owned();
            Ok(links.iter().map(name).collect())
        };
        Ok(NodeState {
            links: node.inside(names)?,
            leases: node.leases(network),
            rules: rules(node)?,
        })
    }
}

fn rules(node: &Namespace) -> Result<Option<Vec<String>>, Failure> {
    let Some(program) = process::find("iptables-save") else {
        return Ok(None);
    };
    let listed = node.inside(|| process::run(&program, &["-t", "nat"], &[], b"", LIMIT))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    // The other lines are comments and the policies of the built-in chains.
    let is_rule = |line: &&str| line.starts_with("-A") || line.starts_with(":CNI-");
    Ok(Some(
        text.lines().filter(is_rule).map(str::to_owned).collect(),
    ))
}

/// A link that is up.
pub struct LinkState {
    pub mac: Mac,
    /// The first IPv4 address.
    pub address: Option<Cidr>,
    /// The name of the bridge of which the link is a port.
    pub bridge: Option<String>,
}

impl LinkState {
    pub fn observe(namespace: &Namespace, link: &str) -> Result<LinkState, Failure> {
        let state = namespace.inside(|| read_link(link));
        Ok(state.map_err(|cause| format!("{link} of {}: {cause}", namespace.name))?)
    }
}

fn read_link(name: &str) -> Result<LinkState, Failure> {
    let netlink = Netlink::open()?;
    let link = netlink
        .link(&name.parse()?)?
        .ok_or("the link does not exist")?;
    if !link.is_up {
        return Err("the link is down".into());
    }
    let bridge = link
        .master
        .map(|index| netlink.link_at(index))
        .transpose()?;
    let addresses = netlink.addresses(link.index)?;
    let mut addresses = addresses.iter().map(|address| address.cidr);
    Ok(LinkState {
        mac: link.mac.ok_or("the link has no MAC address")?,
        address: addresses.find(|cidr| cidr.family() == Family::V4),
        bridge: bridge.flatten().map(|bridge| bridge.name),
    })
}
