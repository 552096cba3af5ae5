//! GC: removes resources of stale attachments.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::ValidAttachments;
use crate::cni::conf::NetConf;
use crate::cni::names::{Attachment, ContainerId};
use crate::error::{Error, Failures};
use crate::ipam::{IpamLeases, LeaseFile, Store};
use crate::kernel::log;
use crate::kernel::netlink::{Netlink, NetlinkError, not_found_as_none};
use crate::link::namespace::host_netlink;
use crate::link::{Context, Veth, failed, veths};
use crate::net::IfName;
use crate::netfilter::masquerade;
use crate::plugins::attachment::HostEnd;

/// Removes masquerading, links and leases of this network that belong to no valid attachment, also those of the Go plugin.
/// `also` removes what only one plugin creates, for all but these attachments. A link is removed if a lease names its
/// attachment; without a lease it may belong to another network. An attachment whose link is not removed keeps its rules
/// and leases. Without a list of valid attachments nothing is removed.
///
/// # Errors
/// If something could not be removed, after everything else was tried.
pub fn gc(
    conf: &NetConf,
    cni_path: &[PathBuf],
    host_end: &HostEnd,
    also: impl FnOnce(&ValidAttachments, &Netlink, &mut Failures),
) -> Result<(), Error> {
    let valid = conf.valid_attachments()?;
    let ipam = IpamLeases::parse(conf, cni_path)?;
    let Some(valid) = valid else {
        return match ipam {
            Some(IpamLeases::Delegate(delegate)) => delegate.gc(),
            _ => Ok(()),
        };
    };
    let mut failures = Failures::default();
    let host = failures.note(host_netlink());
    let (mut stale, mut in_use) = (Vec::new(), None);
    if let Some(IpamLeases::HostLocal(store)) = &ipam
        && let Some((of_valid, others)) = failures.note(store.by_validity(&valid))
    {
        in_use = Some(match &host {
            Some(host) => StaleLinks::new((conf, host_end), (store, host), (&valid, of_valid))
                .delete(&others, &mut failures),
            None => others.iter().map(|lease| lease.address).collect(),
        });
        stale = others;
    }
    let is_kept = |lease: &LeaseFile| {
        let mut in_use = in_use.iter().flatten();
        in_use.any(|address| *address == lease.address)
    };
    let (kept, stale): (Vec<_>, Vec<_>) = stale.into_iter().partition(is_kept);
    let kept = kept.iter().filter_map(LeaseFile::attachment);
    let kept: ValidAttachments = valid.all().chain(kept).collect();
    let owners: Vec<&ContainerId> = stale
        .iter()
        .filter_map(|lease| Some(&lease.owner.as_ref()?.0))
        .collect();
    let gc = || masquerade::gc(&conf.name, &kept, &owners);
    failures.note(log::timed_span("masquerade", gc));
    match (&ipam, &in_use) {
        (Some(IpamLeases::HostLocal(store)), Some(in_use)) => {
            failures.note(log::timed_span("ipam", || store.gc(&valid, in_use)));
        }
        (Some(IpamLeases::Delegate(delegate)), _) => {
            failures.note(log::timed_span("ipam", || delegate.gc()));
        }
        _ => {}
    }
    if let Some(host) = &host {
        also(&kept, host, &mut failures);
    }
    failures.into_result()
}

/// The links of stale attachments, which are deleted before their leases: an address must not be assigned again while
/// an interface has it.
struct StaleLinks<'a> {
    conf: &'a NetConf,
    host_end: &'a HostEnd,
    store: &'a Store,
    host: &'a Netlink,
    /// The addresses of valid attachments.
    valid: HashSet<IpAddr>,
    /// The valid attachments without a lease.
    without_lease: Vec<Attachment>,
}

impl StaleLinks<'_> {
    fn new<'a>(
        (conf, host_end): (&'a NetConf, &'a HostEnd),
        (store, host): (&'a Store, &'a Netlink),
        (valid, leases): (&ValidAttachments, Vec<LeaseFile>),
    ) -> StaleLinks<'a> {
        let has_lease = |attachment: &Attachment| {
            let mut owners = leases.iter().filter_map(|lease| lease.owner.as_ref());
            owners.any(|(container, interface)| {
                let interface = interface.trim();
                *container == attachment.container
                    && (interface.is_empty() || interface == attachment.interface.as_str())
            })
        };
        StaleLinks {
            conf,
            host_end,
            store,
            host,
            valid: leases.iter().map(|lease| lease.address).collect(),
            without_lease: valid.all().filter(|it| !has_lease(it)).collect(),
        }
    }

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
                    .and_then(|()| delete_veth(self.host, veth));
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
        let owner = lease.owner.as_ref().map(|(_, interface)| interface.trim());
        let side = self
            .host_end
            .side(self.host)
            .context("look up", "the bridge")?;
        match self.host_end {
            HostEnd::PortOf(bridge) if !side.has(&veth.host) => {
                let bridge = bridge.clone()?;
                return kept(format!("and {link} is no port of bridge {bridge}"));
            }
            HostEnd::Routed if !side.has(&veth.host) => {
                return kept(format!("and {link} is a port of a bridge"));
            }
            _ => {}
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
        // Of other attachments than the Go plugin's, the name of the host end is known.
        let has_no_link = |other: &Attachment| {
            let link = self.host.link(&other.host_interface(&self.conf.name));
            !matches!(link, Ok(Some(_)))
        };
        let mut without_lease = self.without_lease.iter();
        if let Some(other) =
            without_lease.find(|it| it.interface.as_str() == interface && has_no_link(it))
        {
            let container = &other.container;
            return kept(format!(
                "and may be that of the valid container {container}, which has no lease"
            ));
        }
        if self.store.is_leased_elsewhere(lease.address) {
            return kept("and a network beside this one has a lease of it, too".to_owned());
        }
        Ok(())
    }
}

fn delete_veth(host: &Netlink, veth: &Veth) -> Result<(), Error> {
    let name = &veth.host.name;
    let parsed: IfName = name
        .parse()
        .map_err(|cause| Error::failed(format!("cannot delete link {name}: {cause}")))?;
    let deleted = not_found_as_none(host.delete_link(&parsed));
    deleted.map(drop).context("delete", &parsed)
}
