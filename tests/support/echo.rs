//! Servers that answer each client with the source address that they see.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Namespace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// TCP and UDP servers of both families on a port. They end when it is dropped.
pub struct EchoServer {
    ended: Arc<AtomicBool>,
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Namespace {
    pub fn serve(&self, port: u16) -> EchoServer {
        let any = ("::", port);
        let (tcp, udp) = self
            .inside(|| Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)))
            .unwrap_or_else(|e: io::Error| panic!("{}: cannot serve port {port}: {e}", self.name));
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let server = EchoServer {
            ended: ended.clone(),
        };
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let waiting = [answer_tcp(&tcp), answer_udp(&udp)];
                if waiting.iter().all(Result::is_err) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        server
    }

    /// The source address with which an [`EchoServer`] sees a client in this namespace; `None` if there is no answer
    /// within the time limit, or if the connection is refused.
    pub fn asks(&self, protocol: Protocol, to: &str, limit: Duration) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().expect("ADDRESS:PORT");
        let ask = || match protocol {
            Protocol::Tcp => ask_tcp(to, limit),
            Protocol::Udp => self.udp_client(to)?.ask(limit),
        };
        self.inside(ask).ok()
    }

    /// A UDP client in this namespace, which keeps its source port.
    pub fn udp_client(&self, to: SocketAddr) -> io::Result<UdpClient> {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = self.inside(|| UdpSocket::bind((any, 0)))?;
        self.inside(|| socket.connect(to))?;
        Ok(UdpClient { socket })
    }
}

pub struct UdpClient {
    pub socket: UdpSocket,
}

impl UdpClient {
    /// See [`Namespace::asks`].
    pub fn ask(&self, limit: Duration) -> io::Result<IpAddr> {
        self.socket.set_read_timeout(Some(limit))?;
        self.socket.send(b"who am I?")?;
        let mut answer = [0; 64];
        let length = self.socket.recv(&mut answer)?;
        parse(&answer[..length])
    }
}

fn answer_tcp(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, from) = listener.accept()?;
    write!(stream, "{}", from.ip().to_canonical())
}

fn answer_udp(socket: &UdpSocket) -> io::Result<()> {
    let (_, from) = socket.recv_from(&mut [0; 64])?;
    let answer = from.ip().to_canonical().to_string();
    socket.send_to(answer.as_bytes(), from).map(drop)
}

fn ask_tcp(to: SocketAddr, limit: Duration) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> io::Result<IpAddr> {
    let text = String::from_utf8_lossy(answer);
    text.parse().map_err(|_| ErrorKind::InvalidData.into())
}
