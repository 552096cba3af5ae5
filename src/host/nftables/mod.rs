//! The netlink of nf_tables, blocking: transactions and questions, on a socket in the thread's own namespace.
//!
//! The kernel's side is net/netfilter/nfnetlink.c and nf_tables_api.c; numbers without a source are those of
//! linux/netfilter/nf_tables.h. No program is run, and what was asked is answered before the call returns.

mod batch;
mod element;
mod rule;
mod socket;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenAttribute, GenMessage, NfTablesMessage, RuleAttribute,
    RuleMessage, SetElementList, SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterProtoFamily};
use nix::errno::Errno;
use rtnetlink::packet_core::Parseable;

use crate::net::Family;

pub use batch::{BaseChain, Batch, HookPoint};
pub use element::Element;
pub use rule::{Action, Match, Rule, RuleEntry};
use socket::{ANSWER_LIMIT, Socket};

/// How long a change is tried again because somebody else was faster.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// NFNETLINK_V0 (linux/netfilter/nfnetlink.h).
const VERSION: u8 = 0;

/// What the kernel refused, as far as callers tell refusals apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftablesError {
    /// ENOENT: what was named is not there.
    #[error("it does not exist")]
    NotFound,
    /// EEXIST.
    #[error("it exists already")]
    Exists,
    /// EBUSY: it is referred to.
    #[error("it is in use")]
    Busy,
    /// ERESTART, EINTR: somebody else changed the ruleset meanwhile.
    #[error("others change the ruleset all the time")]
    Changed,
    /// EPERM, EACCES.
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    Denied,
    /// The kernel has no nf_tables, or not this part of it.
    #[error("this kernel has no nf_tables, or not all that is needed of it ({})", .0.desc())]
    Unsupported(Errno),
    /// Any other errno.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", ANSWER_LIMIT.as_secs())]
    NoAnswer,
    /// The kernel answered something else.
    #[error("the kernel's answer is not understood")]
    Garbled,
}

impl NftablesError {
    fn of(errno: Errno) -> NftablesError {
        match errno {
            Errno::ENOENT => NftablesError::NotFound,
            Errno::EEXIST => NftablesError::Exists,
            Errno::EBUSY => NftablesError::Busy,
            Errno::ERESTART | Errno::EINTR => NftablesError::Changed,
            Errno::EPERM | Errno::EACCES => NftablesError::Denied,
            // EINVAL is nfnetlink's word for a subsystem that is not there.
            Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL => {
                NftablesError::Unsupported(errno)
            }
            errno => NftablesError::Refused(errno),
        }
    }
}

impl From<io::Error> for NftablesError {
    fn from(cause: io::Error) -> NftablesError {
        NftablesError::of(Errno::from_raw(cause.raw_os_error().unwrap_or(0)))
    }
}

