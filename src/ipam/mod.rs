//! IP address management: allocation and leases.
//!
//! [`host_local`] and [`static_addresses`] run in process, and host-local shares its lease directory with the Go plugin;
//! any other type is executed ([`crate::delegate`]). [`Ipam::parse`] rejects invalid configurations before anything is changed; `release` is the inverse
//! of `reserve`. Knows no links, bridges or namespaces.

pub mod allocate;
pub mod config;
pub mod delegate;
pub mod host_local;
pub mod lease_file;
pub mod live;
pub mod range;
pub mod resolv;
pub mod static_addresses;
pub mod store;

use std::path::PathBuf;

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::json::JsonCursor;
use crate::cni::names::Attachment;
use crate::cni::result::{AddResult, Dns, IpConfig};
use crate::delegate::{Delegate, Role};
use crate::error::Error;
use crate::net::{Family, Route};

pub use host_local::HostLocal;
pub use static_addresses::StaticAddresses;
pub use store::{HeldLeases, LeaseFile, LeaseLock, Store};

/// The IPAM plugin of a network.
#[derive(Clone, Debug)]
pub enum Ipam {
    /// `host-local`, in process.
    HostLocal(HostLocal),
    /// `static`, in process.
    Static(StaticAddresses),
    /// Any other type, executed from CNI_PATH.
    Delegate(Delegate),
}

/// The leases of a network, which DEL and GC release. Parsed without the keys that only an ADD needs.
#[derive(Clone, Debug)]
pub enum IpamLeases {
    /// The lease directory of host-local.
    HostLocal(Store),
    /// static has none.
    Static,
    /// Another IPAM plugin; only it can list its leases.
    Delegate(Delegate),
}

/// The result of an IPAM plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// At least one, without an interface index.
    pub ips: Vec<IpConfig>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

impl Lease {
    /// These addresses only, for an undo.
    pub fn held(&self) -> HeldLeases {
        let addresses = self.ips.iter().map(|ip| ip.address.address());
        HeldLeases::of(addresses.collect())
    }
}

impl From<Lease> for AddResult {
    fn from(lease: Lease) -> AddResult {
        AddResult {
            interfaces: Vec::new(),
            ips: lease.ips,
            routes: lease.routes,
            dns: lease.dns,
        }
    }
}

impl Ipam {
    /// For ADD, CHECK and STATUS. `None` for a layer-2 network: `ipam` is absent, null or empty. Changes nothing and
    /// does not search for another plugin's program: see [`Ipam::locate`].
    ///
    /// # Errors
    /// Code 6, 7 or 4 for an `ipam` without type, an invalid configuration of host-local, or a requested address that
    /// cannot be allocated.
    pub fn parse(conf: &NetConf, cni_path: &[PathBuf], args: &Args) -> Result<Option<Ipam>, Error> {
        let Some(ipam) = conf.root().object("ipam")? else {
            return Ok(None);
        };
        match ipam.non_empty_text("type")? {
            Some("host-local") => Ok(Some(Ipam::HostLocal(HostLocal::parse(conf, args)?))),
            Some("static") => Ok(Some(Ipam::Static(StaticAddresses::parse(conf, args)?))),
            Some(plugin) => Ok(Some(Ipam::Delegate(Delegate::new(
                Role::Ipam,
                plugin,
                conf,
                cni_path,
            )))),
            None => reject_missing_type(&ipam).map(|()| None),
        }
    }

