//! `macspoofchk`: frames that come from a container under another MAC address than its own are dropped.
//!
//! Knows the rules, which are word for word the reference's, and how the bridge's tables come to hold and to lose them.
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

use std::collections::BTreeSet;

use crate::bridge::plan::host_interface;
use crate::cni::ValidAttachments;
use crate::cni::request::{Attachment, Id};
use crate::error::{Code, Error};
use crate::host::nftables::{
    Action, BaseChain, Batch, HookPoint, Layer, Match, Nftables, NftablesError, Rule, RuleEntry,
    Table, present,
};
use crate::net::{IfName, Mac};

/// The table; ebtables has it too.
const TABLE: Table = Table {
    layer: Layer::Bridge,
    name: "nat",
};

/// Where frames come in (NF_BR_PRI_NAT_DST_BRIDGED, linux/netfilter_bridge.h).
const PREROUTING: BaseChain = BaseChain {
    name: "PREROUTING",
    kind: "filter",
    hook: HookPoint::Prerouting,
    priority: -300,
};

/// What the names of chains and the comments of rules begin with.
const CHAIN_PREFIX: &str = "cni-br-iface-";
const COMMENT_PREFIX: &str = "macspoofchk-";

/// The longest name of a chain in bytes, without its terminator (NFT_NAME_MAXLEN, linux/netfilter/nf_tables.h).
const MAX_NAME: usize = 255;

/// The rules of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    chain: String,
    mac_chain: String,
    comment: String,
}

impl Guard {
    /// That of an attachment.
    ///
    /// # Errors
    /// Code 4 when the container's id is too long for the name of a chain.
    pub fn of(who: &Attachment) -> Result<Guard, Error> {
        let guard = Guard::named(&format!("{}-{}", who.container, who.interface));
        if guard.mac_chain.len() <= MAX_NAME {
            return Ok(guard);
        }
        let most = MAX_NAME - (guard.mac_chain.len() - who.container.as_str().len());
        let msg = format!(
            "CNI_CONTAINERID has {} characters, but with macspoofchk it must not have more than {most}",
            who.container.as_str().len()
        );
        Err(Error::new(Code::INVALID_ENVIRONMENT, msg)
            .details("the name of an nftables chain is made of it"))
    }

    fn named(reference: &str) -> Guard {
        let chain = format!("{CHAIN_PREFIX}{reference}");
        Guard {
            mac_chain: format!("{chain}-mac"),
            chain,
            comment: format!("{COMMENT_PREFIX}{reference}"),
        }
    }

    fn rule(&self, matches: Vec<Match>, action: Action) -> Rule {
        Rule {
            matches,
            action,
            comment: self.comment.clone(),
        }
    }

    /// What leads into the chains.
    fn entrance(&self, host: &IfName) -> Rule {
        let matches = vec![Match::Input(host.clone())];
        self.rule(matches, Action::Jump(self.chain.clone()))
    }

    /// Each chain with its rules.
    fn chains(&self, mac: Mac) -> [(&str, Vec<Rule>); 2] {
        let on = self.rule(vec![], Action::Jump(self.mac_chain.clone()));
        let own = self.rule(vec![Match::EthernetSource(mac)], Action::Return);
        let other = self.rule(vec![], Action::Drop);
        [(&self.chain, vec![on]), (&self.mac_chain, vec![own, other])]
    }

    fn is_entrance(&self, rule: &RuleEntry) -> bool {
        rule.comment == self.comment || rule.target() == Some(&self.chain)
    }

    /// Lets only frames with that source address in at the host's end, in one transaction. What there was of it before
    /// is replaced.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is changed then.
    pub fn install(&self, host: &IfName, mac: Mac) -> Result<(), Error> {
        let install = || {
            let nftables = Nftables::open()?;
            nftables.change(&|| {
                let mut batch = Batch::default();
                batch.create_table(TABLE);
                batch.create_base_chain(TABLE, PREROUTING);
                let chains = self.chains(mac);
                for (chain, _) in &chains {
                    batch.create_chain(TABLE, chain);
                    batch.flush(TABLE, chain);
                }
                for (chain, rules) in &chains {
                    for rule in rules {
                        batch.append(TABLE, chain, rule);
                    }
                }
                self.close_entrances(&nftables, &mut batch)?;
                batch.append(TABLE, PREROUTING.name, &self.entrance(host));
                Ok(batch)
            })
        };
        install().map_err(|cause| failed("install", cause))
    }

    fn close_entrances(&self, nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
        let present = nftables.rules(TABLE, Some(PREROUTING.name))?;
        for rule in present.iter().filter(|rule| self.is_entrance(rule)) {
            batch.delete_rule(TABLE, PREROUTING.name, rule.handle);
        }
        Ok(())
    }

    /// Removes the rules and their chains, whoever made them. Table and base chain are everybody's and stay.
    ///
    /// # Errors
    /// When the kernel refuses; that there is nothing to remove is success.
    pub fn remove(&self) -> Result<(), Error> {
        let remove = || {
            let nftables = Nftables::open()?;
            nftables.change(&|| {
                let mut batch = Batch::default();
                self.plan_removal(&nftables, &mut batch)?;
                Ok(batch)
            })
        };
        present(remove())
            .map(drop)
            .map_err(|cause| failed("remove", cause))
    }

