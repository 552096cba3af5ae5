//! DEL: removes the link, the masquerading and, last, the lease.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::conf::NetConf;
use crate::cni::environment::DelTarget;
use crate::cni::names::Attachment;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::{Code, Error, Failures};
use crate::ipam::{HeldLeases, IpamLeases};
use crate::kernel::log::timed_span;
use crate::kernel::netlink::{Kind, Netlink, not_found_as_none};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::threads::join;
use crate::link::namespace;
use crate::link::{Context, failed, look_up, peer_on_host};
use crate::net::{IfName, Mac};
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::{Evidence, Masquerade, Removal, Scope};
use crate::plugins::bridge::config::bridge_of;
use crate::plugins::bridge::forward_accept;
use crate::plugins::bridge::ownership::{ContainerEnd, KnownAttachment, is_owner};

/// Removes an attachment, also one of the Go plugin. Needs neither a namespace nor a prevResult, and reads only names
/// from the configuration.
///
/// # Errors
/// If something could not be removed; the lease is kept then, so that its address is not reassigned.
pub(super) fn del(request: &Request, target: &DelTarget, own_netns: OwnNetns) -> Result<(), Error> {
    let netns = namespace::open_existing(target.netns.as_deref(), own_netns);
    if let Err(error) = &netns
        && error.code == Code::OWN_NETNS
    {
        return netns.map(drop);
    }
    detach(&request.conf, &request.cni_path, &target.attachment, netns)
}

/// Like [`del`], with an opened namespace. An error in opening it is reported after everything else has been removed.
///
/// # Errors
/// Like [`del`].
pub fn detach(
    conf: &NetConf,
    cni_path: &[PathBuf],
    attachment: &Attachment,
    netns: Result<Option<Netns>, Error>,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let netns = failures.note(netns).flatten();
    let ipam = IpamLeases::parse(conf, cni_path)?;
    let held = match &ipam {
        Some(ipam) => failures
            .note(timed_span("ipam", || ipam.held(attachment)))
            .flatten(),
        None => None,
    };
    // A killed ADD or DEL of this attachment may have left a running iptables program, which holds the lock.
    let _locked = match (&ipam, &held) {
        (Some(ipam), Some(held)) => failures
            .note(timed_span("ipam", || ipam.lock(held)))
            .flatten(),
        _ => None,
    };
    let host = namespace::host_netlink()?;
    let detachment = Detachment {
        // An invalid prevResult must not prevent the release of the address.
        prev: conf.prev_result().ok().flatten(),
        netns: netns.as_ref(),
        held: held.as_ref(),
        conf,
        attachment,
        host: &host,
    };
    // Independent of the configuration, which may have changed since the ADD.
    let find = || Ok::<_, Error>(detachment.masquerade(&mut failures));
    let masquerade = timed_span("masquerade", find)?;
    let delete = || timed_span("link", || detachment.remove());
    let (unmasqueraded, deleted) = match masquerade.is_empty() {
        true => (Ok(()), delete()),
        // Both wait for the kernel.
        false => join("masquerade", || masquerade.apply(), delete),
    };
    failures.note(deleted);
    // If the name is too long for the check's chains, there is none.
    failures.note(
        MacSpoofCheck::of(&conf.name, attachment)
            .map_or(Ok(()), |spoof_check| spoof_check.remove(&host)),
    );
    failures.note(unmasqueraded);
    failures.note(timed_span("forward", || {
        forward_accept::remove_if_unused(&host, conf)
    }));
    failures.into_result()?;
    ipam.map_or(Ok(()), |ipam| {
        timed_span("ipam", || ipam.release(attachment, held))
    })
}

/// An attachment whose link and rules are to be removed.
struct Detachment<'a> {
    conf: &'a NetConf,
    attachment: &'a Attachment,
    prev: Option<AddResult>,
    netns: Option<&'a Netns>,
    held: Option<&'a HeldLeases>,
    host: &'a Netlink,
}

