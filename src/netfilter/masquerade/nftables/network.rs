//! The chain of a network: excluded destinations, and the translation of the others.

use std::collections::HashSet;

use crate::kernel::nat::PortAllocation;
use crate::kernel::nftables::{
    Action, Batch, Encoded, Match, Nftables, NftablesError, Rule, RuleEntry,
};
use crate::net::{Cidr, Family};
use crate::netfilter::masquerade::Policy;
use crate::netfilter::masquerade::nftables::{POSTROUTING, TABLE, base_rules};

/// The number of return rules that one transaction adds; each has up to about 700 bytes, with the longest names.
const MAX_RULES: usize = 256;

/// The state of a network's chain after a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// Complete.
    Whole,
    /// Incomplete: another transaction must follow before an element leads to it.
    Part,
}

/// The rules of a network's chain.
pub(super) struct NetworkRules {
    /// The excluded destinations.
    returning: Vec<Rule>,
    /// The translation of the others, in this order.
    translating: Vec<Rule>,
}

impl NetworkRules {
    pub fn of(addresses: &[Cidr], policy: &Policy) -> NetworkRules {
        let multicast =
            ["224.0.0.0/4", "ff00::/8"].map(|net| net.parse().expect("it is a network"));
        let own = addresses.iter().map(|address| address.network());
        let usual = own.chain(multicast).map(|network| returning(network, ""));
        let non_masquerade_cidrs = policy.non_masquerade_cidrs.iter();
        let non_masquerade_cidrs =
            non_masquerade_cidrs.map(|network| returning(*network, "nonMasqueradeCIDRs"));
        let mut rules: Vec<Rule> = Vec::new();
        for rule in usual.chain(non_masquerade_cidrs) {
            if !rules.iter().any(|known| known.matches == rule.matches) {
                rules.push(rule);
            }
        }
        let snat_addresses = policy.snat_addresses.iter().map(|address| Rule {
            matches: vec![Match::Family(Family::of(*address))],
            action: Action::SourceNat(*address, policy.ports),
            comment: "snatAddresses".to_owned(),
        });
        let rest = Rule {
            comment: match policy.ports {
                PortAllocation::Preserve => String::new(),
                PortAllocation::Random => "ipMasqRandomFully".to_owned(),
            },
            ..Rule::new(vec![], Action::Masquerade(policy.ports))
        };
        NetworkRules {
            returning: rules,
            translating: snat_addresses.chain([rest]).collect(),
        }
    }

    /// The largest number of transactions that a new chain needs.
    pub fn parts(&self) -> usize {
        self.returning.len().div_ceil(MAX_RULES)
    }

    /// The first missing rule, of these and of those that all networks share.
    pub fn missing(
        &self,
        nftables: &Nftables,
        chain: &str,
    ) -> Result<Option<String>, NftablesError> {
        let rules = nftables.rules(TABLE, None)?;
        let base = base_rules();
        let base = base.iter().map(|rule| (POSTROUTING.name, rule));
        let of_network = self.returning.iter().chain(&self.translating);
        let mut wanted = base.chain(of_network.map(|rule| (chain, rule)));
        let found: HashSet<(&str, Key)> = rules
            .iter()
            .map(|entry| (entry.chain.as_str(), entry.key()))
            .collect();
        let lost = wanted.find(|(chain, rule)| {
            let encodings = rule.encodings();
            !encodings
                .iter()
                .any(|it| found.contains(&(*chain, it.as_key())))
        });
        Ok(lost.map(|(chain, _)| format!("lacks a rule in the chain {chain}")))
    }

