//! What the firewall rules of a filter table record about their attachments, for comparison with those that exist.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::net::Family;
use crate::netfilter::firewall::iptables::FILTER;
use crate::netfilter::firewall::rules::{
    FORWARD, RECORD, Record, accepts, isolated, jumps_to, unisolate,
};
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::{Listing, transaction};
use crate::netfilter::lock::serialized;
use crate::netfilter::tables;

/// An attachment whose addresses are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRecord {
    pub network: NetworkName,
    pub attachment: Attachment,
    pub addresses: Vec<IpAddr>,
    pub chain: String,
}

/// The records of a table. A record whose comment was cut is ignored.
pub fn records(listing: &Listing) -> Vec<FirewallRecord> {
    let prefix = format!("-A {RECORD}");
    let mut found: Vec<FirewallRecord> = Vec::new();
    for rule in listing.rules().filter(|rule| rule.starts_with(&prefix)) {
        let Some(record) = parse(rule) else { continue };
        match found.iter_mut().find(|it| it.chain == record.chain) {
            Some(known) => known.addresses.extend(record.addresses),
            None => found.push(record),
        }
    }
    found
}

fn parse(rule: &str) -> Option<FirewallRecord> {
    let quoted = |key: &str| {
        let (_, rest) = rule.split_once(&format!("{key}: \\\""))?;
        Some(rest.split_once("\\\"")?.0)
    };
    let mut words = rule.split(' ').skip(1);
    let chain = words.next()?.to_owned();
    let address = words.nth(1)?.parse::<crate::net::Cidr>().ok()?.address();
    let network: NetworkName = quoted("name")?.parse().ok()?;
    let attachment = Attachment {
        container: quoted(" id")?.parse().ok()?,
        interface: quoted(" if")?.parse().ok()?,
    };
    let is_own = Record::of(&network, &attachment).name() == chain;
    is_own.then(|| FirewallRecord {
        network,
        attachment,
        addresses: vec![address],
        chain,
    })
}

impl FirewallRecord {
    /// What a table lacks of the rules that accept the packets of the attachment.
    pub fn missing(&self, listing: &Listing) -> Option<String> {
        let own = self.addresses.iter().flat_map(|it| accepts(*it));
        let missing = own.into_iter().find(|rule| !listing.has(rule));
        let has_jump = jumps_to(FORWARD, listing).any(|rule| rule.starts_with("-A FORWARD "));
        missing.or_else(|| (!has_jump).then(|| format!("the jump of FORWARD to {FORWARD}")))
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
    use crate::netfilter::firewall::Ingress;
    use crate::netfilter::firewall::rules::Wanted;
    use crate::netfilter::iptables_save::listing_after;

    #[test]
    fn a_record_names_its_attachment_and_shows_what_is_missing() {
        let network: NetworkName = "net".parse().unwrap();
        let attachment = Attachment {
            container: "c1".parse().unwrap(),
            interface: "eth0".parse().unwrap(),
        };
        let addresses = ["10.1.0.2", "10.1.0.3"].map(|it| it.parse().unwrap());
        let wanted = Wanted {
            addresses: &addresses,
            admin_chain: "CNI-ADMIN",
            ingress: &Ingress::SameBridge("br0".parse().unwrap()),
        };
        let record = Record::of(&network, &attachment);
        let script = record.install(&wanted, &Listing::default()).unwrap();
        let mut listing = listing_after(&[&script]);
        let found = records(&listing);
        let [only] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((&only.network, &only.attachment), (&network, &attachment));
        assert_eq!(only.addresses, addresses);
        assert_eq!(only.missing(&listing), None);
        assert_eq!(isolated_bridges(&listing), ["br0".to_owned()].into());
        listing
            .rules
            .retain(|rule| !rule.starts_with("-A FORWARD "));
        assert!(only.missing(&listing).unwrap().contains("jump of FORWARD"));
        let accept = "-A CNI-FORWARD -s 10.1.0.3/32 -j ACCEPT";
        listing.rules.retain(|rule| rule != accept);
        assert_eq!(only.missing(&listing).as_deref(), Some(accept));
    }
}