    fn plan_removal(&self, nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
        let mut chains = Vec::new();
        for chain in [&self.chain, &self.mac_chain] {
            if nftables.chain(TABLE, chain)?.is_some() {
                chains.push(chain);
            }
        }
        // A rule cannot lead to a chain that is not there.
        if chains.is_empty() {
            return Ok(());
        }
        self.close_entrances(nftables, batch)?;
        // The one that leads to the other goes first.
        for chain in chains {
            batch.delete_chain(TABLE, chain);
        }
        Ok(())
    }

    /// The chain that is not as [`Guard::install`] makes it; `None` when all are.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn differing(&self, host: &IfName, mac: Mac) -> Result<Option<String>, Error> {
        let look = || {
            let nftables = Nftables::open()?;
            let entrance = self.entrance(host);
            let present = nftables.rules(TABLE, Some(PREROUTING.name))?;
            if !present.iter().any(|rule| rule.is(&entrance)) {
                return Ok(Some(PREROUTING.name));
            }
            for (chain, wanted) in self.chains(mac) {
                let present = nftables.rules(TABLE, Some(chain))?;
                let is_same = present.len() == wanted.len()
                    && present.iter().zip(&wanted).all(|(it, rule)| it.is(rule));
                if !is_same {
                    return Ok(Some(chain));
                }
            }
            Ok(None)
        };
        let differing = look().map_err(|cause: NftablesError| failed("list", cause))?;
        Ok(differing.map(|chain| format!("chain {chain} of table bridge {}", TABLE.name)))
    }
}

/// Removes the rules of a network's attachments that are not valid.
///
/// The rules do not tell their network. Ours are known by the interface they are for, whose name is made of network,
/// container and interface. Of the reference's, which have random names, those go whose interface no longer exists:
/// such a rule guards nothing, in whichever network.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep(
    network: &Id,
    valid: &ValidAttachments,
    exists: impl Fn(&IfName) -> bool,
) -> Result<(), Error> {
    let kept: BTreeSet<String> = valid
        .all()
        .map(|who| format!("{}-{}", who.container, who.interface))
        .collect();
    let is_stale = |reference: &str, host: &IfName| {
        if kept.contains(reference) {
            return false;
        }
        let mut readings = readings(reference);
        readings.any(|who| host_interface(network, &who) == *host)
            || !(is_named_by_us(host) || exists(host))
    };
    let sweep = || {
        let nftables = Nftables::open()?;
        nftables.change(&|| {
            let mut batch = Batch::default();
            for rule in nftables.rules(TABLE, Some(PREROUTING.name))? {
                let reference = rule.comment.strip_prefix(COMMENT_PREFIX);
                if let (Some(reference), Some(host)) = (reference, rule.input())
                    && is_stale(reference, &host)
                {
                    Guard::named(reference).plan_removal(&nftables, &mut batch)?;
                }
            }
            Ok(batch)
        })
    };
    present(sweep())
        .map(drop)
        .map_err(|cause| failed("sweep", cause))
}

/// The attachments that a reference may stand for: either part may have a dash.
fn readings(reference: &str) -> impl Iterator<Item = Attachment> {
    reference.match_indices('-').filter_map(|(dash, _)| {
        Some(Attachment {
            container: reference[..dash].parse().ok()?,
            interface: reference[dash + 1..].parse().ok()?,
        })
    })
}

/// Whether a name is one of [`host_interface`]'s, of any network; the reference's have eight digits.
fn is_named_by_us(host: &IfName) -> bool {
    let digits = host.as_str().strip_prefix("veth").unwrap_or_default();
    digits.len() == 11 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn failed(operation: &str, cause: NftablesError) -> Error {
    let error = Error::failed(format!("macspoofchk: cannot {operation} rules: {cause}"));
    match cause {
        NftablesError::Changed | NftablesError::NoAnswer => Error {
            code: Code::TRY_AGAIN,
            ..error
        },
        NftablesError::Unsupported(_) => {
            error.details("macspoofchk needs nf_tables for bridges; set it to false")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(container: &str, interface: &str) -> Attachment {
        Attachment {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        }
    }

    #[test]
    fn names_and_comments_are_the_references() {
        let guard = Guard::of(&who("spec-ctr-0001", "eth0")).unwrap();
        assert_eq!(guard.chain, "cni-br-iface-spec-ctr-0001-eth0");
        assert_eq!(guard.mac_chain, "cni-br-iface-spec-ctr-0001-eth0-mac");
        assert_eq!(guard.comment, "macspoofchk-spec-ctr-0001-eth0");
    }

    #[test]
    fn an_id_that_is_too_long_for_a_chain_is_refused_with_the_limit() {
        let error = Guard::of(&who(&"x".repeat(300), "eth0")).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        assert!(
            error.msg.contains("300") && error.msg.contains("233"),
            "{error}"
        );
        assert!(Guard::of(&who(&"x".repeat(233), "eth0")).is_ok());
        assert!(Guard::of(&who(&"x".repeat(234), "eth0")).is_err());
    }

    #[test]
    fn every_reading_of_a_reference_is_tried() {
        let found: Vec<Attachment> = readings("a-b-net-1").collect();
        let expected = [("a", "b-net-1"), ("a-b", "net-1"), ("a-b-net", "1")];
        assert_eq!(
            found,
            expected.map(|(container, interface)| who(container, interface))
        );
        let network = "n".parse().unwrap();
        assert!(is_named_by_us(&host_interface(&network, &who("a", "eth0"))));
        assert!(!is_named_by_us(&"veth35229476".parse().unwrap()));
    }
}