    /// Finds the program of another IPAM plugin, so that its absence is reported before anything is changed.
    ///
    /// # Errors
    /// Code 7 if it does not exist or is not an IPAM plugin.
    pub fn locate(&self) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(_) | Ipam::Static(_) => Ok(()),
            Ipam::Delegate(delegate) => delegate.locate().map(drop),
        }
    }

    /// The routes of every lease, as far as they are known before one is reserved.
    pub fn routes(&self) -> &[Route] {
        match self {
            Ipam::HostLocal(host_local) => host_local.routes(),
            Ipam::Static(addresses) => addresses.routes(),
            Ipam::Delegate(_) => &[],
        }
    }

    /// Reserves all addresses of an attachment, or none.
    ///
    /// # Errors
    /// 999 if no address is available or the attachment already has one; code 11 if the lease directory is locked for
    /// too long; errors of other IPAM plugins unchanged.
    pub fn reserve(&self, attachment: &Attachment) -> Result<Lease, Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.reserve(attachment),
            Ipam::Static(addresses) => addresses.lease_for_link(),
            Ipam::Delegate(delegate) => delegate::reserve(delegate, attachment),
        }
    }

    pub fn leases(&self) -> IpamLeases {
        match self {
            Ipam::HostLocal(host_local) => IpamLeases::HostLocal(host_local.store().clone()),
            Ipam::Static(_) => IpamLeases::Static,
            Ipam::Delegate(delegate) => IpamLeases::Delegate(delegate.clone()),
        }
    }

    /// Whether an ADD could reserve addresses. Only conditions that need a repair are reported.
    ///
    /// # Errors
    /// Code 50 if not; errors of other IPAM plugins unchanged.
    pub fn status(&self) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.status(),
            Ipam::Static(_) => Ok(()),
            Ipam::Delegate(delegate) => delegate.status(),
        }
    }

    /// `None` if only another IPAM plugin knows them.
    pub fn families(&self) -> Option<Vec<Family>> {
        match self {
            Ipam::HostLocal(host_local) => Some(host_local.families()),
            Ipam::Static(addresses) => Some(addresses.families()),
            Ipam::Delegate(_) => None,
        }
    }

    /// Whether the attachment has addresses.
    ///
    /// # Errors
    /// 999 if not; errors of other IPAM plugins unchanged.
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.check(attachment),
            Ipam::Static(addresses) => addresses.check(),
            Ipam::Delegate(delegate) => delegate.check(attachment),
        }
    }
}

impl IpamLeases {
    /// Reads only the network's name, `ipam.type` and `ipam.dataDir`, so that a key that became invalid since the ADD
    /// does not prevent the release. `None` for a layer-2 network. Does not search for another plugin's program.
    ///
    /// # Errors
    /// Code 6 if one of these has the wrong type.
    pub fn parse(conf: &NetConf, cni_path: &[PathBuf]) -> Result<Option<IpamLeases>, Error> {
        let Some(ipam) = conf.root().object("ipam")? else {
            return Ok(None);
        };
        Ok(match ipam.non_empty_text("type")? {
            Some("host-local") => Some(IpamLeases::HostLocal(Store::of(conf)?)),
            Some("static") => Some(IpamLeases::Static),
            Some(plugin) => Some(IpamLeases::Delegate(Delegate::new(
                Role::Ipam,
                plugin,
                conf,
                cni_path,
            ))),
            None => None,
        })
    }

    /// The addresses of an attachment; `None` if they are not leased, or only another IPAM plugin knows them. Does not wait for the lock.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn held(&self, attachment: &Attachment) -> Result<Option<HeldLeases>, Error> {
        match self {
            IpamLeases::HostLocal(store) => store.held(attachment).map(Some),
            IpamLeases::Static | IpamLeases::Delegate(_) => Ok(None),
        }
    }

    /// Locks the leases of these addresses: waits until no program that an earlier call started for the attachment is
    /// running. `None` if there are no lease files.
    ///
    /// # Errors
    /// Code 11 if one runs for too long.
    pub fn lock(&self, held: &HeldLeases) -> Result<Option<LeaseLock>, Error> {
        match self {
            IpamLeases::HostLocal(store) => store.lock_leases(held.addresses()).map(Some),
            IpamLeases::Static | IpamLeases::Delegate(_) => Ok(None),
        }
    }

    /// Releases the given leases; with `None`, all leases of the attachment.
    ///
    /// # Errors
    /// If an address could not be released; code 11 if another process holds the lock; errors of other IPAM plugins
    /// unchanged.
    pub fn release(&self, attachment: &Attachment, held: Option<HeldLeases>) -> Result<(), Error> {
        match self {
            IpamLeases::HostLocal(store) => {
                let held = held.map_or_else(|| store.held(attachment), Ok)?;
                store.release(attachment, &held)
            }
            IpamLeases::Static => Ok(()),
            IpamLeases::Delegate(delegate) => delegate.release(attachment),
        }
    }
}

/// An `ipam` with other keys but no type is an error, not a layer-2 network.
fn reject_missing_type(ipam: &JsonCursor) -> Result<(), Error> {
    let keys: Vec<&str> = ipam.keys().filter(|key| *key != "type").collect();
    if keys.is_empty() {
        return Ok(());
    }
    let value = format!("missing, though ipam has {}", keys.join(", "));
    let wanted = "it must name a plugin, for example \"host-local\"";
    Err(ipam.at("type").invalid(value, wanted))
}

#[cfg(test)]
pub(crate) mod tests;