    /// Adds the missing rules of a network's chain, and removes those of another configuration. Return rules precede
    /// translations. Return rules for other subnets belong to other ranges of the network and are kept.
    /// Of many return rules a part is added that fits into the default send buffer of a socket, which cannot be
    /// enlarged in a user namespace.
    pub fn complete(&self, batch: &mut Batch, chain: &str, present: &[RuleEntry]) -> Completion {
        let plain = Rule::new(vec![], Action::Masquerade(PortAllocation::Preserve));
        let is_of_policy = |entry: &&RuleEntry| {
            entry.chain == chain && (!entry.comment.is_empty() || entry.is(&plain))
        };
        let of_policy: Vec<&RuleEntry> = present.iter().filter(is_of_policy).collect();
        let (returning, translating) = (encodings(&self.returning), encodings(&self.translating));
        let (returning, translating) = (keys(&returning), keys(&translating));
        let of_chain = present.iter().filter(|entry| entry.chain == chain);
        let found: HashSet<Key> = of_chain.map(RuleEntry::key).collect();
        let is_found = |rule: &&Rule| {
            let encodings = rule.encodings();
            encodings.iter().any(|it| found.contains(&it.as_key()))
        };
        let is_stale = |entry: &&RuleEntry| {
            !returning.contains(&entry.key()) && !translating.contains(&entry.key())
        };
        let is_whole = self.translating.iter().all(|rule| is_found(&rule));
        let is_settled = is_whole && !of_policy.iter().any(is_stale);
        let missing = self.returning.iter().filter(|rule| !is_found(rule));
        let missing: Vec<&Rule> = missing.collect();
        if is_settled && missing.is_empty() {
            return Completion::Whole;
        }
        batch.create_chain(TABLE, chain);
        let is_part = missing.len() > MAX_RULES;
        for rule in missing.into_iter().rev().take(MAX_RULES) {
            batch.prepend(TABLE, chain, rule);
        }
        if is_part {
            return Completion::Part;
        }
        if is_settled {
            return Completion::Whole;
        }
        // Their order matters: existing ones are added again after the others.
        for entry in of_policy {
            if !returning.contains(&entry.key()) {
                batch.delete_rule(TABLE, chain, entry.handle);
            }
        }
        for rule in &self.translating {
            batch.append(TABLE, chain, rule);
        }
        Completion::Whole
    }
}

/// The identity of a rule in the kernel: comment and expressions.
type Key<'a> = (&'a str, &'a [u8]);

/// The rules as the kernel may list them. Encoded once, because there may be a thousand.
fn encodings(rules: &[Rule]) -> Vec<Encoded> {
    rules.iter().flat_map(Rule::encodings).collect()
}

fn keys(encodings: &[Encoded]) -> HashSet<Key<'_>> {
    encodings.iter().map(Encoded::as_key).collect()
}

fn returning(network: Cidr, comment: &str) -> Rule {
    let mut matches = vec![Match::Family(network.family())];
    if !network.is_default() {
        matches.push(Match::Destination(network));
    }
    Rule {
        matches,
        action: Action::Return,
        comment: comment.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(addresses: &[&str], policy: &Policy) -> NetworkRules {
        let addresses: Vec<Cidr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
        NetworkRules::of(&addresses, policy)
    }

    /// Destination and comment of what returns.
    fn returned(rules: &NetworkRules) -> Vec<String> {
        let rule = |rule: &Rule| match &rule.matches[..] {
            [_, Match::Destination(network)] => format!("{network} {}", rule.comment),
            matches => format!("{matches:?} {}", rule.comment),
        };
        rules.returning.iter().map(rule).collect()
    }

    #[test]
    fn each_subnet_has_one_return_rule_before_the_masquerade_rule() {
        let rules = rules(
            &["10.1.0.2/24", "10.1.0.3/24", "10.2.0.2/24", "fd00::2/64"],
            &Policy::default(),
        );
        let expected = [
            "10.1.0.0/24 ",
            "10.2.0.0/24 ",
            "fd00::/64 ",
            "224.0.0.0/4 ",
            "ff00::/8 ",
        ];
        assert_eq!(returned(&rules), expected);
        let plain = Rule::new(vec![], Action::Masquerade(PortAllocation::Preserve));
        assert_eq!(rules.translating, [plain]);
    }

    #[test]
    fn rules_of_a_policy_have_their_key_as_comment() {
        let policy = Policy {
            non_masquerade_cidrs: ["10.1.0.0/24", "192.168.0.0/16", "::/0"]
                .map(|it| it.parse().unwrap())
                .to_vec(),
            snat_addresses: vec!["203.0.113.7".parse().unwrap()],
            ports: PortAllocation::Random,
            ..Policy::default()
        };
        let rules = rules(&["10.1.0.2/24"], &policy);
        let expected = [
            "10.1.0.0/24 ",
            "224.0.0.0/4 ",
            "ff00::/8 ",
            "192.168.0.0/16 nonMasqueradeCIDRs",
            "[Family(V6)] nonMasqueradeCIDRs",
        ];
        assert_eq!(returned(&rules), expected);
        let [snat, rest] = &rules.translating[..] else {
            panic!("{:?}", rules.translating)
        };
        assert_eq!(
            (snat.comment.as_str(), rest.comment.as_str()),
            ("snatAddresses", "ipMasqRandomFully")
        );
        assert_eq!(snat.matches, [Match::Family(Family::V4)]);
        assert_eq!(
            snat.action,
            Action::SourceNat(policy.snat_addresses[0], PortAllocation::Random)
        );
        assert_eq!(rest.action, Action::Masquerade(PortAllocation::Random));
    }
}
