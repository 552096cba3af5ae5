//! The nftables backend of the Go plugin, whose rules are recognised and removed, never added:
//!
//! ```text
//! table ip cni_hostport {                                                                        ip6
//!     chain hostports { tcp dport 8080 dnat to 10.1.0.2:80 comment "CONTAINER" }                 hostip_hostports
//!     chain masquerading { ip saddr 10.1.0.2 ip daddr 10.1.0.2 masquerade comment "CONTAINER" }
//!     chain prerouting { type nat hook prerouting …; fib daddr type local jump hostports_all }   output
//! }
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::cni::names::ContainerId;
use crate::error::Error;
use crate::kernel::nftables::{
    Action, Batch, Match, Nftables, NftablesError, Rule, RuleEntry, Table, TableFamily,
};
use crate::net::{Cidr, Family};
use crate::netfilter::Feature;
use crate::netfilter::portmap::{Forwarded, IsAlive, Mapped, PortMapping, Protocol};

const FEATURE: Feature = Feature {
    name: "portmap",
    remedy: "the table cni_hostport needs nf_tables",
};

/// The chains with rules of containers.
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

fn table(family: Family) -> Table {
    Table {
        family: TableFamily::Ip(family),
        name: "cni_hostport",
    }
}

/// Whether the table exists in any family.
pub fn exist_in(nftables: &Nftables) -> Result<bool, NftablesError> {
    let [v4, v6] = Family::BOTH.map(|family| nftables.table(table(family)));
    Ok(v4?.is_some() || v6?.is_some())
}

/// The rules of containers.
fn rules(nftables: &Nftables, family: Family) -> Result<Vec<RuleEntry>, NftablesError> {
    if nftables.table(table(family))?.is_none() {
        return Ok(Vec::new());
    }
    let mut rules = nftables.rules(table(family), None)?;
    rules.retain(|rule| CHAINS.contains(&rule.chain.as_str()));
    Ok(rules)
}

/// The mapped ports of a family.
///
/// # Errors
/// When the kernel refuses.
pub fn mapped(family: Family) -> Result<Vec<Mapped>, Error> {
    let rules = FEATURE.with_existing("list rules", |nftables| rules(nftables, family))?;
    let rules = rules.iter().flatten();
    Ok(rules.filter_map(|rule| parse(rule, family)).collect())
}

fn parse(rule: &RuleEntry, family: Family) -> Option<Mapped> {
    let (address, port) = rule.translated_to()?;
    let protocol = rule.protocol()?;
    Some(Mapped {
        mapping: PortMapping {
            protocol: Protocol::ALL
                .into_iter()
                .find(|it| it.number() == protocol)?,
            host_port: NonZeroU16::new(rule.destination_port()?)?,
            container_port: NonZeroU16::new(port)?,
            host_ip: rule.destination(family).map(Cidr::address),
        },
        address,
        network: String::new(),
        container: rule.comment.clone(),
        object: rule.comment.clone(),
    })
}

/// Whether the rules of a container forward its ports; `None` if it has no rules.
///
/// # Errors
/// When the kernel refuses.
pub fn forwards(container: &ContainerId, forwarded: &Forwarded) -> Result<Option<bool>, Error> {
    let family = forwarded.address.family();
    let mut own = mapped(family)?;
    own.retain(|it| it.container == container.as_str());
    let is_mapped = |wanted: &PortMapping| {
        own.iter().any(|it| {
            it.mapping.overlaps(wanted)
                && it.mapping.container_port == wanted.container_port
                && it.address == forwarded.address.address()
        })
    };
    let mut wanted = forwarded.mappings.iter().filter(|it| it.applies_to(family));
    Ok((!own.is_empty()).then(|| wanted.all(is_mapped)))
}

/// The address of the container that a rule is about.
fn address_of(rule: &RuleEntry, family: Family) -> Option<IpAddr> {
    let translated = rule.translated_to().map(|(address, _)| address);
    translated.or_else(|| rule.destination(family).map(Cidr::address))
}

/// Plans the removal of the rules of a container, but not of those of its other networks: rules name only the container.
/// `known` are the addresses of prevResult. Returns the addresses to which the rules forwarded.
pub fn plan_removal(
    nftables: &Nftables,
    container: &ContainerId,
    (known, is_alive): (&[IpAddr], IsAlive),
    batch: &mut Batch,
) -> Result<BTreeSet<IpAddr>, NftablesError> {
    let is_own = |rule: &RuleEntry, family: Family| {
        let is_known = |address: IpAddr| {
            known.is_empty() || known.contains(&address) || !is_alive(address).unwrap_or(true)
        };
        rule.comment == container.as_str() && address_of(rule, family).is_none_or(is_known)
    };
    plan_removal_of(nftables, &is_own, batch)
}

/// Removes the rules of containers that no longer exist.
///
/// # Errors
/// As [`remove`].
pub fn remove_stale(stale: &[&Mapped]) -> Result<(), Error> {
    let is_stale = |rule: &RuleEntry, family: Family| {
        stale
            .iter()
            .any(|it| rule.comment == it.object && address_of(rule, family) == Some(it.address))
    };
    let removed = FEATURE.with_existing("remove rules", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            plan_removal_of(nftables, &is_stale, &mut batch)?;
            Ok(batch)
        })
    });
    removed.map(drop)
}

fn plan_removal_of(
    nftables: &Nftables,
    matches: &dyn Fn(&RuleEntry, Family) -> bool,
    batch: &mut Batch,
) -> Result<BTreeSet<IpAddr>, NftablesError> {
    let mut addresses = BTreeSet::new();
    for family in Family::BOTH {
        let table = table(family);
        let rules = rules(nftables, family)?;
        let (own, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| matches(rule, family));
        addresses.extend(own.iter().filter_map(|rule| address_of(rule, family)));
        // The Go plugin leaves its table.
        if others.is_empty() && nftables.table(table)?.is_some() {
            batch.delete_table(table);
        } else {
            for rule in own {
                batch.delete_rule(table, &rule.chain, rule.handle);
            }
        }
    }
    Ok(addresses)
}

/// Restricts the rules of versions before 1.9.0 to packets to an address of the host (CVE-2025-67499).
///
/// # Errors
/// When the kernel refuses.
pub fn restrict_to_host(family: Family) -> Result<(), Error> {
    let table = table(family);
    let restricted = FEATURE.with_existing("change rules", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            for chain in ["prerouting", "output"] {
                for rule in nftables.rules(table, Some(chain))? {
                    let Some(target) = rule.target() else {
                        continue;
                    };
                    let jump = Action::Jump(target.to_owned());
                    if rule.is(&Rule::new(Vec::new(), jump.clone())) {
                        batch.delete_rule(table, chain, rule.handle);
                        batch.append(
                            table,
                            chain,
                            &Rule::new(vec![Match::LocalDestination], jump),
                        );
                    }
                }
            }
            Ok(batch)
        })
    });
    restricted.map(drop)
}
