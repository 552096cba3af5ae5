//! `macspoofchk`: drops frames from a container with another source MAC address than its own.
//! Names, rules and comments are those of the Go plugin:
//!
//! ```text
//! table bridge nat {
//!     chain PREROUTING {
//!         type filter hook prerouting priority dstnat; policy accept;
//!         iifname "veth35229476" jump cni-br-iface-ID-eth0 comment "macspoofchk-ID-eth0"
//!     }
//!     chain cni-br-iface-ID-eth0 {
//!         jump cni-br-iface-ID-eth0-mac comment "macspoofchk-ID-eth0"
//!     }
//!     chain cni-br-iface-ID-eth0-mac {
//!         ether saddr ce:70:d6:1c:0b:c2 return comment "macspoofchk-ID-eth0"
//!         drop comment "macspoofchk-ID-eth0"
//!     }
//! }
//! ```

mod stale;

use std::cell::RefCell;

use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Code, Error};
use crate::kernel::netlink::Netlink;
use crate::kernel::nftables::{
    Action, BaseChain, Batch, Hook, Match, Nftables, NftablesError, Rule, RuleEntry, Table,
    TableFamily,
};
use crate::net::{IfName, Mac};
use crate::netfilter::Feature;
use crate::netfilter::owned_chain::OwnedChain;

pub use stale::gc;

/// The table, which ebtables-nft uses as well.
const TABLE: Table = Table {
    family: TableFamily::Bridge,
    name: "nat",
};

/// The priority is NF_BR_PRI_NAT_DST_BRIDGED (linux/netfilter_bridge.h).
const PREROUTING: BaseChain = BaseChain {
    name: "PREROUTING",
    kind: "filter",
    hook: Hook::Prerouting,
    priority: -300,
};

const FEATURE: Feature = Feature {
    name: "macspoofchk",
    remedy: "macspoofchk needs nf_tables for bridges; set it to false",
};

/// Prefixes of chain names and rule comments.
const CHAIN_PREFIX: &str = "cni-br-iface-";
const COMMENT_PREFIX: &str = "macspoofchk-";

/// The longest chain name in bytes, without its terminator (NFT_NAME_MAXLEN, linux/netfilter/nf_tables.h).
const MAX_NAME: usize = 255;

/// The rules of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacSpoofCheck {
    /// The name of the host end, derived from network and attachment.
    host: IfName,
    chains: Chains,
    comment: String,
}

/// The names of the two chains of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chains {
    first: String,
    mac: String,
}

impl Chains {
    fn named(name: &str) -> Chains {
        let first = format!("{CHAIN_PREFIX}{name}");
        Chains {
            mac: format!("{first}-mac"),
            first,
        }
    }

    /// The first chain, to which a rule of PREROUTING jumps, and the second, to which the first jumps.
    fn owned(&self) -> [OwnedChain<'_>; 2] {
        let chain = |name, from| OwnedChain {
            table: TABLE,
            name,
            from,
        };
        [
            chain(&self.first, Some(PREROUTING.name)),
            chain(&self.mac, None),
        ]
    }

    fn exist(&self, nftables: &Nftables) -> Result<bool, NftablesError> {
        let [first, mac] = self.owned();
        Ok(first.exists(nftables)? || mac.exists(nftables)?)
    }

    /// The chains of a jump rule.
    fn of_jump(rule: &RuleEntry) -> Option<Chains> {
        let name = rule.target()?.strip_prefix(CHAIN_PREFIX)?;
        Some(Chains::named(name))
    }
}

impl MacSpoofCheck {
    ///
    /// # Errors
    /// Code 4 when the container ID is too long for a chain name.
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Result<MacSpoofCheck, Error> {
        let name = format!("{}-{}", attachment.container, attachment.interface);
        let spoof_check = MacSpoofCheck {
            host: attachment.host_interface(network),
            chains: Chains::named(&name),
            comment: format!("{COMMENT_PREFIX}{name}"),
        };
        let length = spoof_check.chains.mac.len();
        if length <= MAX_NAME {
            return Ok(spoof_check);
        }
        let most = MAX_NAME - (length - attachment.container.as_str().len());
        let msg = format!(
            "CNI_CONTAINERID has {} characters, but with macspoofchk it must not have more than {most}",
            attachment.container.as_str().len()
        );
        Err(Error::new(Code::INVALID_ENVIRONMENT, msg)
            .details("the name of an nftables chain is made of it"))
    }

    /// The chains of an attachment whose usual names are in use: by another network with the same container ID and
    /// interface, or because `web` with `1-eth0` gives the same names as `web-1` with `eth0`. They are named after the
    /// host end, which is unique.
    fn own_chains(&self) -> Chains {
        Chains::named(self.host.as_str())
    }

    fn rule(&self, matches: Vec<Match>, action: Action) -> Rule {
        Rule {
            matches,
            action,
            comment: self.comment.clone(),
        }
    }

