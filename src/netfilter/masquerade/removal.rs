//! Removes the masquerading of an attachment, whichever plugin, backend and variant of iptables installed it.
//! Rules in nf_tables, including those of iptables-nft, are found and removed over netlink in one transaction. Those of
//! iptables-legacy need its programs: iptables-save takes no lock, iptables-restore waits for it.

use std::net::IpAddr;
use std::thread::{self, JoinHandle};

use crate::cni::json::JsonCursor;
use crate::error::{Code, Error, Failures};
use crate::kernel::nftables::{Nftables, NftablesError, not_found_as_none};
use crate::net::Family;
use crate::netfilter::iptables::{Iptables, Outcome, Saving, Transaction, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::masquerade::iptables_nft::{self, Search};
use crate::netfilter::masquerade::nftables::FEATURE;
use crate::netfilter::masquerade::{Masquerade, legacy_table, nftables};

/// How much of a container's masquerading to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it on that network: the container has no other interface on it.
    Container,
    /// That of the addresses: another interface of the container on the network may need the rest.
    Addresses,
}

/// Why rules are expected in iptables, before they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The attachment holds addresses, and its configuration has `ipMasq`.
    Configured,
    /// This process has started to install them.
    Started,
    /// No reason; but the configuration may have changed since the ADD.
    None,
}

impl Evidence {
    pub fn of(root: &JsonCursor, held: &[IpAddr]) -> Evidence {
        let is_asked = root.bool("ipMasq").ok().flatten() == Some(true);
        let backend = root.text("ipMasqBackend").ok().flatten();
        match is_asked && backend != Some("nftables") && !held.is_empty() {
            true => Evidence::Configured,
            false => Evidence::None,
        }
    }
}

/// A removal that was started.
#[derive(Debug)]
#[must_use = "rules are not gone before `finish`"]
pub struct Removing {
    target: Target,
    legacy: Vec<(Iptables, Legacy)>,
    /// The family whose legacy rules cannot be listed, because no program is installed.
    unseen: Option<Family>,
    /// The transaction in nf_tables, in a thread: the kernel processes it while it is sent, which takes as long as
    /// deleting a link.
    nf_tables: Option<JoinHandle<Result<bool, Error>>>,
    /// Whether nf_tables had rules of the attachment.
    was_found: bool,
    failures: Failures,
}

/// What is to be removed.
#[derive(Clone, Debug)]
struct Target {
    masquerade: Masquerade,
    addresses: Vec<IpAddr>,
    scope: Scope,
}

/// How the rules of iptables-legacy are removed.
#[derive(Debug)]
enum Legacy {
    /// They are expected: iptables-restore is running.
    Removal(Transaction),
    /// They are listed first, without the lock; on most nodes there are none.
    Listing(Saving),
}

/// What nf_tables has.
struct Found {
    /// The families in which iptables-nft has the chain.
    chains: Vec<Family>,
    /// Whether a table of an nftables backend exists.
    has_table: bool,
}

impl Masquerade {
    /// Starts the removal.
    pub fn remove(&self, addresses: Vec<IpAddr>, scope: Scope, evidence: Evidence) -> Removing {
        let mut removing = Removing {
            target: Target {
                masquerade: self.clone(),
                addresses,
                scope,
            },
            legacy: Vec::new(),
            unseen: None,
            nf_tables: None,
            was_found: false,
            failures: Failures::default(),
        };
        let found = removing.target.look();
        let found = found.map_err(|cause| FEATURE.failed("look for rules in nftables", cause));
        let chains = removing.failures.note(found).map_or(Vec::new(), |found| {
            if found.has_table || !found.chains.is_empty() {
                removing.start_nf_tables();
            }
            found.chains
        });
        for family in Family::BOTH {
            let has_table = removing.failures.note(legacy_table(family));
            if has_table == Some(true) {
                let is_on_other_bridge = chains.contains(&family);
                removing.start_legacy(family, evidence, is_on_other_bridge);
            }
        }
        removing
    }
}

impl Target {
    fn addresses_of(&self, family: Family) -> Vec<IpAddr> {
        let addresses = self.addresses.iter().copied();
        addresses.filter(|it| Family::of(*it) == family).collect()
    }

    /// The addresses whose jump rules to remove; `None` for all.
    fn only(&self) -> Option<&[IpAddr]> {
        (self.scope == Scope::Addresses).then_some(&*self.addresses)
    }

    /// Lists what nf_tables has, so that a thread is created only if needed.
    fn look(&self) -> Result<Found, NftablesError> {
        let mut found = Found {
            chains: Vec::new(),
            has_table: false,
        };
        let Some(nftables) = not_found_as_none(Nftables::open())? else {
            return Ok(found);
        };
        let name = self.masquerade.chain.name();
        for family in Family::BOTH {
            if nftables.chain(iptables_nft::nat(family), name)?.is_some() {
                found.chains.push(family);
            }
        }
        found.has_table = nftables::may_hold(&nftables)?;
        Ok(found)
    }

