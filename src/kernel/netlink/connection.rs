//! A route netlink socket: requests, dumps and waiting for events.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader,
    NetlinkPayload,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::error::NetlinkError;
use super::message::{Message, type_name};
use super::tc::TcChange;
use crate::kernel::log;
use crate::kernel::netlink_socket::{NetlinkSocket, Progress, RawMessage};
use crate::kernel::netns::{Netns, NetnsError};
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals;

/// The number of attempts at a dump that is interrupted by changes.
const DUMP_ATTEMPTS: usize = 10;

/// The longest wait for an event before the next probe, so that a missing event causes only a delay.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// A route netlink socket in one network namespace, whichever namespace the thread is in.
pub struct Netlink {
    socket: NetlinkSocket,
}

impl Netlink {
    /// Opens a socket in the thread's network namespace.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn open() -> io::Result<Netlink> {
        let socket = NetlinkSocket::open(NETLINK_ROUTE, 0)?;
        // Makes the kernel filter dumps by the fields of the request. Kernels before 4.20 do not have the option: the
        // answers to every dump are filtered here as well.
        match retry_on_eintr(|| socket.socket().set_netlink_get_strict_chk(true)) {
            Err(cause) if cause.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {}
            outcome => outcome?,
        }
        Ok(Netlink { socket })
    }

    /// Opens a socket in another network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket can be opened.
    pub fn open_in(netns: &Netns) -> Result<Netlink, NetnsError> {
        Ok(netns.inside(Netlink::open)??)
    }

    /// Sends a request to change something (RTM_NEW*, RTM_DEL*, RTM_SET*).
    pub(super) fn change(
        &self,
        message_type: u16,
        message: &impl Message,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.request(message_type, message, NLM_F_ACK | flags, |_| Ok(()))
    }

    /// Sends a request for one object (RTM_GET*).
    pub(super) fn fetch<M: Message>(&self, request: &M) -> Result<M, NetlinkError> {
        let mut answer = Err(NetlinkError::Unreadable);
        self.request(M::GET, request, 0, |message| {
            answer = decode(&message);
            Ok(())
        })?;
        answer
    }

    /// Like [`Netlink::fetch`], for objects of which the kernel does not answer some.
    pub(super) fn fetch_if_visible<M: Message>(
        &self,
        request: &M,
    ) -> Result<Option<M>, NetlinkError> {
        let mut answer = None;
        // Without NLM_F_ECHO, the answer about a class is only sent to multicast groups (`rtnetlink_send`).
        self.request(M::GET, request, NLM_F_ACK | NLM_F_ECHO, |message| {
            answer = Some(decode(&message)?);
            Ok(())
        })?;
        Ok(answer)
    }

    /// Requests a dump (RTM_GET*), again until nothing changed during it.
    pub(super) fn dump<M: Message>(&self, request: &M) -> Result<Vec<M>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut answers = Vec::new();
            let outcome = self.request(M::GET, request, NLM_F_DUMP, |message| {
                answers.push(decode(&message)?);
                Ok(())
            });
            match outcome {
                Ok(()) => return Ok(answers),
                Err(NetlinkError::Unsteady | NetlinkError::Refused(Errno::EINTR)) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// Probes, and again at each event of the multicast groups (RTMGRP_*), until `probe` finds something or the time is
    /// over.
    /// `netns` is the socket's network namespace if it is not the thread's.
    pub(super) fn until<T>(
        &self,
        groups: i32,
        netns: Option<&Netns>,
        limit: Duration,
        probe: impl Fn() -> Result<Option<T>, NetlinkError>,
    ) -> Result<T, NetlinkError> {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        let deadline = Instant::now() + limit;
        let events = subscribe(groups, netns)?;
        loop {
            if let Some(found) = probe()? {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NetlinkError::TimedOut);
            }
            let left = left.min(PROBE_INTERVAL);
            signals::wait_readable(events.as_fd(), left).map_err(|_| NetlinkError::Lost)?;
            signals::check()?;
            events.drain();
        }
    }

    /// Sends changes of qdiscs, classes and filters in one datagram. The kernel executes each, also after one failed.
    ///
    /// # Errors
    /// The socket's; those of the changes are the values.
    pub fn change_all(
        &self,
        changes: &[TcChange],
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let count = changes.len() as u32;
        let first = self.socket.next_sequence_number(count);
        let mut datagram = Vec::new();
        for (number, it) in (first..).zip(changes) {
            datagram.extend(encode(it.message_type, &it.message, it.flags, number).1);
        }
        let began = log::step_start();
        self.socket.send(&datagram)?;
        let mut outcomes = Vec::new();
        self.socket.answers(count, first, |_, payload| {
            if let NetlinkPayload::Error(error) = payload {
                outcomes.push(end(error.raw_code()).map(drop));
            }
            Ok::<_, NetlinkError>(match outcomes.len() < changes.len() {
                true => Progress::More,
                false => Progress::Done,
            })
        })?;
        log::step(began, || {
            let failed = outcomes.iter().filter(|it| it.is_err()).count();
            format!("{count} changes of traffic control, {failed} refused")
        });
        Ok(outcomes)
    }

    /// Sends a request, calls `each` with the answers, and logs the request.
    fn request(
        &self,
        message_type: u16,
        message: &dyn Emitable,
        flags: u16,
        each: impl FnMut(RawMessage) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let number = self.socket.next_sequence_number(1);
        let (header, datagram) = encode(message_type, message, flags, number);
        let began = log::step_start();
        let outcome = self.exchange(&header, &datagram, each);
        log::step(began, || match &outcome {
            Ok(()) => type_name(message_type).to_owned(),
            Err(error) => format!("{}: {error}", type_name(message_type)),
        });
        outcome
    }

    fn exchange(
        &self,
        request: &NetlinkHeader,
        datagram: &[u8],
        mut each: impl FnMut(RawMessage) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.socket.send(datagram)?;
        // Without a dump and an acknowledgement, the first message is the whole answer.
        let after_message = match request.flags & (NLM_F_DUMP | NLM_F_ACK) {
            0 => Progress::Done,
            _ => Progress::More,
        };
        let mut is_consistent = true;
        let number = request.sequence_number;
        self.socket.answers(1, number, |header, payload| {
            is_consistent &= header.flags & NLM_F_DUMP_INTR == 0;
            match payload {
                NetlinkPayload::InnerMessage(message) => each(message).map(|()| after_message),
                NetlinkPayload::Error(error) => end(error.raw_code()),
                NetlinkPayload::Done(done) => end(done.code),
                _ => Ok(Progress::More),
            }
        })?;
        match is_consistent {
            true => Ok(()),
            false => Err(NetlinkError::Unsteady),
        }
    }
}