    /// The jump rule.
    fn jump(&self, host: &IfName, chains: &Chains) -> Rule {
        let matches = vec![Match::Input(host.clone())];
        self.rule(matches, Action::Jump(chains.first.clone()))
    }

    /// Each chain with its rules.
    fn rules<'a>(&self, chains: &'a Chains, mac: Mac) -> [(&'a str, Vec<Rule>); 2] {
        let on = self.rule(vec![], Action::Jump(chains.mac.clone()));
        let own = self.rule(vec![Match::EthernetSource(mac)], Action::Return);
        let other = self.rule(vec![], Action::Drop);
        [(&chains.first, vec![on]), (&chains.mac, vec![own, other])]
    }

    /// Whether a rule of PREROUTING may be a jump rule of this attachment, by comment and target.
    fn may_be_jump(&self, rule: &RuleEntry) -> bool {
        let target = rule.target();
        rule.comment == self.comment
            || target == Some(&self.chains.first)
            || target == Some(&self.own_chains().first)
    }

    /// Whether a rule is a jump rule of this attachment: its interface is the host end or does not exist. If it is
    /// another existing interface, the rule belongs to another attachment.
    fn is_jump(&self, rule: &RuleEntry, links: &Links) -> bool {
        let is_own = |input: IfName| input == self.host || !links.has(&input);
        self.may_be_jump(rule) && rule.input().is_none_or(is_own)
    }

    /// Installs the rules for the host end and a MAC address in one transaction. Existing rules of the attachment are
    /// replaced.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is changed then.
    pub fn install(&self, host: &IfName, mac: Mac, links: &Netlink) -> Result<(), Error> {
        let links = Links::new(links);
        let is_own = |rule: &RuleEntry| {
            rule.input().as_ref() == Some(host) && self.may_be_jump(rule)
                || self.is_jump(rule, &links)
        };
        let installed = FEATURE.with_nftables("install rules", |nftables| {
            nftables.change(&|| {
                let mut batch = Batch::default();
                let present = nftables.rules(TABLE, Some(PREROUTING.name))?;
                let own = present.iter().filter(|rule| is_own(rule));
                let chains = match self.is_taken(nftables, &present, &is_own)? {
                    true => self.own_chains(),
                    false => self.chains.clone(),
                };
                batch.create_table(TABLE);
                batch.create_base_chain(TABLE, PREROUTING);
                let rules = self.rules(&chains, mac);
                for (chain, _) in &rules {
                    batch.create_chain(TABLE, chain);
                    batch.flush(TABLE, chain);
                }
                for (chain, rules) in &rules {
                    for rule in rules {
                        batch.append(TABLE, chain, rule);
                    }
                }
                for rule in own {
                    batch.delete_rule(TABLE, PREROUTING.name, rule.handle);
                }
                batch.append(TABLE, PREROUTING.name, &self.jump(host, &chains));
                Ok(batch)
            })
        });
        links.unless_failed(installed.map(drop))
    }

    /// Whether another attachment uses the chains with the usual names.
    fn is_taken(
        &self,
        nftables: &Nftables,
        jumps: &[RuleEntry],
        is_own: &dyn Fn(&RuleEntry) -> bool,
    ) -> Result<bool, NftablesError> {
        let [first, mac] = self.chains.owned();
        let mut jumps = jumps.iter().filter(|rule| first.is_jump(rule));
        // The first chain of `c` with `eth0-mac` has the name of the second chain of `c` with `eth0`.
        Ok(jumps.any(|rule| !is_own(rule))
            || is_anothers(nftables, first, &self.comment)?
            || is_anothers(nftables, mac, &self.comment)?)
    }

    /// Removes rules and chains of the attachment, also those of the Go plugin, but not table and base chain, which are
    /// shared.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, links: &Netlink) -> Result<(), Error> {
        let links = Links::new(links);
        let removed = FEATURE.with_existing("remove rules", |nftables| {
            nftables.change(&|| {
                let mut known = Vec::new();
                for chains in [self.chains.clone(), self.own_chains()] {
                    // After PREROUTING was flushed, a chain exists without a jump rule.
                    if chains.exist(nftables)? {
                        known.push((chains, self.comment.clone()));
                    }
                }
                // Without chains there are no jump rules.
                match known.is_empty() {
                    true => Ok(Batch::default()),
                    false => removal(nftables, known, &|rule| self.is_jump(rule, &links)),
                }
            })
        });
        links.unless_failed(removed.map(drop))
    }

    /// The first chain that differs from what [`MacSpoofCheck::install`] creates.
    ///
    /// # Errors
    /// When the kernel refuses a request.
    pub fn differing(&self, host: &IfName, mac: Mac) -> Result<Option<String>, Error> {
        let differing = FEATURE.with_nftables("list rules", |nftables| {
            let present = nftables.rules(TABLE, Some(PREROUTING.name))?;
            let has_jump = |chains: &Chains| {
                let jump = self.jump(host, chains);
                present.iter().any(|rule| rule.is(&jump))
            };
            let chains = [self.chains.clone(), self.own_chains()];
            let Some(chains) = chains.into_iter().find(has_jump) else {
                return Ok(Some(PREROUTING.name.to_owned()));
            };
            for (chain, wanted) in self.rules(&chains, mac) {
                let present = nftables.rules(TABLE, Some(chain))?;
                let is_same = present.len() == wanted.len()
                    && present.iter().zip(&wanted).all(|(it, rule)| it.is(rule));
                if !is_same {
                    return Ok(Some(chain.to_owned()));
                }
            }
            Ok(None)
        })?;
        Ok(differing.map(|chain| format!("chain {chain} of table bridge {}", TABLE.name)))
    }
}

