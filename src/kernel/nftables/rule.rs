//! Rules as data, and as the expressions that the kernel runs.

use std::net::IpAddr;

use crate::net::{Cidr, Family, IfName, Mac};

use super::Table;
use super::attribute::{Attributes, dig, each, find, ip, long, number, text};
use super::comment::{comment_of, userdata};
use super::expression::*;
use crate::kernel::nat::PortAllocation;

/// What a rule holds (enum nft_rule_attributes).
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// What a packet must be for a rule to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Of that family.
    Family(Family),
    /// Sent to one of these addresses.
    Destination(Cidr),
    /// Come in by that interface.
    Input(IfName),
    /// About to leave by that interface.
    Output(IfName),
    /// Sent from that MAC address.
    EthernetSource(Mac),
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Back to where the chain was called from.
    Return,
    /// No further.
    Drop,
    /// On in another chain.
    Jump(String),
    /// On in the chain that a map has for the source address.
    BySource(Family, &'static str),
    /// Let through.
    Accept,
    /// Under the host's address.
    Masquerade(PortAllocation),
    /// Under that address.
    SourceNat(IpAddr, PortAllocation),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All of these must hold.
    pub matches: Vec<Match>,
    /// Then this happens.
    pub action: Action,
    /// What the rule says of itself; may be empty.
    pub comment: String,
}

/// A rule in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    /// In which chain.
    pub chain: String,
    /// Its number in its table.
    pub handle: u64,
    /// What it says of itself.
    pub comment: String,
    expressions: Vec<u8>,
}

/// Comment and expressions of a rule as the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed(String, Vec<u8>);

impl Listed {
    /// The same as [`RuleEntry::key`] of the rule in the kernel.
    pub fn as_key(&self) -> (&str, &[u8]) {
        (&self.0, &self.1)
    }
}

impl Rule {
    /// A rule that says nothing of itself.
    pub fn new(matches: Vec<Match>, action: Action) -> Rule {
        Rule {
            matches,
            action,
            comment: String::new(),
        }
    }

    /// What it says and does as the kernel lists it, and as an older kernel does.
    pub fn listed(&self) -> [Listed; 2] {
        let expressions = self.expressions();
        let before_5_6 = without_bitwise_operation(expressions.as_bytes());
        [expressions, before_5_6].map(|it| Listed(self.comment.clone(), it.as_bytes().to_vec()))
    }

    /// What a new rule holds in that place.
    pub(super) fn attributes(&self, place: Attributes) -> Attributes {
        let rule = place.nest(RULE_EXPRESSIONS, self.expressions());
        match self.comment.is_empty() {
            true => rule,
            false => rule.bytes(RULE_USERDATA, &userdata(&self.comment)),
        }
    }

    /// Attributes are in the order in which the kernel lists them, so that its rules can be compared with ours.
    fn expressions(&self) -> Attributes {
        let matches = self.matches.iter();
        let matched = matches.fold(Attributes::default(), |so_far, it| it.expressions(so_far));
        self.action.expressions(matched)
    }
}

impl Match {
    fn expressions(&self, so_far: Attributes) -> Attributes {
        match self {
            Match::Family(family) => {
                let number = protocol_of(*family);
                equals(meta(so_far, NFT_META_NFPROTO), &[number])
            }
            Match::Destination(cidr) => destination(so_far, *cidr),
            Match::Input(name) => interface(so_far, META_INPUT_NAME, name),
            Match::Output(name) => interface(so_far, META_OUTPUT_NAME, name),
            // Behind the destination in the header (struct ethhdr, linux/if_ether.h).
            Match::EthernetSource(mac) => {
                equals(payload(so_far, NFT_PAYLOAD_LL_HEADER, 6..12), &mac.bytes())
            }
        }
    }
}

impl Action {
    fn expressions(&self, so_far: Attributes) -> Attributes {
        match self {
            Action::Return => immediate(so_far, verdict(RETURN, None)),
            Action::Drop => immediate(so_far, verdict(DROP, None)),
            Action::Jump(chain) => immediate(so_far, verdict(JUMP, Some(chain))),
            Action::Accept => immediate(so_far, verdict(ACCEPT, None)),
            Action::Masquerade(ports) => {
                // enum nft_masq_attributes: flags, which the kernel lists where there are any.
                let flags = match ports {
                    PortAllocation::Preserve => Attributes::default(),
                    PortAllocation::Random => Attributes::default().number(1, NAT_RANDOM_PORTS),
                };
                expression(so_far, "masq", flags)
            }
            Action::SourceNat(address, ports) => source_nat(so_far, *address, *ports),
            Action::BySource(family, map) => {
                // Paths in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
                let place = match family {
                    Family::V4 => 12..16,
                    Family::V6 => 8..24,
                };
                let kind = Match::Family(*family).expressions(so_far);
                // enum nft_lookup_attributes: set, source and destination register, flags.
                let lookup = Attributes::default()
                    .text(1, map)
                    .number(2, REGISTER)
                    .number(3, VERDICT_REGISTER)
                    .number(5, 0);
                expression(
                    payload(kind, NFT_PAYLOAD_NETWORK_HEADER, place),
                    "lookup",
                    lookup,
                )
            }
        }
    }
}

impl RuleEntry {
    /// Reads an answer of the kernel; `None` when it is no rule.
    pub fn parse(answer: &[u8]) -> Option<RuleEntry> {
        Some(RuleEntry {
            chain: find(answer, RULE_CHAIN).and_then(text)?.to_owned(),
            handle: find(answer, RULE_HANDLE).and_then(long)?,
            comment: comment_of(find(answer, RULE_USERDATA).unwrap_or_default()),
            expressions: find(answer, RULE_EXPRESSIONS).unwrap_or_default().to_vec(),
        })
    }

