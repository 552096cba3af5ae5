//! Masquerade: packets of a container that leave its subnet take the address of the host.
//!
//! Knows the rules of an attachment and how to install and remove them; knows neither links nor leases. Both verbs
//! start their work and finish it later, so that the caller can work on the link meanwhile.

pub(crate) mod iptables;
mod label;
mod nftables;
mod policy;
pub mod rules;
mod survey;

use std::net::IpAddr;
use std::thread::{self, JoinHandle};

use crate::cni::ValidAttachments;
use crate::cni::request::{Attachment, Id};
use crate::error::{Code, Error, Failures};
use crate::host::nftables::Nftables;
use crate::masquerade::iptables::{Iptables, Outcome, Transaction};
use crate::masquerade::label::Label;
use crate::masquerade::rules::{Chain, Listing};
use crate::net::{Cidr, Family};

pub use policy::Policy;
pub use survey::{Standing, Survey, iptables_table, iptables_variants};

/// Which part of the kernel masquerades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// iptables, or its successor's translation of it.
    Iptables,
    /// nftables, without a program.
    Nftables,
}

impl Backend {
    /// The one for addresses of these families where none is asked for: iptables, if it is installed for all of them.
    fn usual(mut families: impl Iterator<Item = Family>) -> Backend {
        match families.all(|family| Iptables::find(family).is_some()) {
            true => Backend::Iptables,
            false => Backend::Nftables,
        }
    }
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
    policy: Policy,
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
    /// The kernel works on a transaction of nftables while it is sent, for as long as a link takes to go.
    in_table: Option<JoinHandle<Result<(), Error>>>,
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
    /// iptables, if that is installed for all of the addresses. Where rules are already, what is missing is added, and
    /// what is of another policy goes.
    ///
    /// # Errors
    /// When a family has no iptables or it cannot be started, or nftables refuses; a family may hold its rules.
    pub fn install(&self, addresses: &[Cidr], policy: &Policy) -> Result<Installing, Error> {
        let families = addresses.iter().map(|address| address.family());
        match policy.backend.unwrap_or_else(|| Backend::usual(families)) {
            Backend::Iptables => self.install_iptables(addresses, policy),
            Backend::Nftables => {
                nftables::install(&self.network, &self.label, addresses, policy)?;
                Ok(Installing {
                    chain: self.chain.clone(),
                    policy: policy.clone(),
                    families: Vec::new(),
                })
            }
        }
    }

    fn install_iptables(&self, addresses: &[Cidr], policy: &Policy) -> Result<Installing, Error> {
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
            policy: policy.clone(),
            families: Vec::new(),
        };
        for (iptables, own) in found {
            match iptables.start(&self.chain.create(&own, policy)) {
                Ok(transaction) => installing.families.push((iptables, own, transaction)),
                // What was started must have ended before it can be removed.
                Err(error) => {
                    let _ = installing.finish();
                    return Err(error);
                }
            }
        }
        Ok(installing)
    }

    /// Whether addresses are masqueraded, by whichever plugin and backend.
    ///
    /// # Errors
    /// The first address that is not; when it cannot be told.
    pub fn check(&self, addresses: &[Cidr], policy: &Policy) -> Result<(), Error> {
        let Err(lacking) = nftables::check(&self.network, &self.label, addresses, policy) else {
            return Ok(());
        };
        let families = addresses.iter().map(|address| address.family());
        match policy.backend.unwrap_or_else(|| Backend::usual(families)) {
            Backend::Nftables if !self.may_be_in_iptables() => Err(lacking),
            _ => self.check_iptables(addresses, policy),
        }
    }

    /// Whether there may be anything of it in iptables, found out without a process.
    fn may_be_in_iptables(&self) -> bool {
        let nftables = Nftables::open().ok();
        let name = self.chain.name();
        let mut families = Family::BOTH.into_iter();
        families.any(|family| Iptables::may_have_chain(nftables.as_ref(), family, name))
    }

    /// The kernel is asked first; where its answer does not show the rules, one listing per family, side by side.
    fn check_iptables(&self, addresses: &[Cidr], policy: &Policy) -> Result<(), Error> {
        let nftables = Nftables::open().ok();
        let mut listings = Vec::new();
        for family in Family::BOTH {
            let of_family = |address: &Cidr| address.family() == family;
            let own: Vec<Cidr> = addresses.iter().copied().filter(of_family).collect();
            let rules = self.chain.rules(&own, policy);
            let seen = |it: &Nftables| Iptables::is_seen_to_hold(it, family, &rules);
            if own.is_empty() || nftables.as_ref().is_some_and(seen) {
                continue;
            }
            let iptables = Iptables::find(family).ok_or_else(|| not_installed(family))?;
            listings.push((family, own, iptables.start_saving("nat")?));
        }
        for (family, own, listing) in listings {
            let listing = Listing::parse(&listing.finish()?);
            if let Some(address) = self.chain.lacking(&own, policy, &listing) {
                let what = format!("check: rules that masquerade {address} are missing");
                return Err(Error::failed(what).details(format!(
                    "looked in the nat table of {family} for {}",
                    self.chain
                )));
            }
        }
        Ok(())
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
                let knows = |it: &Nftables| Iptables::has_chain(it, family, self.chain.name());
                if nftables.as_ref().and_then(knows) == Some(true) {
                    failures.note::<()>(Err(not_installed(family)));
                }
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
        let in_table = nftables.filter(nftables::may_hold).and_then(|nftables| {
            let remove = {
                let (ours, addresses) = (self.clone(), addresses.clone());
                move |nftables: &Nftables| {
                    nftables::remove(nftables, &ours.network, &ours.label, &addresses)
                }
            };
            let later = remove.clone();
            let started = thread::Builder::new().spawn(move || later(&nftables));
            // Where no thread is to be had it is done at once.
            if started.is_err() {
                let again = Nftables::open().map_err(|cause| {
                    Error::failed(format!(
                        "masquerade: cannot remove rules from nftables: {cause}"
                    ))
                });
                failures.note(again.and_then(|nftables| remove(&nftables)));
            }
            started.ok()
        });
        Removing {
            chain: self.chain.clone(),
            addresses,
            scope,
            families,
            in_table,
            failures,
        }
    }
}

