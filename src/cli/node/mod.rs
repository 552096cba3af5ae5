//! The node as it is: configurations, leases, links, masquerading and what runtimes remember, put together once.
//!
//! Reads and changes nothing. What it is seen as belongs to [`crate::cli::status`] and [`crate::cli::doctor`].

mod cache;
mod configurations;
mod pods;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cli::args::Paths;
use crate::cli::chain::Chain;
use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::ipam::live::LiveAttachments;
use crate::ipam::{LeaseFile, Store};
use crate::kernel::netlink::{Address, Link, Netlink, RouteEntry};
use crate::kernel::sysctl;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family};
use crate::netfilter::masquerade::Inventory;

pub use cache::Cached;
pub use configurations::{Configurations, Configured};
pub use pods::{Pod, Problem};

/// All that is known of the node.
pub struct Node {
    /// The networks with a bridge, in the order of their files.
    pub networks: Vec<Network>,
    /// All that the directory of configurations holds besides.
    pub unusable: Vec<(PathBuf, Error)>,
    /// The types of all plugins that are named, each with a file that does.
    pub plugins: Vec<(String, PathBuf)>,
    /// The names of all networks, each with its file.
    pub names: Vec<(String, PathBuf)>,
    /// The lists of plugins, each with its file.
    pub chains: Vec<(Chain, PathBuf)>,
    /// Leases of networks that no configuration names.
    pub orphans: Vec<(Store, Vec<LeaseFile>)>,
    /// What runtimes remember.
    pub cache: Vec<Cached>,
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// The ways of this machine to the world.
    pub uplinks: Vec<RouteEntry>,
    /// All masquerading.
    pub inventory: Inventory,
    /// A socket on the host's side.
    pub host: Netlink,
    /// What shows that attachments live, once it is asked for; `None` if that cannot be seen.
    live: OnceCell<Option<LiveAttachments>>,
}

/// One network.
pub struct Network {
    /// Its configuration.
    pub configured: Configured,
    /// Files that are named after an address.
    pub leases: Vec<LeaseFile>,
    /// The addresses whose leases are of an earlier boot, and so are free.
    pub from_before_boot: HashSet<IpAddr>,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Ports of its bridge that belong to no pod we know, by the index in [`Node::links`].
    pub unknown_ports: Vec<usize>,
}

impl Node {
    /// Looks at everything.
    ///
    /// # Errors
    /// When a directory or the kernel cannot be read: half a picture would mislead.
    pub fn look(paths: &Paths) -> Result<Node, Error> {
        let unreadable = |what: &str| {
            let what = format!("cannot list this machine's {what}");
            move |cause| Error::failed(format!("{what}: {cause}"))
        };
        let found = Configurations::read(&paths.conf_dir, &paths.data_dir)?;
        let host = host_netlink()?;
        let mut node = Node {
            networks: Vec::new(),
            unusable: found.unusable,
            plugins: found.plugins,
            names: found.names,
            chains: found.chains,
            orphans: Vec::new(),
            cache: Cached::read_all(&paths.cache_dir),
            links: host.links().map_err(unreadable("links"))?,
            addresses: host.all_addresses().map_err(unreadable("addresses"))?,
            uplinks: host.uplinks().map_err(unreadable("routes"))?,
            inventory: Inventory::take(),
            host,
            live: OnceCell::new(),
        };
        for configured in found.networks {
            let network = node.network(configured)?;
            node.networks.push(network);
        }
        node.orphans = node.orphans(paths)?;
        Ok(node)
    }

    fn network(&self, configured: Configured) -> Result<Network, Error> {
        let (mut leases, mut from_before_boot) = (Vec::new(), HashSet::new());
        if let Some(host_local) = &configured.host_local {
            let unseen = |error: Error| error.details("run it as root");
            leases = host_local.store().all().map_err(unseen)?;
            // Only root may read which boot is recorded.
            from_before_boot = host_local.store().from_before_boot().unwrap_or_default();
        }
        let mut network = Network {
            configured,
            leases,
            from_before_boot,
            pods: Vec::new(),
            unknown_ports: Vec::new(),
        };
        network.pods = pods::gather(self, &network);
        let bridge = self.bridge(&network).map(|bridge| bridge.index);
        let known: HashSet<u32> = network
            .pods
            .iter()
            .filter_map(|pod| pod.link.map(|at| self.links[at].index))
            .collect();
        let strange = self.links.iter().enumerate().filter(|(_, link)| {
            bridge.is_some() && link.master == bridge && !known.contains(&link.index)
        });
        network.unknown_ports = strange.map(|(at, _)| at).collect();
        Ok(network)
    }

