//! Blocking netlink sockets (netlink(7)) for [`super::netlink`] and [`super::nftables`].
//!
//! There is no event loop: the kernel answers before the system call that sends the request returns, except for the
//! remaining parts of long dumps.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kernel::retry::retry_on_eintr;

/// The kernel answers within microseconds, unless another process holds the RTNL lock or the kernel hangs.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// No datagram from the kernel is larger: a dump has parts of at most 32 KiB (`netlink_dump`,
/// net/netlink/af_netlink.c), and an error contains at most the request.
const ANSWER_SIZE: usize = 64 << 10;

/// A socket in one network namespace.
pub(super) struct NetlinkSocket {
    socket: Socket,
    next_sequence_number: Cell<u32>,
}

/// A message from the kernel.
pub(super) struct RawMessage {
    pub message_type: u16,
    /// What follows the netlink header.
    pub body: Vec<u8>,
}

impl NetlinkDeserializable for RawMessage {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<RawMessage, Infallible> {
        Ok(RawMessage {
            message_type: header.message_type,
            body: payload.to_vec(),
        })
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiveError {
    /// The request was not sent; the kernel changed nothing.
    NotSent(Errno),
    /// It is not known whether the kernel carried out the request.
    Broken(Errno),
    TimedOut,
    /// The kernel sent something that is no netlink message.
    Malformed,
}

/// Whether more answers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

impl NetlinkSocket {
    /// Opens a socket in the thread's network namespace that subscribes to these multicast groups (RTMGRP_*).
    pub fn open(protocol: isize, groups: u32) -> io::Result<NetlinkSocket> {
        let socket = retry_on_eintr(|| {
            let mut socket = Socket::new(protocol)?;
            socket.set_non_blocking(true)?;
            if groups != 0 {
                socket.bind(&SocketAddr::new(0, groups))?;
            }
            Ok(socket)
        })?;
        Ok(NetlinkSocket {
            socket,
            next_sequence_number: Cell::new(1),
        })
    }

    /// The socket, for its options.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The sequence number of the first of `count` messages; the others have the numbers that follow.
    pub fn next_sequence_number(&self, count: u32) -> u32 {
        let next = &self.next_sequence_number;
        next.replace(next.get().wrapping_add(count))
    }

    pub fn send(&self, datagram: &[u8]) -> Result<(), ReceiveError> {
        let sent = retry_on_eintr(|| self.socket.send(datagram, 0));
        sent.map(drop)
            .map_err(|cause| ReceiveError::NotSent(errno(cause)))
    }

    /// Calls `each` with the answers to `count` messages with the sequence numbers from `first` on, until it returns
    /// [`Progress::Done`]. Remaining answers to earlier requests are skipped.
    pub fn answers<E: From<ReceiveError>>(
        &self,
        count: u32,
        first: u32,
        mut each: impl FnMut(&NetlinkHeader, NetlinkPayload<RawMessage>) -> Result<Progress, E>,
    ) -> Result<(), E> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let datagram = self.receive(deadline)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::deserialize(rest);
                let NetlinkMessage {
                    header, payload, ..
                } = message.map_err(|_| ReceiveError::Malformed)?;
                let is_answer = header.sequence_number.wrapping_sub(first) < count;
                if is_answer && each(&header, payload)? == Progress::Done {
                    return Ok(());
                }
                let next = (header.length as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }

    fn receive(&self, deadline: Instant) -> Result<Vec<u8>, ReceiveError> {
        let mut datagram = Vec::with_capacity(ANSWER_SIZE);
        loop {
            match self.socket.recv_from(&mut datagram, 0).map_err(errno) {
                // Any process with CAP_NET_ADMIN can send to a netlink socket; only the kernel's port ID is 0
                // (netlink(7)).
                Ok((_, sender)) if sender.port_number() == 0 => return Ok(datagram),
                Ok(_) => datagram.clear(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(deadline)?,
                Err(errno) => return Err(ReceiveError::Broken(errno)),
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), ReceiveError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => Err(ReceiveError::TimedOut),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(ReceiveError::Broken(errno)),
        }
    }

    /// Discards the messages received so far, and that others were lost because the receive buffer was full (ENOBUFS).
    pub fn drain(&self) {
        let mut datagram = Vec::with_capacity(ANSWER_SIZE);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, 0).map_err(errno) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn errno(cause: io::Error) -> Errno {
    Errno::from_raw(cause.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use netlink_sys::protocols::NETLINK_USERSOCK;

    use super::*;

    #[test]
    fn a_datagram_of_another_process_is_no_answer() {
        // The protocol between processes: no privilege is needed to send.
        let mut receiver = NetlinkSocket::open(NETLINK_USERSOCK, 0).unwrap();
        let address = receiver.socket.bind_auto().unwrap();
        let mut other = Socket::new(NETLINK_USERSOCK).unwrap();
        other.bind_auto().unwrap();
        other.send_to(&[0; 16], &address, 0).unwrap();
        assert_eq!(receiver.wait(Instant::now()), Ok(()), "it has arrived");
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(receiver.receive(deadline), Err(ReceiveError::TimedOut));
    }
}
