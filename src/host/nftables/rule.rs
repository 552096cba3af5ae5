//! Rules as data, and as the expressions that the kernel runs.

use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, RuleAttribute, RuleMessage, Verdict,
    VerdictAttribute,
};

use crate::net::{Cidr, Family, IfName, Mac};

/// The verdict that ends a packet (NF_DROP, linux/netfilter.h).
const NF_DROP: u32 = 0;

/// Where a payload is counted from (enum nft_payload_bases).
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;

/// The size of an interface's name as rules compare it (IFNAMSIZ, linux/if.h).
const NAME_SIZE: usize = 16;

/// The longest comment in bytes: with its terminator its length must fit into a byte (struct nftnl_udata).
const MAX_COMMENT: usize = 254;

/// The type of a comment in the user data of rules and elements alike (enum nftnl_udata_rule_types and
/// nftnl_udata_set_elem_types, libnftnl/udata.h).
const COMMENT: u8 = 0;

/// What a packet must be for a rule to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Of that family.
    Family(Family),
    /// Sent to one of these addresses.
    Destination(Cidr),
    /// Come in by that interface.
    Input(IfName),
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
    /// Under the host's address.
    Masquerade,
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
    expressions: Vec<Expressions>,
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

    /// The attributes of a new rule, but for its place.
    pub(super) fn attributes(&self) -> Vec<RuleAttribute> {
        let expressions = self.expressions().into_iter().map(ListAttribute::from);
        let mut attributes = vec![RuleAttribute::Expressions(expressions.collect())];
        if !self.comment.is_empty() {
            attributes.push(RuleAttribute::UserData(userdata(&self.comment)));
        }
        attributes
    }

    /// Attributes are in the order in which the kernel lists them, so that its rules can be compared with ours.
    fn expressions(&self) -> Vec<Expressions> {
        let mut expressions: Vec<Expressions> = Vec::new();
        for matching in &self.matches {
            match matching {
                Match::Family(family) => {
                    expressions
                        .extend([meta(MetaKey::Nfproto), equals(vec![protocol_of(*family)])]);
                }
                Match::Destination(cidr) => expressions.extend(destination(*cidr)),
                Match::Input(name) => {
                    let mut bytes = name.as_str().as_bytes().to_vec();
                    bytes.resize(NAME_SIZE, 0);
                    expressions.extend([meta(MetaKey::Iifname), equals(bytes)]);
                }
                Match::EthernetSource(mac) => {
                    // Behind the destination in the header (struct ethhdr, linux/if_ether.h).
                    let load = payload(LINK_HEADER, 6, 6);
                    expressions.extend([load, equals(mac.bytes().to_vec())]);
                }
            }
        }
        expressions.extend(self.action.expressions());
        expressions
    }
}

impl Action {
    fn expressions(&self) -> Vec<Expressions> {
        match self {
            Action::Return => vec![verdict(Verdict::Return, None)],
            Action::Drop => vec![verdict(Verdict::Other(NF_DROP), None)],
            Action::Jump(chain) => vec![verdict(Verdict::Jump, Some(chain.clone()))],
            Action::Masquerade => vec![Expressions::Other {
                expression_type: "masq".to_owned(),
                attributes: Vec::new(),
            }],
            Action::BySource(family, map) => {
                let lookup = Expressions::Lookup(vec![
                    Lookup::Set((*map).to_owned()),
                    Lookup::SourceRegister(Register::Reg1),
                    Lookup::DestinationRegister(Register::Verdict),
                    Lookup::Flags(0),
                ]);
                // Offsets in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
                let (offset, length) = match family {
                    Family::V4 => (12, 4),
                    Family::V6 => (8, 16),
                };
                let kind = [meta(MetaKey::Nfproto), equals(vec![protocol_of(*family)])];
                let source = [payload(NETWORK_HEADER, offset, length), lookup];
                kind.into_iter().chain(source).collect()
            }
        }
    }
}

