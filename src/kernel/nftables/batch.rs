//! Batches: messages that nf_tables applies in one transaction.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use super::attribute::Attributes;
use super::element::{self, Element, MapType};
use super::message::Message;
use super::rule::{Rule, rules_of};
use super::uapi::*;
use super::{Generation, Table};

/// The number of elements in one message: an attribute has at most 64 KiB (`nla_len`), and of the longest keys, an IPv6
/// address with protocol and port, each takes 32 bytes.
const MAX_ELEMENTS: usize = 2000;

/// A chain with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub name: &'static str,
    /// The type: `filter` or `nat`.
    pub kind: &'static str,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Hook::Prerouting => NF_INET_PRE_ROUTING,
            Hook::Forward => NF_INET_FORWARD,
            Hook::Output => NF_INET_LOCAL_OUT,
            Hook::Postrouting => NF_INET_POST_ROUTING,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// With their flags.
    messages: Vec<(u16, Message)>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, flags: u16, message: Message) {
        self.messages.push((flags, message));
    }

    /// Adds the messages of another batch, which creates no maps.
    pub fn append_batch(&mut self, other: Batch) {
        self.messages.extend(other.messages);
    }

    /// Creates a table unless it exists.
    pub fn create_table(&mut self, table: Table) {
        let name = Attributes::default().put_strz(NFTA_TABLE_NAME, table.name);
        self.push(NLM_F_CREATE, Message::new(NFT_MSG_NEWTABLE, table, name));
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, table: Table) {
        let name = Attributes::default().put_strz(NFTA_TABLE_NAME, table.name);
        self.push(0, Message::new(NFT_MSG_DELTABLE, table, name));
    }

    /// Creates a map unless it exists.
    pub fn create_map(&mut self, table: Table, name: &str, map_type: MapType) {
        // The ID identifies the map within this batch.
        let map = map_type.attributes(table, name);
        let map = map.put_be32(NFTA_SET_ID, self.messages.len() as u32);
        self.push(NLM_F_CREATE, Message::new(NFT_MSG_NEWSET, table, map));
    }

    /// Deletes a map; refused if a rule uses it.
    pub fn delete_map(&mut self, table: Table, name: &str) {
        let map = Attributes::default()
            .put_strz(NFTA_SET_TABLE, table.name)
            .put_strz(NFTA_SET_NAME, name);
        self.push(0, Message::new(NFT_MSG_DELSET, table, map));
    }

    /// Creates a base chain unless it exists.
    pub fn create_base_chain(&mut self, table: Table, base: BaseChain) {
        let hook = Attributes::default()
            .put_be32(NFTA_HOOK_HOOKNUM, base.hook.number())
            .put_be32(NFTA_HOOK_PRIORITY, base.priority.cast_unsigned());
        let chain = chain(table, base.name)
            .put_nested(NFTA_CHAIN_HOOK, hook)
            .put_strz(NFTA_CHAIN_TYPE, base.kind);
        self.push(NLM_F_CREATE, Message::new(NFT_MSG_NEWCHAIN, table, chain));
    }

    /// Creates a chain without a hook unless it exists.
    pub fn create_chain(&mut self, table: Table, name: &str) {
        let chain = chain(table, name);
        self.push(NLM_F_CREATE, Message::new(NFT_MSG_NEWCHAIN, table, chain));
    }

    /// Deletes a chain with its rules; refused if a jump rule or map element refers to it.
    pub fn delete_chain(&mut self, table: Table, name: &str) {
        let chain = chain(table, name);
        self.push(0, Message::new(NFT_MSG_DELCHAIN, table, chain));
    }

    /// Adds a rule at the beginning of a chain.
    pub fn prepend(&mut self, table: Table, chain: &str, rule: &Rule) {
        let rule = rule.attributes(rules_of(table, Some(chain)));
        self.push(NLM_F_CREATE, Message::new(NFT_MSG_NEWRULE, table, rule));
    }

    /// Adds a rule at the end of a chain.
    pub fn append(&mut self, table: Table, chain: &str, rule: &Rule) {
        let rule = rule.attributes(rules_of(table, Some(chain)));
        let message = Message::new(NFT_MSG_NEWRULE, table, rule);
        self.push(NLM_F_CREATE | NLM_F_APPEND, message);
    }

    /// Deletes all rules of a chain.
    pub fn flush(&mut self, table: Table, chain: &str) {
        let rules = rules_of(table, Some(chain));
        self.push(0, Message::new(NFT_MSG_DELRULE, table, rules));
    }

    pub fn delete_rule(&mut self, table: Table, chain: &str, handle: u64) {
        let rule = rules_of(table, Some(chain)).put_be64(NFTA_RULE_HANDLE, handle);
        self.push(0, Message::new(NFT_MSG_DELRULE, table, rule));
    }

    /// Adds an element to a map; refused if the map has one with this key.
    pub fn add_element(&mut self, table: Table, map: &str, element: &Element) {
        let element = element::list(table, map, [element.attributes()].iter());
        let message = Message::new(NFT_MSG_NEWSETELEM, table, element);
        self.push(NLM_F_CREATE | NLM_F_EXCL, message);
    }

    /// Deletes elements from a map; refused if one does not exist.
    pub fn delete_elements<'a>(
        &mut self,
        table: Table,
        map: &str,
        elements: impl Iterator<Item = &'a Element>,
    ) {
        let keys: Vec<_> = elements.map(|it| element::key(&it.key)).collect();
        for keys in keys.chunks(MAX_ELEMENTS) {
            let elements = element::list(table, map, keys.iter());
            self.push(0, Message::new(NFT_MSG_DELSETELEM, table, elements));
        }
    }

    /// The number of messages, including the beginning and end of the batch.
    pub(super) fn message_count(&self) -> u32 {
        self.messages.len() as u32 + 2
    }

    /// The datagram; its messages have the sequence numbers from `first` on.
    pub(super) fn into_bytes(self, generation: Generation, first: u32) -> Vec<u8> {
        let condition = Attributes::default().put_be32(NFNL_BATCH_GENID, generation.0);
        let begin = (0, Message::batch(NFNL_MSG_BATCH_BEGIN, condition));
        let end = (0, Message::batch(NFNL_MSG_BATCH_END, Attributes::default()));
        let mut changes = self.messages;
        if let Some((flags, _)) = changes.last_mut() {
            *flags |= NLM_F_ACK;
        }
        let (mut bytes, mut number) = (Vec::new(), first);
        for (flags, message) in [begin].into_iter().chain(changes).chain([end]) {
            message.emit(&mut bytes, NLM_F_REQUEST | flags, number);
            number = number.wrapping_add(1);
        }
        bytes
    }
}

/// The attributes that identify a chain.
pub(super) fn chain(table: Table, name: &str) -> Attributes {
    Attributes::default()
        .put_strz(NFTA_CHAIN_TABLE, table.name)
        .put_strz(NFTA_CHAIN_NAME, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nftables::TableFamily;

    #[test]
    fn a_batch_has_a_beginning_and_an_end_and_asks_to_acknowledge_its_last_change() {
        let table = Table {
            family: TableFamily::Inet,
            name: "t",
        };
        let mut batch = Batch::default();
        batch.create_table(table);
        batch.delete_table(table);
        assert_eq!(batch.message_count(), 4);
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
