//! Elements of maps from addresses to chains.

use std::net::IpAddr;

use super::Table;
use super::attribute::{Attributes, as_ip, as_str, attributes, get, get_path, ip_bytes};
use super::comment::{comment_of, userdata};
use super::expression::{data_value, verdict};
use super::uapi::*;

/// An element of a map: packets with this address continue in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub address: IpAddr,
    pub chain: String,
    pub comment: String,
}

impl Element {
    pub(super) fn attributes(&self) -> Attributes {
        key(self.address)
            .put_nested(NFTA_SET_ELEM_DATA, verdict(NFT_GOTO, Some(&self.chain)))
            .put(NFTA_SET_ELEM_USERDATA, &userdata(&self.comment))
    }
}

/// The attributes that identify an element.
pub(super) fn key(address: IpAddr) -> Attributes {
    Attributes::default().put_nested(NFTA_SET_ELEM_KEY, data_value(&ip_bytes(address)))
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

/// The elements of an answer, without those that are not an address with a chain.
pub fn parse(answer: &[u8]) -> Vec<Element> {
    let elements = get(answer, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(elements)
        .filter_map(|(_, element)| {
            let address = get_path(element, &[NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE])?;
            let chain = [NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN];
            Some(Element {
                address: as_ip(address)?,
                chain: as_str(get_path(element, &chain)?)?.to_owned(),
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
            let element = Element {
                address: address.parse().unwrap(),
                chain: "net-a".to_owned(),
                comment: "its attachment".to_owned(),
            };
            let message = list(table, "m", [element.attributes()].iter());
            assert_eq!(parse(message.as_bytes()), [element]);
        }
        assert_eq!(parse(&[]), []);
    }
}