/// Whether addresses of these families could be masqueraded now; of `None`, whether those of any family could. Runs no
/// process.
///
/// # Errors
/// Code 50 when a program is not installed, or the kernel has no nftables where that would be used.
pub fn status(families: Option<&[Family]>, backend: Option<Backend>) -> Result<(), Error> {
    let missing = |family: &Family| Iptables::find(*family).is_none();
    let lacking = match families {
        Some(families) => families.iter().copied().find(missing),
        None => Family::BOTH.iter().all(missing).then_some(Family::V4),
    };
    let available = match (backend, lacking) {
        (Some(Backend::Nftables), _) | (None, Some(_)) => nftables::status(),
        (Some(Backend::Iptables), Some(family)) => Err(not_installed(family)),
        (_, None) => Ok(()),
    };
    available.map_err(Error::into_not_available)
}

/// Removes the masquerading of a network that no valid attachment needs, whichever plugin installed it: with iptables
/// that of containers, with nftables that of attachments.
///
/// # Errors
/// When a family or backend could not be listed or changed; the others are swept.
pub fn sweep(network: &Id, valid: &ValidAttachments) -> Result<(), Error> {
    let names = rules::names_of(network, valid);
    let labels: Vec<Label> = valid.all().map(|who| Label::of(network, &who)).collect();
    sweep_stale(network, &|name| !names.contains(name), &|comment| {
        !labels.iter().any(|label| label.marks(comment))
    })
}

/// Removes from a network what was seen to be left over, and nothing that came since.
///
/// # Errors
/// As [`sweep`].
pub fn remove_left_over(network: &Id, left: &[Standing]) -> Result<(), Error> {
    let is_left = |key: &str| left.iter().any(|standing| standing.key() == key);
    sweep_stale(network, &is_left, &is_left)
}

fn sweep_stale(
    network: &Id,
    is_stale_chain: &dyn Fn(&str) -> bool,
    is_stale_comment: &dyn Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    for iptables in Family::BOTH.into_iter().filter_map(Iptables::find) {
        let plan = |listing: &Listing| rules::sweep(network, is_stale_chain, listing);
        failures.note(iptables.arrange(&plan));
    }
    failures.note(nftables::sweep(network, is_stale_comment));
    failures.into_result()
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
                Ok(Outcome::Refused(why)) => {
                    // The second way to install: see what is there already and add the rest.
                    let plan =
                        |listing: &Listing| self.chain.complete(&addresses, &self.policy, listing);
                    iptables.arrange(&plan).map_err(|error| why.details(error))
                }
                Err(error) => Err(error),
            });
        }
        failures.into_result()
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
            match transaction.map(Transaction::finish) {
                Some(Ok(Outcome::Committed)) => {}
                // Who was waited for in vain once is not waited for again.
                Some(Err(error)) if error.code == Code::TRY_AGAIN => {
                    failures.note::<()>(Err(error));
                }
                done => {
                    failures.note(done.transpose());
                    failures.note(self.clear(&iptables));
                }
            }
        }
        let in_table = self.in_table.take().map(JoinHandle::join);
        failures.note(in_table.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| {
            Err(Error::failed(
                "masquerade: internal error while rules were removed",
            ))
        }));
        failures.into_result()
    }

    /// The second way to remove: see what is there and take that.
    fn clear(&self, iptables: &Iptables) -> Result<(), Error> {
        let only = (self.scope == Scope::Addresses && !self.addresses.is_empty())
            .then_some(&*self.addresses);
        iptables.arrange(&|listing| self.chain.clear(only, listing))
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
