//! The messages of route netlink (rtnetlink(7)), to the kernel and from it: a type, and bytes.
//!
//! The library's types for them know every attribute of every kind of link, which would be a tenth of the binary. What is
//! exchanged here is a dozen attributes, so links, addresses and routes write and read their own.

use std::convert::Infallible;
use std::fmt;

use rtnetlink::packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

use crate::host::attribute::Attributes;
use crate::net::Family;

/// What a message asks for (linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub(super) enum Verb {
    NewLink = 16,
    DelLink = 17,
    GetLink = 18,
    SetLink = 19,
    NewAddress = 20,
    DelAddress = 21,
    GetAddress = 22,
    NewRoute = 24,
    DelRoute = 25,
    GetRoute = 26,
    GetNeighbour = 30,
    GetNetnsId = 90,
}

impl Verb {
    const NAMES: [(Verb, &str); 12] = [
        (Verb::NewLink, "RTM_NEWLINK"),
        (Verb::DelLink, "RTM_DELLINK"),
        (Verb::GetLink, "RTM_GETLINK"),
        (Verb::SetLink, "RTM_SETLINK"),
        (Verb::NewAddress, "RTM_NEWADDR"),
        (Verb::DelAddress, "RTM_DELADDR"),
        (Verb::GetAddress, "RTM_GETADDR"),
        (Verb::NewRoute, "RTM_NEWROUTE"),
        (Verb::DelRoute, "RTM_DELROUTE"),
        (Verb::GetRoute, "RTM_GETROUTE"),
        (Verb::GetNeighbour, "RTM_GETNEIGH"),
        (Verb::GetNetnsId, "RTM_GETNSID"),
    ];
}

/// A message to or from the kernel, without its netlink header.
pub(super) struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    /// What rtnetlink(7) calls it.
    pub fn name(&self) -> &'static str {
        let named = |(verb, _): &&(Verb, _)| *verb as u16 == self.kind;
        Verb::NAMES
            .iter()
            .find(named)
            .map_or("another message", |(_, name)| name)
    }

    /// One to the kernel: the fixed part that its type has, then attributes.
    pub fn new(verb: Verb, header: &[u8], attributes: &Attributes) -> Message {
        Message {
            kind: verb as u16,
            body: [header, attributes.as_bytes()].concat(),
        }
    }

    /// The type of the messages that answer a question: that of the message which makes such a thing.
    pub fn answered_by(&self) -> Option<u16> {
        let questions = [
            Verb::GetLink,
            Verb::GetAddress,
            Verb::GetRoute,
            Verb::GetNeighbour,
            Verb::GetNetnsId,
        ];
        let is_question = questions.iter().any(|verb| *verb as u16 == self.kind);
        is_question.then(|| self.kind - 2)
    }

    /// What there is of an answer of that type; `None` when it is of another.
    pub fn answer(self, wanted: Option<u16>) -> Option<Vec<u8>> {
        wanted
            .is_none_or(|wanted| wanted == self.kind)
            .then_some(self.body)
    }
}

/// The number of a family (AF_INET, AF_INET6; bits/socket.h).
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message of type {}", self.kind)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Message, Infallible> {
        Ok(Message {
            kind: header.message_type,
            body: payload.to_vec(),
        })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}
