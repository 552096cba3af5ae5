//! The attributes of nf_tables messages: a type, and a value that may contain attributes.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_TYPE_MASK, NlaBuffer, NlasIterator};

/// Attributes of a message or of another attribute, in their order. Numbers are in network byte order.
///
/// The kernel marks no attribute as nested and needs no mark (`nla_parse_nested_deprecated`, net/netlink.h): so what it
/// lists is, byte by byte, what it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.0.len();
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    pub fn text(self, kind: u16, text: &str) -> Attributes {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub fn number(self, kind: u16, number: u32) -> Attributes {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub fn long(self, kind: u16, number: u64) -> Attributes {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub fn nest(self, kind: u16, inner: Attributes) -> Attributes {
        self.bytes(kind, &inner.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in bytes, each with its kind.
pub(super) fn each(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute: NlaBuffer<&[u8]>| {
            let value = attribute.into_inner();
            let length = usize::from(u16::from_ne_bytes([value[0], value[1]]));
            (attribute.kind() & NLA_TYPE_MASK, &value[4..length])
        })
}

/// The value of the first attribute of a kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    each(bytes)
        .find(|(of, _)| *of == kind)
        .map(|(_, value)| value)
}

/// The value of the attribute at the end of a path.
pub(super) fn dig<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, kind| find(bytes, *kind))
}

/// A text without its terminator.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// The bytes of an address, four or sixteen.
pub(super) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An address: of IPv4 by four bytes, of IPv6 by sixteen.
pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}

/// A number of four bytes in network byte order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A number of eight bytes in network byte order.
pub(super) fn long(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let inner = Attributes::default().text(1, "abc").number(2, 0x0102_0304);
        let outer = Attributes::default().long(7, 9).nest(4, inner);
        let bytes = outer.as_bytes();
        assert_eq!(bytes.len(), 12 + 4 + 8 + 8);
        assert_eq!(dig(bytes, &[4, 1]).and_then(text), Some("abc"));
        assert_eq!(dig(bytes, &[4, 2]).and_then(number), Some(0x0102_0304));
        assert_eq!(find(bytes, 7).and_then(long), Some(9));
        assert_eq!(find(bytes, 3), None);
        assert_eq!(each(&bytes[..20]).count(), 1, "what is cut is left out");
    }
}
