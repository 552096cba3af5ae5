//! What masquerading there is on the whole node, looked at once: for who must compare it with many attachments.

use std::collections::BTreeSet;
use std::fmt;

use crate::cni::ValidAttachments;
use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::kernel::nftables::RuleEntry;
use crate::net::{Cidr, Family};
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::masquerade::comment::RuleComment;
use crate::netfilter::masquerade::iptables_nft;
use crate::netfilter::masquerade::nftables::{self, FEATURE, NftablesEntry};
use crate::netfilter::masquerade::rules::Chain;
use crate::netfilter::masquerade::{Backend, Masquerade, Policy};
use crate::netfilter::tables;

/// The rules of the nat tables, the elements of our maps and the rules of the reference's table.
#[derive(Debug, Default)]
pub struct Inventory {
    listings: Vec<(Variant, Family, Listing)>,
    /// Those of iptables-nft, as the kernel lists them.
    rules: Vec<(Family, Vec<RuleEntry>)>,
    marks: Vec<NftablesEntry>,
    /// What could not be looked at.
    pub failures: Vec<Error>,
}

/// Masquerading of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MasqueradeEntry {
    /// The name of its network.
    pub network: String,
    /// Its container, as far as the comment that tells it is not cut.
    pub container: String,
    /// The chain or element, for a person.
    pub what: String,
    /// What it was made with.
    pub backend: Backend,
    key: String,
}

impl fmt::Display for MasqueradeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.what, self.container)
    }
}

impl Inventory {
    /// Looks at both families and backends.
    pub fn take() -> Inventory {
        let mut inventory = Inventory::default();
        for family in Family::BOTH {
            for variant in [Variant::Nft, Variant::Legacy] {
                let listed = inventory.list(variant, family);
                inventory.failures.extend(listed.err());
            }
        }
        if let Err(error) = inventory.list_nf_tables() {
            inventory.failures.push(error);
        }
        inventory
    }

    fn list(&mut self, variant: Variant, family: Family) -> Result<(), Error> {
        if tables::exists(variant, family, "nat")?
            && let Some(iptables) = Iptables::nat(variant, family)
        {
            self.listings.push((variant, family, iptables.list()?));
        }
        Ok(())
    }

    /// A kernel without nf_tables holds nothing there.
    fn list_nf_tables(&mut self) -> Result<(), Error> {
        let marks = FEATURE.with_existing("list nftables", |nftables| {
            for family in Family::BOTH {
                let rules = nftables.rules(iptables_nft::nat(family), None)?;
                self.rules.push((family, rules));
            }
            nftables::masquerade_entry(nftables)
        })?;
        self.marks = marks.unwrap_or_default();
        Ok(())
    }

    /// The first of an attachment's addresses that is not masqueraded.
    pub fn lacking(
        &self,
        masquerade: &Masquerade,
        policy: &Policy,
        addresses: &[Cidr],
    ) -> Option<Cidr> {
        let in_map = |address: &Cidr| {
            let is_of =
                |mark: &NftablesEntry| mark.address.is_none_or(|of| of == address.address());
            let mut marks = self.marks.iter().filter(|mark| mark.is_in_force);
            marks.any(|mark| is_of(mark) && masquerade.comment.matches(&mark.comment))
        };
        let in_table = |address: &Cidr| {
            let mut listings = self.listings.iter();
            listings.any(|(_, family, listing)| {
                *family == address.family()
                    && masquerade
                        .chain
                        .lacking(&[*address], policy, listing)
                        .is_none()
            })
        };
        // Also where the programs are no longer installed.
        let is_seen = |address: &Cidr| {
            let wanted = masquerade.chain.rules(&[*address], policy);
            let mut rules = self.rules.iter();
            rules.any(|(family, rules)| {
                *family == address.family() && iptables_nft::are_among(rules, &wanted)
            })
        };
        let is_lacking =
            |address: &Cidr| !in_map(address) && !is_seen(address) && !in_table(address);
        addresses.iter().copied().find(is_lacking)
    }

    /// All masquerading of containers, whichever plugin made it.
    pub fn masquerade_entry(&self) -> BTreeSet<MasqueradeEntry> {
        let legacy = self
            .listings
            .iter()
            .filter(|(variant, ..)| *variant == Variant::Legacy);
        let legacy = legacy.map(|(_, family, listing)| (*family, listing.containers()));
        let rules = self.rules.iter();
        let rules = rules.map(|(family, rules)| (*family, iptables_nft::containers(rules)));
        let in_tables = legacy.chain(rules).flat_map(|(family, containers)| {
            containers
                .into_iter()
                .map(move |(chain, network, container)| MasqueradeEntry {
                    what: format!("chain {chain} in the nat table of {family}"),
                    backend: Backend::Iptables,
                    network,
                    container,
                    key: chain,
                })
        });
        let in_maps = self.marks.iter().map(
            |NftablesEntry {
                 address, comment, ..
             }| {
                let (network, container) = RuleComment::parse(comment);
                MasqueradeEntry {
                    what: match address {
                        Some(address) => format!("element {address} in table inet gangplank"),
                        None => "rule in table inet cni_plugins_masquerade".to_owned(),
                    },
                    backend: Backend::Nftables,
                    network: network.to_owned(),
                    container: container.to_owned(),
                    key: comment.clone(),
                }
            },
        );
        in_tables.chain(in_maps).collect()
    }
}

impl MasqueradeEntry {
    /// The name of its chain, or its comment in a table of nftables.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is of one of these attachments of its network. Comments may have been cut, so names decide.
    pub fn is_of(&self, network: &NetworkName, valid: &ValidAttachments) -> bool {
        match self.backend {
            Backend::Iptables => valid
                .containers()
                .any(|container| Chain::of(network, container).name() == self.key),
            Backend::Nftables => valid
                .all()
                .any(|attachment| RuleComment::of(network, &attachment).matches(&self.key)),
        }
    }
}