impl Detachment<'_> {
    /// Deletes the veth pair by either end.
    fn remove(&self) -> Result<(), Error> {
        let name = self.attachment.host_interface(&self.conf.name);
        let deleted = not_found_as_none(self.host.delete_link(&name));
        if deleted.context("delete", &name)?.is_some() {
            return Ok(());
        }
        // The host end of the Go plugin has a random name.
        match self.pod()? {
            Some(pod) if self.container_end(&pod)?.is_some() => {
                let name = &self.attachment.interface;
                not_found_as_none(pod.delete_link(name)).context("delete", name)?;
                Ok(())
            }
            _ => self.remove_listed_host_end(),
        }
    }

    /// The container end, if it belongs to this attachment.
    fn container_end(&self, pod: &Netlink) -> Result<Option<ContainerEnd>, Error> {
        let name = &self.attachment.interface;
        let fail = |cause| failed("look up", name, cause);
        // Bridge plugins create only veth pairs.
        let link = pod.link(name).map_err(fail)?;
        let Some(link) = link.filter(|link| link.kind == Kind::Veth) else {
            return Ok(None);
        };
        let addresses = pod.addresses(link.index).map_err(fail)?;
        let end = ContainerEnd {
            mac: link.mac,
            addresses: addresses
                .iter()
                .map(|address| address.cidr.address())
                .filter(|address| !is_link_local(*address))
                .collect(),
            peer: peer_on_host(self.host, &link).map_err(fail)?,
        };
        let bridge = bridge_of(&self.conf.root()).ok();
        let bridge = bridge.map_or(Ok(None), |bridge| self.host.link(&bridge));
        let derived = self.attachment.host_interface(&self.conf.name);
        let known = KnownAttachment {
            interface: name.as_str(),
            host: derived.as_str(),
            prev: self.prev.as_ref(),
            leased: self.held.map(HeldLeases::addresses),
            bridge: bridge.map_err(fail)?.map(|bridge| bridge.index),
        };
        Ok(is_owner(&known, &end).then_some(end))
    }

    fn pod(&self) -> Result<Option<Netlink>, Error> {
        self.netns.map(namespace::netlink).transpose()
    }

    /// Deletes the host end that prevResult lists, if it is still the same link. This is for a container end that is
    /// not found, because the namespace is gone or the interface was renamed. prevResult also lists links of other
    /// plugins in the chain, so only ports of a bridge that it lists are deleted.
    fn remove_listed_host_end(&self) -> Result<(), Error> {
        let listed = self.prev.iter().flat_map(|prev| &prev.interfaces);
        let on_host = listed.filter(|interface| interface.sandbox.is_empty());
        let mut found = Vec::new();
        for interface in on_host {
            let Ok(name) = interface.name.parse::<IfName>() else {
                continue;
            };
            found.extend(look_up(self.host, &name)?.map(|link| (name, &interface.mac, link)));
        }
        let is_bridge = |index: u32| {
            let mut bridges = found.iter().map(|(.., link)| link);
            bridges.any(|link| link.index == index && link.kind == Kind::Bridge)
        };
        for (name, mac, link) in &found {
            let is_same = |observed: Mac| observed.to_string().eq_ignore_ascii_case(mac);
            if link.kind == Kind::Veth
                && link.mac.is_some_and(is_same)
                && link.master.is_some_and(is_bridge)
            {
                not_found_as_none(self.host.delete_link(name)).context("delete", name)?;
            }
        }
        Ok(())
    }

    /// The masquerading of the known addresses, and of the whole container unless another interface of it on this network
    /// needs masquerading.
    fn masquerade(&self, failures: &mut Failures) -> Removal {
        let mut known = self
            .held
            .map(|held| held.addresses().to_vec())
            .unwrap_or_default();
        if known.is_empty() {
            let listed = self.prev.iter().flat_map(|prev| &prev.ips);
            known = listed.map(|ip| ip.address.address()).collect();
        }
        if known.is_empty() && self.held.is_none() {
            known = self.pod_addresses().unwrap_or_default();
        }
        let scope = match self.held {
            Some(held) if held.has_other_interfaces() => Scope::Addresses,
            None if !known.is_empty() => Scope::Addresses,
            _ => Scope::Container,
        };
        let held = self.held.map(HeldLeases::addresses).unwrap_or_default();
        let evidence = Evidence::of(&self.conf.root(), held);
        Masquerade::of(&self.conf.name, self.attachment).find((known, scope), evidence, failures)
    }

    /// The addresses of the container end; `None` if it is not found.
    fn pod_addresses(&self) -> Option<Vec<IpAddr>> {
        let pod = self.pod().ok().flatten()?;
        let end = self.container_end(&pod).ok().flatten()?;
        Some(end.addresses)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
