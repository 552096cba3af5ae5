//! The state of the node, read once: configurations, leases, links, masquerade entries and cached results.
//!
//! Changes nothing. [`crate::cli::status`], [`crate::cli::doctor`] and [`crate::cli::reconcile`] work on it.

mod cache;
mod chained;
mod configurations;
mod ownership;
mod pods;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::cli::args::Paths;
use crate::cli::plugin_list::PluginList;
use crate::cli::unreadable;
use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::ipam::live::LiveAttachments;
use crate::ipam::range::Range;
use crate::ipam::{LeaseFile, Store};
use crate::kernel::netlink::{Address, Link, Netlink, RouteEntry};
use crate::kernel::sysctl;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family};
use crate::netfilter::masquerade::Inventory;
use crate::netfilter::portmap::inventory::{self, MappedPort, SharedRepair};
use crate::plugins::bridge::config::Gateway;

pub use cache::CachedResult;
pub use chained::{ChainedCall, ChainedPlugin};
pub use configurations::{Configurations, Configured};
pub use pods::{Pod, Problem};

/// The time between two observations of a difference: that of an ADD or DEL in progress is not in both.
pub const RECHECK_DELAY: Duration = Duration::from_millis(500);

pub struct Node {
    /// The networks with a bridge, in the order of their files.
    pub networks: Vec<Network>,
    /// Configurations that no runtime can use, with the reason.
    pub unusable: Vec<(PathBuf, Error)>,
    /// The plugins of each configuration, also of networks without a bridge.
    pub lists: Vec<(PluginList, PathBuf)>,
    /// Leases of networks without a bridge, and of networks without a configuration.
    pub other_leases: Vec<(Store, Vec<LeaseFile>)>,
    pub cache: Vec<CachedResult>,
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    /// The default routes.
    pub uplinks: Vec<RouteEntry>,
    /// The address families that the host does not forward, except for those that the kernel does not support.
    pub not_forwarded: Vec<Family>,
    pub inventory: Inventory,
    pub mapped_ports: Vec<MappedPort>,
    /// A socket in the host's network namespace.
    pub host: Netlink,
    /// Observed on first use; `None` if it cannot be observed.
    live: OnceCell<Option<LiveAttachments>>,
    differing_calls: OnceCell<Vec<(ChainedCall, Error)>>,
}

/// A network whose pods are ports of a bridge. Links are indexes in [`Node::links`].
pub struct Network {
    pub configured: Configured,
    pub leases: Vec<LeaseFile>,
    /// The addresses whose leases are from before the boot and that the next ADD releases.
    pub from_before_boot: HashSet<IpAddr>,
    pub pods: Vec<Pod>,
    /// The link with the bridge's name, not necessarily a bridge.
    bridge: Option<usize>,
    /// The link with the gateway addresses: the bridge or, for pods in a VLAN, an interface in that VLAN.
    gateway_link: Option<usize>,
}

/// The usage of a range set.
#[derive(Serialize)]
pub struct RangeUsage {
    pub range: String,
    pub used: usize,
    /// A string in JSON, because the size of an IPv6 range exceeds the range of JSON numbers.
    #[serde(serialize_with = "serialize_as_string")]
    pub size: u128,
}

/// Only root can read leases.
fn as_root(error: Error) -> Error {
    error.details("run it as root")
}

fn serialize_as_string<S: Serializer>(size: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(size)
}

