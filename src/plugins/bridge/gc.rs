//! GC: removes resources of stale attachments.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::ValidAttachments;
use crate::cni::conf::NetConf;
use crate::cni::names::ContainerId;
use crate::error::{Error, Failures};
use crate::ipam::{IpamLeases, LeaseFile, Store};
use crate::kernel::log;
use crate::kernel::netlink::{Netlink, NetlinkError, not_found_as_none};
use crate::link::namespace::host_netlink;
use crate::link::{Context, Veth, failed, look_up, veths};
use crate::net::IfName;
use crate::netfilter::mac_spoof_check;
use crate::netfilter::masquerade;
use crate::plugins::bridge::config::bridge_of;
use crate::plugins::bridge::forward_accept;

/// Removes masquerading, MAC spoof checks, links and leases of this network that belong to no valid attachment, also
/// those of the Go plugin, and the `forwardAccept` rules of a bridge without containers. A link is removed only if a
/// lease names its attachment; without a lease it may belong to another network. Without a list of valid attachments,
/// nothing is removed.
///
/// # Errors
/// If something could not be removed, after everything else was tried.
pub(super) fn gc(conf: &NetConf, cni_path: &[PathBuf]) -> Result<(), Error> {
    let valid = conf.valid_attachments()?;
    let ipam = IpamLeases::parse(conf, cni_path)?;
    let Some(valid) = valid else {
        return match ipam {
            Some(IpamLeases::Delegate(delegate)) => delegate.gc(),
            _ => Ok(()),
        };
    };
    let mut failures = Failures::default();
    let leases = match &ipam {
        Some(IpamLeases::HostLocal(store)) => failures.note(store.by_validity(&valid)),
        _ => None,
    };
    let stale = leases.iter().flat_map(|(_, stale)| stale);
    let owners: Vec<&ContainerId> = stale
        .filter_map(|lease| Some(&lease.owner.as_ref()?.0))
        .collect();
    let gc = || masquerade::gc(&conf.name, &valid, &owners);
    failures.note(log::timed_span("masquerade", gc));
    match &ipam {
        Some(IpamLeases::HostLocal(store)) => {
            if let Some(leases) = leases {
                failures.note(release(conf, (store, &valid), leases));
            }
        }
        Some(IpamLeases::Delegate(delegate)) => {
            failures.note(log::timed_span("ipam", || delegate.gc()));
        }
        None => {}
    }
    if let Some(host) = failures.note(host_netlink()) {
        failures.note(mac_spoof_check::gc(&conf.name, &valid, &host));
        failures.note(forward_accept::remove_if_unused(&host, conf));
    }
    failures.into_result()
}

/// Deletes the links of stale attachments and then their leases: an address must not be reassigned while an interface
/// has it.
fn release(
    conf: &NetConf,
    (store, valid): (&Store, &ValidAttachments),
    (of_valid, stale): (Vec<LeaseFile>, Vec<LeaseFile>),
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let mut in_use = HashSet::new();
    if !stale.is_empty() {
        let links = StaleLinks {
            conf,
            store,
            host: &host_netlink()?,
            valid: of_valid.iter().map(|lease| lease.address).collect(),
        };
        in_use = links.delete(&stale, &mut failures);
    }
    let gc = || store.gc(valid, &in_use);
    failures.note(log::timed_span("ipam", gc));
    failures.into_result()
}

struct StaleLinks<'a> {
    conf: &'a NetConf,
    store: &'a Store,
    host: &'a Netlink,
    /// The addresses of valid attachments.
    valid: HashSet<IpAddr>,
}

impl StaleLinks<'_> {
    /// Returns the addresses that are still in use, because their links could not or must not be deleted.
    fn delete(&self, stale: &[LeaseFile], failures: &mut Failures) -> HashSet<IpAddr> {
        let mut in_use = HashSet::new();
        let mut others = Vec::new();
        let mut deleted: HashSet<IfName> = HashSet::new();
        for lease in stale {
            let attachment = lease.attachment();
            let name = attachment.map(|attachment| attachment.host_interface(&self.conf.name));
            match name.map(|name| (self.host.delete_link(&name), name)) {
                Some((Ok(()), name)) => {
                    deleted.insert(name);
                }
                // The link was deleted for another address of the attachment.
                Some((Err(NetlinkError::NotFound(_)), name)) if deleted.contains(&name) => {}
                Some((Err(NetlinkError::NotFound(_)), _)) | None => others.push(lease),
                Some((Err(cause), name)) => {
                    failures.note::<()>(Err(failed("delete", &name, cause)));
                    in_use.insert(lease.address);
                }
            }
        }
        let is_wanted = |address| others.iter().any(|lease| lease.address == address);
        let found = match others.is_empty() {
            true => Ok(Vec::new()),
            false => veths(self.host, is_wanted),
        };
        match found {
            Ok(veths) => in_use.extend(self.delete_links_of_go_plugin(&others, &veths, failures)),
            Err(cause) => {
                let what = "cannot list the interfaces in other network namespaces";
                failures.note::<()>(Err(Error::failed(format!("{what}: {cause}"))));
                in_use.extend(others.iter().map(|lease| lease.address));
            }
        }
        in_use
    }

    /// Deletes links of the Go plugin, which have random names.
    fn delete_links_of_go_plugin(
        &self,
        stale: &[&LeaseFile],
        veths: &[Veth],
        failures: &mut Failures,
    ) -> Vec<IpAddr> {
        let mut in_use = Vec::new();
        for lease in stale {
            // A veth with a derived name belongs to another attachment, for example on a network with the same subnet.
            let has_address = |veth: &&Veth| {
                veth.addresses.contains(&lease.address) && !IfName::is_derived_veth(&veth.host.name)
            };
            for veth in veths.iter().filter(has_address) {
                let deleted = self
                    .check_ownership(veth, lease)
                    .and_then(|()| self.delete_veth(veth));
                if failures.note(deleted).is_none() {
                    in_use.push(lease.address);
                }
            }
        }
        in_use
    }

    /// Whether a veth with a random name belongs to the attachment of this lease.
    fn check_ownership(&self, veth: &Veth, lease: &LeaseFile) -> Result<(), Error> {
        let (link, interface) = (&veth.host.name, &veth.interface);
        let kept = |reason: String| {
            let cause = format!("{interface}, the peer of {link}, has the address, {reason}");
            Err(lease.kept(cause))
        };
        let bridge = bridge_of(&self.conf.root())?;
        let found = look_up(self.host, &bridge)?;
        let owner = lease.owner.as_ref().map(|(_, interface)| interface.trim());
        if found.is_none_or(|found| veth.host.master != Some(found.index)) {
            return kept(format!("and {link} is no port of bridge {bridge}"));
        }
        if owner.is_some_and(|name| !name.is_empty() && name != interface) {
            return kept("but the lease names another interface".to_owned());
        }
        if veth
            .addresses
            .iter()
            .any(|address| self.valid.contains(address))
        {
            return kept("and also an address of a valid attachment".to_owned());
        }
        if self.store.is_leased_elsewhere(lease.address) {
            return kept("and a network beside this one has a lease of it, too".to_owned());
        }
        Ok(())
    }

    fn delete_veth(&self, veth: &Veth) -> Result<(), Error> {
        let name = &veth.host.name;
        let parsed: IfName = name
            .parse()
            .map_err(|cause| Error::failed(format!("cannot delete link {name}: {cause}")))?;
        let deleted = not_found_as_none(self.host.delete_link(&parsed));
        deleted.map(drop).context("delete", &parsed)
    }
}
