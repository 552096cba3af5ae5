//! Rules that isolate bridges from each other, over netlink. Where iptables is installed they are in its tables and in the
//! chains of the Go plugin, so that bridges of both are isolated from each other; otherwise in our table:
//!
//! ```text
//! chain FORWARD { jump CNI-ISOLATION-STAGE-1 }
//! chain CNI-ISOLATION-STAGE-1 {
//!     iifname "cni0" oifname "cni0" drop                    isolated only
//!     iifname "cni0" oifname != "cni0" jump CNI-ISOLATION-STAGE-2
//! }
//! chain CNI-ISOLATION-STAGE-2 { oifname "cni0" drop }
//! ```

use crate::kernel::nftables::{
    Action, BaseChain, Batch, Hook, Match, Nftables, NftablesError, Rule, RuleEntry, Table,
    TableFamily, is_final,
};
use crate::net::{Family, IfName};
use crate::netfilter::firewall::{ACCEPT, ISOLATION_COMMENT, Ingress, records};

/// The chains of one table.
#[derive(Clone, Copy, Debug)]
pub struct Isolation {
    pub table: Table,
    /// NF_IP_PRI_FILTER (linux/netfilter_ipv4.h), as iptables has it.
    forward: BaseChain,
    stages: [&'static str; 2],
}

/// The rules of a table in the chains of [`Isolation`].
struct Present {
    forward: Vec<RuleEntry>,
    stages: [Vec<RuleEntry>; 2],
}

impl Isolation {
    /// In our table.
    pub const OWN: Isolation = Isolation {
        table: records::TABLE,
        forward: forward("forward"),
        stages: ["isolation-stage-1", "isolation-stage-2"],
    };

    /// In the table of iptables.
    pub fn of_iptables(family: Family) -> Isolation {
        Isolation {
            table: Table {
                family: TableFamily::Ip(family),
                name: "filter",
            },
            forward: forward("FORWARD"),
            stages: ["CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"],
        }
    }

    /// The rules of a policy, for each stage.
    fn rules(&self, ingress: &Ingress) -> [Vec<Rule>; 2] {
        let Some(bridge) = ingress.bridge() else {
            return [Vec::new(), Vec::new()];
        };
        let (input, output) = (Match::Input(bridge.clone()), Match::Output(bridge.clone()));
        let to_others = vec![input.clone(), Match::NotOutput(bridge.clone())];
        let jump = Action::Jump(self.stages[1].to_owned());
        let mut first = vec![Rule::new(to_others, jump)];
        if let Ingress::Isolated(_) = ingress {
            first.insert(0, Rule::new(vec![input, output.clone()], Action::Drop));
        }
        [first, vec![Rule::new(vec![output], Action::Drop)]]
    }

    fn present(&self, nftables: &Nftables) -> Result<Present, NftablesError> {
        let rules = |chain| nftables.rules(self.table, Some(chain));
        Ok(Present {
            stages: [rules(self.stages[0])?, rules(self.stages[1])?],
            forward: rules(self.forward.name)?,
        })
    }

