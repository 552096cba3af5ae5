//! Route netlink, blocking: one socket per namespace, one method per thing we ask of the kernel.
//!
//! The messages are those of rtnetlink(7); links, VLANs, addresses and routes have a file each.

mod address;
mod learned;
mod link;
mod links;
mod message;
mod peers;
mod route;
mod uplink;
mod vlan;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::host::datagram::{ANSWER_LIMIT, Datagrams, Progress, Silence};
use crate::host::interrupts::uninterrupted;
use crate::host::journal;
use crate::host::netns::{Netns, NetnsError};
use crate::host::signals::{self, Terminated};
use crate::net::Cidr;

use message::Message;

pub use address::{Address, Detection};
pub use link::{Kind, Link, PortFlags, Traffic};
pub use links::{NewBridge, NewVeth};
pub use peers::{CrossLink, NetnsId};
pub use route::{RouteEntry, RouteQuery};
pub use vlan::Filtering;

/// How often a dump is started again because something changed while it ran.
const DUMP_ATTEMPTS: usize = 10;

/// How long at most an event is relied on before there is a look without one: should the kernel have sent none, that is
/// a delay and no failure.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the kernel refused, as far as callers tell refusals apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// ENODEV, ENOENT, EADDRNOTAVAIL, ESRCH: what was named is not there.
    #[error("{}", .0.desc())]
    NotFound(Errno),
    /// EEXIST: the name or value is taken.
    #[error("it exists already")]
    Exists,
    /// ENETUNREACH, EHOSTUNREACH: no connected network leads to the next hop.
    #[error("the next hop is not on a connected network")]
    Unreachable,
    /// EPERM, EACCES.
    #[error("not permitted: CAP_NET_ADMIN in that network namespace is needed")]
    Denied,
    /// EOPNOTSUPP: a part of the kernel is missing.
    #[error("this kernel does not support it")]
    Unsupported,
    /// Any other errno.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The connection to the kernel broke: whether it did what it was asked is not known.
    #[error("the connection to the kernel broke")]
    Lost,
    /// SIGTERM ended a wait.
    #[error(transparent)]
    Terminated(#[from] Terminated),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", ANSWER_LIMIT.as_secs())]
    NoAnswer,
    /// The kernel answered something else than was asked for.
    #[error("the kernel's answer cannot be read")]
    Unreadable,
    /// What was waited for did not happen.
    #[error("it did not happen in time")]
    TimedOut,
    /// A duplicate address was detected.
    #[error("another host on the network has {0}")]
    Duplicate(Cidr),
    /// A dump was interrupted by changes again and again.
    #[error("it changed too often to be listed")]
    Unsteady,
}

impl NetlinkError {
    fn of(errno: Errno) -> NetlinkError {
        match errno {
            Errno::ENODEV | Errno::ENOENT | Errno::EADDRNOTAVAIL | Errno::ESRCH => {
                NetlinkError::NotFound(errno)
            }
            Errno::EEXIST => NetlinkError::Exists,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => NetlinkError::Unreachable,
            Errno::EPERM | Errno::EACCES => NetlinkError::Denied,
            Errno::EOPNOTSUPP => NetlinkError::Unsupported,
            errno => NetlinkError::Refused(errno),
        }
    }
}