    fn orphans(&self, paths: &Paths) -> Result<Vec<(Store, Vec<LeaseFile>)>, Error> {
        let entries = std::fs::read_dir(&paths.data_dir)
            .into_iter()
            .flatten()
            .flatten();
        let names =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse::<NetworkName>().ok());
        let is_known =
            |name: &NetworkName| self.names.iter().any(|(known, _)| known == name.as_str());
        let mut orphans = Vec::new();
        for name in names.filter(|name| !is_known(name)) {
            let store = Store::new(&paths.data_dir, &name);
            let leases = store.all()?;
            if !leases.is_empty() {
                orphans.push((store, leases));
            }
        }
        Ok(orphans)
    }

    /// The network of that name, or all without one.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn wanted(&self, name: Option<&str>) -> Result<Vec<&Network>, Error> {
        let is_wanted = |network: &&Network| name.is_none_or(|it| network.name().as_str() == it);
        let wanted: Vec<&Network> = self.networks.iter().filter(is_wanted).collect();
        match name.filter(|_| wanted.is_empty()) {
            None => Ok(wanted),
            Some(name) => {
                let known: Vec<&str> = self.networks.iter().map(|it| it.name().as_str()).collect();
                let error = Error::failed(format!("no network with a bridge is named {name:?}"));
                Err(error.details(format!("there are: {}; see --conf-dir", known.join(", "))))
            }
        }
    }

    /// Whether an interface in another network namespace may have an address.
    pub fn may_be_in_use(&self, address: IpAddr) -> bool {
        let live = self.live.get_or_init(|| LiveAttachments::observe().ok());
        live.as_ref().is_none_or(|live| live.has_address(address))
    }

    /// The link of that name, which may be an alternative one (ip-link(8), "property add").
    pub fn link(&self, name: &str) -> Option<&Link> {
        let alternative = || {
            let link = self.host.link(&name.parse().ok()?).ok()??;
            self.links.iter().find(|it| it.index == link.index)
        };
        let mut links = self.links.iter();
        links.find(|link| link.name == name).or_else(alternative)
    }

    /// The bridge of a network, or whatever has its name.
    pub fn bridge(&self, network: &Network) -> Option<&Link> {
        self.link(network.configured.bridge.bridge.as_str())
    }

    /// The link that has the gateways' addresses: the bridge, or for pods in a VLAN an interface beside it.
    pub fn gateway_link(&self, network: &Network) -> Option<&Link> {
        let vlans = network.configured.bridge.vlans.as_ref();
        match vlans.and_then(|vlans| vlans.gateway.as_ref()) {
            Some(interface) => self.link(interface.as_str()),
            None => self.bridge(network),
        }
    }

    /// The gateways that the runtime remembers of a network's live pods, but for those on another bridge.
    pub fn cached_gateways(&self, network: &Network) -> Vec<Cidr> {
        let bridge = self.bridge(network).map(|bridge| bridge.index);
        let is_here = |at: usize| {
            let master = self.links[at].master;
            master.is_none() || master == bridge
        };
        let is_living = |cached: &&Cached| {
            let mut pods = network.pods.iter();
            cached.network == *network.name()
                && pods
                    .any(|pod| pod.attachment == cached.attachment && pod.link.is_some_and(is_here))
        };
        let mut gateways = Vec::new();
        for gateway in self
            .cache
            .iter()
            .filter(is_living)
            .flat_map(Cached::gateways)
        {
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        gateways
    }

    /// The families that the host does not forward; one that the kernel does not have is not among them.
    pub fn not_forwarded(&self) -> Vec<Family> {
        let is_off = |family: &Family| sysctl::forwards(*family).is_ok_and(|forwards| !forwards);
        Family::BOTH.into_iter().filter(is_off).collect()
    }

    /// The links of the way to the world of a family.
    pub fn uplink(&self, family: Family) -> impl Iterator<Item = &Link> {
        let routes = self
            .uplinks
            .iter()
            .filter(move |route| route.dst.family() == family);
        let indexes = routes.flat_map(RouteEntry::all_links);
        indexes.filter_map(|index| self.links.iter().find(|link| link.index == index))
    }

    /// The addresses of a link but for those that the kernel makes up itself.
    pub fn addresses_of(&self, link: &Link) -> Vec<Cidr> {
        let of_link = self
            .addresses
            .iter()
            .filter(|address| address.link == link.index);
        of_link
            .map(|address| address.cidr)
            .filter(|cidr| !is_link_local(*cidr))
            .collect()
    }
}

fn is_link_local(cidr: Cidr) -> bool {
    match cidr.address() {
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    }
}

impl Network {
    /// Its name.
    pub fn name(&self) -> &NetworkName {
        &self.configured.conf.name
    }

    /// The gateways of the subnets that these addresses are in, with the prefix length of the subnets.
    pub fn gateways_of(&self, addresses: &[Cidr]) -> Vec<Cidr> {
        let pools = self.configured.host_local.iter().flat_map(|it| it.pools());
        let ranges = pools.flat_map(|pool| pool.set.ranges());
        let used = ranges.filter(|range| addresses.iter().any(|it| range.contains(it.address())));
        let mut gateways: Vec<Cidr> = used
            .map(|range| range.with_prefix(range.gateway()))
            .collect();
        gateways.dedup();
        gateways
    }

    /// The families of its addresses.
    pub fn families(&self) -> Vec<Family> {
        self.configured
            .host_local
            .as_ref()
            .map(|it| it.families())
            .unwrap_or_default()
    }

    /// How many addresses of each range set somebody has, how many there are, and the set.
    pub fn usage(&self) -> Vec<(usize, u128, String)> {
        let Some(host_local) = &self.configured.host_local else {
            return Vec::new();
        };
        let is_held = |lease: &&LeaseFile| {
            lease.owner.is_some() && !self.from_before_boot.contains(&lease.address)
        };
        let held: Vec<IpAddr> = self
            .leases
            .iter()
            .filter(is_held)
            .map(|lease| lease.address)
            .collect();
        let pools = host_local.pools().iter();
        pools
            .map(|pool| {
                let used = held
                    .iter()
                    .filter(|address| pool.set.range_of(**address).is_some());
                (used.count(), host_local.usable(pool), pool.set.to_string())
            })
            .collect()
    }
}
