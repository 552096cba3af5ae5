//! Rules as data, and as the expressions that the kernel runs.

use std::net::IpAddr;
use std::ops::Range;

use crate::net::{Cidr, Family, IfName, Mac};

use super::Table;
use crate::host::attribute::{Attributes, dig, each, find, long, number, text};

/// What a rule holds (enum nft_rule_attributes).
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// What a list holds (enum nft_list_attributes), and an expression (nft_expr_attributes).
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// What data holds (enum nft_data_attributes), and a verdict (nft_verdict_attributes).
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Verdicts (NF_DROP, linux/netfilter.h, and enum nft_verdicts).
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// The register of the verdict and the one for everything else (enum nft_registers).
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;

/// What address translation does (NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_RANDOM_FULLY, linux/netfilter/nf_nat.h), and
/// in which direction (NFT_NAT_SNAT of enum nft_nat_types).
const NAT_TO_ADDRESS: u32 = 1;
const NAT_RANDOM_PORTS: u32 = 1 << 4;
const NAT_OF_SOURCE: u32 = 0;

/// What is known of a packet beside its bytes (enum nft_meta_keys).
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_PROTOCOL_FAMILY: u32 = 15;

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
    /// About to leave by that interface.
    Output(IfName),
    /// Sent from that MAC address.
    EthernetSource(Mac),
}

/// Which port a translated connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// Its own, unless that is taken.
    #[default]
    Kept,
    /// A random one, always.
    Random,
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
    Masquerade(Ports),
    /// Under that address.
    SourceNat(IpAddr, Ports),
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

impl Rule {
    /// A rule that says nothing of itself.
    pub fn new(matches: Vec<Match>, action: Action) -> Rule {
        Rule {
            matches,
            action,
            comment: String::new(),
        }
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
                equals(meta(so_far, META_PROTOCOL_FAMILY), &[number])
            }
            Match::Destination(cidr) => destination(so_far, *cidr),
            Match::Input(name) => interface(so_far, META_INPUT_NAME, name),
            Match::Output(name) => interface(so_far, META_OUTPUT_NAME, name),
            // Behind the destination in the header (struct ethhdr, linux/if_ether.h).
            Match::EthernetSource(mac) => equals(payload(so_far, LINK_HEADER, 6..12), &mac.bytes()),
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
                    Ports::Kept => Attributes::default(),
                    Ports::Random => Attributes::default().number(1, NAT_RANDOM_PORTS),
                };
                expression(so_far, "masq", flags)
            }
            Action::SourceNat(address, ports) => source_nat(so_far, *address, *ports),
            Action::BySource(family, map) => {
                // Places in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
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
                expression(payload(kind, NETWORK_HEADER, place), "lookup", lookup)
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
        self.comment == rule.comment && self.expressions == rule.expressions().as_bytes()
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
        // enum nft_cmp_attributes: data.
        let name = dig(expressions.next()?, &[EXPRESSION_DATA, 3, DATA_VALUE])?;
        let name = std::str::from_utf8(name).ok()?;
        name.trim_end_matches('\0').parse().ok()
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

fn expression(so_far: Attributes, name: &str, data: Attributes) -> Attributes {
    let expression = Attributes::default()
        .text(EXPRESSION_NAME, name)
        .nest(EXPRESSION_DATA, data);
    so_far.nest(LIST_ELEMENT, expression)
}

/// enum nft_meta_attributes: key, destination register.
fn meta(so_far: Attributes, key: u32) -> Attributes {
    let data = Attributes::default().number(2, key).number(1, REGISTER);
    expression(so_far, "meta", data)
}

/// Compares the name of an interface.
fn interface(so_far: Attributes, key: u32, name: &IfName) -> Attributes {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(NAME_SIZE, 0);
    equals(meta(so_far, key), &bytes)
}

/// The address goes through a register. The flag that says so the kernel would set itself, but not every version
/// lists it then.
fn source_nat(so_far: Attributes, address: IpAddr, ports: Ports) -> Attributes {
    let (family, bytes) = (Family::of(address), octets(address));
    let load = Attributes::default()
        .number(1, REGISTER)
        .nest(2, data(&bytes));
    let random = match ports {
        Ports::Kept => 0,
        Ports::Random => NAT_RANDOM_PORTS,
    };
    // enum nft_nat_attributes: type, family, first and last address, flags.
    let nat = Attributes::default()
        .number(1, NAT_OF_SOURCE)
        .number(2, protocol_of(family).into())
        .number(3, REGISTER)
        .number(4, REGISTER)
        .number(7, NAT_TO_ADDRESS | random);
    expression(expression(so_far, "immediate", load), "nat", nat)
}

/// The bytes of an address as they stand in a packet.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// enum nft_payload_attributes: destination register, base, offset, length.
fn payload(so_far: Attributes, base: u32, place: Range<u32>) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, base)
        .number(3, place.start)
        .number(4, place.end - place.start);
    expression(so_far, "payload", data)
}

