//! The mapped ports of an attachment, in all backends and implementations: another configuration or the Go plugin may have
//! added them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Batch, Nftables, NftablesError};
use crate::net::{Family, IfName};
use crate::netfilter::Feature;
use crate::netfilter::iptables::Variant;
use crate::netfilter::lock::wait_for_changes;
use crate::netfilter::portmap::iptables::{self, HostPorts};
use crate::netfilter::portmap::nftables::{self, MapEntries};
use crate::netfilter::portmap::{
    Backend, Forwarded, IsAlive, Mapped, TABLE, flows, go_nftables, localnet, stale_among,
};
use crate::netfilter::tables;

const FEATURE: Feature = Feature {
    name: "portmap",
    remedy: "it needs nf_tables, or the legacy iptables in use",
};

#[derive(Clone)]
pub struct Ports {
    container: ContainerId,
    /// The addresses of prevResult.
    known: Vec<IpAddr>,
    is_alive: IsAlive<'static>,
    in_iptables: HostPorts,
    in_nftables: MapEntries,
}

impl Ports {
    pub fn of(
        network: &NetworkName,
        attachment: &Attachment,
        known: Vec<IpAddr>,
        is_alive: IsAlive<'static>,
    ) -> Ports {
        Ports {
            container: attachment.container.clone(),
            known,
            is_alive,
            in_iptables: HostPorts::of(network, attachment),
            in_nftables: MapEntries::of(network, attachment),
        }
    }

    /// Forwards the ports, in place of those that the attachment has.
    ///
    /// # Errors
    /// Before anything is changed, when another container has one of the ports, with any backend. When a backend fails.
    pub fn install(&self, backend: Backend, forwarded: &[Forwarded]) -> Result<(), Error> {
        for forwarded in forwarded {
            let family = forwarded.address.family();
            self.reclaim(
                forwarded,
                &go_nftables::mapped(family)?,
                go_nftables::remove_stale,
            )?;
            match backend {
                Backend::Iptables => {
                    let mapped = nftables::mapped_like(forwarded)?;
                    self.reclaim(forwarded, &mapped, nftables::remove_stale)?;
                }
                Backend::Nftables => {
                    let mapped = iptables::mapped_like(forwarded)?;
                    self.reclaim(forwarded, &mapped, iptables::remove_stale)?;
                    go_nftables::restrict_to_host(family)?;
                }
            }
        }
        self.remove_others(backend)?;
        match backend {
            Backend::Iptables => self.in_iptables.install(forwarded, self.is_alive)?,
            Backend::Nftables => self.in_nftables.install(forwarded, self.is_alive)?,
        }
        flows::delete_stale(forwarded)
    }

