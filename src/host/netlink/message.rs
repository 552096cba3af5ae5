//! The messages of route netlink that are exchanged here (rtnetlink(7)), and no others.
//!
//! Requests are the library's. Answers stay bytes, of which links, addresses and routes read the few attributes that
//! are wanted: the library reads all of them, which takes an eighth of the binary.

use std::convert::Infallible;
use std::fmt;

use rtnetlink::packet_core::{
    Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;

/// A message to or from the kernel.
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
    DelRoute(RouteMessage),
    GetRoute(RouteMessage),
    /// One from the kernel: its type, and what is behind the netlink header.
    Answer(u16, Vec<u8>),
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
const DEL_ROUTE: u16 = 25;
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
            Message::DelRoute(_) => "RTM_DELROUTE",
            Message::GetRoute(_) => "RTM_GETROUTE",
            Message::Answer(..) => "an answer",
        }
    }

    /// The type of the messages that answer a question.
    pub fn answered_by(&self) -> Option<u16> {
        match self {
            Message::GetLink(_) => Some(NEW_LINK),
            Message::GetAddress(_) => Some(NEW_ADDRESS),
            Message::GetRoute(_) => Some(NEW_ROUTE),
            _ => None,
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
            Message::NewRoute(route) | Message::DelRoute(route) | Message::GetRoute(route) => {
                Some(route)
            }
            Message::Answer(..) => None,
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
            Message::DelRoute(_) => DEL_ROUTE,
            Message::GetRoute(_) => GET_ROUTE,
            Message::Answer(kind, _) => *kind,
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
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Message, Infallible> {
        Ok(Message::Answer(header.message_type, payload.to_vec()))
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}