/// Plans the removal of jump rules from PREROUTING, and of the chains without a jump rule afterwards: those of the
/// removed rules and the known ones, each with the comment of its rules.
fn removal(
    nftables: &Nftables,
    known: Vec<(Chains, String)>,
    is_going: &dyn Fn(&RuleEntry) -> bool,
) -> Result<Batch, NftablesError> {
    let mut batch = Batch::default();
    let present = nftables.rules(TABLE, Some(PREROUTING.name))?;
    let (going, staying): (Vec<_>, Vec<_>) = present.iter().partition(|rule| is_going(rule));
    let mut chains = known;
    for rule in going {
        batch.delete_rule(TABLE, PREROUTING.name, rule.handle);
        let of_jump = Chains::of_jump(rule).map(|chains| (chains, rule.comment.clone()));
        chains.extend(of_jump.filter(|it| !chains.contains(it)));
    }
    for (chains, comment) in &chains {
        let owned = chains.owned();
        if staying.iter().any(|rule| owned[0].is_jump(rule)) {
            continue;
        }
        // The first chain has a jump to the second.
        for chain in owned {
            if chain.exists(nftables)? && !is_anothers(nftables, chain, comment)? {
                batch.delete_chain(TABLE, chain.name);
            }
        }
    }
    Ok(batch)
}

/// Whether the rules of a chain belong to an attachment with another comment.
fn is_anothers(
    nftables: &Nftables,
    chain: OwnedChain,
    comment: &str,
) -> Result<bool, NftablesError> {
    let rules = nftables.rules(TABLE, Some(chain.name))?;
    let mut comments = rules.iter().map(|rule| rule.comment.as_str());
    Ok(comments.any(|it| it.starts_with(COMMENT_PREFIX) && it != comment))
}

/// The links of the host. A link counts as existing if the lookup fails.
struct Links<'a> {
    host: &'a Netlink,
    failure: RefCell<Option<Error>>,
}

impl Links<'_> {
    fn new(host: &Netlink) -> Links<'_> {
        Links {
            host,
            failure: RefCell::default(),
        }
    }

    fn has(&self, name: &IfName) -> bool {
        self.host.link(name).map_or_else(
            |cause| {
                let error = Error::failed(format!("macspoofchk: cannot look up {name}: {cause}"));
                self.failure.borrow_mut().get_or_insert(error);
                true
            },
            |link| link.is_some(),
        )
    }

    /// The result, or the error of a lookup, because of which a rule may have been kept.
    fn unless_failed(&self, outcome: Result<(), Error>) -> Result<(), Error> {
        outcome.and(self.failure.take().map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, interface: &str) -> Attachment {
        Attachment {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        }
    }

    fn network() -> NetworkName {
        "n".parse().unwrap()
    }

    #[test]
    fn names_and_comments_are_those_of_the_go_plugin() {
        let spoof_check =
            MacSpoofCheck::of(&network(), &attachment("spec-ctr-0001", "eth0")).unwrap();
        assert_eq!(spoof_check.chains.first, "cni-br-iface-spec-ctr-0001-eth0");
        assert_eq!(
            spoof_check.chains.mac,
            "cni-br-iface-spec-ctr-0001-eth0-mac"
        );
        assert_eq!(spoof_check.comment, "macspoofchk-spec-ctr-0001-eth0");
    }

    #[test]
    fn an_id_that_is_too_long_for_a_chain_is_refused_with_the_limit() {
        let error =
            MacSpoofCheck::of(&network(), &attachment(&"x".repeat(300), "eth0")).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        assert!(
            error.msg.contains("300") && error.msg.contains("233"),
            "{error}"
        );
        assert!(MacSpoofCheck::of(&network(), &attachment(&"x".repeat(233), "eth0")).is_ok());
        assert!(MacSpoofCheck::of(&network(), &attachment(&"x".repeat(234), "eth0")).is_err());
    }
}
