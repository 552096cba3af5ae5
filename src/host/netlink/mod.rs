//! Route netlink, blocking: one socket per namespace, one method per thing we ask of the kernel.
//!
//! The messages are those of rtnetlink(7); links, VLANs, addresses and routes have a file each.

mod address;
mod link;
mod links;
mod message;
mod route;
mod socket;
mod vlan;

use std::future::{Future, pending};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::proto::{Connection, ConnectionHandle, new_connection_with_socket};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::host::interrupts::uninterrupted;
use crate::host::journal;
use crate::host::netns::{Netns, NetnsError};
use crate::host::signals::{self, Terminated};
use crate::net::Cidr;

use message::Message;
use socket::PatientSocket;

pub use address::{Address, Detection};
pub use link::{Kind, Link, PortFlags, Traffic};
pub use links::{NewBridge, NewVeth};
pub use route::{RouteEntry, RouteQuery};
pub use vlan::Filtering;

/// The kernel answers within microseconds; only a hung one needs longer than this.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

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

/// A netlink socket in one namespace; it works there wherever the thread is.
pub struct Netlink {
    handle: ConnectionHandle<Message>,
    runtime: Rc<Runtime>,
}

impl Netlink {
    /// Opens a socket in the thread's own namespace.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open() -> io::Result<Netlink> {
        Netlink::on(Rc::new(event_loop()?))
    }

    /// Opens a socket in another namespace, served by the same event loop.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket can be had.
    pub fn open_in(&self, netns: &Netns) -> Result<Netlink, NetnsError> {
        Ok(netns.inside(|| Netlink::on(Rc::clone(&self.runtime)))??)
    }

    /// Opens a socket in another namespace, and none in the thread's own.
    ///
    /// # Errors
    /// As [`Netlink::open_in`].
    pub fn open_only_in(netns: &Netns) -> Result<Netlink, NetnsError> {
        let runtime = Rc::new(event_loop()?);
        Ok(netns.inside(|| Netlink::on(runtime))??)
    }

    fn on(runtime: Rc<Runtime>) -> io::Result<Netlink> {
        let (handle, _) = uninterrupted(|| connect(&runtime, &[]))?;
        Ok(Netlink { handle, runtime })
    }

    /// Asks the kernel to change something.
    fn change(&self, message: Message, flags: u16) -> Result<(), NetlinkError> {
        self.wait(self.answers(message, NLM_F_REQUEST | NLM_F_ACK | flags))
            .map(drop)
    }

    /// Asks the kernel for one thing.
    fn fetch(&self, message: Message) -> Result<Option<Vec<u8>>, NetlinkError> {
        let (answers, _) = self.wait(self.answers(message, NLM_F_REQUEST))?;
        Ok(answers.into_iter().next())
    }

    /// Asks the kernel for all things of a kind, until nothing changed meanwhile.
    fn dump(&self, message: impl Fn() -> Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let request = self.answers(message(), NLM_F_REQUEST | NLM_F_DUMP);
            match self.wait(request) {
                Ok((answers, Dump::Consistent)) => return Ok(answers),
                Ok((_, Dump::Interrupted)) | Err(NetlinkError::Refused(Errno::EINTR)) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, NetlinkError>>,
    ) -> Result<T, NetlinkError> {
        let limited = async {
            timeout(ANSWER_LIMIT, work)
                .await
                .unwrap_or(Err(NetlinkError::NoAnswer))
        };
        self.runtime.block_on(limited)
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
        let wake = self.wake().map_err(|_| NetlinkError::Lost)?;
        let stopped = async || match &wake {
            Some(wake) => drop(wake.readable().await),
            None => pending().await,
        };
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let (_handle, mut events) = self.subscribe(groups, place)?;
            loop {
                if let Some(found) = probe()? {
                    return Ok(found);
                }
                let left = deadline.saturating_duration_since(Instant::now());
                let left = left.min(LOOK_AGAIN);
                let next = async {
                    let stopped = pin!(stopped());
                    let event = pin!(events.next());
                    timeout(left, async {
                        match select(event, stopped).await {
                            Either::Left((Some(_), _)) => Happened::Event,
                            Either::Left((None, _)) => Happened::Overrun,
                            Either::Right(_) => Happened::Stopped,
                        }
                    })
                    .await
                };
                match self.runtime.block_on(next) {
                    Ok(Happened::Event) => {}
                    // So many events at once that the socket could not hold them (ENOBUFS): another one, and a look.
                    Ok(Happened::Overrun) => break,
                    Ok(Happened::Stopped) => return Err(Terminated.into()),
                    Err(_) if Instant::now() < deadline => {}
                    Err(_) => return Err(NetlinkError::TimedOut),
                }
            }
        }
        Err(NetlinkError::TimedOut)
    }

    /// SIGTERM as an event like the others.
    fn wake(&self) -> io::Result<Option<UnixStream>> {
        let Some(wake) = signals::wake() else {
            return Ok(None);
        };
        let _entered = self.runtime.enter();
        let wake = std::os::unix::net::UnixStream::from(wake.try_clone_to_owned()?);
        wake.set_nonblocking(true)?;
        UnixStream::from_std(wake).map(Some)
    }

    fn subscribe(
        &self,
        groups: &[MulticastGroup],
        place: Option<&Netns>,
    ) -> Result<(ConnectionHandle<Message>, impl Stream + use<> + Unpin), NetlinkError> {
        let subscribe = || uninterrupted(|| connect(&self.runtime, groups));
        let subscribed = match place {
            Some(netns) => netns.inside(subscribe).map_err(io::Error::other).flatten(),
            None => subscribe(),
        };
        subscribed
            .map_err(|cause| NetlinkError::of(Errno::from_raw(cause.raw_os_error().unwrap_or(0))))
    }

    async fn answers(
        &self,
        message: Message,
        flags: u16,
    ) -> Result<(Vec<Vec<u8>>, Dump), NetlinkError> {
        let (began, what) = (journal::clock(), message.name());
        let answers = self.exchange(message, flags).await;
        journal::step(began, || match &answers {
            Ok(_) => what.to_owned(),
            Err(error) => format!("{what}: {error}"),
        });
        answers
    }

    async fn exchange(
        &self,
        message: Message,
        flags: u16,
    ) -> Result<(Vec<Vec<u8>>, Dump), NetlinkError> {
        let wanted = message.answered_by();
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let kernel = SocketAddr::new(0, 0);
        let request = self.handle.request(request, kernel);
        let mut stream = request.map_err(|_| NetlinkError::Lost)?;
        let (mut answers, mut dump) = (Vec::new(), Dump::Consistent);
        let mut is_whole = false;
        while let Some(answer) = stream.next().await {
            if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                dump = Dump::Interrupted;
            }
            // One message is the whole answer to a question that asks for neither a list nor an acknowledgement.
            let is_list = flags & (NLM_F_DUMP | NLM_F_ACK) != 0;
            is_whole |= !is_list || !matches!(answer.payload, NetlinkPayload::InnerMessage(_));
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => {
                    answers.push(message.answer(wanted).ok_or(NetlinkError::Unreadable)?)
                }
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::of(Errno::from_raw(-error.raw_code())));
                }
                NetlinkPayload::Overrun(_) => dump = Dump::Interrupted,
                _ => {}
            }
        }
        match is_whole {
            true => Ok((answers, dump)),
            false => Err(NetlinkError::Lost),
        }
    }
}