    /// Plans the rules of a policy, in place of others of its bridge.
    pub fn install(
        &self,
        nftables: &Nftables,
        ingress: &Ingress,
        batch: &mut Batch,
    ) -> Result<(), NftablesError> {
        let Some(bridge) = ingress.bridge() else {
            return Ok(());
        };
        let (present, mut rules) = (self.present(nftables)?, Batch::default());
        for (stage, wanted) in self.rules(ingress).iter().enumerate() {
            let own = present.stages[stage].iter();
            let own: Vec<&RuleEntry> = own.filter(|rule| is_about(rule, bridge)).collect();
            // Those of the Go plugin have a comment, and versions of iptables encode names differently.
            let is_same = |rule: &&RuleEntry, wanted: &Rule| match &wanted.action {
                Action::Jump(chain) => rule.target() == Some(chain),
                _ => rule.drops(),
            };
            if own.len() == wanted.len()
                && own.iter().zip(wanted).all(|(it, rule)| is_same(it, rule))
            {
                continue;
            }
            for rule in own {
                rules.delete_rule(self.table, &rule.chain, rule.handle);
            }
            for rule in wanted.iter().rev() {
                rules.prepend(self.table, self.stages[stage], rule);
            }
        }
        let is_jump = |rule: &RuleEntry| rule.target() == Some(self.stages[0]);
        let mut before = present.forward.iter().take_while(|rule| !is_jump(rule));
        let is_behind = before.any(|rule| rule.target() == Some(ACCEPT) || is_final(rule));
        let jumps: Vec<&RuleEntry> = present.forward.iter().filter(|it| is_jump(it)).collect();
        if jumps.is_empty() || is_behind {
            for jump in jumps {
                rules.delete_rule(self.table, &jump.chain, jump.handle);
            }
            rules.prepend(self.table, self.forward.name, &self.jump());
        }
        if !rules.is_empty() {
            self.create_chains(nftables, batch)?;
            batch.append_batch(rules);
        }
        Ok(())
    }

    fn create_chains(&self, nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
        if nftables.chain(self.table, self.forward.name)?.is_none() {
            batch.create_table(self.table);
            batch.create_base_chain(self.table, self.forward);
        }
        for chain in self.stages {
            batch.create_chain(self.table, chain);
        }
        Ok(())
    }

    fn jump(&self) -> Rule {
        let comment = Match::XtComment(ISOLATION_COMMENT.to_owned());
        let is_own = self.table == records::TABLE;
        let matches = (!is_own).then_some(comment).into_iter().collect();
        Rule::new(matches, Action::Jump(self.stages[0].to_owned()))
    }

    /// The isolated bridges.
    pub fn bridges(&self, nftables: &Nftables) -> Result<Vec<IfName>, NftablesError> {
        let present = self.present(nftables)?;
        let mut bridges: Vec<IfName> = present.rules().filter_map(bridge_of).collect();
        bridges.sort();
        bridges.dedup();
        Ok(bridges)
    }

    /// Plans the removal of the rules of bridges, and of the chains with the last ones.
    pub fn remove(
        &self,
        nftables: &Nftables,
        bridges: &[IfName],
        batch: &mut Batch,
    ) -> Result<(), NftablesError> {
        if bridges.is_empty() {
            return Ok(());
        }
        let present = self.present(nftables)?;
        let is_own = |rule: &RuleEntry| bridge_of(rule).is_some_and(|it| bridges.contains(&it));
        for rule in present.rules().filter(|rule| is_own(rule)) {
            batch.delete_rule(self.table, &rule.chain, rule.handle);
        }
        if present
            .rules()
            .any(|rule| bridge_of(rule).is_some() && !is_own(rule))
        {
            return Ok(());
        }
        let jumps = present.forward.iter();
        for jump in jumps.filter(|rule| rule.target() == Some(self.stages[0])) {
            batch.delete_rule(self.table, &jump.chain, jump.handle);
        }
        for chain in self.stages {
            if nftables.chain(self.table, chain)?.is_some() {
                batch.delete_chain(self.table, chain);
            }
        }
        Ok(())
    }
}

impl Present {
    fn rules(&self) -> impl Iterator<Item = &RuleEntry> {
        self.stages.iter().flatten()
    }
}

const fn forward(name: &'static str) -> BaseChain {
    BaseChain {
        name,
        kind: "filter",
        hook: Hook::Forward,
        priority: 0,
    }
}

/// The bridge that a rule of a stage isolates.
fn bridge_of(rule: &RuleEntry) -> Option<IfName> {
    rule.input().or_else(|| rule.output())
}

/// Whether a rule of a stage isolates a bridge.
pub fn is_about(rule: &RuleEntry, bridge: &IfName) -> bool {
    bridge_of(rule).as_ref() == Some(bridge)
}
