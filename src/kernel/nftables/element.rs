//! Elements of maps from addresses to chains.

use std::net::IpAddr;

use super::Table;
use super::attribute::{Attributes, dig, each, find, ip, text};
use super::comment::{comment_of, userdata};
use super::expression::{GOTO, verdict};

/// What a message about elements holds (enum nft_set_elem_list_attributes), and a list of anything (nft_list_attributes).
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;

/// What an element holds (enum nft_set_elem_attributes).
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_USERDATA: u16 = 6;

/// What data holds (enum nft_data_attributes), and a verdict (nft_verdict_attributes).
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;

/// An element of a map: packets of an address go on in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Which address.
    pub address: IpAddr,
    /// Which chain.
    pub chain: String,
    /// What the element says of itself.
    pub comment: String,
}

impl Element {
    pub(super) fn attributes(&self) -> Attributes {
        key(self.address)
            .nest(ELEMENT_DATA, verdict(GOTO, Some(&self.chain)))
            .bytes(ELEMENT_USERDATA, &userdata(&self.comment))
    }
}

/// What names an element.
pub(super) fn key(address: IpAddr) -> Attributes {
    let value = Attributes::default();
    let value = match address {
        IpAddr::V4(address) => value.bytes(DATA_VALUE, &address.octets()),
        IpAddr::V6(address) => value.bytes(DATA_VALUE, &address.octets()),
    };
    Attributes::default().nest(ELEMENT_KEY, value)
}

/// What names a map.
pub(super) fn map(table: Table, name: &str) -> Attributes {
    Attributes::default()
        .text(LIST_TABLE, table.name)
        .text(LIST_SET, name)
}

/// What names elements of a map.
pub(super) fn list<'a>(
    table: Table,
    name: &str,
    elements: impl Iterator<Item = &'a Attributes>,
) -> Attributes {
    let list = elements.fold(Attributes::default(), |list, element| {
        list.bytes(LIST_ELEMENT, element.as_bytes())
    });
    map(table, name).nest(LIST_ELEMENTS, list)
}

/// The elements of an answer; what is not an address that leads to a chain is left out.
pub fn parse(answer: &[u8]) -> Vec<Element> {
    let elements = find(answer, LIST_ELEMENTS).unwrap_or_default();
    each(elements)
        .filter_map(|(_, element)| {
            let chain = dig(element, &[ELEMENT_DATA, DATA_VERDICT, VERDICT_CHAIN])?;
            Some(Element {
                address: ip(dig(element, &[ELEMENT_KEY, DATA_VALUE])?)?,
                chain: text(chain)?.to_owned(),
                comment: comment_of(find(element, ELEMENT_USERDATA).unwrap_or_default()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nftables::TableFamily;

    #[test]
    fn an_element_is_read_as_it_was_written() {
        let table = Table {
            family: TableFamily::Inet,
            name: "t",
        };
        for address in ["10.1.2.3", "fd00::1"] {
            let element = Element {
                address: address.parse().unwrap(),
                chain: "net-a".to_owned(),
                comment: "whose it is".to_owned(),
            };
            let message = list(table, "m", [element.attributes()].iter());
            assert_eq!(parse(message.as_bytes()), [element]);
        }
        assert_eq!(parse(&[]), []);
    }
}
