//! The IPAM plugin host-local, in process: addresses of this node, kept in a directory.
//!
//! A request is decided as a whole under one lock before the first file is written, so that what cannot be given leaves
//! nothing behind.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::names::Attachment;
use crate::cni::result::IpConfig;
use crate::error::{Error, Failures};
use crate::ipam::allocate::next_free;
use crate::ipam::config::{self, Config, Pool};
use crate::ipam::live::LiveAttachments;
use crate::ipam::range::Range;
use crate::ipam::store::{Held, LeaseFile, LeaseLock, Leases, Locked, Store};
use crate::ipam::{Lease, resolv};
use crate::net::{Family, Route};

/// How many holders an error about an exhausted range set names.
const NAMED_HOLDERS: usize = 3;

/// host-local with the configuration of one network.
#[derive(Clone, Debug)]
pub struct HostLocal {
    network: String,
    store: Store,
    /// Absent when it was parsed for a release.
    config: Option<Config>,
}

impl HostLocal {
    /// For ADD and CHECK; nothing is touched.
    ///
    /// # Errors
    /// Code 6, 7 or 4 for everything that can be refused, also a missing `ipam`.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<HostLocal, Error> {
        let config = Config::parse(conf, args)?;
        Ok(HostLocal {
            config: Some(config),
            ..HostLocal::parse_for_release(conf)?
        })
    }

    /// For DEL: knows only where the leases are, so that what became invalid since the ADD keeps no address.
    ///
    /// # Errors
    /// Code 6 when `ipam` or its `dataDir` has the wrong type.
    pub fn parse_for_release(conf: &NetConf) -> Result<HostLocal, Error> {
        Ok(HostLocal {
            network: conf.name.to_string(),
            store: config::store(conf)?,
            config: None,
        })
    }

    /// Reserves one address of each range set, or none.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock; 999 when a set is exhausted, the address asked for is taken, `who`
    /// has an address already, resolvConf cannot be read or the directory not be written.
    pub fn reserve(&self, attachment: &Attachment) -> Result<Lease, Error> {
        let config = self.config.as_ref().ok_or_else(|| {
            Error::failed("cannot reserve with a configuration that was read for a release")
        })?;
        let dns = config
            .resolv_conf
            .as_deref()
            .map(resolv::read)
            .transpose()?;
        let chosen = self.reserve_chosen(config, attachment)?;
        let ip = |(range, address): (&Range, IpAddr)| IpConfig {
            interface: None,
            address: range.with_prefix(address),
            gateway: Some(range.gateway()),
        };
        Ok(Lease {
            ips: chosen.into_iter().map(ip).collect(),
            routes: config.routes.clone(),
            dns: dns.unwrap_or_default(),
        })
    }

    /// The routes that each lease has.
    pub fn routes(&self) -> &[Route] {
        let config = self.config.as_ref();
        config.map_or(&[], |config| &config.routes)
    }

    /// The addresses `who` holds. Does not wait for the lock.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn held(&self, attachment: &Attachment) -> Result<Held, Error> {
        self.store.held(attachment)
    }

    /// Waits until no program is at work for the attachment that holds these addresses, and keeps others waiting.
    ///
    /// # Errors
    /// Code 11 when one is at work for too long.
    pub fn lock(&self, held: &Held) -> Result<LeaseLock, Error> {
        self.store.lock_leases(held.addresses())
    }

    /// Frees what was found, as far as it is still `who`'s. What is gone is fine; nothing is created.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock; 999 when a file cannot be removed.
    pub fn release(&self, attachment: &Attachment, held: &Held) -> Result<(), Error> {
        if held.is_empty() {
            return Ok(());
        }
        let Some(locked) = self.store.lock()? else {
            return Ok(());
        };
        locked.release(held, attachment)
    }

    /// Frees whatever no valid attachment holds, whoever reserved it, but for the addresses `in_use`; nothing is created.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock; 999 when a file cannot be read or removed.
    pub fn gc(&self, valid: &ValidAttachments, in_use: &HashSet<IpAddr>) -> Result<(), Error> {
        match self.store.lock()? {
            Some(locked) => locked.gc(valid, in_use),
            None => Ok(()),
        }
    }

    /// GC as a plugin of its own, which deletes no links: an address that a container still has is not freed.
    ///
    /// # Errors
    /// As [`HostLocal::gc`]; when an address is not freed.
    pub fn gc_without_links(&self, valid: &ValidAttachments) -> Result<(), Error> {
        let (_, stale) = self.store.by_validity(valid)?;
        let mut failures = Failures::default();
        let mut in_use = HashSet::new();
        if !stale.is_empty() {
            let live = LiveAttachments::observe();
            let is_live = |lease: &&LeaseFile| {
                live.as_ref()
                    .is_ok_and(|live| live.has_address(lease.address))
            };
            for lease in stale.iter().filter(is_live) {
                let cause = "an interface in another network namespace still has it";
                failures.note::<()>(Err(lease.kept(cause)));
                in_use.insert(lease.address);
            }
            if failures.note(live).is_none() {
                in_use = stale.iter().map(|lease| lease.address).collect();
            }
        }
        failures.note(self.gc(valid, &in_use));
        failures.into_result()
    }

    /// Removes the files that are named after an address but name nobody. Tells the addresses.
    ///
    /// # Errors
    /// Code 11 when another process keeps the lock; 999 when a file cannot be read or removed.
    pub fn clear_garbled(&self) -> Result<Vec<IpAddr>, Error> {
        match self.store.lock()? {
            Some(locked) => locked.clear_garbled(),
            None => Ok(Vec::new()),
        }
    }

    /// Whether `who` holds an address.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        if !self.held(attachment)?.addresses().is_empty() {
            return Ok(());
        }
        let directory = self.store.directory().display();
        Err(Error::failed(format!(
            "host-local: {attachment} holds no address of network {} in {directory}",
            self.network
        ))
        .details("the pod may use an address that others are given; DEL and a new ADD repair that"))
    }

    /// Whether anything keeps every ADD from working until a person repairs it: a directory that cannot be written, a
    /// resolvConf that is missing. Runtimes take a node down for it, so what passes by itself or by the end of a
    /// container, such as an exhausted range or a full disk, is not reported here. Writes nothing and waits for nobody.
    ///
    /// # Errors
    /// Code 50 for these.
    pub fn status(&self) -> Result<(), Error> {
        let resolv_conf = self
            .config
            .as_ref()
            .and_then(|it| it.resolv_conf.as_deref());
        let readable = resolv_conf.map_or(Ok(()), resolv::status);
        let ready = readable.and_then(|()| self.store.writable());
        ready.map_err(Error::into_not_available)
    }

    /// The range sets it gives addresses of; none when it was parsed for a release.
    pub fn pools(&self) -> &[Pool] {
        self.config.as_ref().map_or(&[], |config| &config.pools)
    }

    /// How many addresses of a range set can be given at all: gateways and ends of subnets cannot.
    pub fn usable(&self, pool: &Pool) -> u128 {
        let gateways = self.config.as_ref().map_or(&[][..], |it| &it.gateways);
        pool.set.usable(gateways)
    }

    /// Where its leases are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The families of the addresses it gives, as far as they are known.
    pub fn families(&self) -> Vec<Family> {
        let pools = self.config.iter().flat_map(|config| &config.pools);
        let mut families: Vec<Family> = pools.map(|pool| pool.set.family()).collect();
        families.dedup();
        families
    }

    fn reserve_chosen<'a>(
        &self,
        config: &'a Config,
        attachment: &Attachment,
    ) -> Result<Vec<(&'a Range, IpAddr)>, Error> {
        let locked = self.store.lock_or_create()?;
        locked.enter_boot(&attachment.container)?;
        let leases = locked.scan(attachment)?;
        self.refuse_duplicate(config, attachment, &leases)?;
        let mut chosen = Vec::with_capacity(config.pools.len());
        for (index, pool) in config.pools.iter().enumerate() {
            let choice = match pool.requested {
                Some(address) => self.requested(pool, address, &leases)?,
                None => {
                    let last = locked.last_reserved(index);
                    next_free(&pool.set, last, &config.gateways, |address| {
                        leases.is_taken(address)
                    })
                    .ok_or_else(|| self.exhausted(config, index))?
                }
            };
            chosen.push(choice);
        }
        write(&locked, &chosen, attachment)?;
        let added: Vec<IpAddr> = chosen.iter().map(|(_, address)| *address).collect();
        locked.index_added(leases, attachment, &added);
        Ok(chosen)
    }

    fn refuse_duplicate(
        &self,
        config: &Config,
        attachment: &Attachment,
        leases: &Leases,
    ) -> Result<(), Error> {
        let in_a_set = |address: &&IpAddr| {
            let mut pools = config.pools.iter();
            pools.any(|pool| pool.set.range_of(**address).is_some())
        };
        let Some(address) = leases.mine.iter().find(in_a_set) else {
            return Ok(());
        };
        let network = &self.network;
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

    fn exhausted(&self, config: &Config, index: usize) -> Error {
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
