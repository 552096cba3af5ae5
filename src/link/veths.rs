//! Veth pairs between the host and other network namespaces, with the addresses of the peers.

use std::net::IpAddr;

use crate::kernel::netlink::{Kind, Link, Netlink, NetlinkError};

#[derive(Clone, Debug)]
pub struct Veth {
    /// The host end.
    pub host: Link,
    /// The name of the peer; empty if it was deleted in the meantime.
    pub interface: String,
    /// The addresses of the peer.
    pub addresses: Vec<IpAddr>,
}

/// All veth pairs whose peer has one of these addresses.
///
/// # Errors
/// If the kernel refuses a request.
pub fn veths(
    host: &Netlink,
    is_wanted: impl Fn(IpAddr) -> bool,
) -> Result<Vec<Veth>, NetlinkError> {
    let mut links = host.cross_links()?;
    links.retain(|link| link.link.kind == Kind::Veth);
    links.sort_by_key(|link| link.netns);
    let mut found = Vec::new();
    for of_netns in links.chunk_by(|one, other| one.netns == other.netns) {
        let netns = of_netns[0].netns;
        let Some(addresses) = host.addresses_in(netns)? else {
            continue;
        };
        for link in of_netns {
            let of_peer = addresses.iter().filter(|address| address.link == link.peer);
            let addresses: Vec<IpAddr> = of_peer.map(|it| it.cidr.address()).collect();
            if addresses.iter().any(|address| is_wanted(*address)) {
                let peer = host.link_in(netns, link.peer)?;
                found.push(Veth {
                    host: link.link.clone(),
                    interface: peer.map(|peer| peer.name).unwrap_or_default(),
                    addresses,
                });
            }
        }
    }
    Ok(found)
}
