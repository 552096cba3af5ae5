//! Netlink attributes: a type, and a value that may consist of attributes. Functions are named as in libmnl.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_TYPE_MASK, NlaBuffer, NlasIterator};

/// Encoded attributes, in order. Integers are in network byte order.
///
/// NLA_F_NESTED is never set: nf_tables does not need it (`nla_parse_nested_deprecated`, net/netlink.h) and does not
/// set it itself, so that expressions are listed byte by byte as they were created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn put(mut self, kind: u16, value: &[u8]) -> Attributes {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.0.len();
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    /// A string with its terminator.
    pub fn put_strz(self, kind: u16, text: &str) -> Attributes {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub fn put_be32(self, kind: u16, value: u32) -> Attributes {
        self.put(kind, &value.to_be_bytes())
    }

    pub fn put_be64(self, kind: u16, value: u64) -> Attributes {
        self.put(kind, &value.to_be_bytes())
    }

    pub fn put_nested(self, kind: u16, inner: Attributes) -> Attributes {
        self.put(kind, &inner.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The type and value of each attribute.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute: NlaBuffer<&[u8]>| {
            let value = attribute.into_inner();
            let length = usize::from(u16::from_ne_bytes([value[0], value[1]]));
            (attribute.kind() & NLA_TYPE_MASK, &value[4..length])
        })
}

/// The value of the first attribute of a type.
pub(super) fn get(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(of, _)| *of == kind)
        .map(|(_, value)| value)
}

/// The value of a nested attribute, by the types of the attributes that contain it and its own.
pub(super) fn get_path<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |bytes, kind| get(bytes, *kind))
}

pub(super) fn get_str(bytes: &[u8], kind: u16) -> Option<&str> {
    get(bytes, kind).and_then(as_str)
}

pub(super) fn get_be32(bytes: &[u8], kind: u16) -> Option<u32> {
    get(bytes, kind).and_then(as_be32)
}

pub(super) fn get_be64(bytes: &[u8], kind: u16) -> Option<u64> {
    let value = get(bytes, kind)?.try_into().ok()?;
    Some(u64::from_be_bytes(value))
}

/// A string, with or without its terminator.
pub(super) fn as_str(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

pub(super) fn as_be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// An address of four or sixteen bytes.
pub(super) fn as_ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}

pub(super) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_parsed_as_they_were_encoded() {
        let inner = Attributes::default()
            .put_strz(1, "abc")
            .put_be32(2, 0x0102_0304);
        let outer = Attributes::default().put_be64(7, 9).put_nested(4, inner);
        let bytes = outer.as_bytes();
        assert_eq!(bytes.len(), 12 + 4 + 8 + 8);
        assert_eq!(get_path(bytes, &[4, 1]).and_then(as_str), Some("abc"));
        assert_eq!(
            get_path(bytes, &[4, 2]).and_then(as_be32),
            Some(0x0102_0304)
        );
        assert_eq!(get_be64(bytes, 7), Some(9));
        assert_eq!(get(bytes, 3), None);
        let truncated = &bytes[..20];
        assert_eq!(
            attributes(truncated).count(),
            1,
            "a truncated one is ignored"
        );
    }
}
