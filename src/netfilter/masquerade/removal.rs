//! Removes the masquerading of an attachment, whichever plugin, backend and variant of iptables installed it.
//! Rules in nf_tables, including those of iptables-nft, are found and removed over netlink in one transaction. Those of
//! iptables-legacy need its programs: iptables-save takes no lock, iptables-restore waits for it.

use std::net::IpAddr;

use crate::cni::json::JsonCursor;
use crate::error::{Code, Error, Failures};
use crate::kernel::nftables::{Nftables, NftablesError, not_found_as_none};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::iptables::{Iptables, Outcome, Variant};
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

/// What is to be removed.
#[derive(Clone, Debug)]
struct Target {
    masquerade: Masquerade,
    addresses: Vec<IpAddr>,
    scope: Scope,
}

/// A ruleset that may have the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ruleset {
    NfTables,
    /// The table of iptables-legacy.
    Legacy {
        family: Family,
        is_expected: bool,
    },
}

/// The rules to remove, as far as they are known before they are listed.
#[derive(Debug)]
pub struct Removal {
    target: Target,
    rulesets: Vec<Ruleset>,
    /// A family whose rules, if iptables-legacy has them, cannot be listed: its programs are not installed.
    unseen: Option<Family>,
}

/// What nf_tables has.
#[derive(Default)]
struct Found {
    /// The families in which iptables-nft has the chain.
    chains: Vec<Family>,
    /// Whether a table of an nftables backend exists.
    has_table: bool,
}

impl Masquerade {
    /// Finds the tables that may have rules of these addresses or of the whole container. A table that cannot be
    /// examined is a failure.
    pub fn find(
        &self,
        (addresses, scope): (Vec<IpAddr>, Scope),
        evidence: Evidence,
        failures: &mut Failures,
    ) -> Removal {
        let target = Target {
            masquerade: self.clone(),
            addresses,
            scope,
        };
        let found = target.look();
        let found = found.map_err(|cause| FEATURE.failed("look for rules in nftables", cause));
        let found = failures.note(found).unwrap_or_default();
        let mut removal = Removal {
            target,
            rulesets: Vec::new(),
            unseen: None,
        };
        if found.has_table || !found.chains.is_empty() {
            removal.rulesets.push(Ruleset::NfTables);
        }
        for family in Family::BOTH {
            if failures.note(legacy_table(family)) != Some(true) {
                continue;
            }
            let has_addresses = !removal.target.addresses_of(family).is_empty();
            if Iptables::nat(Variant::Legacy, family).is_some() {
                let is_expected = evidence != Evidence::None && !found.chains.contains(&family);
                removal.rulesets.push(Ruleset::Legacy {
                    family,
                    is_expected: is_expected && has_addresses,
                });
            } else if evidence == Evidence::Configured && has_addresses {
                removal.unseen = removal.unseen.or(Some(family));
            }
        }
        removal
    }

    /// Removes the rules of these addresses or of the whole container.
    ///
    /// # Errors
    /// When rules could not be removed or listed.
    pub fn remove(
        &self,
        addresses: Vec<IpAddr>,
        scope: Scope,
        evidence: Evidence,
    ) -> Result<(), Error> {
        let mut failures = Failures::default();
        let removal = self.find((addresses, scope), evidence, &mut failures);
        failures.note(removal.apply());
        failures.into_result()
    }
}

impl Removal {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rulesets.is_empty() && self.unseen.is_none()
    }

    /// Removes the rules from nf_tables and each legacy table concurrently.
    ///
    /// # Errors
    /// When rules could not be removed or listed.
    pub fn apply(&self) -> Result<(), Error> {
        let remove = |ruleset: &Ruleset| match *ruleset {
            Ruleset::NfTables => self.target.remove_from_nf_tables(),
            Ruleset::Legacy {
                family,
                is_expected,
            } => self
                .target
                .remove_legacy(family, is_expected)
                .map(|()| false),
        };
        let (mut failures, mut was_found) = (Failures::default(), false);
        for outcome in concurrently(&self.rulesets, remove) {
            // An error is reported already.
            was_found |= failures.note(outcome).unwrap_or(true);
        }
        if let Some(family) = self.unseen.filter(|_| !was_found) {
            failures.note::<()>(Err(unseen_rules(&self.target.masquerade, family)));
        }
        failures.into_result()
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

    /// Removes the rules of iptables-legacy, which only its programs can list. Expected rules are removed without listing
    /// the table; otherwise it is listed first, without the lock, because on most nodes there are none.
    fn remove_legacy(&self, family: Family, is_expected: bool) -> Result<(), Error> {
        let Some(iptables) = Iptables::nat(Variant::Legacy, family) else {
            return Ok(());
        };
        if !is_expected {
            return self.clear(&iptables);
        }
        let own = self.addresses_of(family);
        match iptables.commit(&self.masquerade.chain.destroy(&own)) {
            Ok(Outcome::Committed) => Ok(()),
            Ok(Outcome::Refused(_)) => self.clear(&iptables),
            // Does not wait for the lock a second time. The error matters only if there are rules to remove.
            Err(error) if error.code == Code::TRY_AGAIN => match self.clearing(&iptables.list()?) {
                None => Ok(()),
                Some(_) => Err(error),
            },
            Err(error) => self.clear(&iptables).map_err(|again| error.details(again)),
        }
    }

    /// Removes the rules that iptables-legacy lists.
    fn clear(&self, iptables: &Iptables) -> Result<(), Error> {
        iptables.apply_with_retry(&|listing| self.clearing(listing))
    }

    fn clearing(&self, listing: &Listing) -> Option<String> {
        self.masquerade.chain.clear(self.only(), listing)
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
