//! The pods of a network, found by their leases and the runtimes' cached results, and their problems.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::cli::node::{CachedResult, Network, Node};
use crate::cni::names::Attachment;
use crate::cni::result::Interface;
use crate::kernel::netlink::{Kind, Link, Netlink};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::net::{Cidr, Mac};
use crate::netfilter::masquerade::Masquerade;
use crate::state::{self, PortDifference};

/// A pod's attachment to a network.
#[derive(Debug)]
pub struct Pod {
    pub attachment: Attachment,
    /// `namespace/name` from the cached result, or else the alias of the link.
    pub name: Option<String>,
    /// Its addresses with the prefix length of their subnets.
    pub addresses: Vec<Cidr>,
    /// The gateways in the cached result, with the prefix length of their subnets.
    pub cached_gateways: Vec<Cidr>,
    /// When its first lease was written.
    pub since: Option<SystemTime>,
    /// Whether the configuration may have changed since its ADD.
    pub is_outdated: bool,
    /// The host end of its veth pair, as an index in [`Node::links`].
    pub link: Option<usize>,
    /// The MAC address of the interface in the pod, from the kernel or else from the cached result.
    pub mac: Option<String>,
    /// Whether its network namespace, known from the cached result, still exists.
    pub has_netns: bool,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let container = &self.attachment.container;
        match &self.name {
            Some(name) => write!(f, "pod {name} (container {container})"),
            None => write!(f, "container {container}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A lease, but no link.
    NoLink,
    /// A lease, and possibly a link whose name cannot be derived.
    LinkUnknown,
    /// A link, but no lease.
    NoLease,
    /// The lease is from before the boot: its address may be reassigned.
    LeaseBeforeBoot,
    /// The link is down or has no carrier.
    LinkDown,
    /// The link is not a port of the network's bridge.
    NotOnBridge,
    /// An address is not masqueraded as configured.
    NotMasqueraded,
    /// The MTU of the link differs from the bridge's.
    OtherMtu,
}

impl Problem {
    pub fn as_str(self) -> &'static str {
        match self {
            Problem::NoLink => "no link",
            Problem::LinkUnknown => "link unknown",
            Problem::NoLease => "no lease",
            Problem::LeaseBeforeBoot => "lease of an earlier boot",
            Problem::LinkDown => "link down",
            Problem::NotOnBridge => "not on the bridge",
            Problem::NotMasqueraded => "not masqueraded as configured",
            Problem::OtherMtu => "other MTU",
        }
    }
}

/// The pods of a network, in the order of their containers' IDs.
pub fn observe(node: &Node, network: &Network) -> Vec<Pod> {
    let mut found: BTreeMap<Attachment, Traces> = BTreeMap::new();
    for lease in &network.leases {
        if let Some(attachment) = lease.attachment() {
            let entry = found.entry(attachment).or_default();
            entry.leased.push(lease.address);
            entry.since = Some(entry.since.map_or(lease.since, |it| it.min(lease.since)));
        }
    }
    let cache = node.cache.iter();
    for cached in cache.filter(|cached| cached.network == *network.name()) {
        let entry = found.entry(cached.attachment.clone()).or_default();
        entry.cached = entry.cached.or(Some(cached));
    }
    let pods = found.into_iter();
    pods.map(|(attachment, found)| observe_pod(node, network, attachment, found))
        .collect()
}

/// The traces of an attachment.
#[derive(Default)]
struct Traces<'n> {
    leased: Vec<IpAddr>,
    since: Option<SystemTime>,
    cached: Option<&'n CachedResult>,
}

fn observe_pod(node: &Node, network: &Network, attachment: Attachment, found: Traces) -> Pod {
    let Traces {
        leased,
        since,
        cached,
    } = found;
    let link = position(node, network, &attachment, cached);
    let alias = || {
        let alias = &node.links[link?].alias;
        let is_name = !alias.is_empty() && alias != attachment.container.as_str();
        is_name.then(|| alias.clone())
    };
    let interface = cached.and_then(CachedResult::container_interface);
    let netns = interface.map(|it| Netns::open(&it.sandbox, OwnNetns::Refused));
    let mut pod = Pod {
        name: cached.and_then(|it| it.pod.clone()).or_else(alias),
        addresses: match (&network.configured.host_local, cached) {
            (None, Some(cached)) => cached.addresses(),
            _ => leased
                .into_iter()
                .map(|address| with_prefix(network, cached, address))
                .collect(),
        },
        cached_gateways: cached.map(CachedResult::gateways).unwrap_or_default(),
        since,
        is_outdated: is_outdated(network, since.or(cached.and_then(|it| it.written))),
        link,
        mac: interface.and_then(|interface| mac_of(interface, netns.as_ref()?.as_ref().ok())),
        has_netns: netns.is_some_and(|opened| !opened.is_err_and(|cause| cause.is_gone())),
        attachment,
        problems: Vec::new(),
    };
    pod.problems = problems(node, network, &pod, cached);
    pod
}

fn is_outdated(network: &Network, added: Option<SystemTime>) -> bool {
    let file = fs::metadata(&network.configured.file);
    let changed = file.and_then(|file| file.modified()).ok();
    let times = added.zip(changed);
    times.is_none_or(|(added, changed)| added < changed)
}

