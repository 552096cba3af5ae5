//! The socket under a connection: what a signal interrupts is tried again, where the connection would take it for its end.

use std::io::{self, ErrorKind};
use std::task::{Context, Poll};

use bytes::BufMut;
use rtnetlink::sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};

/// A socket of the event loop that knows no EINTR.
pub(super) struct PatientSocket(TokioSocket);

fn patiently<T>(mut attempt: impl FnMut() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    loop {
        match attempt() {
            Poll::Ready(Err(cause)) if cause.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

impl AsyncSocket for PatientSocket {
    fn socket_ref(&self) -> &Socket {
        self.0.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.0.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<PatientSocket> {
        TokioSocket::new(protocol).map(PatientSocket)
    }

    fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        patiently(|| self.0.poll_send(cx, buf))
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        addr: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        patiently(|| self.0.poll_send_to(cx, buf, addr))
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<()>> {
        patiently(|| self.0.poll_recv(cx, buf))
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        cx: &mut Context<'_>,
        buf: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        patiently(|| self.0.poll_recv_from(cx, buf))
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        patiently(|| self.0.poll_recv_from_full(cx))
    }
}
