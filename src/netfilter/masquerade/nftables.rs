//! The nftables backend: a table with maps that have an element for each address of an attachment.
//!
//! ```text
//! table inet gangplank {
//!     map pods4 { type ipv4_addr : verdict; elements = { 10.1.0.2 comment "…" : goto net-NAME } }
//!     map pods6 { type ipv6_addr : verdict; }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         ip saddr vmap @pods4
//!         ip6 saddr vmap @pods6
//!     }
//!     chain net-NAME {
//!         ip daddr 10.1.0.0/24 return
//!         ip daddr 224.0.0.0/4 return
//!         ip6 daddr ff00::/8 return
//!         masquerade
//!     }
//! }
//! ```
//! Rules of other keys have the name of their key as comment. A network has one chain for all its pods: if their
//! configurations differ, the last one applies to all.
//! Entries in the Go plugin's table are recognised and removed, never added.

mod network;

use std::cell::Cell;
use std::net::IpAddr;

use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::kernel::nftables::{
    Action, BaseChain, Batch, Element, Hook, Load, MapField, MapType, Match, Nftables,
    NftablesError, Rule, RuleEntry, Table, TableFamily, address_key,
};
use crate::net::{Cidr, Family};
use crate::netfilter::Feature;
use crate::netfilter::masquerade::Policy;
use crate::netfilter::rule_comment::{RuleComment, short_hash};

use network::{Completion, NetworkRules};

/// Our table.
const TABLE: Table = Table {
    family: TableFamily::Inet,
    name: "gangplank",
};

/// The priority is NF_IP_PRI_NAT_SRC (linux/netfilter_ipv4.h).
const POSTROUTING: BaseChain = BaseChain {
    name: "postrouting",
    kind: "nat",
    hook: Hook::Postrouting,
    priority: 100,
};

/// The number of objects in our table without networks: two maps and a chain.
const BARE_TABLE: u32 = 3;

/// The Go plugin's table, and its chain with a rule for each address.
const GO_TABLE: Table = Table {
    family: TableFamily::Inet,
    name: "cni_plugins_masquerade",
};
const GO_CHAIN: &str = "masq_checks";

/// The number of elements, and of rules in the Go plugin's table, that one transaction of [`gc`] removes.
const MAX_ELEMENTS: usize = 4000;
const MAX_RULES: usize = 1000;

/// Masquerading, in errors.
pub const FEATURE: Feature = Feature {
    name: "masquerade",
    remedy: "masquerading in a table of family inet needs Linux 5.2; install iptables, or set ipMasq to false",
};

/// The longest chain name in bytes, without its terminator (NFT_NAME_MAXLEN, linux/netfilter/nf_tables.h).
const MAX_NAME: usize = 255;

/// Masquerades addresses of an attachment, in one transaction unless the network's rules are new and many.
///
/// # Errors
/// When the kernel refuses; nothing is masqueraded then.
pub fn install(
    network: &NetworkName,
    comment: &RuleComment,
    addresses: &[Cidr],
    policy: &Policy,
) -> Result<(), Error> {
    let wanted = NetworkRules::of(addresses, policy);
    let chain = chain_of(network);
    let plan = |nftables: &Nftables, batch: &mut Batch| -> Result<Completion, NftablesError> {
        let present = nftables.rules(TABLE, None)?;
        complete_base(batch, &present);
        if wanted.complete(batch, &chain, &present) == Completion::Part {
            return Ok(Completion::Part);
        }
        for address in addresses {
            let map = map_of(address.family());
            let element = Element::to_chain(address.address(), &chain, comment.comment());
            // Of the previous owner of the address, or of an earlier ADD of this attachment.
            if let Some(old) = nftables.element(TABLE, map, &element.key)? {
                batch.delete_elements(TABLE, map, [old].iter());
            }
            batch.add_element(TABLE, map, &element);
        }
        Ok(Completion::Whole)
    };
    FEATURE.with_nftables("install rules in nftables", |nftables| {
        let completion = Cell::new(Completion::Part);
        for _ in 0..wanted.parts() {
            nftables.change(&|| {
                let mut batch = Batch::default();
                completion.set(plan(nftables, &mut batch)?);
                Ok(batch)
            })?;
            if completion.get() == Completion::Whole {
                return Ok(());
            }
        }
        Err(NftablesError::Malformed)
    })
}

/// Whether our table or that of the Go plugin exists.
///
/// # Errors
/// When the kernel refuses a request.
pub fn may_hold(nftables: &Nftables) -> Result<bool, NftablesError> {
    Ok(nftables.table(TABLE)?.is_some() || nftables.table(GO_TABLE)?.is_some())
}

