//! What a listing of the nat table says about mapped ports.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use crate::net::Cidr;
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::portmap::{Mapped, PortMapping, Protocol};

/// The chain with the entry rules of containers.
pub const DNAT: &str = "CNI-HOSTPORT-DNAT";

/// The mapped ports of all containers: the DNAT rules of each chain to which [`DNAT`] has a jump.
pub fn mapped(listing: &Listing) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    let prefix = format!("-A {DNAT} ");
    for entry in listing.rules().filter(|rule| rule.starts_with(&prefix)) {
        let Some((_, chain)) = entry.rsplit_once(" -j ") else {
            continue;
        };
        let (network, container) = owner(entry);
        if found.iter().any(|it| it.object == chain) {
            continue;
        }
        let of_chain = listing
            .rules()
            .filter(|rule| rule.starts_with(&format!("-A {chain} ")));
        found.extend(of_chain.filter_map(|rule| {
            let (_, destination) = rule.split_once(" -j DNAT --to-destination ")?;
            let destination: SocketAddr = destination.parse().ok()?;
            let protocol = argument(rule, "-p ")?;
            let to: Option<Cidr> = argument(rule, "-d ").and_then(|to| to.parse().ok());
            Some(Mapped {
                mapping: PortMapping {
                    protocol: Protocol::ALL.into_iter().find(|it| it.name() == protocol)?,
                    host_port: argument(rule, "--dport ")?.parse().ok()?,
                    container_port: NonZeroU16::new(destination.port())?,
                    host_ip: to.map(Cidr::address),
                },
                network: network.to_owned(),
                container: container.to_owned(),
                object: chain.to_owned(),
                address: destination.ip(),
            })
        }));
    }
    found
}

/// The network and the container that the comment of an entry rule names.
fn owner(entry: &str) -> (&str, &str) {
    let after = |key: &str| {
        let (_, rest) = entry.split_once(key)?;
        rest.split(['\\', '"']).next()
    };
    let network = after("dnat name: \\\"").unwrap_or_default();
    (network, after(" id: \\\"").unwrap_or_default())
}

/// The value of an option of a rule; the rest of the rule for a comment.
pub fn argument<'r>(rule: &'r str, option: &str) -> Option<&'r str> {
    let (_, rest) = rule.split_once(&format!(" {option}"))?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split("\" -").next(),
        None => rest.split(' ').next(),
    }
}
