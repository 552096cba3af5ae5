//! Chains of nf_tables that belong to one attachment, container or bridge.

use crate::kernel::nftables::{Batch, Nftables, NftablesError, RuleEntry, Table};

/// A chain and the rules that jump to it. The name of the chain derives from its owner.
#[derive(Clone, Copy, Debug)]
pub struct OwnedChain<'a> {
    pub table: Table,
    pub name: &'a str,
    /// The chain with the jump rules; `None` for all chains of the table.
    pub from: Option<&'static str>,
}

impl OwnedChain<'_> {
    /// # Errors
    /// When the kernel refuses the query.
    pub fn exists(&self, nftables: &Nftables) -> Result<bool, NftablesError> {
        Ok(nftables.chain(self.table, self.name)?.is_some())
    }

    pub fn is_jump(&self, rule: &RuleEntry) -> bool {
        rule.target() == Some(self.name) && self.from.is_none_or(|chain| rule.chain == chain)
    }

    /// Plans the removal of the jump rules that match, and of the chain if no jump rule is left. Jump rules are looked
    /// up only if the chain exists.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn plan_removal(
        &self,
        nftables: &Nftables,
        batch: &mut Batch,
        matches: impl Fn(&RuleEntry) -> bool,
    ) -> Result<(), NftablesError> {
        if !self.exists(nftables)? {
            return Ok(());
        }
        let (mut is_used, rules) = (false, nftables.rules(self.table, self.from)?);
        for jump in rules.iter().filter(|rule| self.is_jump(rule)) {
            match matches(jump) {
                true => batch.delete_rule(self.table, &jump.chain, jump.handle),
                false => is_used = true,
            }
        }
        if !is_used {
            batch.delete_chain(self.table, self.name);
        }
        Ok(())
    }
}
