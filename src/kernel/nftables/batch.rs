//! Transactions: messages that take effect together or not at all.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use super::attribute::Attributes;
use super::element::{self, Element};
use super::message::{Message, Verb};
use super::rule::{self, RULE_HANDLE, Rule};
use super::{CHAIN_NAME, CHAIN_TABLE, Generation, TABLE_NAME, Table};
use crate::net::Family;

/// The brackets of a transaction, and the ruleset it is for (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END and
/// NFNL_BATCH_GENID, linux/netfilter/nfnetlink.h).
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const BATCH_GENERATION: u16 = 1;

/// What a new chain holds (enum nft_chain_attributes), and its hook (nft_hook_attributes).
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

/// What a new set holds (enum nft_set_attributes), what makes it a map (NFT_SET_MAP), and what makes its data verdicts
/// (NFT_DATA_VERDICT).
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_ID: u16 = 10;
const MAP: u32 = 8;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// How many keys of elements one message takes: an attribute has at most 64 KiB (`nla_len`), a key of IPv6 28 bytes.
const MESSAGE_ELEMENTS: usize = 2000;

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
    /// On their way through.
    Forward,
    /// As they go out.
    Postrouting,
}

impl HookPoint {
    fn number(self) -> u32 {
        match self {
            HookPoint::Prerouting => 0,
            HookPoint::Forward => 2,
            HookPoint::Postrouting => 4,
        }
    }
}

/// Changes that will be made together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    messages: Vec<(u16, Message)>,
}