impl RuleEntry {
    pub(super) fn of(message: RuleMessage) -> RuleEntry {
        let mut entry = RuleEntry {
            chain: String::new(),
            handle: 0,
            comment: String::new(),
            expressions: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Chain(chain) => entry.chain = chain,
                RuleAttribute::Handle(handle) => entry.handle = handle,
                RuleAttribute::UserData(data) => entry.comment = comment_of(&data),
                RuleAttribute::Expressions(list) => {
                    entry.expressions = list.into_iter().filter_map(expression).collect();
                }
                _ => {}
            }
        }
        entry
    }

    /// Whether it does what the rule does, and says the same.
    pub fn is(&self, rule: &Rule) -> bool {
        self.comment == rule.comment && self.expressions == rule.expressions()
    }

    /// The interface of which it takes the packets.
    pub fn input(&self) -> Option<IfName> {
        let mut expressions = self.expressions.iter();
        expressions.find(|it| **it == meta(MetaKey::Iifname))?;
        let Expressions::Cmp(attributes) = expressions.next()? else {
            return None;
        };
        let name = attributes.iter().find_map(|it| match it {
            Cmp::Data(DataAttribute::Value(name)) => Some(name),
            _ => None,
        });
        let name = std::str::from_utf8(name?).ok()?;
        name.trim_end_matches('\0').parse().ok()
    }

    /// The chain into which it leads.
    pub fn target(&self) -> Option<&str> {
        let Some(Expressions::Immediate(attributes)) = self.expressions.last() else {
            return None;
        };
        let verdict = attributes.iter().find_map(|it| match it {
            Immediate::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
            _ => None,
        });
        verdict?.iter().find_map(|it| match it {
            VerdictAttribute::Chain(chain) => Some(chain.as_str()),
            _ => None,
        })
    }
}

fn expression(listed: ListAttribute<ExpressionAttribute>) -> Option<Expressions> {
    let ListAttribute::Element(attributes) = listed else {
        return None;
    };
    let mut name = String::new();
    for attribute in attributes {
        match attribute {
            ExpressionAttribute::Name(of) => name = of,
            ExpressionAttribute::Data(expression) => return Some(expression),
            _ => {}
        }
    }
    // One without attributes may come without data.
    Some(Expressions::Other {
        expression_type: name,
        attributes: Vec::new(),
    })
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![
        Meta::Key(key),
        Meta::DestinationRegister(Register::Reg1),
    ])
}

fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn equals(value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
fn protocol_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The network part of the destination, in whole bytes where the prefix ends at one, as nft(8) writes it.
fn destination(cidr: Cidr) -> Vec<Expressions> {
    let (offset, network): (u32, Vec<u8>) = match cidr.network().address() {
        std::net::IpAddr::V4(address) => (16, address.octets().to_vec()),
        std::net::IpAddr::V6(address) => (24, address.octets().to_vec()),
    };
    let length = cidr.prefix().div_ceil(8).max(1);
    let value = network[..length.into()].to_vec();
    let mut expressions = vec![payload(NETWORK_HEADER, offset, length.into())];
    if !cidr.prefix().is_multiple_of(8) || cidr.prefix() == 0 {
        // nft(8) masks the whole address.
        let whole = network.len() as u32;
        let mask: Vec<u8> = (0..network.len())
            .map(|index| mask_byte(cidr.prefix(), index))
            .collect();
        expressions = vec![
            payload(NETWORK_HEADER, offset, whole),
            Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(whole),
                Bitwise::Op(0),
                Bitwise::Mask(DataAttribute::Value(mask)),
                Bitwise::Xor(DataAttribute::Value(vec![0; network.len()])),
            ]),
            equals(network),
        ];
        return expressions;
    }
    expressions.push(equals(value));
    expressions
}

/// The byte at that position of the mask of a prefix.
fn mask_byte(prefix: u8, index: usize) -> u8 {
    let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
    (0xff00_u16 >> bits) as u8
}

fn verdict(verdict: Verdict, chain: Option<String>) -> Expressions {
    let mut attributes = vec![VerdictAttribute::Code(verdict)];
    attributes.extend(chain.map(VerdictAttribute::Chain));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

/// A comment as nft(8) keeps it: type, length, text with its terminator (struct nftnl_udata).
pub(super) fn userdata(comment: &str) -> Vec<u8> {
    let text = &comment[..comment.floor_char_boundary(MAX_COMMENT)];
    let mut data = vec![COMMENT, text.len() as u8 + 1];
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    data
}

/// The comment in user data; empty when there is none.
pub(super) fn comment_of(userdata: &[u8]) -> String {
    let mut rest = userdata;
    while let [kind, length, more @ ..] = rest {
        let Some((value, next)) = more.split_at_checked((*length).into()) else {
            break;
        };
        if *kind == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8_lossy(text).into_owned();
        }
        rest = next;
    }
    String::new()
}
