//! Masquerading: packets of a container that leave its subnet get the address of the host.

mod inventory;
mod iptables_nft;
mod nftables;
mod policy;
mod removal;
pub mod rules;

use std::collections::BTreeSet;

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::nftables::{Nftables, not_found_as_none};
use crate::kernel::threads::concurrently;
use crate::kernel::xtables;
use crate::net::{Cidr, Family};
use crate::netfilter::iptables::{Iptables, Outcome, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::masquerade::nftables::FEATURE;
use crate::netfilter::masquerade::rules::{Chain, StaleChains};
use crate::netfilter::rule_comment::RuleComment;

pub use inventory::{Inventory, MasqueradeEntry};
pub use policy::{Backend, MasqueradeKeys, Policy};
pub use removal::{Evidence, Removal, Scope};

/// The masquerading of an attachment.
#[derive(Clone, Debug)]
pub struct Masquerade {
    network: NetworkName,
    chain: Chain,
    comment: RuleComment,
}

impl Masquerade {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Masquerade {
        Masquerade {
            network: network.clone(),
            chain: Chain::of(network, &attachment.container),
            comment: RuleComment::of(network, attachment),
        }
    }

    /// Masquerades addresses: one transaction per family with iptables, one in all with nftables. Missing rules are added
    /// to existing ones, and those of another policy removed.
    ///
    /// # Errors
    /// When iptables is not installed or fails, or nf_tables refuses; one family may have its rules.
    pub fn install(&self, addresses: &[Cidr], policy: &Policy) -> Result<(), Error> {
        match backend_for(addresses, policy) {
            Backend::Iptables => self.install_iptables(addresses, policy),
            Backend::Nftables => nftables::install(&self.network, &self.comment, addresses, policy),
        }
    }

    fn install_iptables(&self, addresses: &[Cidr], policy: &Policy) -> Result<(), Error> {
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
        let mut failures = Failures::default();
        for installed in concurrently(&found, |(iptables, own)| {
            match iptables.commit(&self.chain.create(own, policy))? {
                Outcome::Committed => Ok(()),
                // Some rules exist: list them and add the missing ones.
                Outcome::Refused(why) => iptables
                    .apply_with_retry(&|listing| self.chain.complete(own, policy, listing))
                    .map_err(|error| why.details(error)),
            }
        }) {
            failures.note(installed);
        }
        failures.into_result()
    }

    /// Checks that addresses are masqueraded, by either plugin and any backend.
    ///
    /// # Errors
    /// The first address that is not; when rules cannot be listed.
    pub fn check(&self, addresses: &[Cidr], policy: &Policy) -> Result<(), Error> {
        let Err(lacking) = nftables::check(&self.network, &self.comment, addresses, policy) else {
            return Ok(());
        };
        let in_iptables = self.check_iptables(addresses, policy)?;
        match (in_iptables, backend_for(addresses, policy)) {
            (None, _) => Ok(()),
            (Some(_), Backend::Nftables) => Err(lacking),
            (Some(error), Backend::Iptables) => Err(error),
        }
    }

    /// The first address without iptables rules. The kernel is asked first; if the rules are not recognised, the
    /// programs of the variants that may have the chain list them, concurrently.
    fn check_iptables(&self, addresses: &[Cidr], policy: &Policy) -> Result<Option<Error>, Error> {
        let nftables = not_found_as_none(Nftables::open());
        let nftables = nftables.map_err(|cause| FEATURE.failed("list nftables", cause))?;
        let (mut expected, mut programs) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let of_family = |address: &Cidr| address.family() == family;
            let own: Vec<Cidr> = addresses.iter().copied().filter(of_family).collect();
            let rules = self.chain.rules(&own, policy);
            let seen = |it: &Nftables| iptables_nft::is_seen_to_hold(it, family, &rules);
            let seen = nftables.as_ref().map(seen).transpose();
            if own.is_empty()
                || seen.map_err(|cause| FEATURE.failed("list nftables", cause))? == Some(true)
            {
                continue;
            }
            for variant in variants_with(&self.chain, family, nftables.as_ref())? {
                let iptables = Iptables::nat(variant, family);
                programs.push((family, iptables.ok_or_else(|| not_installed(family))?));
            }
            expected.push((family, own));
        }
        let list = |(family, iptables): &(Family, Iptables)| -> Result<_, Error> {
            Ok((*family, iptables.list()?))
        };
        let listings = concurrently(&programs, list).into_iter();
        let listings: Vec<(Family, Listing)> = listings.collect::<Result<_, _>>()?;
        for (family, own) in expected {
            let mut of_family = listings.iter().filter(|(listed, _)| *listed == family);
            let lacking = of_family.try_fold(own[0], |_, (_, listing)| {
                self.chain.lacking(&own, policy, listing)
            });
            if let Some(address) = lacking {
                let what = format!("check: rules that masquerade {address} are missing");
                return Ok(Some(Error::failed(what).details(format!(
                    "looked in the nat table of {family} for {}",
                    self.chain
                ))));
            }
        }
        Ok(None)
    }
}

