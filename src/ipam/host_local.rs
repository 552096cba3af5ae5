//! The IPAM plugin host-local, in process: addresses of this node, kept in a directory.
//!
//! A request is decided as a whole under one lock before the first file is written, so that what cannot be given leaves
//! nothing behind.

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

/// How many holders an error about an exhausted range set names.
const NAMED_HOLDERS: usize = 3;

/// host-local with the configuration of one network.
#[derive(Clone, Debug)]
pub struct HostLocal {
    store: Store,
    config: Config,
}

impl HostLocal {
    /// Parses a configuration for ADD, CHECK and STATUS. Changes nothing.
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
    /// Code 11 when another process keeps the lock; 999 when a set is exhausted, the address asked for is taken, `who`
    /// has an address already, resolvConf cannot be read or the directory not be written.
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

    /// The routes that each lease has.
    pub fn routes(&self) -> &[Route] {
        &self.config.routes
    }

    /// Whether `who` holds an address.
    ///
    /// # Errors
    /// When it does not.
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

    /// Whether anything keeps every ADD from working until a person repairs it: a directory that cannot be written, a
    /// resolvConf that is missing. Runtimes take a node down for it, so what passes by itself or by the end of a
    /// container, such as an exhausted range or a full disk, is not reported here. Writes nothing and waits for nobody.
    ///
    /// # Errors
    /// Code 50 for these.
    pub fn status(&self) -> Result<(), Error> {
        let resolv_conf = self.config.resolv_conf.as_deref();
        let readable = resolv_conf.map_or(Ok(()), resolv::status);
        let ready = readable.and_then(|()| self.store.writable());
        ready.map_err(Error::into_not_available)
    }

    pub fn pools(&self) -> &[Pool] {
        &self.config.pools
    }

    /// How many addresses of a range set can be given at all: gateways and ends of subnets cannot.
    pub fn usable(&self, pool: &Pool) -> u128 {
        pool.set.usable(&self.config.gateways)
    }

    /// Where its leases are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The families of the addresses it gives, as far as they are known.
    pub fn families(&self) -> Vec<Family> {
        let pools = self.config.pools.iter();
        let mut families: Vec<Family> = pools.map(|pool| pool.set.family()).collect();
        families.dedup();
        families
    }

    fn reserve_chosen(&self, attachment: &Attachment) -> Result<Vec<(&Range, IpAddr)>, Error> {
        let config = &self.config;
        let locked = self.store.lock_or_create()?;
        locked.enter_boot(&attachment.container)?;
        let leases = locked.scan(attachment)?;
        self.refuse_duplicate(attachment, &leases)?;
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
        write(&locked, &chosen, attachment)?;
        let added: Vec<IpAddr> = chosen.iter().map(|(_, address)| *address).collect();
        locked.index_added(leases, attachment, &added);
        Ok(chosen)
    }

    fn refuse_duplicate(&self, attachment: &Attachment, leases: &Leases) -> Result<(), Error> {
        let in_a_set = |address: &&IpAddr| {
            let mut pools = self.config.pools.iter();
            pools.any(|pool| pool.set.range_of(**address).is_some())
        };
        let Some(address) = leases.mine.iter().find(in_a_set) else {
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
                            "{} holds a file of that name",
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
        let wanted = |address| set.range_of(address).is_some();
        let oldest = self.store.oldest(NAMED_HOLDERS, wanted);
        let oldest: Vec<String> = oldest.iter().map(ToString::to_string).collect();
        if oldest.is_empty() {
            return error;
        }
        error
            .details(format!("held longest: {}", oldest.join(", ")))
            .details("containers that are gone need a DEL")
    }
}

/// Writes the leases; when one fails, those before it go again.
fn write(
    locked: &Locked,
    chosen: &[(&Range, IpAddr)],
    attachment: &Attachment,
) -> Result<(), Error> {
    let mut made = Vec::with_capacity(chosen.len());
    let mut outcome = Ok(());
    for (index, (_, address)) in chosen.iter().enumerate() {
        outcome = locked.put(*address, attachment).and_then(|()| {
            made.push(*address);
            locked.remember(index, *address)
        });
        if outcome.is_err() {
            break;
        }
    }
    outcome.map_err(|error| {
        let undone = made.iter().map(|address| locked.take_back(*address));
        undone.fold(error, |error, undone| match undone {
            Ok(()) => error,
            Err(more) => error.details(format!("also: {more}")),
        })
    })
}

#[cfg(test)]
mod tests;
