//! What masquerading there is on the whole node, looked at once: for who must compare it with many attachments.

use std::collections::BTreeSet;
use std::fmt;

use crate::cni::ValidAttachments;
use crate::cni::request::Id;
use crate::error::Error;
use crate::host::nftables::{Layer, Nftables, Table};
use crate::host::{process, xtables};
use crate::masquerade::iptables::{Iptables, LIMIT};
use crate::masquerade::label::Label;
use crate::masquerade::nftables::{self, Mark};
use crate::masquerade::rules::{Chain, Listing};
use crate::masquerade::{Backend, Masquerade, Policy};
use crate::net::{Cidr, Family};

/// The rules of the nat tables, the elements of our maps and the rules of the reference's table.
#[derive(Debug, Default)]
pub struct Survey {
    listings: Vec<(Family, Listing)>,
    marks: Vec<Mark>,
    /// What could not be looked at.
    pub failures: Vec<Error>,
}

/// Masquerading of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// The name of its network.
    pub network: String,
    /// Its container, as far as the comment that tells it is not cut.
    pub container: String,
    /// The chain or element, for a person.
    pub what: String,
    /// What it was made with.
    pub backend: Backend,
    key: String,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.what, self.container)
    }
}

/// A table of iptables as `iptables-save` prints it; `None` where that is not installed or fails.
pub fn iptables_table(family: Family, table: &'static str) -> Option<String> {
    let iptables = Iptables::find(family).filter(|_| may_have_table(family, table));
    iptables?.save(table).ok()
}

/// Whether one of the variants may have a table of that name. The legacy one makes the table that it is asked to list, and
/// who only looks makes none.
fn may_have_table(family: Family, name: &'static str) -> bool {
    let table = Table {
        layer: Layer::Ip(family),
        name,
    };
    // Who cannot tell says yes.
    let may = |it: Nftables| it.table(table).map_or(true, |uses| uses.is_some());
    xtables::has_table(family, name) || Nftables::open().is_ok_and(may)
}

/// The rules of nat tables that iptables-legacy holds, and those that iptables-nft does, of IPv4. Neither is looked for
/// where the kernel says that it has no such table: looking would make one.
pub fn iptables_variants() -> (Vec<String>, Vec<String>) {
    let family = Family::V4;
    let rules = |program: &str| {
        let output = process::find(program)
            .and_then(|program| process::run(&program, &["-t", "nat"], &[], b"", LIMIT).ok());
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let lines = text.iter().flat_map(|text| text.lines());
        lines
            .filter(|line| line.starts_with("-A "))
            .map(str::to_owned)
            .collect()
    };
    let legacy = match xtables::has_table(family, "nat") {
        true => rules("iptables-legacy-save"),
        false => Vec::new(),
    };
    let table = Table {
        layer: Layer::Ip(family),
        name: "nat",
    };
    let has_nft = Nftables::open().is_ok_and(|it| it.table(table).is_ok_and(|uses| uses.is_some()));
    let nft = match has_nft {
        true => rules("iptables-nft-save"),
        false => Vec::new(),
    };
    (legacy, nft)
}

impl Survey {
    /// Looks at both families and backends.
    pub fn take() -> Survey {
        let mut survey = Survey::default();
        for family in Family::BOTH {
            let iptables = Iptables::find(family).filter(|_| may_have_table(family, "nat"));
            match iptables.map(|iptables| iptables.list()) {
                Some(Ok(listing)) => survey.listings.push((family, listing)),
                Some(Err(error)) => survey.failures.push(error),
                None => {}
            }
        }
        // A kernel without nf_tables holds nothing there.
        if let Ok(nftables) = Nftables::open() {
            match nftables::standing(&nftables) {
                Ok(marks) => survey.marks = marks,
                Err(error) => survey.failures.push(error),
            }
        }
        survey
    }

    /// The first of an attachment's addresses that is not masqueraded.
    pub fn lacking(
        &self,
        masquerade: &Masquerade,
        policy: &Policy,
        addresses: &[Cidr],
    ) -> Option<Cidr> {
        let in_map = |address: &Cidr| {
            let is_of = |mark: &Mark| mark.address.is_none_or(|of| of == address.address());
            let mut marks = self.marks.iter().filter(|mark| mark.is_in_force);
            marks.any(|mark| is_of(mark) && masquerade.label.marks(&mark.comment))
        };
        let in_table = |address: &Cidr| {
            let mut listings = self.listings.iter();
            listings.any(|(family, listing)| {
                *family == address.family()
                    && masquerade
                        .chain
                        .lacking(&[*address], policy, listing)
                        .is_none()
            })
        };
        let is_lacking = |address: &Cidr| !in_map(address) && !in_table(address);
        addresses.iter().copied().find(is_lacking)
    }

    /// All masquerading of containers, whichever plugin made it.
    pub fn standing(&self) -> BTreeSet<Standing> {
        let in_tables = self.listings.iter().flat_map(|(family, listing)| {
            listing
                .containers()
                .into_iter()
                .map(move |(chain, network, container)| Standing {
                    what: format!("chain {chain} in the nat table of {family}"),
                    backend: Backend::Iptables,
                    network,
                    container,
                    key: chain,
                })
        });
        let in_maps = self.marks.iter().map(
            |Mark {
                 address, comment, ..
             }| {
                let (network, container) = Label::tells(comment);
                Standing {
                    what: match address {
                        Some(address) => format!("element {address} in table inet gangplank"),
                        None => "rule in table inet cni_plugins_masquerade".to_owned(),
                    },
                    backend: Backend::Nftables,
                    network: network.to_owned(),
                    container: container.to_owned(),
                    key: comment.clone(),
                }
            },
        );
        in_tables.chain(in_maps).collect()
    }
}

impl Standing {
    /// The name of its chain, or its comment in a table of nftables.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is of one of these attachments of its network. Comments may have been cut, so names decide.
    pub fn is_of(&self, network: &Id, valid: &ValidAttachments) -> bool {
        match self.backend {
            Backend::Iptables => valid
                .containers()
                .any(|container| Chain::of(network, container).name() == self.key),
            Backend::Nftables => valid
                .all()
                .any(|who| Label::of(network, &who).marks(&self.key)),
        }
    }
}