impl Batch {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, flags: u16, message: Message) {
        self.messages.push((flags, message));
    }

    /// Makes a table where there is none of that name.
    pub fn create_table(&mut self, table: Table) {
        let named = Attributes::default().text(TABLE_NAME, table.name);
        self.push(NLM_F_CREATE, Message::new(Verb::NewTable, table, named));
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: Table) {
        let named = Attributes::default().text(TABLE_NAME, table.name);
        self.push(0, Message::new(Verb::DelTable, table, named));
    }

    /// Makes a map from addresses of a family to chains, where there is none of that name.
    pub fn create_map(&mut self, table: Table, name: &str, family: Family) {
        // The type is for nft(8) alone: TYPE_IPADDR and TYPE_IP6ADDR (nftables, include/datatype.h).
        let (kind, length) = match family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        let map = Attributes::default()
            .text(SET_TABLE, table.name)
            .text(SET_NAME, name)
            .number(SET_FLAGS, MAP)
            .number(SET_KEY_TYPE, kind)
            .number(SET_KEY_LENGTH, length)
            .number(SET_DATA_TYPE, VERDICT_TYPE)
            // Names the set within this batch.
            .number(SET_ID, self.messages.len() as u32);
        self.push(NLM_F_CREATE, Message::new(Verb::NewSet, table, map));
    }

    /// Makes a chain that the kernel calls, where there is none of that name.
    pub fn create_base_chain(&mut self, table: Table, base: BaseChain) {
        let hook = Attributes::default()
            .number(HOOK_NUMBER, base.hook.number())
            .number(HOOK_PRIORITY, base.priority.cast_unsigned());
        let chain = chain(table, base.name)
            .nest(CHAIN_HOOK, hook)
            .text(CHAIN_TYPE, base.kind);
        self.push(NLM_F_CREATE, Message::new(Verb::NewChain, table, chain));
    }

    /// Makes a chain where there is none of that name.
    pub fn create_chain(&mut self, table: Table, name: &str) {
        let chain = chain(table, name);
        self.push(NLM_F_CREATE, Message::new(Verb::NewChain, table, chain));
    }

    /// Deletes a chain with its rules; refused when others refer to it.
    pub fn delete_chain(&mut self, table: Table, name: &str) {
        self.push(0, Message::new(Verb::DelChain, table, chain(table, name)));
    }

    /// Puts a rule at the beginning of a chain.
    pub fn prepend(&mut self, table: Table, chain: &str, rule: &Rule) {
        let rule = rule.attributes(rule::place(table, Some(chain)));
        self.push(NLM_F_CREATE, Message::new(Verb::NewRule, table, rule));
    }

    /// Puts a rule at the end of a chain.
    pub fn append(&mut self, table: Table, chain: &str, rule: &Rule) {
        let rule = rule.attributes(rule::place(table, Some(chain)));
        let message = Message::new(Verb::NewRule, table, rule);
        self.push(NLM_F_CREATE | NLM_F_APPEND, message);
    }

    /// Deletes all rules of a chain.
    pub fn flush(&mut self, table: Table, chain: &str) {
        let rules = rule::place(table, Some(chain));
        self.push(0, Message::new(Verb::DelRule, table, rules));
    }

    /// Deletes the rule of that number.
    pub fn delete_rule(&mut self, table: Table, chain: &str, handle: u64) {
        let rule = rule::place(table, Some(chain)).long(RULE_HANDLE, handle);
        self.push(0, Message::new(Verb::DelRule, table, rule));
    }

    /// Adds an element to a map; refused when there is one of that address.
    pub fn add_element(&mut self, table: Table, map: &str, element: &Element) {
        let element = element::list(table, map, [element.attributes()].iter());
        let message = Message::new(Verb::NewElements, table, element);
        self.push(NLM_F_CREATE | NLM_F_EXCL, message);
    }

    /// Deletes the elements of addresses from a map.
    pub fn delete_elements<'a>(
        &mut self,
        table: Table,
        map: &str,
        elements: impl Iterator<Item = &'a Element>,
    ) {
        let keys: Vec<_> = elements.map(|it| element::key(it.address)).collect();
        for keys in keys.chunks(MESSAGE_ELEMENTS) {
            let elements = element::list(table, map, keys.iter());
            self.push(0, Message::new(Verb::DelElements, table, elements));
        }
    }

    /// How many messages its datagram has.
    pub(super) fn size(&self) -> u32 {
        self.messages.len() as u32 + 2
    }

    /// The datagram, its messages numbered from `first` on.
    pub(super) fn into_bytes(self, generation: Generation, first: u32) -> Vec<u8> {
        let condition = Attributes::default().number(BATCH_GENERATION, generation.0);
        let begin = (0, Message::control(BATCH_BEGIN, condition));
        let end = (0, Message::control(BATCH_END, Attributes::default()));
        let mut changes = self.messages;
        if let Some((flags, _)) = changes.last_mut() {
            *flags |= NLM_F_ACK;
        }
        let (mut bytes, mut number) = (Vec::new(), first);
        for (flags, message) in [begin].into_iter().chain(changes).chain([end]) {
            message.write(&mut bytes, NLM_F_REQUEST | flags, number);
            number = number.wrapping_add(1);
        }
        bytes
    }
}

/// What names a chain.
pub(super) fn chain(table: Table, name: &str) -> Attributes {
    Attributes::default()
        .text(CHAIN_TABLE, table.name)
        .text(CHAIN_NAME, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nftables::TableFamily;

    #[test]
    fn a_transaction_is_bracketed_and_its_last_change_is_acknowledged() {
        let table = Table {
            family: TableFamily::Inet,
            name: "t",
        };
        let mut batch = Batch::default();
        batch.create_table(table);
        batch.delete_table(table);
        assert_eq!(batch.size(), 4);
        let bytes = batch.into_bytes(Generation(0x0102_0304), 40);
        let expected: [&[u8]; 4] = [
            &[
                28, 0, 0, 0, 16, 0, 1, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 8, 0, 1, 0, 1, 2,
                3, 4,
            ],
            &[
                28, 0, 0, 0, 0, 10, 1, 4, 41, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, b't', 0,
                0, 0,
            ],
            &[
                28, 0, 0, 0, 2, 10, 5, 0, 42, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, b't', 0,
                0, 0,
            ],
            &[
                20, 0, 0, 0, 17, 0, 1, 0, 43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10,
            ],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, expected.concat());
        }
    }
}
