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
use crate::kernel::threads::join;
use crate::link::namespace;
use crate::link::{Context, Veth, failed, look_up, peer_on_host, veths};
use crate::net::{IfName, Mac};
use crate::netfilter::masquerade::{Evidence, Masquerade, Removal, Scope};
use crate::plugins::attachment::HostEnd;
use crate::plugins::attachment::ownership::{ContainerEnd, KnownAttachment, Side, is_owner};

/// The container's namespace for [`Detachment::detach`].
///
/// # Errors
/// If it is the plugin's own and that is not allowed: nothing is removed then.
pub fn open_netns(
    request: &Request,
    target: &DelTarget,
) -> Result<Result<Option<Netns>, Error>, Error> {
    let own_netns = OwnNetns::allowed(request.own_netns_allowed);
    match namespace::open_existing(target.netns.as_deref(), own_netns) {
        Err(error) if error.code == Code::OWN_NETNS => Err(error),
        netns => Ok(netns),
    }
}

/// An attachment to be removed, also one of the Go plugin. Only names are read from the configuration.
pub struct Detachment<'a> {
    pub conf: &'a NetConf,
    pub cni_path: &'a [PathBuf],
    pub attachment: &'a Attachment,
    pub host_end: HostEnd,
}

impl Detachment<'_> {
    /// Needs neither a namespace nor a prevResult. An error in opening the namespace is reported after everything else
    /// has been removed. `also` removes what only one plugin creates, after link and rules.
    ///
    /// # Errors
    /// If something could not be removed; the lease is kept then, so that its address is not reassigned.
    pub fn detach(
        &self,
        netns: Result<Option<Netns>, Error>,
        also: impl FnOnce(&Netlink, &mut Failures),
    ) -> Result<(), Error> {
        let (conf, attachment) = (self.conf, self.attachment);
        let mut failures = Failures::default();
        let netns = failures.note(netns).flatten();
        let ipam = IpamLeases::parse(conf, self.cni_path)?;
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
        let observed = Observed {
            of: self,
            // An invalid prevResult must not prevent the release of the address.
            prev: conf.prev_result().ok().flatten(),
            netns: netns.as_ref(),
            held: held.as_ref(),
            host: &host,
        };
        // Independent of the configuration, which may have changed since the ADD.
        let find = || Ok::<_, Error>(observed.masquerade(&mut failures));
        let masquerade = timed_span("masquerade", find)?;
        let delete = || timed_span("link", || observed.remove());
        let (unmasqueraded, deleted) = match masquerade.is_empty() {
            true => (Ok(()), delete()),
            // Both wait for the kernel.
            false => join("masquerade", || masquerade.apply(), delete),
        };
        failures.note(deleted);
        failures.note(unmasqueraded);
        also(&host, &mut failures);
        failures.into_result()?;
        ipam.map_or(Ok(()), |ipam| {
            timed_span("ipam", || ipam.release(attachment, held))
        })
    }
}

/// What is known of an attachment.
struct Observed<'a> {
    of: &'a Detachment<'a>,
    prev: Option<AddResult>,
    netns: Option<&'a Netns>,
    held: Option<&'a HeldLeases>,
    host: &'a Netlink,
}

impl Detachment<'_> {
    fn host_interface(&self) -> IfName {
        self.attachment.host_interface(&self.conf.name)
    }
}

