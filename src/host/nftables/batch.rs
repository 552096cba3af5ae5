//! Transactions: messages that take effect together or not at all.

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};

use super::element::{self, Element};
use super::rule::Rule;
use super::{Generation, Table, VERSION};
use crate::net::Family;

/// NFNL_SUBSYS_NFTABLES, NFNL_MSG_BATCH_BEGIN and NFNL_BATCH_GENID (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u8 = 16;
const BATCH_GENID: u16 = 1;

/// The type of data that is a verdict (NFT_DATA_VERDICT).
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// A chain where packets come in from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: &'static str,
    /// What it is for: `filter`, `nat`.
    pub kind: &'static str,
    /// At which of the hooks.
    pub hook: HookPoint,
    /// Before which others.
    pub priority: i32,
}

/// Where in the kernel (enum nf_inet_hooks, linux/netfilter.h; on bridges the numbers are the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// As they come in.
    Prerouting,
    /// As they go out.
    Postrouting,
}

/// Changes that will be made together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    messages: Vec<(u16, NetfilterMessage)>,
}

impl Batch {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, table: Table, flags: u16, message: NfTablesMessage) {
        let message = NetfilterMessage::new(table.layer.header(), message);
        self.messages.push((flags, message));
    }

    /// Makes a table where there is none of that name.
    pub fn create_table(&mut self, table: Table) {
        let attributes = vec![TableAttribute::Name(table.name.to_owned())];
        let message = NfTablesMessage::NewTable(TableMessage { attributes });
        self.push(table, NLM_F_CREATE, message);
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: Table) {
        let attributes = vec![TableAttribute::Name(table.name.to_owned())];
        let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
        self.push(table, 0, message);
    }

    /// Makes a map from addresses of a family to chains, where there is none of that name.
    pub fn create_map(&mut self, table: Table, name: &str, family: Family) {
        // The type is for nft(8) alone: TYPE_IPADDR and TYPE_IP6ADDR (nftables, include/datatype.h).
        let (kind, length) = match family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        let attributes = vec![
            SetAttribute::Table(table.name.to_owned()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Flags(SetFlags::Map),
            SetAttribute::KeyType(kind),
            SetAttribute::KeyLen(length),
            SetAttribute::DataType(VERDICT_TYPE),
            SetAttribute::DataLen(0),
            // Names the set within this batch.
            SetAttribute::Id(self.messages.len() as u32),
        ];
        let message = NfTablesMessage::NewSet(SetMessage { attributes });
        self.push(table, NLM_F_CREATE, message);
    }

    /// Makes a chain that the kernel calls, where there is none of that name.
    pub fn create_base_chain(&mut self, table: Table, chain: BaseChain) {
        let hook = match chain.hook {
            HookPoint::Prerouting => InetHookNumber::PreRouting,
            HookPoint::Postrouting => InetHookNumber::PostRouting,
        };
        let attributes = vec![
            ChainAttribute::Table(table.name.to_owned()),
            ChainAttribute::Name(chain.name.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(hook)),
                Hook::Priority(chain.priority.cast_unsigned()),
            ]),
            ChainAttribute::Type(chain.kind.to_owned()),
        ];
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        self.push(table, NLM_F_CREATE, message);
    }

    /// Makes a chain where there is none of that name.
    pub fn create_chain(&mut self, table: Table, name: &str) {
        let message = NfTablesMessage::NewChain(named_chain(table, name));
        self.push(table, NLM_F_CREATE, message);
    }

    /// Deletes a chain with its rules; refused when others refer to it.
    pub fn delete_chain(&mut self, table: Table, name: &str) {
        let message = NfTablesMessage::DeleteChain(named_chain(table, name));
        self.push(table, 0, message);
    }

    /// Puts a rule at the beginning of a chain.
    pub fn prepend(&mut self, table: Table, chain: &str, rule: &Rule) {
        self.new_rule(table, chain, rule, 0);
    }

    /// Puts a rule at the end of a chain.
    pub fn append(&mut self, table: Table, chain: &str, rule: &Rule) {
        self.new_rule(table, chain, rule, NLM_F_APPEND);
    }

    fn new_rule(&mut self, table: Table, chain: &str, rule: &Rule, place: u16) {
        let mut attributes = vec![
            RuleAttribute::Table(table.name.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
        ];
        attributes.extend(rule.attributes());
        let message = NfTablesMessage::NewRule(RuleMessage { attributes });
        self.push(table, NLM_F_CREATE | place, message);
    }

    /// Deletes all rules of a chain.
    pub fn flush(&mut self, table: Table, chain: &str) {
        let attributes = vec![
            RuleAttribute::Table(table.name.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
        ];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.push(table, 0, message);
    }

    /// Deletes the rule of that number.
    pub fn delete_rule(&mut self, table: Table, chain: &str, handle: u64) {
        let attributes = vec![
            RuleAttribute::Table(table.name.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Handle(handle),
        ];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.push(table, 0, message);
    }

    /// Adds an element to a map; refused when there is one of that address.
    pub fn add_element(&mut self, table: Table, map: &str, element: &Element) {
        let message = element::list(table, map, element.attributes());
        let message = NfTablesMessage::NewSetElement(message);
        self.push(table, NLM_F_CREATE | NLM_F_EXCL, message);
    }

    /// Deletes the element of an address from a map.
    pub fn delete_element(&mut self, table: Table, map: &str, element: &Element) {
        let message = element::list(table, map, vec![element::key(element.address)]);
        self.push(table, 0, NfTablesMessage::DeleteSetElement(message));
    }

    /// The datagram, and how many messages are in it, numbered from `first` on.
    pub(super) fn into_bytes(self, generation: Generation, first: u32) -> (Vec<u8>, u32) {
        let genid = DefaultNla::new(BATCH_GENID, generation.0.to_be_bytes().to_vec());
        let begin = ControlMessage::Other {
            message_type: BATCH_BEGIN,
            attributes: vec![genid],
        };
        let control = |message: ControlMessage| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, VERSION, SUBSYSTEM);
            (
                0,
                NetfilterMessage::new(header, NetfilterMessageInner::None(message)),
            )
        };
        let mut changes = self.messages;
        if let Some((flags, _)) = changes.last_mut() {
            *flags |= NLM_F_ACK;
        }
        let (begin, end) = (control(begin), control(ControlMessage::BatchEnd));
        let messages = [begin].into_iter().chain(changes).chain([end]);
        let (mut bytes, mut number) = (Vec::new(), first);
        for (flags, message) in messages {
            let mut header = NetlinkHeader::default();
            (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, number);
            write(&mut bytes, header, message);
            number = number.wrapping_add(1);
        }
        (bytes, number.wrapping_sub(first))
    }
}

/// Adds a message to a datagram.
pub(super) fn write(bytes: &mut Vec<u8>, header: NetlinkHeader, message: NetfilterMessage) {
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

fn named_chain(table: Table, name: &str) -> ChainMessage {
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.name.to_owned()),
            ChainAttribute::Name(name.to_owned()),
        ],
    }
}