impl Node {
    /// Reads the state of the node.
    ///
    /// # Errors
    /// If a directory or the kernel cannot be read: an incomplete state would lead to wrong findings.
    pub fn observe(paths: &Paths) -> Result<Node, Error> {
        let found = Configurations::read(&paths.conf_dir, &paths.data_dir)?;
        let host = host_netlink()?;
        let is_off = |family: &Family| sysctl::forwards(*family).is_ok_and(|forwards| !forwards);
        let mut node = Node {
            networks: Vec::new(),
            unusable: found.unusable,
            lists: found.lists,
            other_leases: Vec::new(),
            cache: CachedResult::read_all(&paths.cache_dir),
            links: host.links().map_err(unreadable("links"))?,
            addresses: host.all_addresses().map_err(unreadable("addresses"))?,
            uplinks: host.uplinks().map_err(unreadable("routes"))?,
            not_forwarded: Family::BOTH.into_iter().filter(is_off).collect(),
            inventory: Inventory::take(),
            mapped_ports: Vec::new(),
            host,
            live: OnceCell::new(),
            differing_calls: OnceCell::new(),
        };
        node.list_mapped_ports();
        for configured in found.networks {
            let network = node.observe_network(configured)?;
            node.networks.push(network);
        }
        for host_local in found.others {
            let store = host_local.store();
            let leases = store.all().map_err(as_root)?;
            node.other_leases.push((store.clone(), leases));
        }
        let orphaned = node.read_orphaned_leases(&paths.data_dir)?;
        node.other_leases.extend(orphaned);
        Ok(node)
    }

    /// The repairs of what mapped ports share.
    pub fn shared_repairs(&self) -> Vec<SharedRepair> {
        SharedRepair::plan(self.inventory.nat_tables(), &self.mapped_ports)
    }

    fn list_mapped_ports(&mut self) {
        let tables = self.inventory.nat_tables();
        let listed = tables.flat_map(|(.., listing)| inventory::in_iptables(listing));
        self.mapped_ports = listed.collect();
        match inventory::in_nftables() {
            Ok(ports) => self.mapped_ports.extend(ports),
            Err(error) => self.inventory.failures.push(error),
        }
    }

    fn observe_network(&self, configured: Configured) -> Result<Network, Error> {
        let (mut leases, mut from_before_boot) = (Vec::new(), HashSet::new());
        if let Some(host_local) = &configured.host_local {
            leases = host_local.store().all().map_err(as_root)?;
            // Only root can read the recorded boot.
            from_before_boot = host_local.store().from_before_boot().unwrap_or_default();
        }
        let bridge = self.position(configured.bridge.bridge.as_str());
        let vlans = configured.bridge.vlans.as_ref();
        let mut network = Network {
            gateway_link: match vlans.and_then(|vlans| vlans.gateway.as_ref()) {
                Some(interface) => self.position(interface.as_str()),
                None => bridge,
            },
            configured,
            leases,
            from_before_boot,
            pods: Vec::new(),
            bridge,
        };
        network.pods = pods::observe(self, &network);
        Ok(network)
    }

