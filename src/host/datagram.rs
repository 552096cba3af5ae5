//! Netlink sockets, blocking: numbered requests go out, and the answers to them come back (netlink(7)).
//!
//! What the messages say is the business of [`super::netlink`] and [`super::nftables`]. There is no event loop: the
//! kernel has answered when the call that asks it returns, but for the rest of long lists.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr};

use crate::host::interrupts::uninterrupted;

/// The kernel answers within microseconds, unless others hold its lock or it hangs.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// No datagram of the kernel's is larger: it cuts lists into pages of at most 32 KiB (`netlink_dump`, af_netlink.c),
/// and an error quotes at most the message it refuses.
const ANSWER_SIZE: usize = 64 << 10;

/// A socket of one namespace.
pub(super) struct Datagrams {
    socket: Socket,
    /// The number of the next message.
    next: Cell<u32>,
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// The datagram was not taken; nothing was done.
    NotSent(Errno),
    /// Whether the request was carried out is not known.
    Broken(Errno),
    /// None came in time.
    TimedOut,
    /// What came is no message.
    Garbled,
}

/// Whether an answer was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

impl Datagrams {
    /// Opens a socket in the thread's own namespace, which gets the events of these groups (a bit for each).
    pub fn open(protocol: isize, groups: u32) -> io::Result<Datagrams> {
        let socket = uninterrupted(|| {
            let mut socket = Socket::new(protocol)?;
            socket.set_non_blocking(true)?;
            if groups != 0 {
                socket.bind(&SocketAddr::new(0, groups))?;
            }
            Ok(socket)
        })?;
        Ok(Datagrams {
            socket,
            next: Cell::new(1),
        })
    }

    /// The socket, for its options.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Takes numbers for so many messages; the first of them.
    pub fn numbers(&self, count: u32) -> u32 {
        let first = self.next.get();
        self.next.set(first.wrapping_add(count));
        first
    }

    /// Sends messages to the kernel.
    pub fn send(&self, datagram: &[u8]) -> Result<(), Silence> {
        let sent = uninterrupted(|| self.socket.send(datagram, 0));
        sent.map(drop)
            .map_err(|cause| Silence::NotSent(errno(cause)))
    }

    /// Hands over the answers to `count` messages from number `first` on, until one of them is the last. What is left
    /// of earlier requests, which ended early, is passed over.
    pub fn answers<M: NetlinkDeserializable, E: From<Silence>>(
        &self,
        count: u32,
        first: u32,
        mut each: impl FnMut(&NetlinkHeader, NetlinkPayload<M>) -> Result<Progress, E>,
    ) -> Result<(), E> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let datagram = self.receive(deadline)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<M>::deserialize(rest);
                let NetlinkMessage {
                    header, payload, ..
                } = message.map_err(|_| Silence::Garbled)?;
                let is_ours = header.sequence_number.wrapping_sub(first) < count;
                if is_ours && each(&header, payload)? == Progress::Done {
                    return Ok(());
                }
                let next = (header.length as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }

    fn receive(&self, deadline: Instant) -> Result<Vec<u8>, Silence> {
        let mut datagram = Vec::with_capacity(ANSWER_SIZE);
        loop {
            match self.socket.recv_from(&mut datagram, 0).map_err(errno) {
                // Any process with CAP_NET_ADMIN can send to a netlink socket; only the kernel's port ID is 0 (netlink(7)).
                Ok((_, sender)) if sender.port_number() == 0 => return Ok(datagram),
                Ok(_) => datagram.clear(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(deadline)?,
                Err(errno) => return Err(Silence::Broken(errno)),
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), Silence> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => Err(Silence::TimedOut),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Silence::Broken(errno)),
        }
    }

    /// Throws away what came in. That there was more than the socket can hold (ENOBUFS) is no error then.
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

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn errno(cause: io::Error) -> Errno {
    Errno::from_raw(cause.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::sys::protocols::NETLINK_USERSOCK;

    #[test]
    fn a_datagram_of_another_process_is_no_answer() {
        // The protocol between processes: no privilege is needed to send.
        let mut receiver = Datagrams::open(NETLINK_USERSOCK, 0).unwrap();
        let address = receiver.socket.bind_auto().unwrap();
        let mut other = Socket::new(NETLINK_USERSOCK).unwrap();
        other.bind_auto().unwrap();
        other.send_to(&[0; 16], &address, 0).unwrap();
        assert_eq!(receiver.wait(Instant::now()), Ok(()), "it has arrived");
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(receiver.receive(deadline), Err(Silence::TimedOut));
    }
}
