//! The netlink of nf_tables, blocking: transactions and questions, on a socket in the thread's own namespace.
//!
//! The kernel's side is net/netfilter/nfnetlink.c and nf_tables_api.c; numbers without a source are those of
//! linux/netfilter/nf_tables.h. No program is run, and what was asked is answered before the call returns.

mod attribute;
mod batch;
mod comment;
mod compat;
pub mod element;
mod expression;
mod message;
mod rule;
mod socket;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::kernel::log;
use crate::kernel::netlink_socket::ANSWER_LIMIT;
use crate::net::Family;

use attribute::{Attributes, find, number};
pub use batch::{BaseChain, Batch, HookPoint};
pub use compat::{CompatRule, Field, Target, comment};
pub use element::Element;
use message::{Message, Verb};
pub use rule::{Action, Listed, Match, Rule, RuleEntry};
use socket::Socket;

/// How long a change is tried again because somebody else was faster.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// How often a list is asked for that others change at the same time.
const LISTINGS: u32 = 10;

/// Attributes of tables, chains and the ruleset that are asked for (enum nft_table_attributes, nft_chain_attributes and
/// nft_gen_attributes).
const TABLE_NAME: u16 = 1;
const TABLE_USE: u16 = 3;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_USE: u16 = 6;
const GENERATION_ID: u16 = 1;

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
    #[error(
        "not permitted: CAP_NET_ADMIN is needed, or another process owns the table (flags owner)"
    )]
    Denied,
    /// EMSGSIZE: larger than the socket's send buffer, which could not be enlarged.
    #[error("a transaction of {0} bytes exceeds the send buffer: raise net.core.wmem_max")]
    TooLarge(usize),
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
    /// An error of a system call: what the kernel's answers mean by the same numbers does not apply.
    fn from(cause: io::Error) -> NftablesError {
        match Errno::from_raw(cause.raw_os_error().unwrap_or(0)) {
            errno @ (Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => {
                NftablesError::Unsupported(errno)
            }
            Errno::EPERM | Errno::EACCES => NftablesError::Denied,
            errno => NftablesError::Refused(errno),
        }
    }
}

/// Makes "there is no such thing" an absence instead of an error; a kernel without nf_tables has nothing.
pub fn not_found_as_none<T>(outcome: Result<T, NftablesError>) -> Result<Option<T>, NftablesError> {
    match outcome {
        Err(NftablesError::NotFound | NftablesError::Unsupported(_)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// What packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    /// One family.
    Ip(Family),
    /// Frames on a bridge.
    Bridge,
}

impl TableFamily {
    /// The kernel's number (enum in linux/netfilter.h).
    fn number(self) -> u8 {
        match self {
            TableFamily::Inet => 1,
            TableFamily::Ip(Family::V4) => 2,
            TableFamily::Ip(Family::V6) => 10,
            TableFamily::Bridge => 7,
        }
    }
}

/// A table, by what identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it sees.
    pub family: TableFamily,
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

    /// Reads, plans and changes, and starts again whenever somebody else changed the ruleset in between; whether there
    /// was anything to change.
    ///
    /// # Errors
    /// The plan's, or the kernel's when it refuses the change.
    pub fn change(
        &self,
        plan: &dyn Fn() -> Result<Batch, NftablesError>,
    ) -> Result<bool, NftablesError> {
        let attempt = || {
            let generation = self.generation()?;
            let batch = plan()?;
            match batch.is_empty() {
                true => Ok(false),
                false => {
                    let began = log::step_start();
                    let changed = self.socket.commit(batch, generation);
                    log::step(began, || match &changed {
                        Ok(()) => "a transaction of nftables".to_owned(),
                        Err(error) => format!("a transaction of nftables: {error}"),
                    });
                    changed.map(|()| true)
                }
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
        let any = Table {
            family: TableFamily::Inet,
            name: "",
        };
        let request = Message::new(Verb::GetGeneration, any, Attributes::default());
        let answer = self.socket.fetch(request)?;
        let id = find(&answer, GENERATION_ID).and_then(number);
        id.map(Generation).ok_or(NftablesError::Garbled)
    }

    /// How often a table is referred to; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn table(&self, table: Table) -> Result<Option<Uses>, NftablesError> {
        let named = Attributes::default().text(TABLE_NAME, table.name);
        self.uses(Message::new(Verb::GetTable, table, named), TABLE_USE)
    }

    fn uses(&self, request: Message, attribute: u16) -> Result<Option<Uses>, NftablesError> {
        let Some(answer) = not_found_as_none(self.socket.fetch(request))? else {
            return Ok(None);
        };
        let uses = find(&answer, attribute).and_then(number);
        uses.map(Some).ok_or(NftablesError::Garbled)
    }

    /// How often a chain is referred to; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn chain(&self, table: Table, name: &str) -> Result<Option<Uses>, NftablesError> {
        let request = Message::new(Verb::GetChain, table, batch::chain(table, name));
        self.uses(request, CHAIN_USE)
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
        let request = Message::new(Verb::GetRule, table, rule::place(table, chain));
        self.list(&request, |rules, answer| {
            rules.extend(RuleEntry::parse(answer))
        })
    }

    /// The elements of a map from addresses to chains; none where there is no such map.
    ///
    /// # Errors
    /// As [`Nftables::rules`].
    pub fn elements(&self, table: Table, map: &str) -> Result<Vec<Element>, NftablesError> {
        let request = Message::new(Verb::GetElements, table, element::map(table, map));
        let mut elements = self.list(&request, |elements: &mut Vec<Element>, answer| {
            elements.extend(element::parse(answer))
        })?;
        // The kernel lists an element twice if it resizes the hash table meanwhile (nft_rhash_walk,
        // net/netfilter/nft_set_hash.c).
        elements.sort_by_key(|element| element.address);
        elements.dedup_by_key(|element| element.address);
        Ok(elements)
    }

    /// All things of a kind, listed again when the ruleset changed meanwhile.
    fn list<T>(
        &self,
        request: &Message,
        take: impl Fn(&mut Vec<T>, &[u8]),
    ) -> Result<Vec<T>, NftablesError> {
        for _ in 0..LISTINGS {
            let mut list = Vec::new();
            match self.socket.dump(request, |answer| take(&mut list, answer)) {
                Err(NftablesError::Changed) => {}
                listed => return not_found_as_none(listed).map(|_| list),
            }
        }
        Err(NftablesError::Changed)
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
        let wanted = element::list(table, map, [element::key(address)].iter());
        let request = Message::new(Verb::GetElements, table, wanted);
        let answer = not_found_as_none(self.socket.fetch(request))?;
        Ok(answer.and_then(|answer| element::parse(&answer).into_iter().next()))
    }
}
