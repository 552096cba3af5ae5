//! Addresses: where they come from and who has them.
//!
//! [`host_local`] runs in process and keeps its leases in a directory it shares with the reference's host-local; any
//! other type is a program ([`delegate`]). [`Ipam::parse`] refuses all that can be refused; `reserve` and `release` are
//! inverses. Knows nothing of links, bridges and namespaces.

pub mod allocate;
pub mod config;
pub mod delegate;
pub mod host_local;
pub mod lease_file;
pub mod live;
pub mod range;
pub mod resolv;
pub mod store;

use std::path::PathBuf;

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::json::JsonCursor;
use crate::cni::names::Attachment;
use crate::cni::result::{AddResult, Dns, IpConfig};
use crate::error::Error;
use crate::net::{Family, Route};

pub use delegate::Delegate;
pub use host_local::HostLocal;
pub use store::{Held, LeaseFile, LeaseLock, Store};

/// Who gives addresses for a network.
#[derive(Clone, Debug)]
pub enum Ipam {
    /// `host-local`, in process.
    HostLocal(HostLocal),
    /// Any other type, executed from CNI_PATH.
    Delegate(Delegate),
}

/// The leases of a network, which DEL and GC release. Parsed without the keys that only an ADD needs.
#[derive(Clone, Debug)]
pub enum IpamLeases {
    /// The lease directory of host-local.
    HostLocal(Store),
    /// Another IPAM plugin, which knows its leases.
    Delegate(Delegate),
}

/// What an attachment has been given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Addresses; they do not say yet whose interface they are for. At least one.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name service.
    pub dns: Dns,
}

impl Lease {
    /// Its addresses as something to release: for an undo, which frees these and no others.
    pub fn held(&self) -> Held {
        let addresses = self.ips.iter().map(|ip| ip.address.address());
        Held::exactly(addresses.collect())
    }
}

impl From<Lease> for AddResult {
    /// The result of an IPAM plugin: no interfaces.
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
    /// For ADD, CHECK and STATUS. `None` is a layer-2 network: `ipam` is absent, null or says nothing. Nothing is changed,
    /// and a delegate is not looked for: see [`Ipam::locate`].
    ///
    /// # Errors
    /// Code 6, 7 or 4 for everything that can be rejected: an `ipam` without type, what is wrong in
    /// the configuration of host-local, an address asked for that cannot be given.
    pub fn parse(conf: &NetConf, cni_path: &[PathBuf], args: &Args) -> Result<Option<Ipam>, Error> {
        let Some(ipam) = conf.root().object("ipam")? else {
            return Ok(None);
        };
        match ipam.non_empty_text("type")? {
            Some("host-local") => Ok(Some(Ipam::HostLocal(HostLocal::parse(conf, args)?))),
            Some(plugin) => Ok(Some(Ipam::Delegate(Delegate::new(plugin, conf, cni_path)))),
            None => refuse_untyped(&ipam).map(|()| None),
        }
    }

