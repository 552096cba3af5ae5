//! The pods of a network: who holds an address, has a link or is remembered, and what ails them.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::cli::node::{Cached, Network, Node};
use crate::cni::names::Attachment;
use crate::kernel::netlink::{Kind, Link, Netlink};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::net::Cidr;
use crate::netfilter::masquerade::Masquerade;
use crate::plugins::bridge::plan::host_interface;
use crate::state::{self, PortDifference};

/// A pod on a network.
#[derive(Debug)]
pub struct Pod {
    /// Its container and interface.
    pub attachment: Attachment,
    /// `namespace/name`, where the link's alias or the runtime tells.
    pub name: Option<String>,
    /// The addresses it holds, with the prefix length of their subnets.
    pub addresses: Vec<Cidr>,
    /// When it got the first of them.
    pub since: Option<SystemTime>,
    /// Whether its configuration has changed since its ADD, as far as times tell.
    pub is_outdated: bool,
    /// Its end on the host, by the index in [`Node::links`].
    pub link: Option<usize>,
    /// The MAC address of its own end; `None` where nobody tells.
    pub mac: Option<String>,
    /// The runtime remembers it, and its namespace is there.
    pub may_live: bool,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What can be wrong with a pod's attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It holds an address, but has no link.
    NoLink,
    /// It holds an address, and its link, if it has one, has a name that we cannot know.
    LinkUnknown,
    /// It has a link, but holds no address.
    NoLease,
    /// Its lease is of an earlier boot, so that others may get its address.
    Outlived,
    /// Its link is down, or packets do not pass.
    Down,
    /// Its link is no port of the bridge.
    Loose,
    /// This address is not masqueraded, or not as the configuration says.
    Unmasqueraded(Cidr),
    /// Its link has this MTU, the bridge another.
    Mtu(u32),
}

impl Problem {
    /// In two or three words, for a table.
    pub fn word(&self) -> &'static str {
        match self {
            Problem::NoLink => "no link",
            Problem::LinkUnknown => "link unknown",
            Problem::NoLease => "no lease",
            Problem::Outlived => "lease of an earlier boot",
            Problem::Down => "link down",
            Problem::Loose => "not on the bridge",
            Problem::Unmasqueraded(_) => "not masqueraded as configured",
            Problem::Mtu(_) => "other MTU",
        }
    }
}

/// Puts the pods of a network together.
pub fn gather(node: &Node, network: &Network) -> Vec<Pod> {
    let mut held: BTreeMap<Attachment, (Vec<IpAddr>, Option<SystemTime>)> = BTreeMap::new();
    for lease in &network.leases {
        let Some(attachment) = lease.attachment() else {
            continue;
        };
        let entry = held.entry(attachment).or_default();
        entry.0.push(lease.address);
        entry.1 = Some(entry.1.map_or(lease.since, |since| since.min(lease.since)));
    }
    for cached in node
        .cache
        .iter()
        .filter(|cached| cached.network == *network.name())
    {
        held.entry(cached.attachment.clone()).or_default();
    }
    let pods = held.into_iter().map(|(attachment, (addresses, since))| {
        let cached = node
            .cache
            .iter()
            .find(|cached| cached.network == *network.name() && cached.attachment == attachment);
        let link = link_of(node, network, &attachment, cached);
        let mut pod = Pod {
            name: cached.and_then(|cached| cached.pod.clone()).or_else(|| {
                let alias = link.map(|at| node.links[at].alias.clone());
                alias.filter(|alias| !alias.is_empty() && *alias != attachment.container.as_str())
            }),
            addresses: match (&network.configured.host_local, cached) {
                (None, Some(cached)) => cached.addresses(),
                _ => addresses
                    .into_iter()
                    .map(|address| {
                        let known = with_prefix(network, cached, address);
                        known.unwrap_or(Cidr::host(address))
                    })
                    .collect(),
            },
            is_outdated: is_outdated(network, since.or(cached.and_then(|it| it.written))),
            since,
            mac: cached.and_then(mac_of),
            may_live: cached.is_some_and(has_namespace),
            link,
            attachment,
            problems: Vec::new(),
        };
        pod.problems = problems(node, network, &pod, cached);
        pod
    });
    pods.collect()
}

fn is_outdated(network: &Network, added: Option<SystemTime>) -> bool {
    let file = fs::metadata(&network.configured.file);
    let changed = file.and_then(|file| file.modified()).ok();
    added
        .zip(changed)
        .is_none_or(|(added, changed)| added < changed)
}

