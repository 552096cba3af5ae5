//! The messages of route netlink that are exchanged here (rtnetlink(7)), and no others.
//!
//! The library's own message type also knows traffic control, rules and statistics, which would be an eighth of the
//! binary.

use std::fmt;

use rtnetlink::packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable, Parseable,
};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;

/// A message to or from the kernel.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)]
pub(super) enum Message {
    NewLink(LinkMessage),
    DelLink(LinkMessage),
    GetLink(LinkMessage),
    SetLink(LinkMessage),
    NewAddress(AddressMessage),
    DelAddress(AddressMessage),
    GetAddress(AddressMessage),
    NewRoute(RouteMessage),
    GetRoute(RouteMessage),
    /// One from the kernel that is of another type, or cannot be read.
    Unread(u16),
}

// The types of linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

impl Message {
    /// What rtnetlink(7) calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Message::NewLink(_) => "RTM_NEWLINK",
            Message::DelLink(_) => "RTM_DELLINK",
            Message::GetLink(_) => "RTM_GETLINK",
            Message::SetLink(_) => "RTM_SETLINK",
            Message::NewAddress(_) => "RTM_NEWADDR",
            Message::DelAddress(_) => "RTM_DELADDR",
            Message::GetAddress(_) => "RTM_GETADDR",
            Message::NewRoute(_) => "RTM_NEWROUTE",
            Message::GetRoute(_) => "RTM_GETROUTE",
            Message::Unread(_) => "another message",
        }
    }

    fn content(&self) -> Option<&dyn Emitable> {
        match self {
            Message::NewLink(link)
            | Message::DelLink(link)
            | Message::GetLink(link)
            | Message::SetLink(link) => Some(link),
            Message::NewAddress(address)
            | Message::DelAddress(address)
            | Message::GetAddress(address) => Some(address),
            Message::NewRoute(route) | Message::GetRoute(route) => Some(route),
            Message::Unread(_) => None,
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message of type {}", self.message_type())
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Message::NewLink(_) => NEW_LINK,
            Message::DelLink(_) => DEL_LINK,
            Message::GetLink(_) => GET_LINK,
            Message::SetLink(_) => SET_LINK,
            Message::NewAddress(_) => NEW_ADDRESS,
            Message::DelAddress(_) => DEL_ADDRESS,
            Message::GetAddress(_) => GET_ADDRESS,
            Message::NewRoute(_) => NEW_ROUTE,
            Message::GetRoute(_) => GET_ROUTE,
            Message::Unread(kind) => *kind,
        }
    }

    fn buffer_len(&self) -> usize {
        self.content().map_or(0, Emitable::buffer_len)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some(content) = self.content() {
            content.emit(buffer);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    /// Never fails: an answer that is dropped would be waited for.
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Message, DecodeError> {
        let kind = header.message_type;
        let read = match kind {
            NEW_LINK => LinkMessage::parse(payload).map(Message::NewLink),
            NEW_ADDRESS => AddressMessage::parse(payload).map(Message::NewAddress),
            NEW_ROUTE => RouteMessage::parse(payload).map(Message::NewRoute),
            _ => return Ok(Message::Unread(kind)),
        };
        Ok(read.unwrap_or(Message::Unread(kind)))
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}