    /// Finds the program of a delegate, so that a missing one is reported before anything is changed.
    ///
    /// # Errors
    /// Code 7 when it is not there, or is no IPAM plugin.
    pub fn locate(&self) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(_) => Ok(()),
            Ipam::Delegate(delegate) => delegate.locate().map(drop),
        }
    }

    /// The routes that every lease will have, as far as they are known before one is reserved.
    pub fn routes(&self) -> &[Route] {
        match self {
            Ipam::HostLocal(host_local) => host_local.routes(),
            Ipam::Delegate(_) => &[],
        }
    }

    /// Reserves addresses for an attachment: all it should have, or none.
    ///
    /// # Errors
    /// When there is none to give or the attachment has one already; code 11 when the store is locked for too long; a
    /// delegate's error as it is.
    pub fn reserve(&self, attachment: &Attachment) -> Result<Lease, Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.reserve(attachment),
            Ipam::Delegate(delegate) => delegate.reserve(attachment),
        }
    }

    /// What releases the addresses that [`Ipam::reserve`] reserved.
    pub fn leases(&self) -> IpamLeases {
        match self {
            Ipam::HostLocal(host_local) => IpamLeases::HostLocal(host_local.store().clone()),
            Ipam::Delegate(delegate) => IpamLeases::Delegate(delegate.clone()),
        }
    }

    /// Whether anything keeps every ADD from getting addresses until a person repairs it.
    ///
    /// # Errors
    /// Code 50 if so; a delegate's error as it is.
    pub fn status(&self) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.status(),
            Ipam::Delegate(delegate) => delegate.status(),
        }
    }

    /// The families of the addresses it gives; `None` when only the delegate knows.
    pub fn families(&self) -> Option<Vec<Family>> {
        match self {
            Ipam::HostLocal(host_local) => Some(host_local.families()),
            Ipam::Delegate(_) => None,
        }
    }

    /// Whether the attachment holds what it was given.
    ///
    /// # Errors
    /// When it does not; a delegate's error as it is.
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(host_local) => host_local.check(attachment),
            Ipam::Delegate(delegate) => delegate.check(attachment),
        }
    }
}

impl IpamLeases {
    /// Needs the network's name, `ipam.type` and `ipam.dataDir`, so that a key that became invalid since the ADD does not
    /// prevent the release. `None` for a layer-2 network. A delegate is not looked for.
    ///
    /// # Errors
    /// Code 6 when one of these has the wrong type.
    pub fn parse(conf: &NetConf, cni_path: &[PathBuf]) -> Result<Option<IpamLeases>, Error> {
        let Some(ipam) = conf.root().object("ipam")? else {
            return Ok(None);
        };
        Ok(match ipam.non_empty_text("type")? {
            Some("host-local") => Some(IpamLeases::HostLocal(Store::of(conf)?)),
            Some(plugin) => Some(IpamLeases::Delegate(Delegate::new(plugin, conf, cni_path))),
            None => None,
        })
    }

    /// The addresses of an attachment; `None` if only the delegate knows. Does not wait for the lock.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn held(&self, attachment: &Attachment) -> Result<Option<Held>, Error> {
        match self {
            IpamLeases::HostLocal(store) => store.held(attachment).map(Some),
            IpamLeases::Delegate(_) => Ok(None),
        }
    }

    /// Locks the leases of these addresses: waits until no program that an earlier call started for the attachment is
    /// running. `None` if only the delegate knows leases.
    ///
    /// # Errors
    /// Code 11 when one runs for too long.
    pub fn lock(&self, held: &Held) -> Result<Option<LeaseLock>, Error> {
        match self {
            IpamLeases::HostLocal(store) => store.lock_leases(held.addresses()).map(Some),
            IpamLeases::Delegate(_) => Ok(None),
        }
    }

    /// Releases what [`IpamLeases::held`] found or [`Lease::held`] names; with `None` all addresses of the attachment.
    ///
    /// # Errors
    /// When an address could not be released; code 11 when another process holds the lock; a delegate's error unchanged.
    pub fn release(&self, attachment: &Attachment, held: Option<Held>) -> Result<(), Error> {
        match self {
            IpamLeases::HostLocal(store) => {
                let held = match held {
                    Some(held) => held,
                    None => store.held(attachment)?,
                };
                store.release(attachment, &held)
            }
            IpamLeases::Delegate(delegate) => delegate.release(attachment),
        }
    }
}

/// Somebody who writes ranges does not want a network without addresses.
fn refuse_untyped(ipam: &JsonCursor) -> Result<(), Error> {
    let keys: Vec<&str> = ipam.keys().filter(|key| *key != "type").collect();
    if keys.is_empty() {
        return Ok(());
    }
    let what = format!("missing, though ipam has {}", keys.join(", "));
    let wanted = "it must name a plugin, for example \"host-local\"";
    Err(ipam.at("type").invalid(what, wanted))
}

#[cfg(test)]
mod tests;
