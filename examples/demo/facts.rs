//! What stands on a place, as the kernel and the files tell it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use gangplank::kernel::netlink::Netlink;
use gangplank::kernel::process;
use gangplank::net::{Cidr, Family, Mac};
use nix::net::if_::{Interface, if_nameindex};

use crate::Failure;
use crate::namespace::Namespace;

/// How long listing the rules may take.
const LIMIT: Duration = Duration::from_secs(10);

/// All that pods could leave behind on a node.
#[derive(Debug, PartialEq, Eq)]
pub struct MasqueradeEntry {
    /// The names of all links.
    pub links: BTreeSet<String>,
    /// The addresses that are leased on a network.
    pub leases: Vec<IpAddr>,
    /// The rules of the nat table; absent where no program can tell, and so none can have made any.
    pub rules: Option<Vec<String>>,
}

impl MasqueradeEntry {
    /// What stands on a node now.
    pub fn of(node: &Namespace, network: &str) -> Result<MasqueradeEntry, Failure> {
        let names = || -> nix::Result<BTreeSet<String>> {
            let links = if_nameindex()?;
            let name = |link: &Interface| link.name().to_string_lossy().into_owned();
            Ok(links.iter().map(name).collect())
        };
        Ok(MasqueradeEntry {
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
    // Others are comments and the policies of the chains that are always there.
    let is_rule = |line: &&str| line.starts_with("-A") || line.starts_with(":CNI-");
    Ok(Some(
        text.lines().filter(is_rule).map(str::to_owned).collect(),
    ))
}

/// A link, as the picture shows it.
pub struct ObservedLinks {
    pub mac: Mac,
    pub address: Option<Cidr>,
    /// The name of the bridge it is a port of.
    pub bridge: Option<String>,
}

impl ObservedLinks {
    /// Those of a link of a place.
    pub fn of(place: &Namespace, link: &str) -> Result<ObservedLinks, Failure> {
        let facts = place.inside(|| look(link));
        Ok(facts.map_err(|cause| format!("{link} of {}: {cause}", place.name))?)
    }
}

fn look(name: &str) -> Result<ObservedLinks, Failure> {
    let netlink = Netlink::open()?;
    let link = netlink
        .link(&name.parse()?)?
        .ok_or("there is no such link")?;
    if !link.is_up {
        return Err("it is down".into());
    }
    let bridge = link
        .master
        .map(|index| netlink.link_at(index))
        .transpose()?;
    let addresses = netlink.addresses(link.index)?;
    let mut addresses = addresses.iter().map(|address| address.cidr);
    Ok(ObservedLinks {
        mac: link.mac.ok_or("it has no MAC address")?,
        address: addresses.find(|cidr| cidr.family() == Family::V4),
        bridge: bridge.flatten().map(|bridge| bridge.name),
    })
}
