//! Messages of traffic control (linux/pkt_sched.h), and requests that change it.

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};
use nix::libc::{RTM_DELQDISC, RTM_GETQDISC, RTM_GETTCLASS, RTM_GETTFILTER};

use super::message::{Message, Nla, attributes};

/// TCA_OPTIONS.
const OPTIONS: u16 = 2;

/// TC_LINKLAYER_ETHERNET: the kernel computes transmission times itself, without a table (`psched_ratecfg_precompute`).
const LINKLAYER_ETHERNET: u8 = 1;

/// A number with which qdiscs, classes and filters refer to each other (tc(8), "HANDLES").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u32);

impl Handle {
    pub const ROOT: Handle = Handle(0xffff_ffff);
    /// The parent of the qdiscs `ingress` and `clsact`.
    pub const INGRESS: Handle = Handle(0xffff_fff1);
    /// The qdisc `ingress` or `clsact`.
    pub const INGRESS_QDISC: Handle = Handle(0xffff_0000);
    /// The parent of the ingress filters of a `clsact`.
    pub const CLSACT_INGRESS: Handle = Handle(0xffff_fff2);

    pub const fn new(major: u16, minor: u16) -> Handle {
        Handle((major as u32) << 16 | minor as u32)
    }
}

/// A request that changes qdiscs, classes or filters.
pub struct TcChange {
    pub(super) message_type: u16,
    pub(super) flags: u16,
    pub(super) message: TcMessage,
}

impl TcChange {
    /// Creates an object; refused with [`super::NetlinkError::Exists`] if it exists.
    pub(super) fn create(message_type: u16, message: TcMessage) -> TcChange {
        TcChange {
            message_type,
            flags: NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            message,
        }
    }

    pub fn delete_qdisc(link: u32, parent: Handle) -> TcChange {
        TcChange {
            message_type: RTM_DELQDISC,
            flags: NLM_F_ACK,
            message: tc_message(link, parent, Handle(0)),
        }
    }
}

/// A message about one kind of object.
pub(super) struct Tc<const GET: u16>(pub TcMessage);

pub(super) type QdiscMessage = Tc<RTM_GETQDISC>;
pub(super) type ClassMessage = Tc<RTM_GETTCLASS>;
pub(super) type FilterMessage = Tc<RTM_GETTFILTER>;

impl<const GET: u16> Emitable for Tc<GET> {
    fn buffer_len(&self) -> usize {
        self.0.buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.emit(buffer);
    }
}

impl<const GET: u16> Message for Tc<GET> {
    const GET: u16 = GET;

    fn decode(bytes: &[u8]) -> Option<Self> {
        let header = TcHeader::parse(bytes).ok()?;
        let mut kind = String::new();
        let decode = |nla: &Nla| {
            use netlink_packet_core::ParseableParametrized;
            let attribute = TcAttribute::parse_with_param(nla, kind.as_str()).ok()?;
            match &attribute {
                TcAttribute::Kind(name) => kind.clone_from(name),
                TcAttribute::Options(_) => {}
                _ => return None,
            }
            Some(attribute)
        };
        let attributes = attributes(bytes, &header, decode);
        Some(Tc(TcMessage::from_parts(header, attributes)))
    }
}

pub(super) fn tc_message(link: u32, parent: Handle, handle: Handle) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = TcHandle::from(parent.0);
    message.header.handle = TcHandle::from(handle.0);
    message
}

/// A message about an object of a kind, with its options.
pub(super) fn tc_object(mut message: TcMessage, kind: &str, options: Vec<u8>) -> TcMessage {
    message.attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Other(DefaultNla::new(OPTIONS, options)),
    ];
    message
}

/// Encoded attributes.
pub(super) fn nested(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let encode = |(kind, value): &(u16, Vec<u8>)| DefaultNla::new(*kind, value.clone());
    let attributes: Vec<DefaultNla> = attributes.iter().map(encode).collect();
    let mut bytes = vec![0; attributes.as_slice().buffer_len()];
    attributes.as_slice().emit(&mut bytes);
    bytes
}

/// `struct tc_ratespec`. A larger rate is an attribute in addition; the kernel uses the larger one.
pub(super) fn rate_specification(rate: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = LINKLAYER_ETHERNET;
    let rate = u32::try_from(rate).unwrap_or(u32::MAX);
    bytes[8..].copy_from_slice(&rate.to_ne_bytes());
    bytes
}

/// The bytes of a structure that consists of u32.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