/// The pod's end on the host: by the name that we give, else by the one that the runtime remembers.
fn link_of(
    node: &Node,
    network: &Network,
    attachment: &Attachment,
    cached: Option<&Cached>,
) -> Option<usize> {
    let bridge = network.configured.bridge.bridge.as_str();
    let ours = host_interface(network.name(), attachment);
    let told = cached
        .into_iter()
        .flat_map(Cached::host_interfaces)
        .filter(|name| *name != bridge);
    let find = |name: &str| {
        let is_it = |link: &Link| link.name == name && link.kind == Kind::Veth;
        node.links.iter().position(is_it)
    };
    std::iter::once(ours.as_str()).chain(told).find_map(find)
}

/// The MAC address as it is now, else as ADD told it.
fn mac_of(cached: &Cached) -> Option<String> {
    let (told, sandbox) = cached.inside()?;
    let netns = Netns::open(sandbox, OwnNetns::Refused).ok();
    let seen = netns.and_then(|netns| {
        let pod = Netlink::open_in(&netns).ok()?;
        pod.link(&cached.attachment.interface).ok()??.mac
    });
    seen.map(|mac| mac.to_string())
        .or_else(|| (!told.is_empty()).then(|| told.to_owned()))
}

fn has_namespace(cached: &Cached) -> bool {
    let opened = cached
        .inside()
        .map(|(_, sandbox)| Netns::open(sandbox, OwnNetns::Allowed));
    opened.is_some_and(|opened| !opened.is_err_and(|cause| cause.is_gone()))
}

/// An address with the prefix length of its subnet: of a configured range, or as ADD told it where the ranges have changed
/// since; `None` where neither has it.
fn with_prefix(network: &Network, cached: Option<&Cached>, address: IpAddr) -> Option<Cidr> {
    let pools = network.configured.host_local.iter();
    let mut pools = pools.flat_map(|it| it.pools());
    let range = pools.find_map(|pool| pool.set.range_of(address));
    let told = || {
        let mut told = cached?.addresses().into_iter();
        told.find(|cidr| cidr.address() == address)
    };
    range.map(|range| range.with_prefix(address)).or_else(told)
}

fn problems(node: &Node, network: &Network, pod: &Pod, cached: Option<&Cached>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let config = &network.configured.bridge;
    if pod
        .addresses
        .iter()
        .any(|address| network.from_before_boot.contains(&address.address()))
    {
        return vec![Problem::Outlived];
    }
    if pod.addresses.is_empty() && network.configured.host_local.is_some() {
        problems.push(Problem::NoLease);
    }
    let bridge = node.bridge(network);
    match pod.link.map(|at| &node.links[at]) {
        // The Go plugin's link has a name of its own: where the runtime does not tell it any port may be it.
        None if !cached.is_some_and(|it| tells_link(network, it)) && has_foreign_port(node) => {
            problems.push(Problem::LinkUnknown);
        }
        // A link of another plugin, or one that was renamed.
        None if is_in_use(node, pod) => problems.push(Problem::LinkUnknown),
        None => {
            problems.push(Problem::NoLink);
            return problems;
        }
        Some(link) => {
            if !link.is_up || !link.is_running {
                problems.push(Problem::Down);
            }
            let differences = state::port_differences(link, bridge, None);
            if differences.contains(&PortDifference::Detached) {
                problems.push(Problem::Loose);
            }
            if bridge.is_some_and(|bridge| bridge.mtu != link.mtu) {
                problems.push(Problem::Mtu(link.mtu));
            }
        }
    }
    if let Some(policy) = &config.masquerade {
        let masquerade = Masquerade::of(network.name(), &pod.attachment);
        // Without its subnet the rules of an address cannot be told.
        let is_known = |it: &&Cidr| {
            network.configured.host_local.is_none()
                || with_prefix(network, cached, it.address()).is_some()
        };
        let known: Vec<Cidr> = pod.addresses.iter().filter(is_known).copied().collect();
        let lacking = node.inventory.lacking(&masquerade, policy, &known);
        problems.extend(lacking.map(Problem::Unmasqueraded));
    }
    problems
}

fn is_in_use(node: &Node, pod: &Pod) -> bool {
    let mut addresses = pod.addresses.iter();
    addresses.any(|address| node.may_be_in_use(address.address()))
}

/// Whether the runtime remembers the name of the link.
fn tells_link(network: &Network, cached: &Cached) -> bool {
    let bridge = network.configured.bridge.bridge.as_str();
    cached.host_interfaces().any(|name| name != bridge)
}

/// Whether there is a link that the Go plugin may have made for a pod that no runtime remembers: its names are "veth" and
/// eight digits. It may be on any bridge, for the configuration may have named another one then, or on none.
fn has_foreign_port(node: &Node) -> bool {
    let is_told = |name: &str| {
        let mut told = node.cache.iter().flat_map(Cached::host_interfaces);
        told.any(|interface| interface == name)
    };
    let is_foreign =
        |link: &Link| link.kind == Kind::Veth && link.name.len() == 12 && !is_told(&link.name);
    node.links.iter().any(is_foreign)
}