/// The host end: the link with the derived name, or else one with a name from the cached result.
fn position(
    node: &Node,
    network: &Network,
    attachment: &Attachment,
    cached: Option<&CachedResult>,
) -> Option<usize> {
    let derived = attachment.host_interface(network.name());
    let cached = cached.into_iter().flat_map(|it| cached_links(network, it));
    let find = |name: &str| {
        let is_it = |link: &Link| link.name == name && link.kind == Kind::Veth;
        node.links.iter().position(is_it)
    };
    std::iter::once(derived.as_str())
        .chain(cached)
        .find_map(find)
}

/// The names of the host's interfaces in the cached result, without the bridge.
fn cached_links<'n>(
    network: &'n Network,
    cached: &'n CachedResult,
) -> impl Iterator<Item = &'n str> {
    let bridge = network.configured.bridge.bridge.as_str();
    cached.host_interfaces().filter(move |name| *name != bridge)
}

/// The MAC address of an interface in a pod: the current one, or else the one in the cached result.
fn mac_of(cached: &Interface, netns: Option<&Netns>) -> Option<String> {
    let current = || -> Option<Mac> {
        let pod = Netlink::open_in(netns?).ok()?;
        pod.link(&cached.name.parse().ok()?).ok()??.mac
    };
    let mac = current().map_or_else(|| cached.mac.clone(), |mac| mac.to_string());
    Some(mac).filter(|mac| !mac.is_empty())
}

/// An address with the prefix length of its configured subnet, or else of the cached result: the ranges may have changed
/// since ADD. Without either, the prefix length is that of a host.
fn with_prefix(network: &Network, cached: Option<&CachedResult>, address: IpAddr) -> Cidr {
    let mut ranges = network.ranges();
    let range = ranges.find(|range| range.contains(address));
    let cached = || {
        let mut addresses = cached?.addresses().into_iter();
        addresses.find(|cidr| cidr.address() == address)
    };
    range
        .map(|range| range.with_prefix(address))
        .or_else(cached)
        .unwrap_or(Cidr::host(address))
}

fn problems(
    node: &Node,
    network: &Network,
    pod: &Pod,
    cached: Option<&CachedResult>,
) -> Vec<Problem> {
    let mut addresses = pod.addresses.iter().map(|it| it.address());
    if addresses.any(|address| network.from_before_boot.contains(&address)) {
        return vec![Problem::LeaseBeforeBoot];
    }
    let has_host_local = network.configured.host_local.is_some();
    let mut problems = Vec::new();
    if pod.addresses.is_empty() && has_host_local {
        problems.push(Problem::NoLease);
    }
    let bridge = node.bridge(network);
    match node.link_of(pod) {
        None if !may_have_link(node, network, pod, cached) => {
            problems.push(Problem::NoLink);
            return problems;
        }
        None => problems.push(Problem::LinkUnknown),
        Some(link) => {
            if !link.is_up || !link.is_running {
                problems.push(Problem::LinkDown);
            }
            if state::port_differences(link, bridge, None).contains(&PortDifference::Detached) {
                problems.push(Problem::NotOnBridge);
            }
            if bridge.is_some_and(|bridge| bridge.mtu != link.mtu) {
                problems.push(Problem::OtherMtu);
            }
        }
    }
    if !is_masqueraded(node, network, pod) {
        problems.push(Problem::NotMasqueraded);
    }
    problems
}

fn is_masqueraded(node: &Node, network: &Network, pod: &Pod) -> bool {
    let Some(policy) = &network.configured.bridge.masquerade else {
        return true;
    };
    let masquerade = Masquerade::of(network.name(), &pod.attachment);
    // The rules contain the subnet. It is unknown if no range contains the address any more and no result is cached.
    let is_known =
        |it: &&Cidr| network.configured.host_local.is_none() || **it != Cidr::host(it.address());
    let known: Vec<Cidr> = pod.addresses.iter().filter(is_known).copied().collect();
    node.inventory
        .lacking(&masquerade, policy, &known)
        .is_none()
}

/// Whether a pod without a known link may have one under another name.
fn may_have_link(node: &Node, network: &Network, pod: &Pod, cached: Option<&CachedResult>) -> bool {
    let is_cached = cached.is_some_and(|it| cached_links(network, it).next().is_some());
    let mut addresses = pod.addresses.iter();
    // The link may also have been renamed, or created by another plugin.
    (!is_cached && has_uncached_go_veth(node))
        || addresses.any(|it| node.may_be_in_use(it.address()))
}

/// Whether there is a veth with a name of the form that the Go plugin uses, "veth" and eight digits, that is in no
/// cached result. It may be on any bridge, because the configuration may have changed, or on none.
fn has_uncached_go_veth(node: &Node) -> bool {
    let is_cached = |name: &str| {
        let mut cached = node.cache.iter().flat_map(CachedResult::host_interfaces);
        cached.any(|interface| interface == name)
    };
    node.links
        .iter()
        .any(|link| link.kind == Kind::Veth && link.name.len() == 12 && !is_cached(&link.name))
}
