//! All masquerade entries of the node, listed once: for comparison with many attachments.

use std::collections::BTreeSet;
use std::fmt;

use crate::cni::ValidAttachments;
use crate::cni::names::NetworkName;
use crate::error::Error;
use crate::kernel::nftables::RuleEntry;
use crate::net::{Cidr, Family};
use crate::netfilter::iptables::{Iptables, Variant};
use crate::netfilter::iptables_save::Listing;
use crate::netfilter::masquerade::iptables_nft;
use crate::netfilter::masquerade::nftables::{self, FEATURE, NftablesEntry};
use crate::netfilter::masquerade::rules::Chain;
use crate::netfilter::masquerade::{Backend, Masquerade, Policy};
use crate::netfilter::rule_comment::RuleComment;
use crate::netfilter::tables;

/// The rules of the nat tables, the elements of our maps and the rules of the Go plugin's table.
#[derive(Debug, Default)]
pub struct Inventory {
    listings: Vec<(Variant, Family, Listing)>,
    /// The rules of iptables-nft, as the kernel lists them.
    rules: Vec<(Family, Vec<RuleEntry>)>,
    entries: Vec<NftablesEntry>,
    /// What could not be listed.
    pub failures: Vec<Error>,
}

/// The masquerading of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MasqueradeEntry {
    pub network: String,
    /// The container ID, as far as the comment is not cut.
    pub container: String,
    /// A description of the chain or element.
    pub what: String,
    pub backend: Backend,
    key: String,
}

impl fmt::Display for MasqueradeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.what, self.container)
    }
}

impl Inventory {
    /// Lists both families and backends.
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

    /// Without nf_tables in the kernel there are no entries.
    fn list_nf_tables(&mut self) -> Result<(), Error> {
        let entries = FEATURE.with_existing("list nftables", |nftables| {
            for family in Family::BOTH {
                let rules = nftables.rules(iptables_nft::nat(family), None)?;
                self.rules.push((family, rules));
            }
            nftables::entries(nftables)
        })?;
        self.entries = entries.unwrap_or_default();
        Ok(())
    }

    /// The nat tables of all families and variants.
    pub fn nat_tables(&self) -> impl Iterator<Item = (Variant, Family, &Listing)> {
        let listings = self.listings.iter();
        listings.map(|(variant, family, listing)| (*variant, *family, listing))
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
                |entry: &NftablesEntry| entry.address.is_none_or(|of| of == address.address());
            let mut entries = self.entries.iter().filter(|entry| entry.is_in_force);
            entries.any(|entry| is_of(entry) && masquerade.comment.matches(&entry.comment))
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
        // Works also if iptables is no longer installed.
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

    /// All entries, also those of the Go plugin.
    pub fn entries(&self) -> BTreeSet<MasqueradeEntry> {
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
        let in_maps = self.entries.iter().map(
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
    /// The name of its chain, or its comment in nftables.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether it belongs to one of these attachments. Compared by the name of the chain, because comments may have
    /// been cut.
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