    /// Removes the mapped ports of containers that no longer exist.
    fn reclaim(
        &self,
        forwarded: &Forwarded,
        mapped: &[Mapped],
        remove: fn(&[&Mapped]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stale = stale_among(forwarded, &self.container, mapped, self.is_alive)?;
        match stale.is_empty() {
            true => Ok(()),
            false => remove(&stale),
        }
    }

    /// Removes mapped ports of the attachment that an earlier ADD with another backend has added, or the Go plugin.
    fn remove_others(&self, backend: Backend) -> Result<(), Error> {
        let known = (&self.known[..], self.is_alive);
        FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| {
                let mut batch = Batch::default();
                go_nftables::plan_removal(nftables, &self.container, known, &mut batch)?;
                match backend {
                    Backend::Iptables if self.in_nftables.exist_in(nftables)? => {
                        let removal = self.in_nftables.plan_removal(nftables, &mut batch)?;
                        if removal.is_last {
                            nftables::plan_base_removal(nftables, &mut batch)?;
                        }
                    }
                    Backend::Nftables if self.in_iptables.exist_in(nftables)? => {
                        self.in_iptables.plan_removal(nftables, known, &mut batch)?;
                    }
                    _ => {}
                }
                Ok(batch)
            })
        })?;
        match backend {
            Backend::Iptables => Ok(()),
            Backend::Nftables => {
                let removed = self.in_iptables.remove_from_legacy(known.0, known.1);
                removed.map(drop)
            }
        }
    }

    /// Removes the mapped ports and the connection tracking entries that forward to them, and with the last one of the
    /// host route_localnet.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        failures.note(wait_for_changes(FEATURE.name));
        if !self.may_exist()? {
            return failures.into_result();
        }
        let legacy = self
            .in_iptables
            .remove_from_legacy(&self.known, self.is_alive);
        let legacy = failures.note(legacy);
        let is_used = !legacy.as_ref().is_none_or(|it| it.is_last);
        let legacy = legacy.map(|it| it.addresses).unwrap_or_default();
        let attempt = RefCell::new(Attempt::default());
        let removed = FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| self.plan_removal(nftables, is_used, &mut attempt.borrow_mut()))?;
            // Before the socket is closed, which waits for the grace period.
            let addresses = &attempt.borrow().addresses | &legacy;
            Ok(flows::delete_forwarded_to(&addresses))
        });
        let without_nf_tables = || flows::delete_forwarded_to(&legacy);
        failures.note(removed.and_then(|deleted| deleted.unwrap_or_else(without_nf_tables)));
        failures.note(attempt.into_inner().sysctls.map_or(Ok(()), Err));
        failures.into_result()
    }

    /// Plans the removal in one transaction: each that deletes something costs an RCU grace period, some 10 ms. Resets
    /// route_localnet unless `is_used`, or sets it again if a port has been mapped since an earlier attempt.
    fn plan_removal(
        &self,
        nftables: &Nftables,
        is_used: bool,
        attempt: &mut Attempt,
    ) -> Result<Batch, NftablesError> {
        let mut batch = Batch::default();
        let known = (&self.known[..], self.is_alive);
        let in_go = go_nftables::plan_removal(nftables, &self.container, known, &mut batch)?;
        let in_iptables = self.in_iptables.plan_removal(nftables, known, &mut batch)?;
        let in_nftables = self.in_nftables.plan_removal(nftables, &mut batch)?;
        let is_unused = in_iptables.is_last && in_nftables.is_last && !is_used;
        let interfaces = localnet::enabled(nftables)?;
        if is_unused && !interfaces.is_empty() {
            attempt.set(interfaces, false);
            batch.delete_table(TABLE);
        } else {
            let reset = std::mem::take(&mut attempt.reset);
            attempt.set(reset, true);
            if in_nftables.is_last && !in_nftables.addresses.is_empty() {
                nftables::plan_base_removal(nftables, &mut batch)?;
            }
        }
        attempt.addresses = in_go;
        attempt.addresses.extend(in_iptables.addresses);
        attempt.addresses.extend(in_nftables.addresses);
        Ok(batch)
    }

    /// Whether a backend may have mapped ports of the attachment. With most runtimes, most containers have none: nine
    /// queries over one socket.
    fn may_exist(&self) -> Result<bool, Error> {
        for family in Family::BOTH {
            if tables::exists(Variant::Legacy, family, "nat")? {
                return Ok(true);
            }
        }
        let found = FEATURE.with_existing("look for rules", |nftables: &Nftables| {
            Ok(self.in_nftables.exist_in(nftables)?
                || self.in_iptables.exist_in(nftables)?
                || go_nftables::exist_in(nftables)?)
        })?;
        Ok(found.unwrap_or_default())
    }

    /// # Errors
    /// The first difference from what [`Ports::install`] adds.
    pub fn check(&self, backend: Backend, forwarded: &[Forwarded]) -> Result<(), Error> {
        if backend == Backend::Iptables {
            let mut families = forwarded.iter();
            return families.try_for_each(|it| self.in_iptables.check(it));
        }
        if !self.in_nftables.exist()? {
            // The Go plugin may have added them.
            let mut all = true;
            for forwarded in forwarded {
                all &= go_nftables::forwards(&self.container, forwarded)? == Some(true);
            }
            if all {
                return Ok(());
            }
        }
        self.in_nftables.check(forwarded)
    }
}

/// An attempt at a removal, which is repeated if the ruleset changes meanwhile.
#[derive(Default)]
struct Attempt {
    /// To which the removed rules forward.
    addresses: BTreeSet<IpAddr>,
    /// The interfaces whose route_localnet was reset.
    reset: Vec<IfName>,
    sysctls: Option<Error>,
}

impl Attempt {
    fn set(&mut self, interfaces: Vec<IfName>, enabled: bool) {
        self.sysctls = localnet::set(&interfaces, enabled).err();
        self.reset = interfaces;
    }
}

/// Removes the mapped ports of a network that belong to no valid attachment.
///
/// # Errors
/// When something could not be removed, after everything else was tried.
pub fn gc(network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(iptables::gc(network, valid));
    failures.note(nftables::gc(network, valid));
    failures.note(reset_unused_localnet());
    failures.into_result()
}

/// Resets route_localnet if no port is mapped any more.
///
/// # Errors
/// When the kernel refuses.
pub fn reset_unused_localnet() -> Result<(), Error> {
    let is_used = tables::exists(Variant::Legacy, Family::V4, "nat")?;
    let reset = FEATURE.with_existing("reset route_localnet", |nftables| {
        let interfaces = localnet::enabled(nftables)?;
        if is_used
            || interfaces.is_empty()
            || nftables::is_used(nftables)?
            || iptables::is_used(nftables)?
        {
            return Ok(Ok(()));
        }
        let reset = localnet::set(&interfaces, false);
        nftables.change(&|| {
            let mut batch = Batch::default();
            batch.delete_table(TABLE);
            Ok(batch)
        })?;
        Ok(reset)
    })?;
    reset.unwrap_or(Ok(()))
}
