//! Rules, as they are added and as the kernel lists them.

use std::net::IpAddr;

use super::Table;
use super::attribute::{
    Attributes, as_be32, as_ip, as_str, attributes, get, get_be32, get_be64, get_path, get_str,
};
use super::comment::{comment_of, userdata};
use super::compat::XtState;
use super::expression::{
    Expressions, Load, address_length, destination_offset, name_of, nfproto, source_offset,
};
use super::uapi::*;
use crate::kernel::nat::PortAllocation;
use crate::net::{Cidr, Family, IfName, Mac};

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Family(Family),
    /// The destination address.
    Destination(Cidr),
    /// The input interface.
    Input(IfName),
    /// The output interface.
    Output(IfName),
    /// Any other output interface.
    NotOutput(IfName),
    EthernetSource(Mac),
    /// The source network.
    Source(Cidr),
    /// The destination is an address of the host.
    LocalDestination,
    /// The destination of the connection was translated (`ct status dnat`).
    DestinationTranslated,
    /// A match of iptables: `-m comment`. At most 255 bytes.
    XtComment(String),
    /// A match of iptables: `-m conntrack --ctstate`.
    XtConntrack(&'static [XtState]),
}

/// The last expressions of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Return,
    Drop,
    Jump(String),
    /// Continues in the chain that a map has for these fields.
    VerdictMap(Vec<Load>, &'static str),
    /// Translates the destination to the address, of that family, and the port that a map has for these fields.
    DestinationMap(Family, Vec<Load>, &'static str),
    Accept,
    Masquerade(PortAllocation),
    SourceNat(IpAddr, PortAllocation),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All conditions must be met.
    pub matches: Vec<Match>,
    pub action: Action,
    /// May be empty.
    pub comment: String,
}

/// A rule in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    pub chain: String,
    /// Identifies the rule within its table.
    pub handle: u64,
    pub comment: String,
    expressions: Vec<u8>,
}

/// The identity of a rule: comment and expressions as the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(String, Vec<u8>);

impl Encoded {
    /// Equal to [`RuleEntry::key`] of the same rule.
    pub fn as_key(&self) -> (&str, &[u8]) {
        (&self.0, &self.1)
    }
}

impl Rule {
    /// A rule without a comment.
    pub fn new(matches: Vec<Match>, action: Action) -> Rule {
        Rule {
            matches,
            action,
            comment: String::new(),
        }
    }

    /// The rule as current kernels list it, and as kernels before 5.6 do.
    pub fn encodings(&self) -> [Encoded; 2] {
        let expressions = self.expressions();
        let before_5_6 = expressions.before_5_6();
        [expressions, before_5_6].map(|it| Encoded(self.comment.clone(), it.as_bytes().to_vec()))
    }

    /// The attributes of a new rule in a chain.
    pub(super) fn attributes(&self, chain: Attributes) -> Attributes {
        let expressions = self.expressions().into_attributes();
        let rule = chain.put_nested(NFTA_RULE_EXPRESSIONS, expressions);
        match self.comment.is_empty() {
            true => rule,
            false => rule.put(NFTA_RULE_USERDATA, &userdata(&self.comment)),
        }
    }

    fn expressions(&self) -> Expressions {
        let matches = self.matches.iter();
        let matched = matches.fold(Expressions::default(), |so_far, it| it.add_to(so_far));
        self.action.add_to(matched)
    }
}

