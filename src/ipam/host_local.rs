//! The IPAM plugin host-local, in process.
//!
//! All addresses of an attachment are chosen under one lock before the first lease is written.

use std::net::IpAddr;

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::names::Attachment;
use crate::cni::result::IpConfig;
use crate::error::Error;
use crate::ipam::allocate::next_free;
use crate::ipam::config::{Config, Pool};
use crate::ipam::range::Range;
use crate::ipam::store::{Leases, Locked, Store};
use crate::ipam::{Lease, resolv};
use crate::net::{Family, Route};

/// Number of holders that the error about an exhausted range set names.
const NAMED_HOLDERS: usize = 3;

#[derive(Clone, Debug)]
pub struct HostLocal {
    store: Store,
    config: Config,
}

impl HostLocal {
    /// For ADD, CHECK and STATUS. Changes nothing.
    ///
    /// # Errors
    /// Code 6, 7 or 4 for an invalid or missing value.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<HostLocal, Error> {
        Ok(HostLocal {
            config: Config::parse(conf, args)?,
            store: Store::of(conf)?,
        })
    }

    /// Reserves one address of each range set, or none.
    ///
    /// # Errors
    /// Code 11 if another process holds the lock for too long; 999 if a set is exhausted, the requested address is
    /// taken, the attachment already has an address, resolvConf cannot be read or the directory is not writable.
    pub fn reserve(&self, attachment: &Attachment) -> Result<Lease, Error> {
        let resolv_conf = self.config.resolv_conf.as_deref();
        let dns = resolv_conf.map(resolv::read).transpose()?;
        let chosen = self.reserve_chosen(attachment)?;
        let ip = |(range, address): (&Range, IpAddr)| IpConfig {
            interface: None,
            address: range.with_prefix(address),
            gateway: Some(range.gateway()),
        };
        Ok(Lease {
            ips: chosen.into_iter().map(ip).collect(),
            routes: self.config.routes.clone(),
            dns: dns.unwrap_or_default(),
        })
    }

    pub fn routes(&self) -> &[Route] {
        &self.config.routes
    }

    /// Whether the attachment has an address.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        if !self.store.held(attachment)?.addresses().is_empty() {
            return Ok(());
        }
        let (network, directory) = (self.store.network(), self.store.directory().display());
        Err(Error::failed(format!(
            "host-local: {attachment} holds no address of network {network} in {directory}"
        ))
        .details("the address may be reassigned; run DEL, then ADD again"))
    }

    /// Whether an ADD could work, as far as a repair is needed: the directory is not writable, or resolvConf is
    /// missing. Because runtimes mark a node as not ready, temporary conditions such as an exhausted range or a full
    /// disk are not reported. Writes nothing, takes no lock.
    ///
    /// # Errors
    /// Code 50 if not.
    pub fn status(&self) -> Result<(), Error> {
        let resolv_conf = self.config.resolv_conf.as_deref();
        let readable = resolv_conf.map_or(Ok(()), resolv::status);
        let ready = readable.and_then(|()| self.store.writable());
        ready.map_err(Error::into_not_available)
    }

    pub fn pools(&self) -> &[Pool] {
        &self.config.pools
    }

    /// The number of allocatable addresses of a range set, without gateways, network and broadcast addresses.
    pub fn usable(&self, pool: &Pool) -> u128 {
        pool.set.usable(&self.config.gateways)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The families of the range sets.
    pub fn families(&self) -> Vec<Family> {
        let pools = self.config.pools.iter();
        let mut families: Vec<Family> = pools.map(|pool| pool.set.family()).collect();
        families.dedup();
        families
    }

    fn reserve_chosen(&self, attachment: &Attachment) -> Result<Vec<(&Range, IpAddr)>, Error> {
        let config = &self.config;
        let locked = self.store.lock_or_create()?;
        locked.update_boot_record(&attachment.container)?;
        let leases = self.store.scan(attachment)?;
        self.reject_duplicate(attachment, &leases)?;
        let mut chosen = Vec::with_capacity(config.pools.len());
        for (index, pool) in config.pools.iter().enumerate() {
            let choice = match pool.requested {
                Some(address) => self.requested(pool, address, &leases)?,
                None => {
                    let last = locked.last_reserved(index);
                    next_free(&pool.set, last, &config.gateways, |address| {
                        leases.is_taken(address)
                    })
                    .ok_or_else(|| self.exhausted(index))?
                }
            };
            chosen.push(choice);
        }
        write_leases(&locked, &chosen, attachment)?;
        let added: Vec<IpAddr> = chosen.iter().map(|(_, address)| *address).collect();
        locked.index_added(leases, attachment, &added);
        Ok(chosen)
    }

    fn reject_duplicate(&self, attachment: &Attachment, leases: &Leases) -> Result<(), Error> {
        let is_in_range = |address: &&IpAddr| {
            let mut pools = self.config.pools.iter();
            pools.any(|pool| pool.set.range_of(**address).is_some())
        };
        let Some(address) = leases.held.addresses.iter().find(is_in_range) else {
            return Ok(());
        };
        let network = self.store.network();
        let what = format!(
            "host-local: duplicate allocation is not allowed: {attachment} already holds {address} of network {network}"
        );
        Err(Error::failed(what).details("run DEL first"))
    }

    fn requested<'a>(
        &self,
        pool: &'a Pool,
        address: IpAddr,
        leases: &Leases,
    ) -> Result<(&'a Range, IpAddr), Error> {
        let range = pool.set.range_of(address);
        match range.filter(|_| !leases.is_taken(address)) {
            Some(range) => Ok((range, address)),
            None => {
                let set = &pool.set;
                let what = format!(
                    "host-local: requested IP address {address} is not available in range set {set}"
                );
                Err(
                    Error::failed(what).details(match self.store.holder(address) {
                        Some(holder) => format!("held: {holder}"),
                        None => format!(
                            "{} has a file of this name",
                            self.store.directory().display()
                        ),
                    }),
                )
            }
        }
    }

    fn exhausted(&self, index: usize) -> Error {
        let config = &self.config;
        let set = &config.pools[index].set;
        let what = format!("host-local: no IP addresses available in range set: {set}");
        let usable = set.usable(&config.gateways);
        let directory = self.store.directory().display();
        let error =
            Error::failed(what).details(format!("all {usable} are reserved in {directory}"));
        let is_in_set = |address| set.range_of(address).is_some();
        let oldest = self.store.oldest(NAMED_HOLDERS, is_in_set);
        let oldest: Vec<String> = oldest.iter().map(ToString::to_string).collect();
        if oldest.is_empty() {
            return error;
        }
        error
            .details(format!("held longest: {}", oldest.join(", ")))
            .details("containers that no longer exist need a DEL")
    }
}

/// Writes the leases; on error, removes those already written.
fn write_leases(
    locked: &Locked,
    chosen: &[(&Range, IpAddr)],
    attachment: &Attachment,
) -> Result<(), Error> {
    let mut written = Vec::with_capacity(chosen.len());
    let mut outcome = Ok(());
    for (index, (_, address)) in chosen.iter().enumerate() {
        outcome = locked.create_lease(*address, attachment).and_then(|()| {
            written.push(*address);
            locked.set_last_reserved(index, *address)
        });
        if outcome.is_err() {
            break;
        }
    }
    outcome.map_err(|error| {
        written.iter().fold(error, |error, address| {
            error.and(locked.remove_lease(*address))
        })
    })
}

#[cfg(test)]
mod tests;