/// Makes "there is no such thing" an absence instead of an error; a kernel without nf_tables has nothing.
pub fn present<T>(outcome: Result<T, NftablesError>) -> Result<Option<T>, NftablesError> {
    match outcome {
        Err(NftablesError::NotFound | NftablesError::Unsupported(_)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// What packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IPv4 and IPv6.
    Inet,
    /// One family.
    Ip(Family),
    /// Frames on a bridge.
    Bridge,
}

impl Layer {
    fn header(self) -> NetfilterHeader {
        let family = match self {
            Layer::Inet => NetfilterProtoFamily::Inet,
            Layer::Ip(Family::V4) => NetfilterProtoFamily::IPv4,
            Layer::Ip(Family::V6) => NetfilterProtoFamily::IPv6,
            Layer::Bridge => NetfilterProtoFamily::Bridge,
        };
        NetfilterHeader::new(family, VERSION, 0)
    }
}

/// A table, by what identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it sees.
    pub layer: Layer,
    /// Its name.
    pub name: &'static str,
}

/// How often a table or chain is referred to: a table by its chains and sets, a chain by its rules and the jumps to it.
pub type Uses = u32;

/// The number of a ruleset; each transaction makes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u32);

/// nf_tables in the namespace in which it was opened.
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens a socket in the thread's own namespace.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink or no socket can be had.
    pub fn open() -> Result<Nftables, NftablesError> {
        Ok(Nftables {
            socket: Socket::open()?,
        })
    }

    /// Reads, plans and changes, and starts again whenever somebody else changed the ruleset in between. Nothing is
    /// sent when the plan is empty.
    ///
    /// # Errors
    /// The plan's, or the kernel's when it refuses the change.
    pub fn change(
        &self,
        plan: impl Fn() -> Result<Batch, NftablesError>,
    ) -> Result<(), NftablesError> {
        let attempt = || {
            let generation = self.generation()?;
            let batch = plan()?;
            match batch.is_empty() {
                true => Ok(()),
                false => self.socket.commit(batch, generation),
            }
        };
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            match attempt() {
                Err(NftablesError::Changed) if Instant::now() < deadline => continue,
                outcome => return outcome,
            }
        }
    }

    fn generation(&self) -> Result<Generation, NftablesError> {
        let message = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
        let answer = parse::<GenMessage>(&self.socket.fetch(Layer::Inet, message)?)?;
        let number = answer.attributes.into_iter().find_map(|it| match it {
            GenAttribute::Id(number) => Some(number),
            _ => None,
        });
        number.map(Generation).ok_or(NftablesError::Garbled)
    }

    /// How often a table is referred to; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn table(&self, table: Table) -> Result<Option<Uses>, NftablesError> {
        let attributes = vec![TableAttribute::Name(table.name.to_owned())];
        let message = NfTablesMessage::GetTable(TableMessage { attributes });
        let Some(answer) = present(self.socket.fetch(table.layer, message))? else {
            return Ok(None);
        };
        let answer = parse::<TableMessage>(&answer)?;
        Ok(answer.attributes.into_iter().find_map(|it| match it {
            TableAttribute::Use(uses) => Some(uses),
            _ => None,
        }))
    }

    /// How often a chain is referred to; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn chain(&self, table: Table, name: &str) -> Result<Option<Uses>, NftablesError> {
        let attributes = vec![
            ChainAttribute::Table(table.name.to_owned()),
            ChainAttribute::Name(name.to_owned()),
        ];
        let message = NfTablesMessage::GetChain(ChainMessage { attributes });
        let Some(answer) = present(self.socket.fetch(table.layer, message))? else {
            return Ok(None);
        };
        let answer = parse::<ChainMessage>(&answer)?;
        Ok(answer.attributes.into_iter().find_map(|it| match it {
            ChainAttribute::Use(uses) => Some(uses),
            _ => None,
        }))
    }

    /// The rules of one chain, or of all chains of a table, in order; none where there is no such table or chain.
    ///
    /// # Errors
    /// When the kernel refuses to tell; [`NftablesError::Changed`] when they changed meanwhile.
    pub fn rules(
        &self,
        table: Table,
        chain: Option<&str>,
    ) -> Result<Vec<RuleEntry>, NftablesError> {
        let mut attributes = vec![RuleAttribute::Table(table.name.to_owned())];
        attributes.extend(chain.map(|chain| RuleAttribute::Chain(chain.to_owned())));
        let message = NfTablesMessage::GetRule(RuleMessage { attributes });
        let mut rules = Vec::new();
        present(self.socket.dump(table.layer, message, |answer| {
            rules.push(RuleEntry::of(parse::<RuleMessage>(answer)?));
            Ok(())
        }))?;
        Ok(rules)
    }

    /// The elements of a map from addresses to chains; none where there is no such map.
    ///
    /// # Errors
    /// As [`Nftables::rules`].
    pub fn elements(&self, table: Table, map: &str) -> Result<Vec<Element>, NftablesError> {
        let attributes = vec![
            SetElementList::Table(table.name.to_owned()),
            SetElementList::Set(map.to_owned()),
        ];
        let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let mut elements = Vec::new();
        present(self.socket.dump(table.layer, message, |answer| {
            elements.extend(element::parse(parse::<SetElementMessage>(answer)?));
            Ok(())
        }))?;
        Ok(elements)
    }

    /// The element of an address in a map from addresses to chains.
    ///
    /// # Errors
    /// When the kernel refuses to tell; that there is none is `None`.
    pub fn element(
        &self,
        table: Table,
        map: &str,
        address: IpAddr,
    ) -> Result<Option<Element>, NftablesError> {
        let message =
            NfTablesMessage::GetSetElement(element::list(table, map, vec![element::key(address)]));
        match present(self.socket.fetch(table.layer, message))? {
            Some(answer) => {
                let elements = element::parse(parse::<SetElementMessage>(&answer)?);
                Ok(elements.into_iter().next())
            }
            None => Ok(None),
        }
    }
}

fn parse<T: Parseable<[u8]>>(answer: &[u8]) -> Result<T, NftablesError> {
    T::parse(answer).map_err(|_| NftablesError::Garbled)
}
