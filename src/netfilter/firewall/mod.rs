//! Filter rules for the packets of containers that the host forwards.

pub mod firewalld;
pub mod inventory;
pub mod iptables;
mod isolation;
mod nftables;
mod observed;
mod records;
mod rules;

use std::net::IpAddr;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Batch, Nftables, NftablesError};
use crate::net::{Family, IfName};
use crate::netfilter::Feature;
use crate::netfilter::lock::{serialized, wait_for_changes};
use crate::netfilter::rule_comment::RuleComment;

use records::Records;

const FEATURE: Feature = Feature {
    name: "firewall",
    remedy: "the backend nftables needs nf_tables of Linux 5.2; set backend to iptables",
};

/// The chain with the accept rules of iptables, of this program and of the Go plugin.
const ACCEPT: &str = "CNI-FORWARD";

/// The comments of the jumps in FORWARD.
const COMMENT: &str = "CNI firewall plugin rules";
const ISOLATION_COMMENT: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

/// Which other bridges may send packets to the containers of a network (`ingressPolicy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    Open,
    /// Not bridges with a policy.
    SameBridge(IfName),
    /// Nor other containers on the bridge.
    Isolated(IfName),
}

impl Ingress {
    pub fn bridge(&self) -> Option<&IfName> {
        match self {
            Ingress::Open => None,
            Ingress::SameBridge(bridge) | Ingress::Isolated(bridge) => Some(bridge),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Iptables,
    Nftables,
    /// firewalld accepts the packets; the other rules are those of nftables.
    Firewalld,
}

/// The settings of a network.
#[derive(Clone, Debug)]
pub struct Settings {
    pub backend: Backend,
    /// `iptablesAdminChainName`
    pub admin_chain: String,
    /// `firewalldZone`
    pub zone: String,
    pub ingress: Ingress,
}

/// The rules of an attachment in one family.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    addresses: &'a [IpAddr],
    settings: &'a Settings,
}

/// The bridge by which the host reaches an address.
pub type LeadsTo<'a> = &'a (dyn Fn(IpAddr) -> Option<String> + Sync);

/// The filter rules of an attachment.
#[derive(Clone, Debug)]
pub struct Firewall {
    comment: RuleComment,
}

impl Firewall {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Firewall {
        Firewall {
            comment: RuleComment::of(network, attachment),
        }
    }

    /// Accepts packets of these addresses, in place of those of an earlier ADD.
    ///
    /// # Errors
    /// When iptables is not installed for a family of the addresses, or fails; one family may have its rules.
    pub fn install(&self, addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
        let replace = |nftables: &Nftables, batch: &mut Batch| {
            let records = Records::list(nftables)?;
            records.replace(&self.comment, (addresses, settings.ingress.bridge()), batch);
            let own = records.of(&self.comment).map(|it| it.address);
            Ok(own.filter(|it| !addresses.contains(it)).collect())
        };
        let install = |nftables: &Nftables, batch: &mut Batch| {
            let old: Vec<IpAddr> = replace(nftables, batch)?;
            nftables::install(nftables, (addresses, &old), &settings.ingress, batch)?;
            Ok(old)
        };
        match settings.backend {
            Backend::Nftables => return change("install rules", install).map(drop),
            Backend::Firewalld => {
                // First, because a firewalld that is starting flushes the tables of iptables before it answers.
                firewalld::install(&settings.zone, addresses)?;
                let old = match settings.ingress {
                    Ingress::Open => change_if_supported(install)?.unwrap_or_default(),
                    _ => change("install rules", install)?,
                };
                return firewalld::remove(&settings.zone, &old);
            }
            Backend::Iptables => {}
        }
        let programs = iptables::programs_for(addresses)?;
        serialized(FEATURE.name, || {
            // Without nf_tables, only prevResult names the addresses at DEL.
            let recorded = change_if_supported(replace)?;
            iptables::install(
                &programs,
                addresses,
                &recorded.unwrap_or_default(),
                settings,
            )
        })
    }

