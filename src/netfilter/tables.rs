//! The tables of iptables that exist on the node.

use crate::error::Error;
use crate::kernel::nftables::{Nftables, Table, TableFamily};
use crate::kernel::xtables;
use crate::net::Family;
use crate::netfilter::Feature;
use crate::netfilter::iptables::{Iptables, TableUse, Variant};

const FEATURE: Feature = Feature {
    name: "iptables",
    remedy: "the kernel needs nf_tables or the legacy tables of iptables",
};

/// A table in the format of iptables-save(8), once for each variant that has it. A variant whose programs are not
/// installed or fail is left out.
pub fn saved(family: Family, table: &'static str) -> Vec<String> {
    let table_use = TableUse {
        table,
        name: "list",
    };
    let mut tables = Vec::new();
    for variant in [Variant::Nft, Variant::Legacy] {
        if exists(variant, family, table).unwrap_or(true) {
            let iptables = Iptables::of(variant, family, table_use);
            tables.extend(iptables.and_then(|it| it.save(table).ok()));
        }
    }
    tables
}

/// Whether a variant has a table. Asks the kernel, because iptables-save creates the table that it is asked to list.
///
/// # Errors
/// When the kernel refuses the request.
pub fn exists(variant: Variant, family: Family, name: &'static str) -> Result<bool, Error> {
    match variant {
        Variant::Legacy => xtables::has_table(family, name)
            .map_err(|cause| Error::failed(format!("{}: {cause}", FEATURE.name))),
        Variant::Nft => {
            let family = TableFamily::Ip(family);
            let table = |nftables: &Nftables| nftables.table(Table { family, name });
            let found = FEATURE.with_existing("list tables of nftables", table)?;
            Ok(found.flatten().is_some())
        }
    }
}

/// The IPv4 nat rules of iptables-legacy, and those of iptables-nft.
pub fn nat_rules_by_variant() -> (Vec<String>, Vec<String>) {
    let rules = |variant| {
        let exists = exists(variant, Family::V4, "nat").unwrap_or_default();
        let iptables = Iptables::nat(variant, Family::V4).filter(|_| exists);
        let listing = iptables.and_then(|it| it.list().ok());
        listing.map_or(Vec::new(), |it| it.rules().cloned().collect())
    };
    (rules(Variant::Legacy), rules(Variant::Nft))
}
