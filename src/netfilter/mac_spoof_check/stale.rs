//! Garbage collection of MAC spoof checks.

use std::collections::BTreeSet;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::Error;
use crate::kernel::netlink::Netlink;
use crate::kernel::nftables::RuleEntry;
use crate::net::IfName;
use crate::netfilter::mac_spoof_check::{COMMENT_PREFIX, FEATURE, Links, removal};

/// Removes the rules of stale attachments of a network.
/// Rules do not name their network. Those of this plugin are recognised by the host end, whose name derives from
/// network, container ID and interface. Of those of the Go plugin, whose host ends have random names, the rules of
/// interfaces that no longer exist are removed, in whichever network.
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
    let is_stale = |name: &str, host: &IfName| {
        if hosts.contains(host) || (kept.contains(name) && links.has(host)) {
            return false;
        }
        let mut readings = readings(name);
        readings.any(|attachment| attachment.host_interface(network) == *host)
            || !(IfName::is_derived_veth(host.as_str()) || links.has(host))
    };
    let is_going = |rule: &RuleEntry| {
        let name = rule.comment.strip_prefix(COMMENT_PREFIX);
        let host = rule.input();
        name.is_some_and(|name| host.is_some_and(|host| is_stale(name, &host)))
    };
    let removed = FEATURE.with_existing("remove stale rules", |nftables| {
        nftables.change(&|| removal(nftables, Vec::new(), &is_going))
    });
    links.unless_failed(removed.map(drop))
}

/// The attachments that a comment may name: both container ID and interface may contain a dash.
fn readings(name: &str) -> impl Iterator<Item = Attachment> {
    name.match_indices('-').filter_map(|(dash, _)| {
        Some(Attachment {
            container: name[..dash].parse().ok()?,
            interface: name[dash + 1..].parse().ok()?,
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
    fn every_split_into_container_id_and_interface_is_tried() {
        let found: Vec<Attachment> = readings("a-b-net-1").collect();
        let expected = [("a", "b-net-1"), ("a-b", "net-1"), ("a-b-net", "1")];
        assert_eq!(
            found,
            expected.map(|(container, interface)| attachment(container, interface))
        );
    }
}