    /// Removes the rules of the attachment, also those of the Go plugin, and with the last ones the shared chains. `known`
    /// are addresses that the Go plugin may have accepted. firewalld may have been started or stopped since the ADD.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    pub fn remove(&self, known: &[IpAddr], leads_to: LeadsTo, zone: &str) -> Result<(), Error> {
        let mut failures = Failures::default();
        failures.note(wait_for_changes(FEATURE.name));
        let removed = change_if_supported(|nftables, batch| {
            let records = Records::list(nftables)?;
            let (own, others) = records.partition(&self.comment);
            let is_owned = |address: &IpAddr| others.iter().any(|it| it.address == *address);
            let mut addresses: Vec<IpAddr> = own.iter().map(|it| it.address).collect();
            addresses.extend(known.iter().filter(|it| !is_owned(it)));
            nftables::remove(nftables, (&addresses, &others), leads_to, batch)?;
            records::delete(own.into_iter(), others.is_empty(), batch);
            Ok((addresses, others))
        });
        let removed = failures.note(removed).flatten();
        let (addresses, others) = removed.unwrap_or_else(|| (known.to_vec(), Vec::new()));
        failures.note(iptables::remove_from_legacy(&addresses, &others, leads_to));
        failures.note(firewalld::remove(zone, &addresses));
        failures.into_result()
    }

    /// Whether [`Firewall::install`] added rules. Those of the Go plugin are not recorded.
    ///
    /// # Errors
    /// When the kernel refuses the query.
    pub fn is_recorded(&self) -> Result<bool, Error> {
        let records = FEATURE.with_existing("list records", Records::list)?;
        Ok(records.is_some_and(|records| records.of(&self.comment).next().is_some()))
    }

    /// # Errors
    /// The first difference; when the rules cannot be listed.
    pub fn check(&self, addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
        match settings.backend {
            Backend::Iptables => iptables::check(addresses, settings),
            Backend::Nftables => self.check_nftables(addresses, settings),
            Backend::Firewalld => {
                self.check_nftables(addresses, settings)?;
                firewalld::check(&settings.zone, addresses)
            }
        }
    }

    fn check_nftables(&self, addresses: &[IpAddr], settings: &Settings) -> Result<(), Error> {
        let is_required = settings.backend == Backend::Nftables;
        let found = FEATURE.with_existing("list rules", |nftables| {
            let records = Records::list(nftables)?;
            let own: Vec<IpAddr> = records.of(&self.comment).map(|it| it.address).collect();
            match addresses.iter().find(|it| !own.contains(it)) {
                // With firewalld the Go plugin may have added the addresses.
                Some(address) if is_required => {
                    Ok(Some(format!("{} of {address}", records::TABLE.name)))
                }
                _ => nftables::difference(nftables, addresses, &settings.ingress),
            }
        })?;
        let unsupported = || is_required.then(|| records::TABLE.name.to_owned());
        match found.unwrap_or_else(unsupported) {
            Some(difference) => Err(not_as_configured(&difference)),
            None => Ok(()),
        }
    }
}

fn not_as_configured(difference: &str) -> Error {
    let what = "check: packets of the container are not filtered as configured";
    Error::failed(what).details(format!("expected rule not found: {difference}"))
}

/// Removes the rules of a network that belong to no valid attachment. Those of the Go plugin do not name their network.
///
/// # Errors
/// When something could not be listed or removed, after everything else was tried.
pub fn gc(
    network: &NetworkName,
    valid: &ValidAttachments,
    leads_to: LeadsTo,
    zone: &str,
) -> Result<(), Error> {
    let listed = FEATURE.with_existing("list records", Records::list)?;
    let kept: Vec<RuleComment> = valid
        .all()
        .map(|it| RuleComment::of(network, &it))
        .collect();
    let mut failures = Failures::default();
    for stale in listed.unwrap_or_default().stale(network, &kept) {
        let firewall = Firewall { comment: stale };
        failures.note(firewall.remove(&[], leads_to, zone));
    }
    failures.into_result()
}

/// Runs a transaction that `plan` adds to a batch.
fn change<T>(
    operation: &str,
    plan: impl Fn(&Nftables, &mut Batch) -> Result<T, NftablesError>,
) -> Result<T, Error> {
    FEATURE.with_nftables(operation, |nftables| planned(nftables, &plan))
}

/// `None` if the kernel lacks nf_tables.
fn change_if_supported<T>(
    plan: impl Fn(&Nftables, &mut Batch) -> Result<T, NftablesError>,
) -> Result<Option<T>, Error> {
    FEATURE.with_existing("change rules", |nftables| planned(nftables, &plan))
}

fn planned<T>(
    nftables: &Nftables,
    plan: &dyn Fn(&Nftables, &mut Batch) -> Result<T, NftablesError>,
) -> Result<T, NftablesError> {
    let outcome = std::cell::RefCell::new(None);
    nftables.change(&|| {
        let mut batch = Batch::default();
        outcome.replace(Some(plan(nftables, &mut batch)?));
        Ok(batch)
    })?;
    outcome.into_inner().ok_or(NftablesError::Malformed)
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
