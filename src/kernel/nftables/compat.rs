//! Rules as iptables-nft writes them: matches of its own or of xtables, a counter, a target.
//!
//! They are only recognised here, to check or remove them, never written. Another version of iptables may write the same rule otherwise; what
//! is not recognised must be asked of the program.

use std::borrow::Cow;
use std::net::IpAddr;

use super::attribute::{Attributes, dig, each, find, text};
use super::expression::{
    ACCEPT, EQUAL, EXPRESSION_DATA, EXPRESSION_NAME, JUMP, LIST_ELEMENT, UNEQUAL, compare_network,
    expression, immediate, verdict,
};
use super::rule::RuleEntry;
use crate::net::{Cidr, Family};

/// The size of a comment (struct xt_comment_info, linux/netfilter/xt_comment.h).
const COMMENT_SIZE: usize = 256;

/// What a match or target holds (enum nft_match_attributes; nft_target_attributes has the same numbers).
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

/// A rule of iptables: one address to match, a comment, a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompatRule {
    /// Which address of a packet.
    pub field: Field,
    /// Where it must lie.
    pub network: Cidr,
    /// What the rule says of itself, at most 255 bytes.
    pub comment: String,
    /// What happens then.
    pub target: Target,
}

/// An address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// The destination, which must lie elsewhere.
    NotDestination,
}

/// What a rule of iptables does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing more in this table.
    Accept,
    /// On in another chain.
    Chain(String),
    /// Under the host's address, with any port.
    Masquerade,
}

impl CompatRule {
    /// Whether one of these is what iptables-nft makes of the rule.
    pub fn is_among<'a>(&self, entries: impl Iterator<Item = &'a RuleEntry>) -> bool {
        let wanted = self.expressions();
        // The target tells nearly all others apart.
        let (_, target) = each(wanted.as_bytes()).last().unwrap_or_default();
        let mut alike = entries.filter(|entry| entry.expressions().ends_with(target));
        alike.any(|entry| without_counter(entry) == wanted)
    }

    fn expressions(&self) -> Attributes {
        // Paths in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
        let start = match (self.field, self.network.address()) {
            (Field::Source, IpAddr::V4(_)) => 12,
            (Field::Source, IpAddr::V6(_)) => 8,
            (_, IpAddr::V4(_)) => 16,
            (_, IpAddr::V6(_)) => 24,
        };
        let operation = match self.field {
            Field::NotDestination => UNEQUAL,
            Field::Source | Field::Destination => EQUAL,
        };
        let matched = compare_network(Attributes::default(), start, self.network, operation);
        let mut comment = self.comment.as_bytes().to_vec();
        comment.resize(COMMENT_SIZE, 0);
        let said = extension(matched, "match", "comment", &comment);
        match &self.target {
            Target::Accept => immediate(said, verdict(ACCEPT, None)),
            Target::Chain(name) => immediate(said, verdict(JUMP, Some(name))),
            Target::Masquerade => {
                let range = any_port(self.network.family());
                extension(said, "target", "MASQUERADE", &range)
            }
        }
    }
}

/// The comment of a rule of iptables: that of its match, or of its user data, where a restore by nft(8) puts it.
pub fn comment(entry: &RuleEntry) -> Cow<'_, str> {
    let mut expressions = each(entry.expressions()).map(|(_, expression)| expression);
    let in_match = expressions.find_map(|expression| {
        let name = dig(expression, &[EXPRESSION_DATA, MATCH_NAME]).and_then(text);
        let is_comment = find(expression, EXPRESSION_NAME).and_then(text) == Some("match")
            && name == Some("comment");
        dig(expression, &[EXPRESSION_DATA, MATCH_INFO]).filter(|_| is_comment)
    });
    match in_match.and_then(|info| info.split(|byte| *byte == 0).next()) {
        Some(comment) => String::from_utf8_lossy(comment),
        None => Cow::Borrowed(&entry.comment),
    }
}

/// The expressions of a rule but for the counter of packets, which shows what was counted.
fn without_counter(entry: &RuleEntry) -> Attributes {
    let is_counter =
        |expression: &[u8]| find(expression, EXPRESSION_NAME).and_then(text) == Some("counter");
    let kept = each(entry.expressions()).filter(|(_, expression)| !is_counter(expression));
    let add =
        |so_far: Attributes, (_, expression): (u16, &[u8])| so_far.bytes(LIST_ELEMENT, expression);
    kept.fold(Attributes::default(), add)
}

/// A match or target of xtables: name, revision and its own data (enum nft_match_attributes, nft_target_attributes).
fn extension(so_far: Attributes, kind: &str, name: &str, info: &[u8]) -> Attributes {
    let data = Attributes::default()
        .text(MATCH_NAME, name)
        .number(2, 0)
        .bytes(MATCH_INFO, info);
    expression(so_far, kind, data)
}

/// How masquerading says that it changes no ports: one range without bounds in IPv4 (struct
/// nf_nat_ipv4_multi_range_compat, in whole words), no bounds in IPv6 (struct nf_nat_range, linux/netfilter/nf_nat.h).
fn any_port(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => [&1_u32.to_ne_bytes()[..], &[0; 20]].concat(),
        Family::V6 => vec![0; 40],
    }
}