/// Opens a socket in the namespace of the thread, which gets the events of these groups.
#[allow(clippy::type_complexity)] // the stream has no name
fn connect(
    runtime: &Runtime,
    groups: &[MulticastGroup],
) -> io::Result<(
    ConnectionHandle<Message>,
    impl Stream<Item = (NetlinkMessage<Message>, SocketAddr)> + Unpin + use<>,
)> {
    let _entered = runtime.enter();
    let (mut connection, handle, events): (Connection<Message, PatientSocket>, _, _) =
        new_connection_with_socket(NETLINK_ROUTE)?;
    let socket = connection.socket_mut().socket_mut();
    // With it the kernel filters dumps by what the request says.
    socket.set_netlink_get_strict_chk(true)?;
    if !groups.is_empty() {
        let bits = groups.iter().map(|group| 1 << (*group as u32 - 1)).sum();
        socket.bind(&SocketAddr::new(0, bits))?;
    }
    // What ends an answer is to be seen: a connection that breaks only falls silent.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    runtime.spawn(connection);
    Ok((handle, events))
}

fn event_loop() -> io::Result<Runtime> {
    uninterrupted(|| {
        Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
    })
}

/// What ended a wait for events.
enum Happened {
    Event,
    Overrun,
    Stopped,
}

/// Whether a list can be trusted (netlink(7), NLM_F_DUMP_INTR).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dump {
    Consistent,
    Interrupted,
}
