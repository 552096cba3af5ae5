//! Rules as iptables-nft encodes them: matches of nf_tables or xtables, a counter, a target.
//!
//! They are recognised in order to check or remove them without a program, but never added. Versions of iptables may
//! encode the same rule differently: a rule that is not recognised must be looked up with the programs.

use std::borrow::Cow;
use std::net::IpAddr;

use super::attribute::{Attributes, as_ip, attributes, get, get_be32, get_path, get_str};
use super::entry::RuleEntry;
use super::expression::{Expressions, destination_offset, name_of, source_offset};
use super::uapi::*;
use crate::net::{Cidr, Family};

/// A rule of iptables with one address, a comment and a target without options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompatRule {
    pub field: Field,
    pub network: Cidr,
    /// At most 255 bytes.
    pub comment: String,
    pub target: Target,
}

/// The address that a rule compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Source,
    Destination,
    /// The destination, inverted.
    NotDestination,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Accept,
    Chain(String),
    /// Without options.
    Masquerade,
}

impl CompatRule {
    /// Whether one of the rules is this one, as iptables-nft encodes it.
    pub fn is_among<'a>(&self, entries: impl Iterator<Item = &'a RuleEntry>) -> bool {
        let wanted = self.expressions();
        // The target differs in nearly all other rules.
        let (_, target) = attributes(wanted.as_bytes()).last().unwrap_or_default();
        let is_counter = |expression: &&[u8]| name_of(expression) == Some("counter");
        entries
            .filter(|entry| entry.ends_with(target))
            .map(|entry| entry.expressions().filter(|it| !is_counter(it)))
            .any(|kept| kept.fold(Expressions::default(), Expressions::push_encoded) == wanted)
    }

    fn expressions(&self) -> Expressions {
        let family = self.network.family();
        let (offset, operation) = match self.field {
            Field::Source => (source_offset(family), NFT_CMP_EQ),
            Field::Destination => (destination_offset(family), NFT_CMP_EQ),
            Field::NotDestination => (destination_offset(family), NFT_CMP_NEQ),
        };
        let matched = Expressions::default()
            .network(offset, operation, self.network)
            .xt_comment(&self.comment);
        match &self.target {
            Target::Accept => matched.verdict(NF_ACCEPT, None),
            Target::Chain(name) => matched.verdict(NFT_JUMP, Some(name)),
            Target::Masquerade => {
                let target = Attributes::default()
                    .put_strz(NFTA_TARGET_NAME, "MASQUERADE")
                    .put_be32(NFTA_TARGET_REV, 0)
                    .put(NFTA_TARGET_INFO, &masquerade_info(family));
                matched.push("target", target)
            }
        }
    }
}

/// Whether a rule ends the evaluation of its chain for all packets.
pub fn is_final(entry: &RuleEntry) -> bool {
    let is_match = |expression: &&[u8]| {
        let data = get(expression, NFTA_EXPR_DATA).unwrap_or_default();
        name_of(expression) != Some("counter") && get_str(data, NFTA_MATCH_NAME) != Some("comment")
    };
    let mut rest = entry.expressions().filter(is_match);
    let (last, other) = (rest.next(), rest.next());
    let is_reject = |last: &[u8]| {
        let data = get(last, NFTA_EXPR_DATA).unwrap_or_default();
        name_of(last) == Some("reject")
            || name_of(last) == Some("target") && get_str(data, NFTA_TARGET_NAME) == Some("REJECT")
    };
    let ends = entry.accepts() || entry.drops() || last.is_some_and(is_reject);
    ends && other.is_none()
}

/// The comment of a rule of iptables: of its comment match, or of its user data after a restore with nft(8).
pub fn comment(entry: &RuleEntry) -> Cow<'_, str> {
    let is_comment = |expression: &&[u8]| {
        let data = get(expression, NFTA_EXPR_DATA).unwrap_or_default();
        name_of(expression) == Some("match") && get_str(data, NFTA_MATCH_NAME) == Some("comment")
    };
    let in_match = entry
        .expressions()
        .find(is_comment)
        .and_then(|expression| get_path(expression, &[NFTA_EXPR_DATA, NFTA_MATCH_INFO]))
        .and_then(|info| info.split(|byte| *byte == 0).next());
    match in_match {
        Some(comment) => String::from_utf8_lossy(comment),
        None => Cow::Borrowed(&entry.comment),
    }
}

/// The destination ports that a rule matches with the match multiport: struct xt_multiport_v1
/// (linux/netfilter/xt_multiport.h).
pub fn multiport(entry: &RuleEntry) -> Vec<u16> {
    let info = entry.expressions().find_map(|expression| {
        let data = get(expression, NFTA_EXPR_DATA)?;
        let is_multiport = get_str(data, NFTA_MATCH_NAME) == Some("multiport");
        get(data, NFTA_MATCH_INFO).filter(|_| is_multiport)
    });
    let info = info.unwrap_or_default();
    let count = info.get(1).copied().unwrap_or_default();
    let ports = info.get(2..).unwrap_or_default().chunks_exact(2);
    let ports = ports.map(|port| u16::from_ne_bytes([port[0], port[1]]));
    ports.take(count.into()).collect()
}

/// The address of the target DNAT: struct nf_nat_range2, or before revision 2 struct nf_nat_range or for IPv4 struct
/// nf_nat_ipv4_multi_range_compat (linux/netfilter/nf_nat.h).
pub fn dnat_address(entry: &RuleEntry, family: Family) -> Option<IpAddr> {
    let data = get(entry.expressions().last()?, NFTA_EXPR_DATA)?;
    let is_dnat = get_str(data, NFTA_TARGET_NAME) == Some("DNAT");
    let info = get(data, NFTA_TARGET_INFO).filter(|_| is_dnat)?;
    let revision = get_be32(data, NFTA_TARGET_REV)?;
    let address = match (family, revision) {
        (Family::V4, 0) => info.get(8..12)?,
        (Family::V4, _) => info.get(4..8)?,
        (Family::V6, _) => info.get(4..20)?,
    };
    as_ip(address)
}

/// The data of the target MASQUERADE without options: for IPv4 one empty range (struct
/// nf_nat_ipv4_multi_range_compat), for IPv6 an empty struct nf_nat_range (linux/netfilter/nf_nat.h).
fn masquerade_info(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => [&1_u32.to_ne_bytes()[..], &[0; 20]].concat(),
        Family::V6 => vec![0; 40],
    }
}
