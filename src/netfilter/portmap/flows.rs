//! Connection tracking entries of mapped ports: a flow of UDP never ends by itself, so that packets of a client follow
//! the rules that applied to its first one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::error::Error;
use crate::kernel::conntrack::{Flow, Selection, delete_flows};
use crate::kernel::netlink::Netlink;
use crate::net::Family;
use crate::netfilter::portmap::{Forwarded, PortMapping, Protocol};

/// Deletes the entries of UDP packets to mapped ports at an address of the host that were not forwarded to the container.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_stale(forwarded: &[Forwarded]) -> Result<(), Error> {
    let is_udp = |it: &&PortMapping| it.protocol == Protocol::Udp;
    if forwarded
        .iter()
        .flat_map(|it| it.mappings)
        .all(|it| !is_udp(&it))
    {
        return Ok(());
    }
    let host = Netlink::open().map_err(failed)?;
    let local = host.all_addresses().map_err(failed)?;
    let is_local = |address: IpAddr| local.iter().any(|it| it.cidr.address() == address);
    let is_stale = |flow: &Flow| {
        let family = Family::of(flow.destination);
        let is_mapped = |it: &PortMapping| {
            let to = it.host_address();
            it.applies_to(family)
                && it.host_port.get() == flow.port
                && to.is_none_or(|to| to == flow.destination)
        };
        let mut of_family = forwarded.iter().filter(|it| it.address.family() == family);
        flow.protocol == Protocol::Udp.number()
            && of_family.any(|it| {
                let mut udp = it.mappings.iter().filter(is_udp);
                it.address.address() != flow.answering && udp.any(is_mapped)
            })
            && is_local(flow.destination)
    };
    delete_flows(Selection::All, &is_stale).map_err(failed)
}

/// Deletes the entries of connections that were forwarded to addresses of a container.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_forwarded_to(addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let is_own = |flow: &Flow| flow.is_translated && addresses.contains(&flow.answering);
    delete_flows(Selection::Translated, &is_own).map_err(failed)
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!(
        "portmap: cannot delete connection tracking entries: {cause}"
    ))
}