    /// Removes everything from nf_tables in one transaction. Returns whether there was anything.
    fn remove_from_nf_tables(&self) -> Result<bool, Error> {
        let remove = |nftables: &Nftables| match self.change(nftables, Search::Postrouting) {
            Err(NftablesError::Busy) => self.change(nftables, Search::WholeTable),
            changed => changed,
        };
        let removed = FEATURE.with_existing("remove rules from nftables", remove)?;
        Ok(removed.unwrap_or_default())
    }

    fn change(&self, nftables: &Nftables, search: Search) -> Result<bool, NftablesError> {
        let Masquerade {
            network,
            chain,
            comment,
        } = &self.masquerade;
        nftables.change(&|| {
            let mut batch = nftables::plan_removal(nftables, network, comment, &self.addresses)?;
            for family in Family::BOTH {
                let chain = (family, chain.name());
                iptables_nft::plan_removal(nftables, &mut batch, chain, (self.only(), search))?;
            }
            Ok(batch)
        })
    }

    /// Removes the rules that iptables-legacy lists.
    fn clear(&self, iptables: &Iptables) -> Result<(), Error> {
        iptables.apply_with_retry(&|listing| self.clearing(listing))
    }

    fn clearing(&self, listing: &Listing) -> Option<String> {
        self.masquerade.chain.clear(self.only(), listing)
    }
}

impl Removing {
    fn start_nf_tables(&mut self) {
        let target = self.target.clone();
        let started = thread::Builder::new().spawn(move || target.remove_from_nf_tables());
        // If no thread can be created, it is done here.
        self.nf_tables = started.ok();
        if self.nf_tables.is_none() {
            let removed = self.target.remove_from_nf_tables();
            self.was_found = self.failures.note(removed).unwrap_or_default();
        }
    }

    fn start_legacy(&mut self, family: Family, evidence: Evidence, is_on_other_bridge: bool) {
        let Some(iptables) = Iptables::nat(Variant::Legacy, family) else {
            if evidence == Evidence::Configured && !self.target.addresses_of(family).is_empty() {
                self.unseen = self.unseen.or(Some(family));
            }
            return;
        };
        let own = self.target.addresses_of(family);
        let started = match evidence {
            Evidence::Configured | Evidence::Started if !is_on_other_bridge && !own.is_empty() => {
                let script = self.target.masquerade.chain.destroy(&own);
                iptables.start(&script).map(Legacy::Removal)
            }
            _ => iptables.start_saving("nat").map(Legacy::Listing),
        };
        if let Some(started) = self.failures.note(started) {
            self.legacy.push((iptables, started));
        }
    }

    /// Waits until the rules are gone.
    ///
    /// # Errors
    /// When rules could not be removed or listed.
    pub fn finish(self) -> Result<(), Error> {
        let Removing {
            target,
            legacy,
            unseen,
            nf_tables,
            was_found,
            mut failures,
        } = self;
        for (iptables, work) in legacy {
            failures.note(target.finish_legacy(&iptables, work));
        }
        let removed = nf_tables.map(|thread| {
            thread.join().unwrap_or_else(|_| {
                let what = "masquerade: internal error while rules were removed";
                Err(Error::failed(what))
            })
        });
        let removed = failures.note(removed.unwrap_or(Ok(was_found)));
        if let Some(family) = unseen.filter(|_| removed == Some(false)) {
            failures.note::<()>(Err(unseen_rules(&target.masquerade, family)));
        }
        failures.into_result()
    }
}

impl Target {
    fn finish_legacy(&self, iptables: &Iptables, work: Legacy) -> Result<(), Error> {
        let removal = match work {
            Legacy::Listing(saving) => {
                let listing = Listing::parse(&saving.finish()?);
                return match self.clearing(&listing) {
                    None => Ok(()),
                    Some(_) => self.clear(iptables),
                };
            }
            Legacy::Removal(transaction) => transaction.finish(),
        };
        match removal {
            Ok(Outcome::Committed) => Ok(()),
            Ok(Outcome::Refused(_)) => self.clear(iptables),
            // Does not wait for the lock a second time. The error matters only if there are rules to remove.
            Err(error) if error.code == Code::TRY_AGAIN => match self.clearing(&iptables.list()?) {
                None => Ok(()),
                Some(_) => Err(error),
            },
            Err(error) => self.clear(iptables).map_err(|again| error.details(again)),
        }
    }
}

fn unseen_rules(masquerade: &Masquerade, family: Family) -> Error {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    let chain = &masquerade.chain;
    let what = format!(
        "masquerade: cannot look for {chain} in the legacy nat table of {family}: {program} is not installed"
    );
    Error::failed(what).details(
        "the kernel has such a table, and nf_tables has no rules of this container; install the package iptables, then \
         run DEL again",
    )
}