    fn read_orphaned_leases(&self, data_dir: &Path) -> Result<Vec<(Store, Vec<LeaseFile>)>, Error> {
        let entries = std::fs::read_dir(data_dir).into_iter().flatten().flatten();
        let names =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse::<NetworkName>().ok());
        let mut orphaned = Vec::new();
        for name in names.filter(|name| self.lists_named(name.as_str()) == 0) {
            let store = Store::new(data_dir, &name);
            let leases = store.all()?;
            if !leases.is_empty() {
                orphaned.push((store, leases));
            }
        }
        Ok(orphaned)
    }

    /// The networks of this name, or all networks.
    pub fn select(&self, name: Option<&str>) -> Result<Vec<&Network>, Error> {
        let Some(name) = name else {
            return Ok(self.networks.iter().collect());
        };
        let selected: Vec<&Network> = self.networks_named(name).collect();
        if selected.is_empty() {
            let known: Vec<&str> = self.networks.iter().map(|it| it.name().as_str()).collect();
            let error = Error::failed(format!("no network with a bridge is named {name:?}"));
            return Err(error.details(format!("there are: {}; see --conf-dir", known.join(", "))));
        }
        Ok(selected)
    }

    pub fn networks_named(&self, name: &str) -> impl Iterator<Item = &Network> {
        self.networks
            .iter()
            .filter(move |network| network.name().as_str() == name)
    }

    /// The number of configurations of this name, with or without a bridge.
    pub fn lists_named(&self, name: &str) -> usize {
        let named = self.lists.iter().filter(|(list, _)| list.name == name);
        named.count()
    }

    /// Whether an interface in another network namespace may have an address.
    pub fn may_be_in_use(&self, address: IpAddr) -> bool {
        let live = self.live.get_or_init(|| LiveAttachments::observe().ok());
        live.as_ref().is_none_or(|live| live.has_address(address))
    }

    /// The link with this name or alternative name (ip-link(8), "property add").
    fn position(&self, name: &str) -> Option<usize> {
        let by_name = self.links.iter().position(|link| link.name == name);
        by_name.or_else(|| {
            let link = self.host.link(&name.parse().ok()?).ok()??;
            self.links.iter().position(|it| it.index == link.index)
        })
    }

    pub fn bridge(&self, network: &Network) -> Option<&Link> {
        self.links.get(network.bridge?)
    }

    pub fn gateway_link(&self, network: &Network) -> Option<&Link> {
        self.links.get(network.gateway_link?)
    }

    /// The host end of the pod's veth pair.
    pub fn link_of(&self, pod: &Pod) -> Option<&Link> {
        self.links.get(pod.link?)
    }

    pub fn ports(&self, master: &Link) -> impl Iterator<Item = &Link> {
        let index = master.index;
        self.links
            .iter()
            .filter(move |link| link.master == Some(index))
    }

    /// The ports of the bridge that belong to no known pod.
    pub fn unknown_ports(&self, network: &Network) -> impl Iterator<Item = &Link> {
        let pods = network.pods.iter();
        let known: HashSet<u32> = pods
            .filter_map(|pod| Some(self.link_of(pod)?.index))
            .collect();
        let ports = self.bridge(network).into_iter();
        let ports = ports.flat_map(|bridge| self.ports(bridge));
        ports.filter(move |port| !known.contains(&port.index))
    }

    /// The links of the default routes of a family.
    pub fn uplink(&self, family: Family) -> impl Iterator<Item = &Link> {
        let routes = self.uplinks.iter();
        let routes = routes.filter(move |route| route.dst.family() == family);
        let indexes = routes.flat_map(RouteEntry::all_links);
        indexes.filter_map(|index| self.links.iter().find(|link| link.index == index))
    }

    /// The addresses of a link, except for link-local IPv6 addresses.
    pub fn addresses_of(&self, link: &Link) -> Vec<Cidr> {
        let addresses = self.addresses.iter();
        let of_link = addresses.filter(|address| address.link == link.index);
        let cidrs = of_link.map(|address| address.cidr);
        cidrs.filter(|cidr| !cidr.is_ipv6_link_local()).collect()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

impl Network {
    pub fn name(&self) -> &NetworkName {
        &self.configured.conf.name
    }

    /// Whether the bridge has a gateway address.
    pub fn has_gateway(&self) -> bool {
        self.configured.bridge.gateway != Gateway::None
    }

    /// The ranges of host-local.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        let pools = self.configured.host_local.iter().flat_map(|it| it.pools());
        pools.flat_map(|pool| pool.set.ranges())
    }

    /// The gateways of the subnets of these addresses, with the prefix length of the subnets.
    pub fn gateways_of(&self, addresses: &[Cidr]) -> Vec<Cidr> {
        let is_used = |range: &&Range| addresses.iter().any(|it| range.contains(it.address()));
        let used = self.ranges().filter(is_used);
        let mut gateways: Vec<Cidr> = used.filter_map(Range::gateway_cidr).collect();
        gateways.dedup();
        gateways
    }

    /// The address families of host-local.
    pub fn families(&self) -> Vec<Family> {
        let host_local = self.configured.host_local.as_ref();
        host_local.map(|it| it.families()).unwrap_or_default()
    }

    /// The usage of each range set of host-local.
    pub fn usage(&self) -> Vec<RangeUsage> {
        let is_held = |lease: &&LeaseFile| {
            lease.owner.is_some() && !self.from_before_boot.contains(&lease.address)
        };
        let held: Vec<IpAddr> = self
            .leases
            .iter()
            .filter(is_held)
            .map(|lease| lease.address)
            .collect();
        let Some(host_local) = &self.configured.host_local else {
            return Vec::new();
        };
        let usage = host_local.pools().iter().map(|pool| {
            let used = held.iter().filter(|it| pool.set.range_of(**it).is_some());
            RangeUsage {
                range: pool.set.to_string(),
                used: used.count(),
                size: host_local.usable(pool),
            }
        });
        usage.collect()
    }
}
