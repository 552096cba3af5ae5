//! Rules, as they are added and as the kernel lists them.

use std::net::IpAddr;

use super::Table;
use super::attribute::Attributes;
use super::comment::userdata;
use super::expression::{Expressions, Load, destination_offset, nfproto, source_offset};
use super::uapi::*;
use super::xt::XtState;
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
    use crate::kernel::nftables::RuleEntry;
    use crate::kernel::nftables::attribute::Attributes;

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
