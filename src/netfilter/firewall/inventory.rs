//! The recorded attachments and their rules in a filter table, for comparison with those that exist.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::net::Family;
use crate::netfilter::firewall::iptables::FILTER;
use crate::netfilter::firewall::records::{self, Records};
use crate::netfilter::firewall::rules::{accepted, accepts, isolated, unisolate};
use crate::netfilter::firewall::{ACCEPT, FEATURE};
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::{Listing, transaction};
use crate::netfilter::lock::serialized;
use crate::netfilter::tables;

pub const TABLE: &str = records::TABLE.name;

/// An attachment whose addresses are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRecord {
    pub network: NetworkName,
    pub attachment: Attachment,
    pub addresses: Vec<IpAddr>,
}

/// The recorded attachments. One whose comment was cut is ignored.
///
/// # Errors
/// When the kernel does not list them.
pub fn records() -> Result<Vec<FirewallRecord>, Error> {
    let listed = FEATURE.with_existing("list records", Records::list)?;
    let mut found: Vec<FirewallRecord> = Vec::new();
    for (network, attachment, address) in listed.unwrap_or_default().attachments() {
        match found
            .iter_mut()
            .find(|it| it.network == network && it.attachment == attachment)
        {
            Some(known) => known.addresses.push(address),
            None => found.push(FirewallRecord {
                network,
                attachment,
                addresses: vec![address],
            }),
        }
    }
    Ok(found)
}

impl FirewallRecord {
    /// What a table of a family lacks of the rules that accept the packets of the attachment. The backend nftables adds
    /// them only where FORWARD drops packets.
    pub fn missing(&self, family: Family, listing: &Listing) -> Option<String> {
        let own = self
            .addresses
            .iter()
            .filter(|it| Family::of(**it) == family);
        let own: Vec<String> = own.flat_map(|it| accepts(*it)).collect();
        let (present, missing): (Vec<&String>, Vec<&String>) =
            own.iter().partition(|rule| listing.has(rule));
        let is_flushed = listing.has_chain(ACCEPT) && accepted(listing).next().is_none();
        if present.is_empty() && !is_flushed {
            return None;
        }
        let has_jump = listing
            .jumps_to(ACCEPT)
            .any(|rule| rule.starts_with("-A FORWARD "));
        let jump =
            (!own.is_empty() && !has_jump).then(|| format!("the jump of FORWARD to {ACCEPT}"));
        missing.first().map(|rule| rule.to_string()).or(jump)
    }
}

/// The bridges with isolation rules.
pub fn isolated_bridges(listing: &Listing) -> BTreeSet<String> {
    isolated(listing).map(str::to_owned).collect()
}

/// Removes the isolation rules of bridges from both families and variants.
///
/// # Errors
/// When a table cannot be listed or changed, after the others were tried.
pub fn remove_isolation(bridges: &[String]) -> Result<(), Error> {
    let bridges: Vec<&str> = bridges.iter().map(String::as_str).collect();
    let mut failures = Failures::default();
    for family in Family::BOTH {
        for variant in [Variant::Nft, Variant::Legacy] {
            let exists = failures.note(tables::exists(variant, family, FILTER.table));
            let iptables = Iptables::of(variant, family, FILTER);
            let Some(iptables) = iptables.filter(|_| exists == Some(true)) else {
                continue;
            };
            let plan = |listing: &Listing| transaction(FILTER.table, &unisolate(&bridges, listing));
            let removed = serialized(FILTER.name, || iptables.apply_with_retry(&plan));
            failures.note(removed);
        }
    }
    failures.into_result()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_shows_what_is_missing() {
        let record = FirewallRecord {
            network: "net".parse().unwrap(),
            attachment: Attachment {
                container: "c1".parse().unwrap(),
                interface: "eth0".parse().unwrap(),
            },
            addresses: vec!["10.1.0.2".parse().unwrap()],
        };
        let missing = |rules: &[&str]| {
            let listing = format!(":CNI-FORWARD - [0:0]\n{}\n", rules.join("\n"));
            record.missing(Family::V4, &Listing::parse(&listing))
        };
        let jump = "-A FORWARD -j CNI-FORWARD";
        let [to, from] = accepts(record.addresses[0]);
        assert_eq!(missing(&[jump, &to, &from]), None);
        assert!(missing(&[&to, &from]).unwrap().contains("jump of FORWARD"));
        assert_eq!(missing(&[jump, &to]), Some(from));
        assert_eq!(missing(&[jump]), Some(to));
        let other = "-A CNI-FORWARD -s 10.1.0.9/32 -j ACCEPT";
        assert_eq!(
            missing(&[jump, other]),
            None,
            "perhaps of the backend nftables"
        );
        assert_eq!(record.missing(Family::V6, &Listing::default()), None);
    }
}
