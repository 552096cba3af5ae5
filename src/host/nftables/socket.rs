//! Requests and answers as datagrams.

use std::cell::Cell;
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};

use super::batch::Batch;
use super::message::{HEADER_SIZE, Message};
use super::{Generation, NftablesError};
use crate::host::interrupts::uninterrupted;

/// The kernel answers within microseconds, unless others hold its lock.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// No datagram of the kernel's is larger: it cuts dumps into pages of at most 32 KiB (`netlink_dump`, af_netlink.c),
/// and an error quotes at most the message it refuses.
const ANSWER_SIZE: usize = 64 << 10;

/// A socket of one namespace.
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    /// The number of the next message.
    sequence: Cell<u32>,
}

/// The attributes of an answer.
struct Answer(Vec<u8>);

impl NetlinkDeserializable for Answer {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Answer, Infallible> {
        Ok(Answer(
            payload.get(HEADER_SIZE..).unwrap_or_default().to_vec(),
        ))
    }
}

impl Socket {
    pub fn open() -> Result<Socket, NftablesError> {
        let socket = uninterrupted(|| {
            let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Without this an error quotes the whole message it refuses.
            socket.set_cap_ack(true)?;
            Ok(socket)
        })?;
        Ok(Socket {
            socket,
            sequence: Cell::new(0),
        })
    }

    /// Asks for one thing; the attributes of the answer.
    pub fn fetch(&self, request: Message) -> Result<Vec<u8>, NftablesError> {
        let request = self.ask(&request, NLM_F_REQUEST)?;
        let mut found = None;
        self.answers(1, request, |_, payload| {
            match payload {
                NetlinkPayload::Error(error) => refusal(error.raw_code())?,
                NetlinkPayload::InnerMessage(Answer(attributes)) => found = Some(attributes),
                _ => {}
            }
            Ok(Progress::Done)
        })?;
        found.ok_or(NftablesError::Garbled)
    }

    /// Asks for all things of a kind; hands over the attributes of each.
    pub fn dump(&self, request: Message, mut each: impl FnMut(&[u8])) -> Result<(), NftablesError> {
        let request = self.ask(&request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut is_steady = true;
        self.answers(1, request, |header, payload| {
            is_steady &= header.flags & NLM_F_DUMP_INTR == 0;
            match payload {
                NetlinkPayload::Error(error) => refusal(error.raw_code())?,
                NetlinkPayload::Done(done) => {
                    refusal(done.code)?;
                    return Ok(Progress::Done);
                }
                NetlinkPayload::InnerMessage(Answer(attributes)) => each(&attributes),
                _ => {}
            }
            Ok(Progress::More)
        })?;
        match is_steady {
            true => Ok(()),
            false => Err(NftablesError::Changed),
        }
    }

    /// Carries out a transaction, unless the ruleset is no longer that of the generation.
    pub fn commit(&self, batch: Batch, generation: Generation) -> Result<(), NftablesError> {
        let first = self.sequence.get();
        let (bytes, count) = batch.into_bytes(generation, first);
        self.sequence.set(first.wrapping_add(count));
        uninterrupted(|| self.socket.send(&bytes, 0))?;
        // Refusals come first, and only the last message of the batch asks to be acknowledged (nfnetlink_rcv_batch,
        // net/netfilter/nfnetlink.c): the first answer says how all of it ended.
        self.answers(count, first, |_, payload| {
            match payload {
                NetlinkPayload::Error(error) => refusal(error.raw_code())?,
                _ => return Err(NftablesError::Garbled),
            }
            Ok(Progress::Done)
        })
    }

    fn ask(&self, request: &Message, flags: u16) -> Result<u32, NftablesError> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let mut datagram = Vec::new();
        request.write(&mut datagram, flags, sequence);
        uninterrupted(|| self.socket.send(&datagram, 0))?;
        Ok(sequence)
    }

    /// Hands over the answers to `count` messages from number `first` on, until one of them is the last. What is left
    /// of earlier requests, which ended early, is passed over.
    fn answers(
        &self,
        count: u32,
        first: u32,
        mut each: impl FnMut(&NetlinkHeader, NetlinkPayload<Answer>) -> Result<Progress, NftablesError>,
    ) -> Result<(), NftablesError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let datagram = self.receive(deadline)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<Answer>::deserialize(rest);
                let NetlinkMessage {
                    header, payload, ..
                } = message.map_err(|_| NftablesError::Garbled)?;
                let is_ours = header.sequence_number.wrapping_sub(first) < count;
                if is_ours && each(&header, payload)? == Progress::Done {
                    return Ok(());
                }
                let next = (header.length as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }

    fn receive(&self, deadline: Instant) -> Result<Vec<u8>, NftablesError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, left) {
                Ok(0) => return Err(NftablesError::NoAnswer),
                Err(Errno::EINTR) => continue,
                outcome => outcome.map_err(NftablesError::of)?,
            };
            let mut datagram = Vec::with_capacity(ANSWER_SIZE);
            uninterrupted(|| self.socket.recv(&mut datagram, 0))?;
            return Ok(datagram);
        }
    }
}

/// Whether an answer was the last one.
#[derive(PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

/// The kernel's code: zero or a negative errno.
fn refusal(code: i32) -> Result<(), NftablesError> {
    match code {
        0 => Ok(()),
        code => Err(NftablesError::of(Errno::from_raw(-code))),
    }
}
