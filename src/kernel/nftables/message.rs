//! The messages of nf_tables: what they are called, and how they stand in a datagram.

use netlink_packet_core::{Emitable, NetlinkHeader};

use super::Table;
use super::attribute::Attributes;

/// The subsystem in the upper byte of a message's type (NFNL_SUBSYS_NFTABLES, linux/netfilter/nfnetlink.h).
pub(super) const SUBSYSTEM: u16 = 10;

/// The family of messages that are about none (NFPROTO_UNSPEC, linux/netfilter.h).
pub(super) const NO_FAMILY: u8 = 0;

/// The length of `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
pub(super) const HEADER_SIZE: usize = 4;

/// What a message asks for (enum nf_tables_msg_types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    NewElements = 12,
    GetElements = 13,
    DelElements = 14,
    GetGeneration = 16,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Message {
    pub fn new(verb: Verb, table: Table, attributes: Attributes) -> Message {
        Message {
            kind: SUBSYSTEM << 8 | verb as u16,
            family: table.family.number(),
            resource: 0,
            attributes,
        }
    }

    /// A message of nfnetlink itself, about a subsystem.
    pub fn control(kind: u16, attributes: Attributes) -> Message {
        Message {
            kind,
            family: NO_FAMILY,
            resource: SUBSYSTEM,
            attributes,
        }
    }

    /// Adds it to a datagram.
    pub fn write(&self, datagram: &mut Vec<u8>, flags: u16, sequence: u32) {
        let attributes = self.attributes.as_bytes();
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        header.flags = flags;
        header.sequence_number = sequence;
        header.length = (header.buffer_len() + HEADER_SIZE + attributes.len()) as u32;
        let start = datagram.len();
        datagram.resize(start + header.buffer_len(), 0);
        header.emit(&mut datagram[start..]);
        // struct nfgenmsg: family, version (NFNETLINK_V0), resource.
        datagram.extend([self.family, 0]);
        datagram.extend(self.resource.to_be_bytes());
        datagram.extend(attributes);
    }
}