/// Makes "there is no such thing" an absence instead of an error.
pub fn present<T>(outcome: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match outcome {
        Err(NetlinkError::NotFound(_)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl From<Silence> for NetlinkError {
    fn from(why: Silence) -> NetlinkError {
        match why {
            Silence::NotSent(errno) => NetlinkError::of(errno),
            Silence::Broken(_) => NetlinkError::Lost,
            Silence::TimedOut => NetlinkError::NoAnswer,
            Silence::Garbled => NetlinkError::Unreadable,
        }
    }
}

/// A netlink socket in one namespace; it works there wherever the thread is.
pub struct Netlink {
    socket: Datagrams,
}

impl Netlink {
    /// Opens a socket in the thread's own namespace.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open() -> io::Result<Netlink> {
        let socket = Datagrams::open(NETLINK_ROUTE, 0)?;
        // With it the kernel filters dumps by what the request says. Kernels before 4.20 do not have it: every dump is
        // filtered once more here.
        let strict = || socket.socket().set_netlink_get_strict_chk(true);
        match uninterrupted(strict) {
            Err(cause) if cause.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {}
            outcome => outcome?,
        }
        Ok(Netlink { socket })
    }

    /// Opens a socket in another namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket can be had.
    pub fn open_in(netns: &Netns) -> Result<Netlink, NetnsError> {
        Ok(netns.inside(Netlink::open)??)
    }

    /// Asks the kernel to change something.
    fn change(&self, message: Message, flags: u16) -> Result<(), NetlinkError> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Asks the kernel for one thing.
    fn fetch(&self, message: Message) -> Result<Option<Vec<u8>>, NetlinkError> {
        let (answers, _) = self.ask(message, NLM_F_REQUEST)?;
        Ok(answers.into_iter().next())
    }

    /// Asks the kernel for all things of a kind, until nothing changed meanwhile.
    fn dump(&self, message: impl Fn() -> Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.ask(message(), NLM_F_REQUEST | NLM_F_DUMP) {
                Ok((answers, Dump::Consistent)) => return Ok(answers),
                Ok((_, Dump::Interrupted)) | Err(NetlinkError::Refused(Errno::EINTR)) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// Probes once, and then again at each event of the groups, until there is something or the time is over.
    ///
    /// `place` is the socket's namespace where it is not the thread's own.
    fn until<T>(
        &self,
        groups: &[MulticastGroup],
        place: Option<&Netns>,
        limit: Duration,
        probe: impl Fn() -> Result<Option<T>, NetlinkError>,
    ) -> Result<T, NetlinkError> {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        let deadline = Instant::now() + limit;
        let events = subscribe(groups, place)?;
        loop {
            if let Some(found) = probe()? {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NetlinkError::TimedOut);
            }
            let left = left.min(LOOK_AGAIN);
            signals::wait_readable(events.as_fd(), left).map_err(|_| NetlinkError::Lost)?;
            signals::check()?;
            events.drain();
        }
    }

    fn ask(&self, message: Message, flags: u16) -> Result<(Vec<Vec<u8>>, Dump), NetlinkError> {
        let (began, what) = (journal::clock(), message.name());
        let answers = self.exchange(message, flags);
        journal::step(began, || match &answers {
            Ok(_) => what.to_owned(),
            Err(error) => format!("{what}: {error}"),
        });
        answers
    }

    fn exchange(&self, message: Message, flags: u16) -> Result<(Vec<Vec<u8>>, Dump), NetlinkError> {
        let wanted = message.answered_by();
        let number = self.socket.numbers(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = number;
        request.finalize();
        let mut datagram = vec![0; request.buffer_len()];
        request.serialize(&mut datagram);
        self.socket.send(&datagram)?;
        // One message is the whole answer to a question that asks for neither a list nor an acknowledgement.
        let after_message = match flags & (NLM_F_DUMP | NLM_F_ACK) {
            0 => Progress::Done,
            _ => Progress::More,
        };
        let (mut answers, mut dump) = (Vec::new(), Dump::Consistent);
        self.socket
            .answers(1, number, |header, payload: NetlinkPayload<Message>| {
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    dump = Dump::Interrupted;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => {
                        answers.push(message.answer(wanted).ok_or(NetlinkError::Unreadable)?);
                        Ok(after_message)
                    }
                    NetlinkPayload::Error(error) => end(error.raw_code()),
                    NetlinkPayload::Done(done) => end(done.code),
                    _ => Ok(Progress::More),
                }
            })?;
        Ok((answers, dump))
    }
}

/// The kernel's last word: zero or a negative errno.
fn end(code: i32) -> Result<Progress, NetlinkError> {
    match code {
        0 => Ok(Progress::Done),
        code => Err(NetlinkError::of(Errno::from_raw(-code))),
    }
}

/// Opens a socket that gets the events of these groups.
fn subscribe(groups: &[MulticastGroup], place: Option<&Netns>) -> Result<Datagrams, NetlinkError> {
    let bits = groups.iter().map(|group| 1 << (*group as u32 - 1)).sum();
    let subscribe = || Datagrams::open(NETLINK_ROUTE, bits);
    let subscribed = match place {
        Some(netns) => netns.inside(subscribe).map_err(io::Error::other).flatten(),
        None => subscribe(),
    };
    subscribed.map_err(|cause| NetlinkError::of(Errno::from_raw(cause.raw_os_error().unwrap_or(0))))
}

/// Whether a list can be trusted (netlink(7), NLM_F_DUMP_INTR).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dump {
    Consistent,
    Interrupted,
}
