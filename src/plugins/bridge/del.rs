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
use crate::kernel::netlink::{Kind, Link, Netlink, not_found_as_none};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::link::failed;
use crate::link::namespace;
use crate::net::{IfName, Mac};
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::{Evidence, Masquerade, Removing, Scope};
use crate::plugins::bridge::config::bridge_of;
use crate::plugins::bridge::forward_accept;
use crate::plugins::bridge::ownership::{ContainerEnd, Known, is_owner};
use crate::plugins::bridge::plan::host_interface;

/// Removes an attachment, also one of the Go plugin, as far as it exists. Needs neither a namespace nor a prevResult, and
/// only names from the configuration.
///
/// # Errors
/// When something could not be removed; the lease is kept then, so that its address is not assigned again.
pub(super) fn del(request: &Request, target: &DelTarget, own_netns: OwnNetns) -> Result<(), Error> {
    let netns = open_netns(target.netns.as_deref(), own_netns);
    if let Err(error) = &netns
        && error.code == Code::OWN_NETNS
    {
        return netns.map(drop);
    }
    detach(&request.conf, &request.cni_path, &target.attachment, netns)
}

/// As [`del`], with the namespace opened by the caller. An error of opening it is reported after everything else has been
/// removed.
///
/// # Errors
/// As [`del`].
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
    // An ADD or DEL of this attachment that was killed may have left a running iptables program, which holds the lock.
    let _locked = match (&ipam, &held) {
        (Some(ipam), Some(held)) => failures
            .note(timed_span("ipam", || ipam.lock(held)))
            .flatten(),
        _ => None,
    };
    let host = namespace::host_netlink()?;
    let link = Detachment {
        // An invalid prevResult must not prevent the release of the address.
        prev: conf.prev_result().ok().flatten(),
        netns: netns.as_ref(),
        held: held.as_ref(),
        conf,
        attachment,
        host: &host,
    };
    // Whatever the configuration says about masquerading: it may have changed since the ADD.
    let removing = timed_span("masquerade", || link.start_unmasquerading());
    failures.note(timed_span("link", || link.remove()));
    // An attachment whose name is too long for the check's chains cannot have one.
    failures.note(
        MacSpoofCheck::of(&conf.name, attachment)
            .map_or(Ok(()), |spoof_check| spoof_check.remove(&host)),
    );
    failures.note(timed_span("masquerade", || removing.finish()));
    failures.note(timed_span("forward", || {
        forward_accept::remove_if_unused(&host, conf)
    }));
    failures.into_result()?;
    ipam.map_or(Ok(()), |ipam| {
        timed_span("ipam", || ipam.release(attachment, held))
    })
}

/// The container's namespace; `None` when it is gone.
fn open_netns(path: Option<&str>, own_netns: OwnNetns) -> Result<Option<Netns>, Error> {
    let Some(path) = path else { return Ok(None) };
    match Netns::open(path, own_netns) {
        Ok(netns) => Ok(Some(netns)),
        Err(cause) if cause.is_gone() => Ok(None),
        Err(cause) => Err(namespace::error(path, cause)),
    }
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
    /// Deletes the veth pair by the end that is found.
    fn remove(&self) -> Result<(), Error> {
        let name = host_interface(&self.conf.name, self.attachment);
        let deleted = not_found_as_none(self.host.delete_link(&name));
        if deleted
            .map_err(|cause| failed("delete", &name, cause))?
            .is_some()
        {
            return Ok(());
        }
        // The host end of the Go plugin has a random name.
        match self.pod()? {
            Some(pod) if self.container_end(&pod)?.is_some() => {
                let name = &self.attachment.interface;
                let deleted = not_found_as_none(pod.delete_link(name));
                deleted.map_err(|cause| failed("delete", name, cause))?;
                Ok(())
            }
            _ => self.remove_listed_end(),
        }
    }

    /// This attachment's end in the container.
    fn container_end(&self, pod: &Netlink) -> Result<Option<ContainerEnd>, Error> {
        let name = &self.attachment.interface;
        let fail = |cause| failed("look up", name, cause);
        // Bridge plugins create nothing but veth pairs.
        let link = pod.link(name).map_err(fail)?;
        let Some(link) = link.filter(|link| link.kind == Kind::Veth) else {
            return Ok(None);
        };
        let peer = link.peer.map_or(Ok(None), |index| self.host.link_at(index));
        let is_peer = |it: &Link| it.kind == Kind::Veth && it.peer == Some(link.index);
        let addresses = pod.addresses(link.index).map_err(fail)?;
        let end = ContainerEnd {
            mac: link.mac,
            addresses: addresses
                .iter()
                .map(|address| address.cidr.address())
                .filter(|address| !is_link_local(*address))
                .collect(),
            peer: peer.map_err(fail)?.filter(is_peer),
        };
        let bridge = bridge_of(&self.conf.root()).ok();
        let bridge = bridge.map_or(Ok(None), |bridge| self.host.link(&bridge));
        let derived = host_interface(&self.conf.name, self.attachment);
        let known = Known {
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

    /// Deletes the host end that prevResult lists, if it is still the same link: for a container end that is not found,
    /// because the namespace is gone or the interface was renamed. prevResult also lists links of other plugins in the
    /// chain, so only ports of a bridge that it lists are deleted.
    fn remove_listed_end(&self) -> Result<(), Error> {
        let listed = self.prev.iter().flat_map(|prev| &prev.interfaces);
        let on_host = listed.filter(|interface| interface.sandbox.is_empty());
        let mut found = Vec::new();
        for interface in on_host {
            let Ok(name) = interface.name.parse::<IfName>() else {
                continue;
            };
            let link = self.host.link(&name);
            let link = link.map_err(|cause| failed("look up", &name, cause))?;
            found.extend(link.map(|link| (name, &interface.mac, link)));
        }
        let is_bridge = |index: u32| {
            let mut bridges = found.iter().map(|(.., link)| link);
            bridges.any(|link| link.index == index && link.kind == Kind::Bridge)
        };
        for (name, mac, link) in &found {
            let is_same = |seen: Mac| seen.to_string().eq_ignore_ascii_case(mac);
            if link.kind == Kind::Veth
                && link.mac.is_some_and(is_same)
                && link.master.is_some_and(is_bridge)
            {
                not_found_as_none(self.host.delete_link(name))
                    .map_err(|cause| failed("delete", name, cause))?;
            }
        }
        Ok(())
    }

    /// Starts to remove the masquerading of the known addresses, and of the whole container unless another of its
    /// interfaces on this network needs it.
    fn start_unmasquerading(&self) -> Removing {
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
        Masquerade::of(&self.conf.name, self.attachment).remove(known, scope, evidence)
    }

    /// The addresses of this attachment's end in the container; `None` if it is not found.
    fn pod_addresses(&self) -> Option<Vec<IpAddr>> {
        let pod = self.pod().ok().flatten()?;
        let end = self.container_end(&pod).ok().flatten()?;
        Some(end.addresses)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