/// The configured backend, or else iptables if it is installed for the families of all addresses.
pub fn backend_for(addresses: &[Cidr], policy: &Policy) -> Backend {
    let has_iptables = |address: &Cidr| Iptables::find(address.family()).is_some();
    policy
        .backend
        .unwrap_or_else(|| match addresses.iter().all(has_iptables) {
            true => Backend::Iptables,
            false => Backend::Nftables,
        })
}

/// Checks that addresses of these families can be masqueraded, or with `None` that those of any family can. Runs no
/// process.
///
/// # Errors
/// Code 50 when the program of the backend is not installed, or the kernel lacks nf_tables.
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

/// Removes the masquerading of a network that belongs to no valid attachment, also that of the Go plugin. `stale` are
/// containers with leases that are not valid: their chains are found by name even without rules, whose comments name
/// the network.
///
/// # Errors
/// When a family or backend could not be listed or changed, after the others were tried.
pub fn gc(
    network: &NetworkName,
    valid: &ValidAttachments,
    stale: &[&ContainerId],
) -> Result<(), Error> {
    let names = rules::names_of(network, valid);
    let known = stale
        .iter()
        .map(|container| Chain::of(network, container).name().to_owned());
    let known: BTreeSet<String> = known.filter(|name| !names.contains(name)).collect();
    let comments: Vec<RuleComment> = valid
        .all()
        .map(|attachment| RuleComment::of(network, &attachment))
        .collect();
    let stale = StaleChains {
        is_stale: &|name| !names.contains(name),
        known: &known,
    };
    remove_stale(network, stale, &|text| {
        !comments.iter().any(|comment| comment.matches(text))
    })
}

/// Removes the listed entries of a network, and none that were added since.
///
/// # Errors
/// As [`gc`].
pub fn remove_left_over(network: &NetworkName, left: &[MasqueradeEntry]) -> Result<(), Error> {
    let is_left = |key: &str| {
        left.iter()
            .any(|masquerade_entry| masquerade_entry.key() == key)
    };
    let stale = StaleChains {
        is_stale: &is_left,
        known: &BTreeSet::new(),
    };
    remove_stale(network, stale, &is_left)
}

fn remove_stale(
    network: &NetworkName,
    stale: StaleChains,
    is_stale_comment: &dyn Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(
        FEATURE.with_existing("remove stale rules from nftables", |nftables| {
            for family in Family::BOTH {
                iptables_nft::gc(nftables, family, network, stale)?;
            }
            nftables::gc(nftables, network, is_stale_comment)
        }),
    );
    for family in Family::BOTH {
        let has_table = failures.note(legacy_table(family));
        // Without a program the table cannot be listed: containers such as kube-proxy create legacy tables with their
        // own programs.
        if has_table == Some(true)
            && let Some(iptables) = Iptables::nat(Variant::Legacy, family)
        {
            let plan = |listing: &Listing| rules::gc(network, stale, listing);
            failures.note(iptables.apply_with_retry(&plan));
        }
    }
    failures.into_result()
}

/// The variants of iptables that may have a chain. Runs no process.
fn variants_with(
    chain: &Chain,
    family: Family,
    nftables: Option<&Nftables>,
) -> Result<Vec<Variant>, Error> {
    let mut variants = Vec::new();
    let find = |it: &Nftables| it.chain(iptables_nft::nat(family), chain.name());
    let found = nftables.map(find).transpose();
    if found
        .map_err(|cause| FEATURE.failed("list nftables", cause))?
        .flatten()
        .is_some()
    {
        variants.push(Variant::Nft);
    }
    if legacy_table(family)? {
        variants.push(Variant::Legacy);
    }
    Ok(variants)
}

/// Whether iptables-legacy has a nat table.
fn legacy_table(family: Family) -> Result<bool, Error> {
    let has_table = xtables::has_table(family, "nat");
    has_table.map_err(|cause| Error::failed(format!("masquerade: {cause}")))
}

fn not_installed(family: Family) -> Error {
    let (program, wanted) = match family {
        Family::V4 => ("iptables-restore", "IPv4"),
        Family::V6 => ("ip6tables-restore", "IPv6"),
    };
    Error::failed(format!("masquerade: ipMasq for {wanted} addresses needs {program}, which is not installed"))
        .details("looked in PATH and in the system's directories; install the package iptables, or set ipMasq to false")
}
