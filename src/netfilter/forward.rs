//! `forwardAccept`: accepts packets that the host forwards from and to a bridge, whatever the policy of FORWARD is.
//! An accept in one table does not override a drop in another, so the rules are in the table `filter` of iptables, of
//! each family:
//!
//! ```text
//! -A FORWARD -j GANGPLANK-cni0                  inserted at the top
//! -A GANGPLANK-cni0 -i cni0 -j ACCEPT
//! -A GANGPLANK-cni0 -o cni0 -j ACCEPT
//! ```
//! The rules of iptables-nft are written over netlink, in the form in which iptables lists them. Those of
//! iptables-legacy are added as well where it has tables, which needs its programs. An existing jump is not moved.

use std::io;

use crate::error::{Error, Failures};
use crate::kernel::nftables::{
    Action, BaseChain, Batch, Hook, Match, Nftables, NftablesError, Rule, RuleEntry, Table,
    TableFamily,
};
use crate::kernel::xtables;
use crate::net::{Family, IfName};
use crate::netfilter::Feature;
use crate::netfilter::iptables::{Iptables, TableUse, Variant};
use crate::netfilter::iptables_save::{Listing, deletion, transaction};
use crate::netfilter::lock::serialized;
use crate::netfilter::owned_chain::OwnedChain;

const FILTER: TableUse = TableUse {
    table: "filter",
    name: "forwardAccept",
};

const FEATURE: Feature = Feature {
    name: FILTER.name,
    remedy: "it needs nf_tables, or the legacy iptables in use; set it to false",
};

/// The chain FORWARD as iptables-nft creates it (NF_IP_PRI_FILTER, linux/netfilter_ipv4.h).
const FORWARD: BaseChain = BaseChain {
    name: "FORWARD",
    kind: "filter",
    hook: Hook::Forward,
    priority: 0,
};

/// The accept rules of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    bridge: IfName,
    chain: String,
}

fn table(family: Family) -> Table {
    Table {
        family: TableFamily::Ip(family),
        name: FILTER.table,
    }
}

/// iptables-legacy, if it has tables and its programs are installed.
fn legacy(family: Family) -> Result<Option<Iptables>, Error> {
    let is_used = unless_unknown(xtables::is_used(family))?;
    let iptables = is_used.then(|| Iptables::of(Variant::Legacy, family, FILTER));
    Ok(iptables.flatten())
}

fn unless_unknown(seen: io::Result<bool>) -> Result<bool, Error> {
    seen.map_err(|cause| Error::failed(format!("{}: {cause}", FILTER.name)))
}

