//! The iptables backend: one `iptables-restore` transaction per address family. Rules of iptables-nft are removed over
//! netlink.

use std::net::IpAddr;

use crate::error::{Error, Failures};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::firewall::records::Recorded;
use crate::netfilter::firewall::{
    FEATURE, LeadsTo, Settings, Wanted, by_family, not_as_configured, observed, rules,
};
use crate::netfilter::iptables::{Iptables, Outcome, TableUse, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::lock::serialized;
use crate::netfilter::tables;

pub(super) const FILTER: TableUse = TableUse {
    table: "filter",
    name: "firewall",
};

/// The programs for the families of these addresses.
///
/// # Errors
/// When iptables is not installed for one.
pub fn programs_for(addresses: &[IpAddr]) -> Result<Vec<Iptables>, Error> {
    let find = |(family, _): (Family, _)| {
        Iptables::default_for(family, FILTER).ok_or_else(|| not_installed(family))
    };
    by_family(addresses).into_iter().map(find).collect()
}

pub fn is_installed(family: Family) -> bool {
    Iptables::default_for(family, FILTER).is_some()
}

/// Adds the missing rules, and removes those of `old` addresses.
///
/// # Errors
/// When iptables fails; one family may have its rules.
pub fn install(
    programs: &[Iptables],
    addresses: &[IpAddr],
    old: &[IpAddr],
    settings: &Settings,
) -> Result<(), Error> {
    let families: Vec<_> = programs.iter().zip(by_family(addresses)).collect();
    let mut failures = Failures::default();
    for installed in concurrently(&families, |(iptables, (family, addresses))| {
        let wanted = Wanted {
            addresses,
            settings,
        };
        let is_new = old.is_empty() && iptables.is_nft();
        let observed = match is_new {
            true => observe(*family, &wanted)?,
            false => None,
        };
        let script = observed.map(|listing| rules::install(&wanted, old, &listing));
        if let Some(script) = script.flatten()
            && let Outcome::Committed = iptables.commit(&script)?
        {
            return Ok(());
        }
        // The table is not as observed.
        iptables.apply_with_retry(&|listing| rules::install(&wanted, old, listing))
    }) {
        failures.note(installed);
    }
    failures.into_result()
}

fn observe(family: Family, wanted: &Wanted) -> Result<Option<Listing>, Error> {
    let observed = FEATURE.with_existing("look for rules", |nftables| {
        observed::listing(nftables, family, wanted)
    });
    observed.map(Option::flatten)
}

/// Removes rules from the tables of iptables-legacy, where they exist.
///
/// # Errors
/// When something could not be removed, after everything else was tried.
pub fn remove_from_legacy(
    addresses: &[IpAddr],
    others: &[Recorded],
    leads_to: LeadsTo,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    for family in Family::BOTH {
        let exists = failures.note(tables::exists(Variant::Legacy, family, FILTER.table));
        if exists != Some(true) {
            continue;
        }
        let remove = || {
            let iptables = Iptables::of(Variant::Legacy, family, FILTER);
            let iptables = iptables.ok_or_else(|| not_installed(family))?;
            let plan = |listing: &_| rules::remove((addresses, others), leads_to, listing);
            iptables.apply_with_retry(&plan)
        };
        failures.note(serialized(FILTER.name, remove));
    }
    failures.into_result()
}

/// Checks the rules, in the variant of iptables that has them.
///
/// # Errors
/// The first difference; when the rules cannot be listed.
pub fn check(addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
    for (family, addresses) in by_family(addresses) {
        let wanted = Wanted {
            addresses: &addresses,
            settings,
        };
        let mut difference = Some(format!("the filter table of {family} does not exist"));
        for variant in [Variant::Nft, Variant::Legacy] {
            let exists = tables::exists(variant, family, FILTER.table)?;
            let iptables = Iptables::of(variant, family, FILTER).filter(|_| exists);
            if let Some(iptables) = iptables.filter(|_| difference.is_some()) {
                difference = rules::difference(&wanted, &iptables.list()?);
            }
        }
        if let Some(difference) = difference {
            return Err(not_as_configured(&difference));
        }
    }
    Ok(())
}

fn not_installed(family: Family) -> Error {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    Error::failed(format!(
        "firewall: {program} is not installed, and the container has {family} addresses"
    ))
    .details("looked in PATH and in the system's directories; install the package iptables, or set backend to nftables")
}
