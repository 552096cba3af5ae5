//! Connection tracking entries of mapped ports: a flow of UDP never ends by itself, so that packets of a client follow
//! the rules that applied to its first one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::error::Error;
use crate::kernel::conntrack::{Flow, Selection, delete_flows};
use crate::net::Family;
use crate::netfilter::portmap::{Forwarded, PortMapping, Protocol};

/// Deletes the entries of UDP packets to mapped ports that were not forwarded to the container: those to `local`
/// addresses of the host.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_stale(forwarded: &Forwarded, local: &[IpAddr]) -> Result<(), Error> {
    let family = forwarded.address.family();
    let is_udp = |it: &&PortMapping| it.protocol == Protocol::Udp && it.applies_to(family);
    let udp: Vec<&PortMapping> = forwarded.mappings.iter().filter(is_udp).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let is_stale = |flow: &Flow| {
        let is_mapped = udp.iter().any(|it| {
            let to = it.host_address();
            it.host_port.get() == flow.port && to.is_none_or(|to| to == flow.destination)
        });
        is_mapped
            && flow.protocol == Protocol::Udp.number()
            && local.contains(&flow.destination)
            && flow.answering != forwarded.address.address()
    };
    delete_flows(family, Selection::All, &is_stale).map_err(failed)
}

/// Deletes the entries of connections that were forwarded to addresses of a container.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_forwarded_to(addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
    let is_own = |flow: &Flow| flow.is_translated && addresses.contains(&flow.answering);
    for family in Family::BOTH {
        if addresses.iter().any(|it| Family::of(*it) == family) {
            delete_flows(family, Selection::Translated, &is_own).map_err(failed)?;
        }
    }
    Ok(())
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!(
        "portmap: cannot delete connection tracking entries: {cause}"
    ))
}