impl Observed<'_> {
    /// Deletes the veth pair by either end.
    fn remove(&self) -> Result<(), Error> {
        let name = self.of.host_interface();
        let deleted = not_found_as_none(self.host.delete_link(&name));
        if deleted.context("delete", &name)?.is_some() {
            return Ok(());
        }
        // The host end of the Go plugin has a random name.
        match self.pod()? {
            Some(pod) if self.container_end(&pod)?.is_some() => {
                let name = &self.of.attachment.interface;
                not_found_as_none(pod.delete_link(name)).context("delete", name)?;
                Ok(())
            }
            _ => self.remove_host_end(),
        }
    }

    /// The container end, if it belongs to this attachment.
    fn container_end(&self, pod: &Netlink) -> Result<Option<ContainerEnd>, Error> {
        let name = &self.of.attachment.interface;
        let fail = |cause| failed("look up", name, cause);
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
        let derived = self.of.host_interface();
        let known = KnownAttachment {
            interface: name.as_str(),
            host: derived.as_str(),
            prev: self.prev.as_ref(),
            leased: self.held.map(HeldLeases::addresses),
            side: self.of.host_end.side(self.host).map_err(fail)?,
        };
        Ok(is_owner(&known, &end).then_some(end))
    }

    fn pod(&self) -> Result<Option<Netlink>, Error> {
        self.netns.map(namespace::netlink).transpose()
    }

    /// Deletes the host end of a container end that is not found, because the namespace is gone or the interface was
    /// renamed.
    fn remove_host_end(&self) -> Result<(), Error> {
        match &self.of.host_end {
            HostEnd::PortOf(_) => self.remove_listed_port(),
            HostEnd::Routed => self.remove_routed_host_end(),
        }
    }

    /// Deletes the host end that prevResult lists, if it is still the same link. prevResult also lists links of other
    /// plugins in the chain, so only ports of a bridge that it lists are deleted.
    fn remove_listed_port(&self) -> Result<(), Error> {
        let found = self.listed_on_host()?;
        let is_bridge = |index: u32| {
            let mut bridges = found.iter().map(|(_, link)| link);
            bridges.any(|link| link.index == index && link.kind == Kind::Bridge)
        };
        for (mac, link) in &found {
            let is_same = |observed: Mac| observed.to_string().eq_ignore_ascii_case(mac);
            if link.kind == Kind::Veth
                && link.mac.is_some_and(is_same)
                && link.master.is_some_and(is_bridge)
            {
                delete(self.host, link)?;
            }
        }
        Ok(())
    }

    /// The links on the host that prevResult lists, each with the MAC address that it had.
    fn listed_on_host(&self) -> Result<Vec<(&str, Link)>, Error> {
        let listed = self.prev.iter().flat_map(|prev| &prev.interfaces);
        let mut found = Vec::new();
        for interface in listed.filter(|interface| interface.sandbox.is_empty()) {
            let Ok(name) = interface.name.parse::<IfName>() else {
                continue;
            };
            let link = look_up(self.host, &name)?;
            found.extend(link.map(|link| (interface.mac.as_str(), link)));
        }
        Ok(found)
    }

    /// Deletes the host end over which the host sends packets to a known address, and whose other end has it. A veth with a
    /// derived name belongs to another attachment, for example on a network with the same subnet.
    fn remove_routed_host_end(&self) -> Result<(), Error> {
        let known = self.known_addresses();
        if known.is_empty() {
            return Ok(());
        }
        let found = veths(self.host, |address| known.contains(&address));
        let found = found.context("list the veth pairs of", self.of.attachment)?;
        let is_own = |veth: &&Veth| {
            veth.interface == self.of.attachment.interface.as_str()
                && Side::Routed.has(&veth.host)
                && !IfName::is_derived_veth(&veth.host.name)
        };
        for veth in found.iter().filter(is_own) {
            delete(self.host, &veth.host)?;
        }
        Ok(())
    }

    /// The addresses that are leased or, without leases, in prevResult.
    fn known_addresses(&self) -> Vec<IpAddr> {
        let held = self.held.map(HeldLeases::addresses).unwrap_or_default();
        if !held.is_empty() {
            return held.to_vec();
        }
        let listed = self.prev.iter().flat_map(|prev| &prev.ips);
        listed.map(|ip| ip.address.address()).collect()
    }

    /// The masquerading of the known addresses, and of the whole container unless another interface of it on this network
    /// needs masquerading.
    fn masquerade(&self, failures: &mut Failures) -> Removal {
        let mut known = self.known_addresses();
        if known.is_empty() && self.held.is_none() {
            known = self.pod_addresses().unwrap_or_default();
        }
        let scope = match self.held {
            Some(held) if held.has_other_interfaces() => Scope::Addresses,
            None if !known.is_empty() => Scope::Addresses,
            _ => Scope::Container,
        };
        let held = self.held.map(HeldLeases::addresses).unwrap_or_default();
        let evidence = Evidence::of(&self.of.conf.root(), held);
        Masquerade::of(&self.of.conf.name, self.of.attachment).find(
            (known, scope),
            evidence,
            failures,
        )
    }

    /// The addresses of the container end; `None` if it is not found.
    fn pod_addresses(&self) -> Option<Vec<IpAddr>> {
        let pod = self.pod().ok().flatten()?;
        let end = self.container_end(&pod).ok().flatten()?;
        Some(end.addresses)
    }
}

fn delete(host: &Netlink, link: &Link) -> Result<(), Error> {
    let name: IfName = link
        .name
        .parse()
        .map_err(|cause| Error::failed(format!("cannot delete {}: {cause}", link.name)))?;
    let deleted = not_found_as_none(host.delete_link(&name));
    deleted.map(drop).context("delete", &name)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