    /// Whether it does what the rule does, and says the same.
    pub fn is(&self, rule: &Rule) -> bool {
        rule.listed()
            .iter()
            .any(|listed| listed.as_key() == self.key())
    }

    /// What it says and does, to look it up among many.
    pub fn key(&self) -> (&str, &[u8]) {
        (&self.comment, &self.expressions)
    }

    /// What it does, as the kernel lists it.
    pub(super) fn expressions(&self) -> &[u8] {
        &self.expressions
    }

    /// The interface of which it takes the packets, if that is what it looks at first.
    pub fn input(&self) -> Option<IfName> {
        self.interface(META_INPUT_NAME)
    }

    /// The interface by which the packets leave that it takes, if that is what it looks at first.
    pub fn output(&self) -> Option<IfName> {
        self.interface(META_OUTPUT_NAME)
    }

    fn interface(&self, key: u32) -> Option<IfName> {
        let mut expressions = each(&self.expressions).map(|(_, expression)| expression);
        let wanted = meta(Attributes::default(), key);
        let wanted = find(wanted.as_bytes(), LIST_ELEMENT);
        expressions.next().filter(|it| Some(*it) == wanted)?;
        // enum nft_cmp_attributes: operator, of which 0 is "equal", and data.
        let compared = expressions.next()?;
        let operator = dig(compared, &[EXPRESSION_DATA, 2]).and_then(number)?;
        let name = dig(compared, &[EXPRESSION_DATA, 3, DATA_VALUE]).filter(|_| operator == 0)?;
        let name = std::str::from_utf8(name).ok()?;
        name.trim_end_matches('\0').parse().ok()
    }

    /// The network from which it takes packets of that family, if it looks at their source.
    pub fn source(&self, family: Family) -> Option<Cidr> {
        let (place, size) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        // Bytes up to the end of the prefix or, under a mask, all of them.
        let loaded = |expression: &[u8]| {
            let part = |kind| dig(expression, &[EXPRESSION_DATA, kind]).and_then(number);
            find(expression, EXPRESSION_NAME).and_then(text) == Some("payload")
                && (part(2), part(3)) == (Some(NFT_PAYLOAD_NETWORK_HEADER), Some(place))
        };
        let mut expressions = each(&self.expressions).map(|(_, expression)| expression);
        expressions.find(|it| loaded(it))?;
        let mut next = expressions.next()?;
        // enum nft_bitwise_attributes: mask.
        let mask = dig(next, &[EXPRESSION_DATA, 4, DATA_VALUE]);
        if mask.is_some() {
            next = expressions.next()?;
        }
        // enum nft_cmp_attributes: operator and data.
        let operator = dig(next, &[EXPRESSION_DATA, 2]).and_then(number)?;
        let value = dig(next, &[EXPRESSION_DATA, 3, DATA_VALUE]).filter(|_| operator == EQUAL)?;
        let prefix = match mask {
            Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum(),
            None => value.len() as u32 * 8,
        };
        let mut address = value.to_vec();
        address.resize(size, 0);
        Cidr::new(ip(&address)?, u8::try_from(prefix).ok()?)
    }

    /// The chain into which it leads.
    pub fn target(&self) -> Option<&str> {
        self.verdict(VERDICT_CHAIN).and_then(text)
    }

    /// Whether it lets packets through.
    pub fn accepts(&self) -> bool {
        let code = self.verdict(VERDICT_CODE).and_then(number);
        code == Some(ACCEPT.cast_unsigned())
    }

    /// A part of the verdict at its end.
    fn verdict(&self, part: u16) -> Option<&[u8]> {
        let (_, last) = each(&self.expressions).last()?;
        // enum nft_immediate_attributes: data.
        dig(last, &[EXPRESSION_DATA, 2, DATA_VERDICT, part])
    }
}

/// Where a rule stands.
pub(super) fn place(table: Table, chain: Option<&str>) -> Attributes {
    let place = Attributes::default().text(RULE_TABLE, table.name);
    match chain {
        Some(chain) => place.text(RULE_CHAIN, chain),
        None => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_tells_where_from_and_where_to() {
        let rule = Rule {
            matches: vec![Match::Input("veth0".parse().unwrap())],
            action: Action::Jump("there".to_owned()),
            comment: "why".to_owned(),
        };
        let place = Attributes::default()
            .text(RULE_CHAIN, "here")
            .long(RULE_HANDLE, 7);
        let entry = RuleEntry::parse(rule.attributes(place).as_bytes()).unwrap();
        assert_eq!((entry.chain.as_str(), entry.handle), ("here", 7));
        assert_eq!(entry.input(), "veth0".parse().ok());
        assert_eq!(entry.target(), Some("there"));
        assert!(entry.is(&rule));
        assert!(!entry.is(&Rule::new(rule.matches.clone(), rule.action.clone())));
        assert!(!entry.is(&Rule {
            action: Action::Drop,
            ..rule
        }));
    }

    #[test]
    fn a_rule_is_known_again_on_a_kernel_before_5_6() {
        let to = |network: &str| {
            let network: Cidr = network.parse().unwrap();
            let matches = vec![Match::Family(network.family()), Match::Destination(network)];
            Rule::new(matches, Action::Return)
        };
        for network in ["224.0.0.0/4", "10.1.16.0/20", "fd00::/63"] {
            let wanted = to(network).expressions();
            let listed = without_bitwise_operation(wanted.as_bytes());
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
