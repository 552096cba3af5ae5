//! nf_tables over a blocking netlink socket in the thread's network namespace: transactions and queries, without a
//! program. The kernel's side is net/netfilter/nfnetlink.c and nf_tables_api.c.

mod attribute;
mod batch;
mod comment;
mod compat;
pub mod element;
mod entry;
mod expression;
mod message;
mod rule;
mod socket;
mod uapi;
mod xt;

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::kernel::log;
use crate::kernel::netlink_socket::ANSWER_LIMIT;
use crate::kernel::netns;
use crate::net::Family;

use attribute::{Attributes, get_be32};
pub use batch::{BaseChain, Batch, Hook};
pub use compat::{CompatRule, Field, Target, comment, dnat_address, is_final, multiport};
pub use element::{Element, Field as MapField, MapType, Value, address_key, concatenation};
pub use entry::RuleEntry;
use expression::nfproto;
pub use expression::{Load, interface_key};
use message::Message;
use rule::rules_of;
pub use rule::{Action, Encoded, Match, Rule};
use socket::Socket;
use uapi::*;
pub use xt::XtState;

/// How long a change is retried if other processes keep changing the ruleset.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// How long a change waits for those of other processes of this program. Any change of the ruleset makes the others start
/// again, so that one that reads much would never succeed among many that read little.
const TURN_LIMIT: Duration = Duration::from_secs(5);

/// The number of attempts at a dump that is interrupted by changes.
const MAX_DUMPS: u32 = 10;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftablesError {
    /// A query was answered with ENOENT.
    #[error("it does not exist")]
    NotFound,
    #[error("it exists already")]
    Exists,
    #[error("it is in use")]
    Busy,
    /// ERESTART or NLM_F_DUMP_INTR: another process changed the ruleset meanwhile.
    #[error("the ruleset is being changed concurrently")]
    Changed,
    /// EPERM, EACCES.
    #[error(
        "not permitted: CAP_NET_ADMIN is needed, or another process owns the table (flags owner)"
    )]
    Denied,
    /// EMSGSIZE: the send buffer of the socket is too small and cannot be enlarged.
    #[error("a transaction of {0} bytes exceeds the send buffer: raise net.core.wmem_max")]
    TooLarge(usize),
    /// The kernel lacks nf_tables or a part of it.
    #[error("this kernel has no nf_tables, or lacks a part of it that is needed ({})", .0.desc())]
    Unsupported(Errno),
    #[error("{}", .0.desc())]
    Refused(Errno),
    #[error("the kernel did not answer within {} s", ANSWER_LIMIT.as_secs())]
    NoAnswer,
    #[error("the kernel's answer cannot be parsed")]
    Malformed,
}

impl NftablesError {
    fn of(errno: Errno) -> NftablesError {
        match errno {
            Errno::ENOENT => NftablesError::NotFound,
            Errno::EEXIST => NftablesError::Exists,
            Errno::EBUSY => NftablesError::Busy,
            Errno::ERESTART | Errno::EINTR => NftablesError::Changed,
            Errno::EPERM | Errno::EACCES => NftablesError::Denied,
            // nfnetlink answers EINVAL if the subsystem is not registered.
            Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL => {
                NftablesError::Unsupported(errno)
            }
            errno => NftablesError::Refused(errno),
        }
    }
}

