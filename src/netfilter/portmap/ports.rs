//! The mapped ports of an attachment, in all backends and implementations: another configuration or the Go plugin may have
//! added them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::Nftables;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::iptables::Variant;
use crate::netfilter::portmap::iptables::{self, HostPorts};
use crate::netfilter::portmap::nftables::{self, MapEntries};
use crate::netfilter::portmap::{
    Backend, Forwarded, IsAlive, Mapped, flows, go_nftables, localnet, stale_among,
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
        go_nftables::remove(&self.container, &self.known, self.is_alive)?;
        match backend {
            Backend::Iptables => {
                self.in_nftables.remove()?;
                self.in_iptables.install(forwarded, self.is_alive)?;
            }
            Backend::Nftables => {
                self.in_iptables.remove(&self.known, self.is_alive)?;
                self.in_nftables.install(forwarded, self.is_alive)?;
            }
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

    /// Removes the mapped ports and the connection tracking entries that forward to them, and with the last one of the
    /// host route_localnet.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self) -> Result<(), Error> {
        if !self.may_exist()? {
            return Ok(());
        }
        let (mut failures, mut addresses) = (Failures::default(), BTreeSet::new());
        for removed in [
            self.in_nftables.remove(),
            self.in_iptables.remove(&self.known, self.is_alive),
            go_nftables::remove(&self.container, &self.known, self.is_alive),
        ] {
            addresses.extend(failures.note(removed).unwrap_or_default());
        }
        failures.note(flows::delete_forwarded_to(&addresses));
        failures.into_result()?;
        let is_needed = localnet::enabled()?.is_empty()
            || nftables::is_used()?
            || iptables::is_used(Family::V4)?;
        match is_needed {
            true => Ok(()),
            false => localnet::disable_all(),
        }
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

/// Removes the mapped ports of a network that belong to no valid attachment.
///
/// # Errors
/// When something could not be removed, after everything else was tried.
pub fn gc(network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(iptables::gc(network, valid));
    failures.note(nftables::gc(network, valid));
    failures.into_result()
}
