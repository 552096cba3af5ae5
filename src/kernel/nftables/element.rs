//! Maps, and their elements.

use std::net::IpAddr;

use super::Table;
use super::attribute::{Attributes, as_ip, as_str, attributes, get, get_path, ip_bytes};
use super::comment::{comment_of, userdata};
use super::expression::{data_value, verdict};
use super::uapi::*;
use crate::net::Family;

/// The type of a field of a key or value. Only nft(8) uses the number (nftables, include/datatype.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Ipv4 = 7,
    Ipv6 = 8,
    /// inet_proto
    Protocol = 12,
    /// inet_service
    Port = 13,
    /// ifname
    Interface = 41,
}

impl Field {
    /// One address of a family.
    pub fn address(family: Family) -> &'static [Field] {
        match family {
            Family::V4 => &[Field::Ipv4],
            Family::V6 => &[Field::Ipv6],
        }
    }

    /// In bytes.
    fn length(self) -> u32 {
        match self {
            Field::Ipv4 => 4,
            Field::Ipv6 | Field::Interface => 16,
            Field::Protocol => 1,
            Field::Port => 2,
        }
    }
}

/// The type of a map. Several fields are a concatenation, in which each has a multiple of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapType {
    pub key: &'static [Field],
    /// Empty for verdicts.
    pub value: &'static [Field],
}

impl MapType {
    /// The attributes of a new map.
    pub(super) fn attributes(self, table: Table, name: &str) -> Attributes {
        let map = Attributes::default()
            .put_strz(NFTA_SET_TABLE, table.name)
            .put_strz(NFTA_SET_NAME, name)
            .put_be32(NFTA_SET_FLAGS, NFT_SET_MAP)
            .put_be32(NFTA_SET_KEY_TYPE, number_of(self.key))
            .put_be32(NFTA_SET_KEY_LEN, length_of(self.key));
        match self.value {
            [] => map.put_be32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT),
            value => map
                .put_be32(NFTA_SET_DATA_TYPE, number_of(value))
                .put_be32(NFTA_SET_DATA_LEN, length_of(value)),
        }
    }
}

/// nft(8) gives six bits to each type of a concatenation (TYPE_BITS, nftables, include/datatype.h).
fn number_of(fields: &[Field]) -> u32 {
    fields
        .iter()
        .fold(0, |number, field| number << 6 | *field as u32)
}

fn length_of(fields: &[Field]) -> u32 {
    match fields {
        [field] => field.length(),
        fields => fields
            .iter()
            .map(|it| it.length().next_multiple_of(4))
            .sum(),
    }
}

/// A concatenation of fields, each padded to a multiple of four bytes.
pub fn concatenation(fields: &[&[u8]]) -> Vec<u8> {
    let padded = fields.iter().flat_map(|field| {
        let mut field = field.to_vec();
        field.resize(field.len().next_multiple_of(4), 0);
        field
    });
    padded.collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The packet continues in the chain.
    Chain(String),
    Fields(Vec<u8>),
}

/// An element of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: Value,
    pub comment: String,
}

impl Element {
    /// An element of a map from addresses to chains.
    pub fn to_chain(address: IpAddr, chain: &str, comment: &str) -> Element {
        Element {
            key: address_key(address),
            value: Value::Chain(chain.to_owned()),
            comment: comment.to_owned(),
        }
    }

    /// The key, if it is an address.
    pub fn address(&self) -> Option<IpAddr> {
        as_ip(&self.key)
    }

    /// The value, if it is a chain.
    pub fn chain(&self) -> Option<&str> {
        match &self.value {
            Value::Chain(chain) => Some(chain),
            Value::Fields(_) => None,
        }
    }

    pub(super) fn attributes(&self) -> Attributes {
        let value = match &self.value {
            Value::Chain(chain) => verdict(NFT_GOTO, Some(chain)),
            Value::Fields(bytes) => data_value(bytes),
        };
        key(&self.key)
            .put_nested(NFTA_SET_ELEM_DATA, value)
            .put(NFTA_SET_ELEM_USERDATA, &userdata(&self.comment))
    }
}

/// The key of a map from addresses.
pub fn address_key(address: IpAddr) -> Vec<u8> {
    ip_bytes(address)
}

/// The attributes that identify an element.
pub(super) fn key(key: &[u8]) -> Attributes {
    Attributes::default().put_nested(NFTA_SET_ELEM_KEY, data_value(key))
}

/// The attributes that identify a map.
pub(super) fn map(table: Table, name: &str) -> Attributes {
    Attributes::default()
        .put_strz(NFTA_SET_ELEM_LIST_TABLE, table.name)
        .put_strz(NFTA_SET_ELEM_LIST_SET, name)
}

/// A list of elements of a map.
pub(super) fn list<'a>(
    table: Table,
    name: &str,
    elements: impl Iterator<Item = &'a Attributes>,
) -> Attributes {
    let list = elements.fold(Attributes::default(), |list, element| {
        list.put(NFTA_LIST_ELEM, element.as_bytes())
    });
    map(table, name).put_nested(NFTA_SET_ELEM_LIST_ELEMENTS, list)
}

/// The elements of an answer.
pub fn parse(answer: &[u8]) -> Vec<Element> {
    let elements = get(answer, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(elements)
        .filter_map(|(_, element)| {
            let value = |path: &[u16]| get_path(element, &[&[NFTA_SET_ELEM_DATA], path].concat());
            let chain = value(&[NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN]);
            Some(Element {
                key: get_path(element, &[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE])?.to_vec(),
                value: match chain {
                    Some(chain) => Value::Chain(as_str(chain)?.to_owned()),
                    None => Value::Fields(value(&[NFTA_DATA_VALUE])?.to_vec()),
                },
                comment: comment_of(get(element, NFTA_SET_ELEM_USERDATA).unwrap_or_default()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nftables::TableFamily;

    #[test]
    fn an_element_is_parsed_as_it_was_encoded() {
        let table = Table {
            family: TableFamily::Inet,
            name: "t",
        };
        for address in ["10.1.2.3", "fd00::1"] {
            let element = Element::to_chain(address.parse().unwrap(), "net-a", "its attachment");
            let value = Value::Fields(concatenation(&[&[10, 1, 0, 2], &[0, 80]]));
            for element in [element.clone(), Element { value, ..element }] {
                let message = list(table, "m", [element.attributes()].iter());
                assert_eq!(parse(message.as_bytes()), [element]);
            }
        }
        assert_eq!(parse(&[]), []);
    }
}
