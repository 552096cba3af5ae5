//! The iptables backend: one `iptables-restore` transaction per address family.

use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Table, TableFamily};
use crate::kernel::threads::concurrently;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::firewall::Ingress;
use crate::netfilter::firewall::rules::{FORWARD, Record, Wanted, records_of};
use crate::netfilter::iptables::{Iptables, TableUse, Variant};
use crate::netfilter::lock::serialized;
use crate::netfilter::tables;

pub(super) const FILTER: TableUse = TableUse {
    table: "filter",
    name: "firewall",
};

const FEATURE: Feature = Feature {
    name: FILTER.name,
    remedy: "it needs nf_tables, or the legacy iptables in use",
};

/// The bridge by which the host reaches an address.
pub type LeadsTo<'a> = &'a (dyn Fn(IpAddr) -> Option<String> + Sync);

/// The filter rules of an attachment.
#[derive(Clone, Debug)]
pub struct Firewall {
    record: Record,
}

/// The settings of a network.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `iptablesAdminChainName`
    pub admin_chain: String,
    pub ingress: Ingress,
}

impl Firewall {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Firewall {
        Firewall {
            record: Record::of(network, attachment),
        }
    }

    /// Accepts packets of these addresses, in place of those of an earlier ADD.
    ///
    /// # Errors
    /// When iptables is not installed for a family of the addresses, or fails; one family may have its rules.
    pub fn install(&self, addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
        let mut changes = Vec::new();
        for (family, own) in by_family(addresses) {
            let iptables = Iptables::default_for(family, FILTER);
            changes.push((iptables.ok_or_else(|| not_installed(family))?, own));
        }
        let install = |(iptables, own): &(Iptables, Vec<IpAddr>)| {
            let wanted = settings.wanted(own);
            iptables.apply_with_retry(&|listing| self.record.install(&wanted, listing))
        };
        serialized(FILTER.name, || {
            let mut failures = Failures::default();
            for installed in concurrently(&changes, install) {
                failures.note(installed);
            }
            failures.into_result()
        })
    }

    /// Removes the rules of the attachment from both families and variants, and with the last ones the shared chains.
    /// `known` are addresses that the Go plugin may have accepted.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self, known: &[IpAddr], leads_to: LeadsTo) -> Result<(), Error> {
        let mut failures = Failures::default();
        let mut tables = Vec::new();
        for family in Family::BOTH {
            for variant in [Variant::Nft, Variant::Legacy] {
                let found = self.may_have_rules(variant, family);
                if failures.note(found) == Some(true) {
                    tables.push((variant, family));
                }
            }
        }
        let remove = |(variant, family): &(Variant, Family)| {
            let iptables = Iptables::of(*variant, *family, FILTER);
            let iptables = iptables.ok_or_else(|| not_installed(*family))?;
            let of_family = known.iter().copied();
            let known: Vec<IpAddr> = of_family.filter(|it| Family::of(*it) == *family).collect();
            iptables.apply_with_retry(&|listing| self.record.remove(&known, leads_to, listing))
        };
        if !tables.is_empty() {
            failures.note(serialized(FILTER.name, || {
                let mut failures = Failures::default();
                for removed in concurrently(&tables, remove) {
                    failures.note(removed);
                }
                failures.into_result()
            }));
        }
        failures.into_result()
    }

    /// Whether a variant may have rules of the attachment, of this plugin or the Go plugin. Runs no process.
    fn may_have_rules(&self, variant: Variant, family: Family) -> Result<bool, Error> {
        if variant == Variant::Legacy {
            return tables::exists(variant, family, FILTER.table);
        }
        let table = Table {
            family: TableFamily::Ip(family),
            name: FILTER.table,
        };
        let found = FEATURE.with_existing("look for rules", |nftables| {
            let record = nftables.chain(table, self.record.name())?;
            Ok(record.is_some() || nftables.chain(table, FORWARD)?.is_some())
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Checks the rules, in the variant of iptables that has them.
    ///
    /// # Errors
    /// The first difference; when the rules cannot be listed.
    pub fn check(&self, addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
        for (family, own) in by_family(addresses) {
            let mut difference = Some(format!("the filter table of {family} does not exist"));
            for variant in [Variant::Nft, Variant::Legacy] {
                let exists = tables::exists(variant, family, FILTER.table)?;
                let iptables = Iptables::of(variant, family, FILTER).filter(|_| exists);
                let Some(iptables) = iptables.filter(|_| difference.is_some()) else {
                    continue;
                };
                let listing = iptables.list()?;
                difference = self.record.difference(&settings.wanted(&own), &listing);
            }
            if let Some(difference) = difference {
                let what = format!(
                    "check: {family} packets of the container are not filtered as configured"
                );
                return Err(
                    Error::failed(what).details(format!("expected rule not found: {difference}"))
                );
            }
        }
        Ok(())
    }
}

impl Settings {
    fn wanted<'a>(&'a self, addresses: &'a [IpAddr]) -> Wanted<'a> {
        Wanted {
            addresses,
            admin_chain: &self.admin_chain,
            ingress: &self.ingress,
        }
    }
}

/// Removes the rules of a network that belong to no valid attachment. Those of the Go plugin do not name their network.
///
/// # Errors
/// When something could not be listed or removed, after everything else was tried.
pub fn gc(network: &NetworkName, valid: &ValidAttachments, leads_to: LeadsTo) -> Result<(), Error> {
    let kept: Vec<Record> = valid.all().map(|it| Record::of(network, &it)).collect();
    let (mut failures, mut stale) = (Failures::default(), Vec::new());
    for family in Family::BOTH {
        for variant in [Variant::Nft, Variant::Legacy] {
            let listed = failures.note(records(network, variant, family));
            stale.extend(listed.into_iter().flatten());
        }
    }
    stale.retain(|record| kept.iter().all(|it| it.name() != record.name()));
    stale.sort();
    stale.dedup();
    for record in stale {
        failures.note(Firewall { record }.remove(&[], leads_to));
    }
    failures.into_result()
}

fn records(network: &NetworkName, variant: Variant, family: Family) -> Result<Vec<Record>, Error> {
    let exists = tables::exists(variant, family, FILTER.table)?;
    let iptables = Iptables::of(variant, family, FILTER).filter(|_| exists);
    iptables.map_or(Ok(Vec::new()), |it| Ok(records_of(network, &it.list()?)))
}

fn by_family(addresses: &[IpAddr]) -> Vec<(Family, Vec<IpAddr>)> {
    let of = |family: Family| {
        let own = addresses.iter().copied();
        (family, own.filter(|it| Family::of(*it) == family).collect())
    };
    let families = Family::BOTH.map(of).into_iter();
    families
        .filter(|(_, own): &(_, Vec<IpAddr>)| !own.is_empty())
        .collect()
}

fn not_installed(family: Family) -> Error {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    Error::failed(format!(
        "firewall: {program} is not installed, and the container has {family} addresses"
    ))
    .details("looked in PATH and in the system's directories; install the package iptables")
}
