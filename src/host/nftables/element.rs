//! Elements of maps from addresses to chains.

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, SetElementAttribute, SetElementList, SetElementMessage, Verdict,
    VerdictAttribute,
};

use super::Table;
use super::rule::{comment_of, userdata};

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
    /// The attributes of a new element.
    pub(super) fn attributes(&self) -> Vec<SetElementAttribute> {
        let verdict = DataAttribute::Verdict(vec![
            VerdictAttribute::Code(Verdict::Goto),
            VerdictAttribute::Chain(self.chain.clone()),
        ]);
        vec![
            key(self.address),
            SetElementAttribute::Data(verdict),
            SetElementAttribute::UserData(userdata(&self.comment)),
        ]
    }
}

/// What names an element.
pub(super) fn key(address: IpAddr) -> SetElementAttribute {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    SetElementAttribute::Key(DataAttribute::Value(bytes))
}

/// A message about one element of a map.
pub(super) fn list(
    table: Table,
    map: &str,
    element: Vec<SetElementAttribute>,
) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.name.to_owned()),
            SetElementList::Set(map.to_owned()),
            SetElementList::Elements(vec![ListAttribute::Element(element)]),
        ],
    }
}

/// The elements of an answer; what is not an address that leads to a chain is left out.
pub(super) fn parse(answer: SetElementMessage) -> Vec<Element> {
    let lists = answer.attributes.into_iter().filter_map(|it| match it {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    let elements = lists.flatten().filter_map(|it| match it {
        ListAttribute::Element(attributes) => element(attributes),
        _ => None,
    });
    elements.collect()
}

fn element(attributes: Vec<SetElementAttribute>) -> Option<Element> {
    let (mut address, mut chain, mut comment) = (None, None, String::new());
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => address = address_of(&key),
            SetElementAttribute::Data(DataAttribute::Verdict(verdict)) => {
                chain = verdict.into_iter().find_map(|it| match it {
                    VerdictAttribute::Chain(chain) => Some(chain),
                    _ => None,
                });
            }
            SetElementAttribute::UserData(data) => comment = comment_of(&data),
            _ => {}
        }
    }
    Some(Element {
        address: address?,
        chain: chain?,
        comment,
    })
}

fn address_of(key: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(key).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(key).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}