/// Plans the removal of an attachment from our table and that of the Go plugin. Without known addresses the maps are
/// listed.
///
/// # Errors
/// When the kernel refuses a request.
pub fn plan_removal(
    nftables: &Nftables,
    network: &NetworkName,
    comment: &RuleComment,
    addresses: &[IpAddr],
) -> Result<Batch, NftablesError> {
    let mut batch = Batch::default();
    if nftables.table(TABLE)?.is_some() {
        let elements = elements_of(nftables, comment, addresses)?;
        if !elements.is_empty() {
            batch = removal(nftables, &chain_of(network), elements)?;
        }
    }
    if nftables.table(GO_TABLE)?.is_some() {
        let rules = nftables.rules(GO_TABLE, Some(GO_CHAIN))?;
        for rule in rules.iter().filter(|rule| comment.matches(&rule.comment)) {
            batch.delete_rule(GO_TABLE, GO_CHAIN, rule.handle);
        }
    }
    Ok(batch)
}

/// Removes stale attachments of a network from our table and that of the Go plugin.
///
/// # Errors
/// As [`remove`].
pub fn gc(
    nftables: &Nftables,
    network: &NetworkName,
    is_stale: &dyn Fn(&str) -> bool,
) -> Result<(), NftablesError> {
    let is_stale =
        |comment: &str| RuleComment::is_of_network(network, comment) && is_stale(comment);
    // In transactions that fit into the default send buffer of a socket; each leaves the tables consistent.
    let plan = || {
        let mut batch = Batch::default();
        if nftables.table(TABLE)?.is_some() {
            let mut stale = listed(nftables)?;
            stale.retain(|element| is_stale(&element.comment));
            stale.truncate(MAX_ELEMENTS);
            batch = removal(nftables, &chain_of(network), stale)?;
        }
        let rules = nftables.rules(GO_TABLE, Some(GO_CHAIN))?;
        let stale = rules.iter().filter(|rule| is_stale(&rule.comment));
        for rule in stale.take(MAX_RULES) {
            batch.delete_rule(GO_TABLE, GO_CHAIN, rule.handle);
        }
        Ok(batch)
    };
    while nftables.change(&plan)? {}
    Ok(())
}

/// An entry of an attachment.
#[derive(Debug)]
pub struct NftablesEntry {
    /// The address of an element of our maps; `None` for rules of the Go plugin.
    pub address: Option<IpAddr>,
    pub comment: String,
    /// Whether packets reach it: `nft flush chain` leaves the maps.
    pub is_in_force: bool,
}

/// All entries of our table and that of the Go plugin.
///
/// # Errors
/// When the kernel refuses a request.
pub fn entries(nftables: &Nftables) -> Result<Vec<NftablesEntry>, NftablesError> {
    let rules = nftables.rules(TABLE, None)?;
    let has_base = base_rules()
        .iter()
        .all(|rule| holds(&rules, POSTROUTING.name, rule));
    let elements = listed(nftables)?.into_iter().map(|it| NftablesEntry {
        address: it.address(),
        is_in_force: has_base && rules.iter().any(|rule| it.chain() == Some(&rule.chain)),
        comment: it.comment,
    });
    let theirs = nftables.rules(GO_TABLE, Some(GO_CHAIN))?;
    let theirs = theirs.into_iter().map(|it| NftablesEntry {
        address: None,
        comment: it.comment,
        is_in_force: true,
    });
    let theirs = theirs.filter(|it| !it.comment.is_empty());
    Ok(elements.chain(theirs).collect())
}

/// Checks that nf_tables can be used.
///
/// # Errors
/// When the kernel lacks it or denies access. Transient errors are left to ADD, because a failing STATUS makes the node
/// NotReady.
pub fn status() -> Result<(), Error> {
    use NftablesError::{Denied, Unsupported};
    match Nftables::open().and_then(|it| it.change(&|| Ok(Batch::default()))) {
        Err(cause @ (Denied | Unsupported(_))) => Err(FEATURE.failed("use nftables", cause)),
        _ => Ok(()),
    }
}

/// Checks that an attachment's addresses are masqueraded, in our table or in that of the Go plugin.
///
/// # Errors
/// The first missing entry; when the kernel refuses a request.
pub fn check(
    network: &NetworkName,
    comment: &RuleComment,
    addresses: &[Cidr],
    policy: &Policy,
) -> Result<(), Error> {
    let wanted = NetworkRules::of(addresses, policy);
    let missing = FEATURE.with_nftables("list nftables", |nftables| {
        let go_rules = nftables.rules(GO_TABLE, Some(GO_CHAIN))?;
        let of_go = go_rules
            .iter()
            .filter(|rule| comment.matches(&rule.comment));
        if of_go.count() >= addresses.len() {
            return Ok(None);
        }
        let chain = chain_of(network);
        match without_element(nftables, &chain, comment, addresses)? {
            None => wanted.missing(nftables, &chain),
            lost => Ok(lost),
        }
    })?;
    match missing {
        None => Ok(()),
        Some(what) => {
            let table = TABLE.name;
            let msg = format!("check: masquerading {what} of the table inet {table}");
            Err(Error::failed(msg))
        }
    }
}

