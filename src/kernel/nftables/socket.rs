//! Requests to nf_tables and their answers.

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkPayload,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};

use super::batch::Batch;
use super::message::{Message, NFGENMSG_LEN};
use super::{Generation, NftablesError};
use crate::kernel::netlink_socket::{NetlinkSocket, Progress, RawMessage, ReceiveError};
use crate::kernel::retry::retry_on_eintr;

/// A socket in one network namespace.
pub(super) struct Socket(NetlinkSocket);

/// The attributes of an answer, which follow `struct nfgenmsg`.
fn attributes(message: &RawMessage) -> &[u8] {
    message.body.get(NFGENMSG_LEN..).unwrap_or_default()
}

impl Socket {
    pub fn open() -> Result<Socket, NftablesError> {
        let socket = NetlinkSocket::open(NETLINK_NETFILTER, 0)?;
        // Otherwise an error contains the whole refused message.
        retry_on_eintr(|| socket.socket().set_cap_ack(true))?;
        Ok(Socket(socket))
    }

    /// Sends a query for one object and returns the attributes of the answer.
    pub fn fetch(&self, request: Message) -> Result<Vec<u8>, NftablesError> {
        let request = self.ask(&request, NLM_F_REQUEST)?;
        let mut found = None;
        self.answers(1, request, |_, payload| {
            match payload {
                NetlinkPayload::Error(error) => result(error.raw_code())?,
                NetlinkPayload::InnerMessage(message) => {
                    found = Some(attributes(&message).to_vec())
                }
                _ => {}
            }
            Ok(Progress::Done)
        })?;
        found.ok_or(NftablesError::Malformed)
    }

    /// Dumps objects and calls `each` with the attributes of each answer.
    ///
    /// # Errors
    /// [`NftablesError::Changed`] if the ruleset changed during the dump, which makes it unusable.
    pub fn dump(
        &self,
        request: &Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NftablesError> {
        let request = self.ask(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut is_steady = true;
        self.answers(1, request, |header, payload| {
            is_steady &= header.flags & NLM_F_DUMP_INTR == 0;
            match payload {
                NetlinkPayload::Error(error) => result(error.raw_code())?,
                NetlinkPayload::Done(done) => {
                    result(done.code)?;
                    return Ok(Progress::Done);
                }
                NetlinkPayload::InnerMessage(message) => each(attributes(&message)),
                _ => {}
            }
            Ok(Progress::More)
        })?;
        match is_steady {
            true => Ok(()),
            false => Err(NftablesError::Changed),
        }
    }

    /// Commits a batch; refused with [`NftablesError::Changed`] if the ruleset has another generation.
    pub fn commit(&self, batch: Batch, generation: Generation) -> Result<(), NftablesError> {
        let count = batch.message_count();
        let first = self.0.next_sequence_number(count);
        self.send_large(&batch.into_bytes(generation, first))?;
        // Errors precede the acknowledgement, which only the last change requests (nfnetlink_rcv_batch,
        // net/netfilter/nfnetlink.c), so that the first answer is the result of the batch.
        self.answers(count, first, |_, payload| {
            match payload {
                // Nothing was changed: callers must not take it for an object that does not exist.
                NetlinkPayload::Error(error) => match result(error.raw_code()) {
                    Err(NftablesError::NotFound) => {
                        return Err(NftablesError::Refused(Errno::ENOENT));
                    }
                    outcome => outcome?,
                },
                _ => return Err(NftablesError::Malformed),
            }
            Ok(Progress::Done)
        })
    }

    /// Sends a datagram, after EMSGSIZE (`netlink_sendmsg`, net/netlink/af_netlink.c) with a larger send buffer. The
    /// default is 208 KiB (net.core.wmem_default).
    fn send_large(&self, datagram: &[u8]) -> Result<(), NftablesError> {
        let size = datagram.len();
        match self.0.send(datagram) {
            Err(ReceiveError::NotSent(Errno::EMSGSIZE)) => {}
            sent => return Ok(sent?),
        }
        // Without CAP_NET_ADMIN in the initial user namespace, net.core.wmem_max is the limit.
        let socket = self.0.socket();
        if setsockopt(socket, SndBufForce, &size).is_err() {
            setsockopt(socket, SndBuf, &size).map_err(NftablesError::Refused)?;
        }
        match self.0.send(datagram) {
            Err(ReceiveError::NotSent(Errno::EMSGSIZE)) => Err(NftablesError::TooLarge(size)),
            sent => Ok(sent?),
        }
    }

    fn ask(&self, request: &Message, flags: u16) -> Result<u32, NftablesError> {
        let number = self.0.next_sequence_number(1);
        let mut datagram = Vec::new();
        request.emit(&mut datagram, flags, number);
        self.0.send(&datagram)?;
        Ok(number)
    }

    fn answers(
        &self,
        count: u32,
        first: u32,
        each: impl FnMut(&NetlinkHeader, NetlinkPayload<RawMessage>) -> Result<Progress, NftablesError>,
    ) -> Result<(), NftablesError> {
        self.0.answers(count, first, each)
    }
}

impl From<ReceiveError> for NftablesError {
    fn from(error: ReceiveError) -> NftablesError {
        match error {
            ReceiveError::NotSent(errno) | ReceiveError::Broken(errno) => {
                NftablesError::Refused(errno)
            }
            ReceiveError::TimedOut => NftablesError::NoAnswer,
            ReceiveError::Malformed => NftablesError::Malformed,
        }
    }
}

/// The error of an answer: 0 or a negative errno.
fn result(code: i32) -> Result<(), NftablesError> {
    match code {
        0 => Ok(()),
        code => Err(NftablesError::of(Errno::from_raw(-code))),
    }
}