/// A request with its header.
fn encode(
    message_type: u16,
    message: &dyn Emitable,
    flags: u16,
    number: u32,
) -> (NetlinkHeader, Vec<u8>) {
    let mut header = NetlinkHeader::default();
    let header_size = header.buffer_len();
    let mut datagram = vec![0; header_size + message.buffer_len()];
    header.length = datagram.len() as u32;
    header.message_type = message_type;
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = number;
    header.emit(&mut datagram);
    message.emit(&mut datagram[header_size..]);
    (header, datagram)
}

/// Decodes an answer; one of another type is not an answer to the request.
fn decode<M: Message>(message: &RawMessage) -> Result<M, NetlinkError> {
    // The types are in groups: RTM_NEW*, RTM_DEL*, RTM_GET*, RTM_SET* (linux/rtnetlink.h).
    let answer = (message.message_type == M::GET - 2).then(|| M::decode(&message.body));
    answer.flatten().ok_or(NetlinkError::Unreadable)
}

/// The error of an answer: 0 or a negative errno.
fn end(code: i32) -> Result<Progress, NetlinkError> {
    match code {
        0 => Ok(Progress::Done),
        code => Err(NetlinkError::of(Errno::from_raw(-code))),
    }
}

fn subscribe(groups: i32, netns: Option<&Netns>) -> Result<NetlinkSocket, NetlinkError> {
    let subscribe = || NetlinkSocket::open(NETLINK_ROUTE, groups.cast_unsigned());
    let subscribed = match netns {
        Some(netns) => netns.inside(subscribe).map_err(io::Error::other).flatten(),
        None => subscribe(),
    };
    subscribed.map_err(|cause| NetlinkError::of(Errno::from_raw(cause.raw_os_error().unwrap_or(0))))
}