impl Match {
    fn add_to(&self, so_far: Expressions) -> Expressions {
        match self {
            Match::Family(family) => so_far
                .meta(NFT_META_NFPROTO)
                .cmp(NFT_CMP_EQ, &[nfproto(*family)]),
            Match::Destination(cidr) => {
                so_far.network(destination_offset(cidr.family()), NFT_CMP_EQ, *cidr)
            }
            Match::Input(name) => so_far.interface(NFT_META_IIFNAME, NFT_CMP_EQ, name),
            Match::Output(name) => so_far.interface(NFT_META_OIFNAME, NFT_CMP_EQ, name),
            Match::NotOutput(name) => so_far.interface(NFT_META_OIFNAME, NFT_CMP_NEQ, name),
            // h_source of struct ethhdr (linux/if_ether.h).
            Match::EthernetSource(mac) => so_far
                .payload(NFT_PAYLOAD_LL_HEADER, 6..12)
                .cmp(NFT_CMP_EQ, &mac.bytes()),
            Match::Source(cidr) => so_far.network(source_offset(cidr.family()), NFT_CMP_EQ, *cidr),
            Match::LocalDestination => so_far.local_destination(),
            Match::DestinationTranslated => so_far.connection(NFT_CT_STATUS, IPS_DST_NAT),
            Match::XtComment(comment) => so_far.xt_comment(comment),
            Match::XtConntrack(states) => so_far.xt_conntrack(states),
        }
    }
}

impl Action {
    fn add_to(&self, so_far: Expressions) -> Expressions {
        match self {
            Action::Return => so_far.verdict(NFT_RETURN, None),
            Action::Drop => so_far.verdict(NF_DROP, None),
            Action::Jump(chain) => so_far.verdict(NFT_JUMP, Some(chain)),
            Action::Accept => so_far.verdict(NF_ACCEPT, None),
            Action::Masquerade(ports) => so_far.masquerade(*ports),
            Action::SourceNat(address, ports) => so_far.source_nat(*address, *ports),
            Action::VerdictMap(fields, map) => so_far.load(fields).verdict_map(map),
            Action::DestinationMap(family, fields, map) => {
                so_far.load(fields).destination_nat(*family, map)
            }
        }
    }
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

/// The attributes that identify a chain, or all chains of a table, in messages about rules.
pub(super) fn rules_of(table: Table, chain: Option<&str>) -> Attributes {
    let rules = Attributes::default().put_strz(NFTA_RULE_TABLE, table.name);
    match chain {
        Some(chain) => rules.put_strz(NFTA_RULE_CHAIN, chain),
        None => rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_rule_is_parsed_as_it_was_encoded() {
        let rule = Rule {
            matches: vec![Match::Input("veth0".parse().unwrap())],
            action: Action::Jump("target".to_owned()),
            comment: "a comment".to_owned(),
        };
        let chain = Attributes::default()
            .put_strz(NFTA_RULE_CHAIN, "source")
            .put_be64(NFTA_RULE_HANDLE, 7);
        let entry = RuleEntry::parse(rule.attributes(chain).as_bytes()).unwrap();
        assert_eq!((entry.chain.as_str(), entry.handle), ("source", 7));
        assert_eq!(entry.input(), "veth0".parse().ok());
        assert_eq!(entry.target(), Some("target"));
        assert!(entry.is(&rule));
        assert!(!entry.is(&Rule::new(rule.matches.clone(), rule.action.clone())));
        assert!(!entry.is(&Rule {
            action: Action::Drop,
            ..rule
        }));
    }

    #[test]
    fn a_rule_is_recognised_on_a_kernel_before_5_6() {
        let to = |network: &str| {
            let network: Cidr = network.parse().unwrap();
            let matches = vec![Match::Family(network.family()), Match::Destination(network)];
            Rule::new(matches, Action::Return)
        };
        for network in ["224.0.0.0/4", "10.1.16.0/20", "fd00::/63"] {
            let wanted = to(network).expressions();
            let listed = wanted.before_5_6();
            assert_eq!(listed.as_bytes().len() + 8, wanted.as_bytes().len());
            let entry = RuleEntry {
                chain: "net-pods".to_owned(),
                handle: 7,
                comment: String::new(),
                expressions: listed.as_bytes().to_vec(),
            };
            assert!(entry.is(&to(network)), "{network}");
            assert!(!entry.is(&to("192.0.0.0/4")));
        }
    }
}