impl From<io::Error> for NftablesError {
    /// The error of a system call, where the same error numbers mean something else than in an answer.
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

/// `None` if the object does not exist or the kernel lacks nf_tables.
pub fn not_found_as_none<T>(outcome: Result<T, NftablesError>) -> Result<Option<T>, NftablesError> {
    match outcome {
        Err(NftablesError::NotFound | NftablesError::Unsupported(_)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// The family of a table (nft(8), ADDRESS FAMILIES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    Inet,
    Ip(Family),
    Bridge,
}

impl TableFamily {
    fn nfproto(self) -> u8 {
        match self {
            TableFamily::Inet => NFPROTO_INET,
            TableFamily::Ip(family) => nfproto(family),
            TableFamily::Bridge => NFPROTO_BRIDGE,
        }
    }
}

/// The identity of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: TableFamily,
    pub name: &'static str,
}

/// The generation of the ruleset, which each transaction increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u32);

/// nf_tables of the network namespace in which it was opened.
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens a socket in the thread's network namespace.
    ///
    /// # Errors
    /// If the kernel lacks nfnetlink or the socket cannot be created.
    pub fn open() -> Result<Nftables, NftablesError> {
        Ok(Nftables {
            socket: Socket::open()?,
        })
    }

    /// Applies the batch that `plan` derives from the ruleset, and starts again if another process changed the ruleset
    /// meanwhile. Returns whether the batch had messages.
    ///
    /// # Errors
    /// Those of `plan`, and if the kernel refuses the batch.
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
                        Ok(()) => "nftables transaction".to_owned(),
                        Err(error) => format!("nftables transaction: {error}"),
                    });
                    changed.map(|()| true)
                }
            }
        };
        let _turn = netns::take_turn(TURN_LIMIT);
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
        let request = Message::new(NFT_MSG_GETGEN, any, Attributes::default());
        let answer = self.socket.fetch(request)?;
        let id = get_be32(&answer, NFTA_GEN_ID);
        id.map(Generation).ok_or(NftablesError::Malformed)
    }

    /// The use count of a table: the number of its chains and sets. `None` if the table does not exist.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    pub fn table(&self, table: Table) -> Result<Option<u32>, NftablesError> {
        let name = Attributes::default().put_strz(NFTA_TABLE_NAME, table.name);
        let request = Message::new(NFT_MSG_GETTABLE, table, name);
        self.use_count(request, NFTA_TABLE_USE)
    }

    /// The use count of a chain: the number of its rules, and of the rules and elements that refer to it. `None` if the
    /// chain does not exist.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    pub fn chain(&self, table: Table, name: &str) -> Result<Option<u32>, NftablesError> {
        let request = Message::new(NFT_MSG_GETCHAIN, table, batch::chain(table, name));
        self.use_count(request, NFTA_CHAIN_USE)
    }

    /// Whether the policy of a base chain is drop. `None` if the chain does not exist.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    pub fn drops_by_policy(&self, table: Table, name: &str) -> Result<Option<bool>, NftablesError> {
        let request = Message::new(NFT_MSG_GETCHAIN, table, batch::chain(table, name));
        let answer = not_found_as_none(self.socket.fetch(request))?;
        let policy = answer.map(|answer| get_be32(&answer, NFTA_CHAIN_POLICY));
        Ok(policy.map(|policy| policy == Some(NF_DROP.cast_unsigned())))
    }

    fn use_count(&self, request: Message, attribute: u16) -> Result<Option<u32>, NftablesError> {
        let Some(answer) = not_found_as_none(self.socket.fetch(request))? else {
            return Ok(None);
        };
        let count = get_be32(&answer, attribute);
        count.map(Some).ok_or(NftablesError::Malformed)
    }

    /// The rules of a chain or of all chains of a table, in order; empty if table or chain do not exist.
    ///
    /// # Errors
    /// If the kernel refuses the query; [`NftablesError::Changed`] if the rules kept changing during the dump.
    pub fn rules(
        &self,
        table: Table,
        chain: Option<&str>,
    ) -> Result<Vec<RuleEntry>, NftablesError> {
        let request = Message::new(NFT_MSG_GETRULE, table, rules_of(table, chain));
        self.list(&request, |rules, answer| {
            rules.extend(RuleEntry::parse(answer))
        })
    }

    /// The elements of a map; empty if the map does not exist.
    ///
    /// # Errors
    /// As [`Nftables::rules`].
    pub fn elements(&self, table: Table, map: &str) -> Result<Vec<Element>, NftablesError> {
        let request = Message::new(NFT_MSG_GETSETELEM, table, element::map(table, map));
        let mut elements = self.list(&request, |elements: &mut Vec<Element>, answer| {
            elements.extend(element::parse(answer))
        })?;
        // The kernel lists an element twice if it resizes the hash table meanwhile (nft_rhash_walk,
        // net/netfilter/nft_set_hash.c).
        elements.sort_by(|one, other| one.key.cmp(&other.key));
        elements.dedup_by(|one, other| one.key == other.key);
        Ok(elements)
    }

    /// Dumps objects, again if the ruleset changed during the dump.
    fn list<T>(
        &self,
        request: &Message,
        take: impl Fn(&mut Vec<T>, &[u8]),
    ) -> Result<Vec<T>, NftablesError> {
        for _ in 0..MAX_DUMPS {
            let mut list = Vec::new();
            match self.socket.dump(request, |answer| take(&mut list, answer)) {
                Err(NftablesError::Changed) => {}
                listed => return not_found_as_none(listed).map(|_| list),
            }
        }
        Err(NftablesError::Changed)
    }

    /// The element with a key; `None` if it does not exist.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    pub fn element(
        &self,
        table: Table,
        map: &str,
        key: &[u8],
    ) -> Result<Option<Element>, NftablesError> {
        let wanted = element::list(table, map, [element::key(key)].iter());
        let request = Message::new(NFT_MSG_GETSETELEM, table, wanted);
        let answer = not_found_as_none(self.socket.fetch(request))?;
        Ok(answer.and_then(|answer| element::parse(&answer).into_iter().next()))
    }
}