fn without_element(
    nftables: &Nftables,
    chain: &str,
    comment: &RuleComment,
    addresses: &[Cidr],
) -> Result<Option<String>, NftablesError> {
    for address in addresses {
        let (ip, map) = (address.address(), map_of(address.family()));
        let element = nftables.element(TABLE, map, &address_key(ip))?;
        if !element.is_some_and(|it| it.chain() == Some(chain) && comment.matches(&it.comment)) {
            return Ok(Some(format!("{ip} lacks its element in the map {map}")));
        }
    }
    Ok(None)
}

/// The chain of a network.
fn chain_of(network: &NetworkName) -> String {
    let name = format!("net-{network}");
    if name.len() <= MAX_NAME {
        return name;
    }
    let hash = short_hash(network.as_str());
    format!("{}-{hash}", &name[..MAX_NAME - 1 - hash.len()])
}

fn map_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "pods4",
        Family::V6 => "pods6",
    }
}

fn map_type(family: Family) -> MapType {
    MapType {
        key: MapField::address(family),
        value: &[],
    }
}

fn base_rules() -> [Rule; 2] {
    Family::BOTH.map(|family| {
        let action = Action::VerdictMap(vec![Load::Source(family)], map_of(family));
        Rule::new(vec![Match::Family(family)], action)
    })
}

fn holds(present: &[RuleEntry], chain: &str, rule: &Rule) -> bool {
    present
        .iter()
        .any(|entry| entry.chain == chain && entry.is(rule))
}

/// Adds the missing maps, chain and rules that all networks share.
fn complete_base(batch: &mut Batch, present: &[RuleEntry]) {
    let mut missing = base_rules().to_vec();
    missing.retain(|rule| !holds(present, POSTROUTING.name, rule));
    if missing.is_empty() {
        return;
    }
    batch.create_table(TABLE);
    for family in Family::BOTH {
        batch.create_map(TABLE, map_of(family), map_type(family));
    }
    batch.create_base_chain(TABLE, POSTROUTING);
    for rule in &missing {
        batch.append(TABLE, POSTROUTING.name, rule);
    }
}

/// The elements of an attachment: those of its addresses, or if one of them has none, all elements with its comment.
fn elements_of(
    nftables: &Nftables,
    comment: &RuleComment,
    addresses: &[IpAddr],
) -> Result<Vec<Element>, NftablesError> {
    let mut elements = Vec::new();
    for address in addresses {
        let element =
            nftables.element(TABLE, map_of(Family::of(*address)), &address_key(*address))?;
        elements.extend(element.filter(|it| comment.matches(&it.comment)));
    }
    if addresses.is_empty() || elements.len() < addresses.len() {
        elements = listed(nftables)?;
        elements.retain(|element| comment.matches(&element.comment));
    }
    Ok(elements)
}

/// The elements of all attachments.
fn listed(nftables: &Nftables) -> Result<Vec<Element>, NftablesError> {
    let mut elements = Vec::new();
    for family in Family::BOTH {
        elements.extend(nftables.elements(TABLE, map_of(family))?);
    }
    Ok(elements)
}

/// Removes elements of a network, its chain with its last element, and the table with the last network.
fn removal(
    nftables: &Nftables,
    chain: &str,
    elements: Vec<Element>,
) -> Result<Batch, NftablesError> {
    let mut batch = Batch::default();
    for family in Family::BOTH {
        let of_family = |element: &&Element| element.address().map(Family::of) == Some(family);
        batch.delete_elements(TABLE, map_of(family), elements.iter().filter(of_family));
    }
    let Some(uses) = nftables.chain(TABLE, chain)? else {
        return Ok(batch);
    };
    let rules = nftables.rules(TABLE, Some(chain))?.len();
    let going = elements
        .iter()
        .filter(|it| it.chain() == Some(chain))
        .count();
    if uses as usize > rules + going {
        return Ok(batch);
    }
    if nftables.table(TABLE)? == Some(BARE_TABLE + 1) {
        batch = Batch::default();
        batch.delete_table(TABLE);
    } else {
        batch.delete_chain(TABLE, chain);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_chain_fits_into_the_limit_of_the_kernel() {
        let name = |network: String| chain_of(&network.parse().unwrap());
        assert_eq!(name("small".into()), "net-small");
        assert_eq!(name("x".repeat(251)).len(), 255);
        let (one, other) = ("x".repeat(300) + "1", "x".repeat(300) + "2");
        assert_eq!(name(one.clone()).len(), 255);
        assert_ne!(name(one), name(other));
    }
}