impl Forwarding {
    /// `None` for a name that a rule cannot match exactly: `br+` is a prefix for iptables, and its versions treat
    /// quotes differently.
    pub fn of(bridge: &IfName) -> Option<Forwarding> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = bridge.as_str();
        name.chars().all(is_plain).then(|| Forwarding {
            bridge: bridge.clone(),
            chain: format!("GANGPLANK-{name}"),
        })
    }

    /// Adds the missing rules of these families. The bridge has a container's port already, so that a concurrent
    /// [`Forwarding::remove_unless`] sees it.
    ///
    /// # Errors
    /// When the kernel or the legacy variant's program refuses; code 11 if another process changes rules for too long.
    pub fn install(&self, families: &[Family]) -> Result<(), Error> {
        serialized("forwardAccept", || self.add_missing(families))
    }

    fn add_missing(&self, families: &[Family]) -> Result<(), Error> {
        for family in families.iter().copied() {
            let legacy = legacy(family)?;
            if let Some(legacy) = &legacy {
                legacy.apply_with_retry(&|listing| self.complete(listing))?;
            }
            FEATURE.with_nftables("install rules", |nftables| {
                if legacy.is_some() && nftables.table(table(family))?.is_none() {
                    return Ok(());
                }
                nftables.change(&|| self.completion(nftables, family))?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Checks the rules of these families.
    ///
    /// # Errors
    /// When a rule is missing or the rules cannot be listed.
    pub fn check(&self, families: &[Family]) -> Result<(), Error> {
        for family in families.iter().copied() {
            let legacy = legacy(family)?;
            let mut is_whole = FEATURE.with_nftables("list rules", |nftables| {
                if legacy.is_some() && nftables.table(table(family))?.is_none() {
                    return Ok(true);
                }
                Ok(self.completion(nftables, family)?.is_empty())
            })?;
            if let Some(legacy) = &legacy {
                is_whole &= self.complete(&legacy.list()?).is_none();
            }
            if !is_whole {
                let (bridge, chain) = (&self.bridge, &self.chain);
                let msg = format!(
                    "check: rules that let {family} packets of {bridge} pass FORWARD are missing"
                );
                let details = format!("looked in the filter table of {family} for {chain}");
                return Err(Error::failed(msg).details(details));
            }
        }
        Ok(())
    }

    /// Whether nf_tables has the bridge's chain. Runs no process.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn is_in_nftables(&self) -> Result<bool, Error> {
        let found = FEATURE.with_existing("look for rules", |nftables| {
            let [v4, v6] = Family::BOTH.map(|family| self.owned_chain(family).exists(nftables));
            Ok(v4? || v6?)
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Removes the rules of both families and variants, but not table and FORWARD, which are shared, unless they are in use.
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried; code 11 if another process changes rules for
    /// too long.
    pub fn remove_unless(&self, in_use: impl FnOnce() -> Result<bool, Error>) -> Result<(), Error> {
        serialized("forwardAccept", || match in_use()? {
            true => Ok(()),
            false => self.remove(),
        })
    }

    fn remove(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        for family in Family::BOTH {
            failures.note(self.remove_from_nftables(family));
            let look = || match unless_unknown(xtables::has_table(family, FILTER.table))? {
                true => legacy(family),
                false => Ok(None),
            };
            if let Some(legacy) = failures.note(look()).flatten() {
                failures.note(legacy.apply_with_retry(&|listing| self.clear(listing)));
            }
        }
        failures.into_result()
    }

    fn remove_from_nftables(&self, family: Family) -> Result<(), Error> {
        let remove = |nftables: &Nftables| nftables.change(&|| self.removal(nftables, family));
        FEATURE.with_existing("remove rules", remove).map(drop)
    }

    /// The missing rules in the table of iptables-nft.
    fn completion(&self, nftables: &Nftables, family: Family) -> Result<Batch, NftablesError> {
        let (table, bridge) = (table(family), &self.bridge);
        let mut batch = Batch::default();
        let jumps = nftables.rules(table, Some(FORWARD.name))?;
        let accepts = nftables.rules(table, Some(&self.chain))?;
        // Compared by meaning: iptables-restore may have loaded them again in another encoding.
        let accepts = |side: fn(&RuleEntry) -> Option<IfName>| {
            let mut accepts = accepts.iter().filter(|rule| rule.accepts());
            accepts.any(|rule| side(rule).as_ref() == Some(bridge))
        };
        let mut missing = Vec::new();
        if !accepts(RuleEntry::input) {
            missing.push(Match::Input(bridge.clone()));
        }
        if !accepts(RuleEntry::output) {
            missing.push(Match::Output(bridge.clone()));
        }
        let own = self.owned_chain(family);
        let is_reached = jumps.iter().any(|rule| own.is_jump(rule));
        if is_reached && missing.is_empty() {
            return Ok(batch);
        }
        if nftables.chain(table, FORWARD.name)?.is_none() {
            batch.create_table(table);
            batch.create_base_chain(table, FORWARD);
        }
        batch.create_chain(table, &self.chain);
        for matched in missing {
            let accept = Rule::new(vec![matched], Action::Accept);
            batch.append(table, &self.chain, &accept);
        }
        if !is_reached {
            let jump = Rule::new(vec![], Action::Jump(self.chain.clone()));
            batch.prepend(table, FORWARD.name, &jump);
        }
        Ok(batch)
    }

    fn removal(&self, nftables: &Nftables, family: Family) -> Result<Batch, NftablesError> {
        let mut batch = Batch::default();
        self.owned_chain(family)
            .plan_removal(nftables, &mut batch, |_| true)?;
        Ok(batch)
    }

    fn owned_chain(&self, family: Family) -> OwnedChain<'_> {
        OwnedChain {
            table: table(family),
            name: &self.chain,
            from: Some(FORWARD.name),
        }
    }

    fn jump(&self) -> String {
        format!("-A {} -j {}", FORWARD.name, self.chain)
    }

    /// The missing rules in the legacy table; `None` if it is complete.
    fn complete(&self, listing: &Listing) -> Option<String> {
        let (chain, bridge) = (&self.chain, &self.bridge);
        let mut lines = Vec::new();
        if !listing.has_chain(chain) {
            lines.push(format!("-N {chain}"));
        }
        for side in ["-i", "-o"] {
            let accept = format!("-A {chain} {side} {bridge} -j ACCEPT");
            if !listing.has(&accept) {
                lines.push(accept);
            }
        }
        if !listing.has(&self.jump()) {
            lines.push(format!("-I {} 1 -j {chain}", FORWARD.name));
        }
        transaction(FILTER.table, &lines)
    }

    /// Removes the rules from the legacy table; `None` if it has none.
    fn clear(&self, listing: &Listing) -> Option<String> {
        let chain = &self.chain;
        if !listing.has_chain(chain) {
            return None;
        }
        // An administrator may have added more jumps.
        let jump = self.jump();
        let jumps = listing.rules().filter(|rule| **rule == jump);
        let mut lines: Vec<String> = jumps.map(|jump| deletion(jump)).collect();
        lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
        transaction(FILTER.table, &lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding() -> Forwarding {
        Forwarding::of(&"cni0".parse().unwrap()).unwrap()
    }

    const WHOLE: &str = "*filter\n-N GANGPLANK-cni0\n-A GANGPLANK-cni0 -i cni0 -j ACCEPT\n\
                         -A GANGPLANK-cni0 -o cni0 -j ACCEPT\n-I FORWARD 1 -j GANGPLANK-cni0\nCOMMIT\n";

    #[test]
    fn names_that_rules_cannot_match_exactly_are_rejected() {
        for name in ["br+", "br\"", "br!", "bär", "br'"] {
            assert_eq!(Forwarding::of(&name.parse().unwrap()), None, "{name}");
        }
        let longest = Forwarding::of(&"bridge_of.15-by".parse().unwrap()).unwrap();
        assert!(longest.chain.len() < 29, "{}", longest.chain);
    }

    #[test]
    fn only_missing_rules_are_added() {
        let forwarding = forwarding();
        let nothing = Listing::parse(":FORWARD DROP [0:0]\n");
        assert_eq!(forwarding.complete(&nothing).as_deref(), Some(WHOLE));
        let rules = [
            "-A FORWARD -j GANGPLANK-cni0",
            "-A GANGPLANK-cni0 -i cni0 -j ACCEPT",
            "-A GANGPLANK-cni0 -o cni0 -j ACCEPT",
        ];
        let listing = |rules: &[&str]| {
            Listing::parse(&format!(":GANGPLANK-cni0 - [0:0]\n{}\n", rules.join("\n")))
        };
        assert_eq!(forwarding.complete(&listing(&rules)), None);
        let completed = forwarding.complete(&listing(&rules[1..])).unwrap();
        assert_eq!(
            completed,
            "*filter\n-I FORWARD 1 -j GANGPLANK-cni0\nCOMMIT\n"
        );
        let completed = forwarding.complete(&listing(&rules[..2])).unwrap();
        assert!(
            completed.contains("-o cni0") && completed.lines().count() == 3,
            "{completed}"
        );
    }

    #[test]
    fn all_jump_rules_are_removed_with_the_chain() {
        let forwarding = forwarding();
        let twice = ":GANGPLANK-cni0 - [0:0]\n-A FORWARD -j GANGPLANK-cni0\n-A FORWARD -j DROP\n\
                     -A FORWARD -j GANGPLANK-cni0\n";
        let expected = "*filter\n-D FORWARD -j GANGPLANK-cni0\n-D FORWARD -j GANGPLANK-cni0\n\
                        -F GANGPLANK-cni0\n-X GANGPLANK-cni0\nCOMMIT\n";
        let cleared = forwarding.clear(&Listing::parse(twice));
        assert_eq!(cleared.as_deref(), Some(expected));
        assert_eq!(forwarding.clear(&Listing::default()), None);
    }
}
