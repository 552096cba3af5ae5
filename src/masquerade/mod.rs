//! Masquerade: packets of a container that leave its subnet take the address of the host.
//!
//! Knows the rules of an attachment and how to install and remove them; knows neither links nor leases. Both verbs
//! start their work and finish it later, so that the caller can work on the link meanwhile.

mod iptables;
mod label;
mod nftables;
mod rules;

use std::net::IpAddr;

use crate::cni::request::{Attachment, Id};
use crate::error::{Error, Failures};
use crate::host::nftables::Nftables;
use crate::masquerade::iptables::{Iptables, Outcome, Transaction};
use crate::masquerade::label::Label;
use crate::masquerade::rules::Chain;
use crate::net::{Cidr, Family};

/// Which part of the kernel masquerades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables, or its successor's translation of it.
    Iptables,
    /// nftables, without a program.
    Nftables,
}

/// The masquerading of an attachment to a network.
#[derive(Clone, Debug)]
pub struct Masquerade {
    network: Id,
    chain: Chain,
    label: Label,
}

/// Rules on their way into the kernel.
#[derive(Debug)]
#[must_use = "rules are not in place before `finish`"]
pub struct Installing {
    chain: Chain,
    families: Vec<(Iptables, Vec<Cidr>, Transaction)>,
}

/// How much of a container's masquerading goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it on that network: no other interface of the container needs it.
    Container,
    /// That of the addresses; when there are none, all of it.
    Addresses,
}

/// Rules on their way out of the kernel.
#[derive(Debug)]
#[must_use = "rules are not gone before `finish`"]
pub struct Removing {
    chain: Chain,
    addresses: Vec<IpAddr>,
    scope: Scope,
    families: Vec<(Iptables, Option<Transaction>)>,
    failures: Failures,
}

impl Masquerade {
    /// That of an attachment.
    pub fn of(network: &Id, who: &Attachment) -> Masquerade {
        Masquerade {
            network: network.clone(),
            chain: Chain::of(network, &who.container),
            label: Label::of(network, who),
        }
    }

    /// Starts to masquerade addresses: one transaction per family, or one in all. Where no backend is asked for it is
    /// iptables, if that is installed for all of the addresses.
    ///
    /// # Errors
    /// When a family has no iptables or it cannot be started, or nftables refuses. Nothing is installed then.
    pub fn install(
        &self,
        addresses: &[Cidr],
        backend: Option<Backend>,
    ) -> Result<Installing, Error> {
        match backend {
            Some(Backend::Iptables) => self.install_iptables(addresses),
            Some(Backend::Nftables) => self.install_nftables(addresses),
            None => {
                let mut families = addresses.iter().map(|address| address.family());
                match families.all(|family| Iptables::find(family).is_some()) {
                    true => self.install_iptables(addresses),
                    false => self.install_nftables(addresses),
                }
            }
        }
    }

    fn install_nftables(&self, addresses: &[Cidr]) -> Result<Installing, Error> {
        nftables::install(&self.network, &self.label, addresses)?;
        Ok(Installing {
            chain: self.chain.clone(),
            families: Vec::new(),
        })
    }

    fn install_iptables(&self, addresses: &[Cidr]) -> Result<Installing, Error> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let of_family = |address: &Cidr| address.family() == family;
            let own: Vec<Cidr> = addresses.iter().copied().filter(of_family).collect();
            if !own.is_empty() {
                found.push((
                    Iptables::find(family).ok_or_else(|| not_installed(family))?,
                    own,
                ));
            }
        }
        let mut installing = Installing {
            chain: self.chain.clone(),
            families: Vec::new(),
        };
        for (iptables, own) in found {
            let transaction = iptables.start(&self.chain.create(&own))?;
            installing.families.push((iptables, own, transaction));
        }
        Ok(installing)
    }

    /// Starts to remove what was installed, by whichever plugin and backend. Knowing the addresses costs one process
    /// per family that holds anything; without them what is there must be looked for.
    pub fn remove(&self, addresses: Vec<IpAddr>, scope: Scope) -> Removing {
        let mut failures = Failures::default();
        let mut families = Vec::new();
        let nftables = Nftables::open().ok();
        for family in Family::BOTH {
            if !Iptables::may_have_chain(nftables.as_ref(), family, self.chain.name()) {
                continue;
            }
            let Some(iptables) = Iptables::find(family) else {
                continue;
            };
            let own: Vec<IpAddr> = addresses
                .iter()
                .copied()
                .filter(|address| Family::of(*address) == family)
                .collect();
            let transaction = match own.is_empty() {
                true => None,
                false => failures.note(iptables.start(&self.chain.destroy(&own))),
            };
            families.push((iptables, transaction));
        }
        if let Some(nftables) = &nftables {
            failures.note(nftables::remove(
                nftables,
                &self.network,
                &self.label,
                &addresses,
            ));
        }
        Removing {
            chain: self.chain.clone(),
            addresses,
            scope,
            families,
            failures,
        }
    }
}

impl Installing {
    /// Waits until the rules are in place.
    ///
    /// # Errors
    /// When a family refused them; the other one may hold them.
    pub fn finish(self) -> Result<(), Error> {
        let mut failures = Failures::default();
        for (iptables, addresses, transaction) in self.families {
            failures.note(match transaction.finish() {
                Ok(Outcome::Committed) => Ok(()),
                Ok(Outcome::Refused(why)) => complete(&self.chain, &iptables, &addresses, why),
                Err(error) => Err(error),
            });
        }
        failures.into_result()
    }
}

/// The second way to install: see what is there already and add the rest. `why` is what the first way met.
fn complete(
    chain: &Chain,
    iptables: &Iptables,
    addresses: &[Cidr],
    why: Error,
) -> Result<(), Error> {
    let listing = iptables
        .list()
        .map_err(|error| why.clone().details(error))?;
    match chain.complete(addresses, &listing) {
        Some(script) => iptables.commit(&script).map_err(|error| why.details(error)),
        None => Ok(()),
    }
}

impl Removing {
    /// Waits until the rules are gone.
    ///
    /// # Errors
    /// When some could not be removed.
    pub fn finish(mut self) -> Result<(), Error> {
        let mut failures = std::mem::take(&mut self.failures);
        for (iptables, transaction) in std::mem::take(&mut self.families) {
            let done = transaction.and_then(|transaction| failures.note(transaction.finish()));
            if !matches!(done, Some(Outcome::Committed)) {
                failures.note(self.clear(&iptables));
            }
        }
        failures.into_result()
    }

    /// The second way to remove: see what is there and take that.
    fn clear(&self, iptables: &Iptables) -> Result<(), Error> {
        let only = (self.scope == Scope::Addresses && !self.addresses.is_empty())
            .then_some(&*self.addresses);
        match self.chain.clear(only, &iptables.list()?) {
            Some(script) => iptables.commit(&script),
            None => Ok(()),
        }
    }
}

fn not_installed(family: Family) -> Error {
    let (program, wanted) = match family {
        Family::V4 => ("iptables-restore", "IPv4"),
        Family::V6 => ("ip6tables-restore", "IPv6"),
    };
    Error::failed(format!("masquerade: ipMasq for {wanted} addresses needs {program}, which is not installed"))
        .details("looked in the system's directories and in PATH; install the package iptables, or set ipMasq to false")
}
