//! Rules as the kernel lists them.

use std::net::IpAddr;

use super::attribute::{
    as_be32, as_ip, as_str, attributes, get, get_be32, get_be64, get_path, get_str,
};
use super::comment::comment_of;
use super::expression::{address_length, destination_offset, name_of, source_offset};
use super::rule::Rule;
use super::uapi::*;
use crate::net::{Cidr, Family, IfName};

/// A rule in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    pub chain: String,
    /// Identifies the rule within its table.
    pub handle: u64,
    pub comment: String,
    pub(super) expressions: Vec<u8>,
}

impl RuleEntry {
    /// `None` if the answer is not a rule.
    pub fn parse(answer: &[u8]) -> Option<RuleEntry> {
        let expressions = get(answer, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        Some(RuleEntry {
            chain: get_str(answer, NFTA_RULE_CHAIN)?.to_owned(),
            handle: get_be64(answer, NFTA_RULE_HANDLE)?,
            comment: comment_of(get(answer, NFTA_RULE_USERDATA).unwrap_or_default()),
            expressions: expressions.to_vec(),
        })
    }

    /// Whether comment and expressions are those of the rule.
    pub fn is(&self, rule: &Rule) -> bool {
        let encodings = rule.encodings();
        encodings.iter().any(|it| it.as_key() == self.key())
    }

    /// Comment and expressions.
    pub fn key(&self) -> (&str, &[u8]) {
        (&self.comment, &self.expressions)
    }

    pub(super) fn expressions(&self) -> impl Iterator<Item = &[u8]> {
        attributes(&self.expressions).map(|(_, expression)| expression)
    }

    pub(super) fn ends_with(&self, expression: &[u8]) -> bool {
        self.expressions.ends_with(expression)
    }

    /// The input interface, if the rule compares it first.
    pub fn input(&self) -> Option<IfName> {
        self.interface(NFT_META_IIFNAME)
    }

    /// The output interface, if the rule compares it first.
    pub fn output(&self) -> Option<IfName> {
        self.interface(NFT_META_OIFNAME)
    }

    fn interface(&self, key: u32) -> Option<IfName> {
        let mut expressions = self.expressions();
        let loaded = expressions.next()?;
        if name_of(loaded) != Some("meta") || data_be32(loaded, NFTA_META_KEY) != Some(key) {
            return None;
        }
        let name = std::str::from_utf8(equal_to(expressions.next()?)?).ok()?;
        name.trim_end_matches('\0').parse().ok()
    }

    /// The source network of the rule in that family.
    pub fn source(&self, family: Family) -> Option<Cidr> {
        self.network(source_offset(family), family)
    }

    /// The destination network of the rule in that family.
    pub fn destination(&self, family: Family) -> Option<Cidr> {
        self.network(destination_offset(family), family)
    }

    fn network(&self, offset: u32, family: Family) -> Option<Cidr> {
        let is_loaded = |expression: &[u8]| {
            name_of(expression) == Some("payload")
                && data_be32(expression, NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_NETWORK_HEADER)
                && data_be32(expression, NFTA_PAYLOAD_OFFSET) == Some(offset)
        };
        let mut expressions = self.expressions();
        expressions.find(|it| is_loaded(it))?;
        let mut next = expressions.next()?;
        let mask = [NFTA_EXPR_DATA, NFTA_BITWISE_MASK, NFTA_DATA_VALUE];
        let mask = get_path(next, &mask).filter(|_| name_of(next) == Some("bitwise"));
        if mask.is_some() {
            next = expressions.next()?;
        }
        let value = equal_to(next)?;
        let prefix = match mask {
            Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum(),
            None => value.len() as u32 * 8,
        };
        let mut address = value.to_vec();
        address.resize(address_length(family) as usize, 0);
        Cidr::new(as_ip(&address)?, u8::try_from(prefix).ok()?)
    }

    /// The transport protocol that the rule compares (IPPROTO_*).
    pub fn protocol(&self) -> Option<u8> {
        let is_loaded = |it: &[u8]| {
            name_of(it) == Some("meta") && data_be32(it, NFTA_META_KEY) == Some(NFT_META_L4PROTO)
        };
        self.compared(is_loaded)?.first().copied()
    }

    /// The destination port that the rule compares.
    pub fn destination_port(&self) -> Option<u16> {
        let is_loaded = |it: &[u8]| {
            name_of(it) == Some("payload")
                && data_be32(it, NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_TRANSPORT_HEADER)
                && data_be32(it, NFTA_PAYLOAD_OFFSET) == Some(2)
        };
        let port = self.compared(is_loaded)?.try_into().ok()?;
        Some(u16::from_be_bytes(port))
    }

    /// The value with which the rule compares what an expression loads.
    fn compared(&self, is_loaded: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
        let mut expressions = self.expressions();
        expressions.find(|it| is_loaded(it))?;
        equal_to(expressions.next()?)
    }

    /// The address and port to which the rule translates, if it has them as constants.
    pub fn translated_to(&self) -> Option<(IpAddr, u16)> {
        let path = [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VALUE];
        let constants = self
            .expressions()
            .filter(|it| name_of(it) == Some("immediate"));
        let mut constants = constants.filter_map(|it| get_path(it, &path));
        let address = as_ip(constants.next()?)?;
        let port = constants.next()?.try_into().ok()?;
        Some((address, u16::from_be_bytes(port)))
    }

    /// The chain of the jump or goto at the end of the rule.
    pub fn target(&self) -> Option<&str> {
        self.verdict(NFTA_VERDICT_CHAIN).and_then(as_str)
    }

    /// Whether the rule ends with accept.
    pub fn accepts(&self) -> bool {
        self.has_verdict(NF_ACCEPT)
    }

    /// Whether the rule ends with drop.
    pub fn drops(&self) -> bool {
        self.has_verdict(NF_DROP)
    }

    /// Whether the rule ends with return.
    pub fn returns(&self) -> bool {
        self.has_verdict(NFT_RETURN)
    }

    fn has_verdict(&self, verdict: i32) -> bool {
        let code = self.verdict(NFTA_VERDICT_CODE).and_then(as_be32);
        code == Some(verdict.cast_unsigned())
    }

    /// An attribute of the verdict at the end of the rule.
    fn verdict(&self, kind: u16) -> Option<&[u8]> {
        let last = self.expressions().last()?;
        let path = [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, kind];
        get_path(last, &path)
    }
}

/// An integer of an expression.
fn data_be32(expression: &[u8], kind: u16) -> Option<u32> {
    get_be32(get(expression, NFTA_EXPR_DATA)?, kind)
}

/// The value that a comparison requires.
fn equal_to(expression: &[u8]) -> Option<&[u8]> {
    if name_of(expression) != Some("cmp") || data_be32(expression, NFTA_CMP_OP) != Some(NFT_CMP_EQ)
    {
        return None;
    }
    get_path(
        expression,
        &[NFTA_EXPR_DATA, NFTA_CMP_DATA, NFTA_DATA_VALUE],
    )
}