/// enum nft_cmp_attributes: source register, operation (NFT_CMP_EQ), data.
fn equals(so_far: Attributes, value: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, 0)
        .nest(3, data(value));
    expression(so_far, "cmp", data)
}

fn data(value: &[u8]) -> Attributes {
    Attributes::default().bytes(DATA_VALUE, value)
}

/// enum nft_immediate_attributes: destination register, data.
fn immediate(so_far: Attributes, verdict: Attributes) -> Attributes {
    let data = Attributes::default()
        .number(1, VERDICT_REGISTER)
        .nest(2, verdict);
    expression(so_far, "immediate", data)
}

/// A verdict as data.
pub(super) fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::default().number(VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        verdict = verdict.text(VERDICT_CHAIN, chain);
    }
    Attributes::default().nest(DATA_VERDICT, verdict)
}

/// NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
fn protocol_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Compares the network part of the destination as nft(8) does: only its bytes where the prefix ends at a byte, else
/// the whole address under a mask.
fn destination(so_far: Attributes, cidr: Cidr) -> Attributes {
    // Places in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
    let network = octets(cidr.network().address());
    let start: u32 = match cidr.family() {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    let prefix = usize::from(cidr.prefix());
    if prefix > 0 && prefix.is_multiple_of(8) {
        let part = &network[..prefix / 8];
        let place = start..start + part.len() as u32;
        return equals(payload(so_far, NETWORK_HEADER, place), part);
    }
    let length = network.len() as u32;
    let mask: Vec<u8> = (0..network.len())
        .map(|index| mask_byte(prefix, index))
        .collect();
    // enum nft_bitwise_attributes: source and destination register, length, operation (NFT_BITWISE_MASK_XOR), mask, xor.
    let bitwise = Attributes::default()
        .number(1, REGISTER)
        .number(2, REGISTER)
        .number(3, length)
        .number(6, 0)
        .nest(4, data(&mask))
        .nest(5, data(&vec![0; network.len()]));
    let loaded = payload(so_far, NETWORK_HEADER, start..start + length);
    equals(expression(loaded, "bitwise", bitwise), &network)
}

/// The byte at that position of the mask of a prefix.
fn mask_byte(prefix: usize, index: usize) -> u8 {
    let bits = prefix.saturating_sub(index * 8).min(8);
    (0xff00_u16 >> bits) as u8
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_kept_as_nft_keeps_them() {
        assert_eq!(userdata("c1 eth0"), b"\x00\x08c1 eth0\x00");
        assert_eq!(comment_of(b"\x05\x01x\x00\x03ab\x00"), "ab");
        assert_eq!(comment_of(b"\x00\x09cut"), "");
        let long = "x".repeat(300);
        assert_eq!(comment_of(&userdata(&long)), long[..254]);
    }

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
    fn masks_end_within_a_byte() {
        let mask = |prefix| {
            (0..4)
                .map(|index| mask_byte(prefix, index))
                .collect::<Vec<_>>()
        };
        assert_eq!(mask(4), [0xf0, 0, 0, 0]);
        assert_eq!(mask(25), [0xff, 0xff, 0xff, 0x80]);
        assert_eq!(mask(0), [0; 4]);
    }
}
