//! What plugins share that connect a container with a veth pair, addresses from IPAM and masquerading.

pub mod check;
pub mod del;
pub mod gc;
pub mod mtu;
pub mod ownership;

use crate::cni::Schema;
use crate::cni::conf::NetConf;
use crate::cni::json::JsonCursor;
use crate::cni::names::Attachment;
use crate::cni::result::{AddResult, Dns};
use crate::error::Error;
use crate::ipam::{Ipam, Lease};
use crate::kernel::log;
use crate::kernel::netlink::{Netlink, NetlinkError};
use crate::kernel::sysctl;
use crate::kernel::threads::join;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::masquerade::{self, Backend, Evidence, Masquerade, Policy, Scope};
use crate::plugins::attachment::ownership::Side;
use crate::undo::Undo;

/// What a network connects the host ends of its attachments to.
#[derive(Clone, Debug)]
pub enum HostEnd {
    /// The bridge of this name, or why the configuration names none.
    PortOf(Result<IfName, Error>),
    /// Nothing: the host has routes to the containers.
    Routed,
}

impl HostEnd {
    fn side(&self, host: &Netlink) -> Result<Side, NetlinkError> {
        Ok(match self {
            HostEnd::Routed => Side::Routed,
            HostEnd::PortOf(Ok(bridge)) => match host.link(bridge)? {
                Some(bridge) => Side::PortOf(bridge.index),
                None => Side::Unknown,
            },
            HostEnd::PortOf(Err(_)) => Side::Unknown,
        })
    }
}

/// prevResult. CNI versions before 0.3.0 have no chains.
///
/// # Errors
/// If it is invalid.
pub fn previous_in_chain(conf: &NetConf) -> Result<Option<AddResult>, Error> {
    match conf.version.schema() {
        Schema::V0_1 => Ok(None),
        _ => conf.prev_result(),
    }
}

/// `dns` replaces that of IPAM if its domain is set or any of its lists is present, even empty.
///
/// # Errors
/// Code 6 for a wrong type.
pub fn parse_dns(root: &JsonCursor) -> Result<Option<Dns>, Error> {
    let Some(json) = root.object("dns")? else {
        return Ok(None);
    };
    let dns = Dns::parse(&json)?;
    let has_list = ["nameservers", "search", "options"]
        .iter()
        .any(|key| json.get(key).is_some());
    Ok((has_list || !dns.domain.is_empty()).then_some(dns))
}

/// Reserves the addresses of an attachment. With masquerading, their leases stay locked until the process ends: if it is
/// killed, DEL waits for iptables programs that are still running.
///
/// # Errors
/// See [`Ipam::reserve`].
pub fn reserve<'a>(
    ipam: &'a Ipam,
    attachment: &'a Attachment,
    policy: Option<&Policy>,
    undo: &mut Undo<'a>,
) -> Result<Lease, Error> {
    let lease = ipam.reserve(attachment)?;
    let (leases, held) = (ipam.leases(), lease.held());
    let locked = leases.clone();
    undo.push(move || leases.release(attachment, Some(held)));
    if policy.is_some() {
        let locked = locked.lock(&lease.held())?;
        undo.push(move || {
            drop(locked);
            Ok(())
        });
    }
    Ok(lease)
}

/// Creates a link, and the rules of its addresses, which are independent of it: a program adds the rules meanwhile.
///
/// # Errors
/// Those of `attach`, and of the installation.
pub fn attach_masqueraded<'a, T>(
    rules: &Masquerade,
    (addresses, policy): (&[Cidr], Option<&Policy>),
    undo: &mut Undo<'a>,
    attach: impl FnOnce(&mut Undo<'a>) -> Result<T, Error>,
) -> Result<T, Error> {
    let attach = |undo| log::timed_span("link", || attach(undo));
    let Some(policy) = policy.filter(|_| !addresses.is_empty()) else {
        return attach(undo);
    };
    let masquerade = rules.clone();
    let owned = addresses.iter().map(|address| address.address()).collect();
    // Pushed before the installation, which may fail for one address family only.
    undo.push(move || masquerade.remove(owned, Scope::Addresses, Evidence::Started));
    let install = || rules.install(addresses, policy);
    match masquerade::backend_for(addresses, policy) {
        Backend::Iptables => {
            let (installed, attached) = join("masquerade", install, || attach(undo));
            attached.and_then(|attached| installed.map(|()| attached))
        }
        // A transaction over netlink takes less time than a thread would save.
        Backend::Nftables => {
            log::timed_span("masquerade", install)?;
            attach(undo)
        }
    }
}

/// Enables forwarding on the host.
///
/// # Errors
/// If it is disabled and cannot be enabled.
pub fn forward(family: Family) -> Result<(), Error> {
    sysctl::enable_forwarding(family).map_err(|cause| {
        Error::failed(format!("cannot enable {family} forwarding: {cause}")).details(
            "routing to containers needs it; set it to 1 where /proc/sys is read-only here",
        )
    })
}

/// With host-local and static, runs no process and writes nothing: containerd requests STATUS every few seconds.
///
/// # Errors
/// Code 50 if no ADD can succeed.
pub fn status(ipam: &Ipam, policy: Option<&Policy>) -> Result<(), Error> {
    if let Some(policy) = policy {
        masquerade::status(ipam.families().as_deref(), policy.backend)?;
    }
    ipam.status()
}
