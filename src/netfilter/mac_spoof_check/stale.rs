//! Garbage collection of MAC spoof checks.

use std::collections::BTreeSet;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::Netlink;
use crate::kernel::nftables::RuleEntry;
use crate::net::IfName;
use crate::netfilter::mac_spoof_check::{COMMENT_PREFIX, FEATURE, Links, removal};

/// Removes the rules of a network's attachments that are not valid.
///
/// The rules do not tell their network. Ours are known by the interface they are for, whose name is made of network,
/// container and interface. Of the Go plugin's, which have random names, those go whose interface no longer exists:
/// such a rule MAC spoof checks nothing, in whichever network.
///
/// # Errors
/// When the kernel refuses.
pub fn gc(network: &NetworkName, valid: &ValidAttachments, links: &Netlink) -> Result<(), Error> {
    let links = Links::new(links);
    let kept: BTreeSet<String> = valid
        .all()
        .map(|attachment| format!("{}-{}", attachment.container, attachment.interface))
        .collect();
    let hosts: BTreeSet<IfName> = valid
        .all()
        .map(|attachment| attachment.host_interface(network))
        .collect();
    let is_stale = |reference: &str, host: &IfName| {
        if hosts.contains(host) || (kept.contains(reference) && links.has(host)) {
            return false;
        }
        let mut readings = readings(reference);
        readings.any(|attachment| attachment.host_interface(network) == *host)
            || !(IfName::is_derived_veth(host.as_str()) || links.has(host))
    };
    let is_going = |rule: &RuleEntry| {
        let reference = rule.comment.strip_prefix(COMMENT_PREFIX);
        let host = rule.input();
        reference.is_some_and(|reference| host.is_some_and(|host| is_stale(reference, &host)))
    };
    let removed = FEATURE.with_existing("remove stale rules", |nftables| {
        nftables.change(&|| removal(nftables, Vec::new(), &is_going))
    });
    links.unless_failed(removed.map(drop))
}

/// The attachments that a reference may stand for: either part may have a dash.
fn readings(reference: &str) -> impl Iterator<Item = Attachment> {
    reference.match_indices('-').filter_map(|(dash, _)| {
        Some(Attachment {
            container: reference[..dash].parse().ok()?,
            interface: reference[dash + 1..].parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, interface: &str) -> Attachment {
        Attachment {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        }
    }

    #[test]
    fn every_reading_of_a_reference_is_tried() {
        let found: Vec<Attachment> = readings("a-b-net-1").collect();
        let expected = [("a", "b-net-1"), ("a-b", "net-1"), ("a-b-net", "1")];
        assert_eq!(
            found,
            expected.map(|(container, interface)| attachment(container, interface))
        );
    }
}
