//! DEL: giving back the link, the masquerading and, last, the lease.

use std::net::IpAddr;

use crate::bridge::attach::failed;
use crate::bridge::plan::host_interface;
use crate::bridge::spoof::Guard;
use crate::bridge::{open_host, open_pod, passage};
use crate::cni::conf::NetConf;
use crate::cni::request::{Attachment, Request};
use crate::cni::result::AddResult;
use crate::error::{Error, Failures};
use crate::host::journal::phase;
use crate::host::netlink::{Kind, Netlink, present};
use crate::host::netns::{Netns, NetnsError, OwnNetns};
use crate::ipam::{Held, Ipam};
use crate::masquerade::{Evidence, Masquerade, Removing, Scope};
use crate::net::{IfName, Mac};

/// Removes an attachment, as far as it is there. Needs neither a namespace nor a prevResult, and of the configuration
/// only names; what was made by the reference is removed too.
///
/// # Errors
/// When something could not be removed; the lease is kept then, so that nobody else gets the address.
pub fn del(
    conf: &NetConf,
    request: &Request,
    who: &Attachment,
    netns: Option<&str>,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    let netns = match open_netns(request, netns) {
        Err(error) if error.code == crate::Code::OWN_NETNS => return Err(error),
        opened => failures.note(opened).flatten(),
    };
    let ipam = Ipam::parse_for_release(conf, request)?;
    let held = match &ipam {
        Some(ipam) => failures.note(phase("ipam", || ipam.held(who))).flatten(),
        None => None,
    };
    // Also from others of this attachment: of an ADD or a DEL that was killed, a program may still be at work.
    let _locked = match (&ipam, &held) {
        (Some(ipam), Some(held)) => failures.note(phase("ipam", || ipam.lock(held))).flatten(),
        _ => None,
    };
    let host = open_host()?;
    let link = Detachment {
        // A prevResult that cannot be read must not keep a dead container's address.
        prev: conf.prev_result().ok().flatten(),
        netns: netns.as_ref(),
        conf,
        who,
        host: &host,
    };
    // The configuration may have changed since the ADD: what it says of masquerading does not count.
    let removing = phase("masquerade", || link.start_unmasquerading(held.as_ref()));
    failures.note(phase("link", || link.remove()));
    // Who has too long a name for a guard has none.
    failures.note(Guard::of(&conf.name, who).map_or(Ok(()), |guard| guard.remove(&host)));
    failures.note(phase("masquerade", || removing.finish()));
    failures.note(phase("forward", || passage::close(&host, conf)));
    failures.into_result()?;
    ipam.map_or(Ok(()), |ipam| phase("ipam", || ipam.release(who, held)))
}

/// The container's namespace; `None` when it is gone.
fn open_netns(request: &Request, path: Option<&str>) -> Result<Option<Netns>, Error> {
    let Some(path) = path else { return Ok(None) };
    match Netns::open(path, OwnNetns::allowed(request.own_netns_allowed)) {
        Ok(netns) => Ok(Some(netns)),
        Err(cause) if cause.is_gone() => Ok(None),
        Err(cause) => Err(NetnsError::report(cause, path)),
    }
}

/// What leads to the things to remove.
struct Detachment<'a> {
    conf: &'a NetConf,
    who: &'a Attachment,
    prev: Option<AddResult>,
    netns: Option<&'a Netns>,
    host: &'a Netlink,
}

impl Detachment<'_> {
    /// Deletes the veth pair by whichever end is found.
    fn remove(&self) -> Result<(), Error> {
        let name = host_interface(&self.conf.name, self.who);
        let deleted = present(self.host.delete_link(&name));
        if deleted
            .map_err(|cause| failed("delete", &name, cause))?
            .is_some()
        {
            return Ok(());
        }
        // The reference's veth has a name of its own.
        match self.pod()? {
            Some(pod) => remove_container_end(&pod, self.who),
            None => self.remove_listed_end(),
        }
    }

    fn pod(&self) -> Result<Option<Netlink>, Error> {
        let open = |netns: &Netns| open_pod(netns, &netns.path().to_string_lossy());
        self.netns.map(open).transpose()
    }

    /// Deletes the host's end that prevResult names, if it is still the same link. The other plugins of a chain have
    /// links of theirs in there: only ports of a bridge that is this network's may be what the reference has made.
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
                present(self.host.delete_link(name))
                    .map_err(|cause| failed("delete", name, cause))?;
            }
        }
        Ok(())
    }

    /// Starts to remove the masquerading: of the addresses that are known, and of the whole container unless another
    /// of its interfaces on this network still needs it.
    fn start_unmasquerading(&self, held: Option<&Held>) -> Removing {
        let scope = match held {
            Some(held) if held.has_siblings() => Scope::Addresses,
            Some(_) => Scope::Container,
            None => Scope::Addresses,
        };
        let mut known = held
            .map(|held| held.addresses().to_vec())
            .unwrap_or_default();
        if known.is_empty() {
            let listed = self.prev.iter().flat_map(|prev| &prev.ips);
            known = listed.map(|ip| ip.address.address()).collect();
        }
        if known.is_empty() && scope == Scope::Addresses {
            known = self.pod_addresses().unwrap_or_default();
        }
        let held = held.map(Held::addresses).unwrap_or_default();
        let evidence = Evidence::of(&self.conf.root(), held);
        Masquerade::of(&self.conf.name, self.who).remove(known, scope, evidence)
    }

    /// The addresses of the container's interface; `None` when it cannot be seen.
    fn pod_addresses(&self) -> Option<Vec<IpAddr>> {
        let pod = self.pod().ok().flatten()?;
        let link = pod.link(&self.who.interface).ok().flatten()?;
        let addresses = pod.addresses(link.index).ok()?;
        Some(
            addresses
                .iter()
                .map(|address| address.cidr.address())
                .collect(),
        )
    }
}

fn remove_container_end(pod: &Netlink, who: &Attachment) -> Result<(), Error> {
    let name = &who.interface;
    let link = pod
        .link(name)
        .map_err(|cause| failed("look up", name, cause))?;
    // Anything but a veth was not made by this plugin.
    if link.is_some_and(|link| link.kind == Kind::Veth) {
        present(pod.delete_link(name)).map_err(|cause| failed("delete", name, cause))?;
    }
    Ok(())
}
