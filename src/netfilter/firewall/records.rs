//! The addresses of attachments, with their owners, which the rules of the Go plugin do not name:
//!
//! ```text
//! table inet gangplank_firewall {
//!     map pods4 { type ipv4_addr : ifname; elements = { 10.1.0.2 comment "…" : "cni0" } }
//!     map pods6 { type ipv6_addr : ifname; }
//! }
//! ```
//! The value is the bridge that is isolated because of the attachment, or empty. An address has one owner, the last.

use std::net::IpAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::kernel::nftables::{
    Batch, Element, MapField, MapType, Nftables, NftablesError, Table, TableFamily, Value,
    address_key, interface_key,
};
use crate::net::{Family, IfName};
use crate::netfilter::rule_comment::RuleComment;

pub const TABLE: Table = Table {
    family: TableFamily::Inet,
    name: "gangplank_firewall",
};

fn map_of(family: Family) -> (&'static str, MapType) {
    let name = match family {
        Family::V4 => "pods4",
        Family::V6 => "pods6",
    };
    let map_type = MapType {
        key: MapField::address(family),
        value: &[MapField::Interface],
    };
    (name, map_type)
}

/// An address and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub address: IpAddr,
    /// The isolated bridge.
    pub bridge: Option<IfName>,
    comment: String,
}

impl Recorded {
    fn parse(element: &Element) -> Option<Recorded> {
        let Value::Fields(bridge) = &element.value else {
            return None;
        };
        let bridge = std::str::from_utf8(bridge).ok()?.trim_end_matches('\0');
        Some(Recorded {
            address: element.address()?,
            bridge: bridge.parse().ok(),
            comment: element.comment.clone(),
        })
    }

    fn element(&self) -> Element {
        let bridge = self.bridge.as_ref().map_or("", |bridge| bridge.as_str());
        Element {
            key: address_key(self.address),
            value: Value::Fields(interface_key(bridge)),
            comment: self.comment.clone(),
        }
    }

    /// The network and the container ID of the owner.
    pub fn owner(&self) -> (&str, &str) {
        RuleComment::parse(&self.comment)
    }
}

/// The addresses of all attachments.
#[derive(Debug, Default)]
pub struct Records(Vec<Recorded>);

impl Records {
    pub fn list(nftables: &Nftables) -> Result<Records, NftablesError> {
        let mut records = Vec::new();
        for family in Family::BOTH {
            let elements = nftables.elements(TABLE, map_of(family).0)?;
            records.extend(elements.iter().filter_map(Recorded::parse));
        }
        Ok(Records(records))
    }

    /// The attachments, with each address.
    pub fn attachments(&self) -> impl Iterator<Item = (NetworkName, Attachment, IpAddr)> {
        self.0.iter().filter_map(|it| {
            let (network, attachment) = RuleComment::attachment(&it.comment)?;
            Some((network, attachment, it.address))
        })
    }

    pub fn of(&self, owner: &RuleComment) -> impl Iterator<Item = &Recorded> {
        self.0.iter().filter(|it| owner.matches(&it.comment))
    }

    /// Those of an attachment, and those of others.
    pub fn partition(self, owner: &RuleComment) -> (Vec<Recorded>, Vec<Recorded>) {
        self.0
            .into_iter()
            .partition(|it| owner.matches(&it.comment))
    }

    /// The owners on a network that are not among these.
    pub fn stale(&self, network: &NetworkName, kept: &[RuleComment]) -> Vec<RuleComment> {
        let is_stale = |it: &&Recorded| {
            RuleComment::is_of_network(network, &it.comment)
                && !kept.iter().any(|kept| kept.matches(&it.comment))
        };
        let stale = self.0.iter().filter(is_stale);
        let mut stale: Vec<RuleComment> = stale.map(|it| RuleComment::read(&it.comment)).collect();
        stale.dedup();
        stale
    }

    /// Makes an attachment the owner of these addresses and no others.
    pub fn replace(
        &self,
        owner: &RuleComment,
        (addresses, bridge): (&[IpAddr], Option<&IfName>),
        batch: &mut Batch,
    ) {
        let wanted = addresses.iter().map(|address| Recorded {
            address: *address,
            bridge: bridge.cloned(),
            comment: owner.comment().to_owned(),
        });
        let wanted: Vec<Recorded> = wanted.collect();
        let old = self.0.iter().filter(|it| {
            let is_replaced = addresses.contains(&it.address) || owner.matches(&it.comment);
            is_replaced && !wanted.contains(it)
        });
        let mut new = wanted.iter().filter(|it| !self.0.contains(it)).peekable();
        if new.peek().is_some() {
            batch.create_table(TABLE);
            for (map, map_type) in Family::BOTH.map(map_of) {
                batch.create_map(TABLE, map, map_type);
            }
        }
        delete(old.cloned(), false, batch);
        for record in new {
            let (map, _) = map_of(Family::of(record.address));
            batch.add_element(TABLE, map, &record.element());
        }
    }
}

/// Deletes records, and with the last ones the table.
pub fn delete(records: impl Iterator<Item = Recorded>, is_last: bool, batch: &mut Batch) {
    let mut records = records.peekable();
    if is_last && records.peek().is_some() {
        batch.delete_table(TABLE);
        return;
    }
    for record in records {
        let (map, _) = map_of(Family::of(record.address));
        batch.delete_elements(TABLE, map, [record.element()].iter());
    }
}
