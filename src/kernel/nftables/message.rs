//! Messages of nf_tables and nfnetlink.

use netlink_packet_core::{Emitable, NetlinkHeader};

use super::Table;
use super::attribute::Attributes;
use super::uapi::*;

/// The length of struct nfgenmsg (linux/netfilter/nfnetlink.h), in bytes.
pub(super) const NFGENMSG_LEN: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    message_type: u16,
    family: u8,
    resource_id: u16,
    attributes: Attributes,
}

impl Message {
    /// A message of nf_tables (NFT_MSG_*).
    pub fn new(message_type: u16, table: Table, attributes: Attributes) -> Message {
        Message {
            message_type: NFNL_SUBSYS_NFTABLES << 8 | message_type,
            family: table.family.nfproto(),
            resource_id: 0,
            attributes,
        }
    }

    /// The beginning or end of a batch for nf_tables (NFNL_MSG_BATCH_*).
    pub fn batch(message_type: u16, attributes: Attributes) -> Message {
        Message {
            message_type,
            family: NFPROTO_UNSPEC,
            resource_id: NFNL_SUBSYS_NFTABLES,
            attributes,
        }
    }

    /// Appends the encoded message to a datagram.
    pub fn emit(&self, datagram: &mut Vec<u8>, flags: u16, sequence_number: u32) {
        let attributes = self.attributes.as_bytes();
        let mut header = NetlinkHeader::default();
        header.message_type = self.message_type;
        header.flags = flags;
        header.sequence_number = sequence_number;
        header.length = (header.buffer_len() + NFGENMSG_LEN + attributes.len()) as u32;
        let start = datagram.len();
        datagram.resize(start + header.buffer_len(), 0);
        header.emit(&mut datagram[start..]);
        // struct nfgenmsg: nfgen_family, version, res_id.
        datagram.extend([self.family, NFNETLINK_V0]);
        datagram.extend(self.resource_id.to_be_bytes());
        datagram.extend(attributes);
    }
}
