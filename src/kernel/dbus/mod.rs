//! A client of the system bus (D-Bus specification 0.43): blocking method calls with strings as arguments.

pub mod message;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::kernel::dbus::message::MAX_MESSAGE;
pub use crate::kernel::dbus::message::{Interface, Malformed, Refused, Value};
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals::{self, Terminated};

/// Time limit for connecting, for a write and for an answer of the bus itself.
const BUS_LIMIT: Duration = Duration::from_secs(3);

/// Time limit for other answers. The bus starts a program that is not running, if it may.
const LIMIT: Duration = Duration::from_secs(10);

/// The address if DBUS_SYSTEM_BUS_ADDRESS is not set ("Well-known Message Bus Instances").
const DEFAULT_ADDRESS: &str = "unix:path=/var/run/dbus/system_bus_socket";

#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    #[error("cannot connect to the system bus at {address}: {cause}")]
    NotConnected { address: String, cause: io::Error },
    #[error("the connection to the system bus failed: {0}")]
    Broken(#[from] io::Error),
    #[error("no answer on the system bus within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the system bus rejects the authentication: {0:?}")]
    Rejected(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Terminated(#[from] Terminated),
}

/// The bus itself.
pub const BUS: Interface = Interface {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    name: "org.freedesktop.DBus",
};

/// A connection to the system bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    is_authenticated: bool,
    /// The serial number of the last call.
    serial: u32,
    /// What the next call sends first.
    unsent: Vec<u8>,
    received: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    began: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Deadline {
        let began = Instant::now();
        Deadline { began, limit }
    }
}

impl Bus {
    /// Connects to the first address of DBUS_SYSTEM_BUS_ADDRESS that accepts the connection.
    ///
    /// # Errors
    /// [`DbusError::NotConnected`] if none does.
    pub fn system() -> Result<Bus, DbusError> {
        let configured = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let addresses = match configured.as_str() {
            "" => DEFAULT_ADDRESS,
            configured => configured,
        };
        let mut failure = io::ErrorKind::Unsupported.into();
        for address in addresses.split(';').filter_map(socket_address) {
            match retry_on_eintr(|| open(&address)) {
                Ok(stream) => return Ok(Bus::on(stream)),
                Err(cause) => failure = cause,
            }
        }
        let address = addresses.to_owned();
        let cause = failure;
        Err(DbusError::NotConnected { address, cause })
    }

    fn on(stream: UnixStream) -> Bus {
        // Authenticates as the user of the process, whom the bus knows from the socket ("EXTERNAL"). Nothing waits for
        // answers before the first call: the bus processes what follows BEGIN as messages.
        let mut unsent = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".to_vec();
        unsent.extend(message::call(1, BUS, "Hello", &[]));
        Bus {
            stream,
            is_authenticated: false,
            serial: 1,
            unsent,
            received: Vec::new(),
        }
    }

    fn authenticate(&mut self) -> Result<(), DbusError> {
        let deadline = Deadline::after(BUS_LIMIT);
        while !self.is_authenticated {
            let line = self.line(deadline)?;
            match line.split(' ').next() {
                Some("OK") => self.is_authenticated = true,
                // The request for the identity; the empty answer is sent already.
                Some("DATA") => {}
                _ => return Err(DbusError::Rejected(line)),
            }
        }
        Ok(())
    }

    /// Calls a method.
    ///
    /// # Errors
    /// [`DbusError::Refused`] if the answer is an error; [`DbusError::Rejected`] at the first call.
    pub fn call(
        &mut self,
        interface: Interface,
        method: &str,
        arguments: &[&str],
    ) -> Result<Value, DbusError> {
        self.serial += 1;
        let mut bytes = std::mem::take(&mut self.unsent);
        bytes.extend(message::call(self.serial, interface, method, arguments));
        self.send(&bytes)?;
        self.authenticate()?;
        let deadline = Deadline::after(match interface.destination == BUS.destination {
            true => BUS_LIMIT,
            false => LIMIT,
        });
        loop {
            let length = message::length(self.at_least(16, deadline)?)?;
            self.at_least(length, deadline)?;
            let message: Vec<u8> = self.received.drain(..length).collect();
            // Others are signals, and the answer to Hello.
            if let Some(answer) = message::answer(&message, self.serial)? {
                return Ok(answer?);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), DbusError> {
        match self.stream.write_all(bytes) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                Err(DbusError::TimedOut(BUS_LIMIT))
            }
            sent => Ok(sent?),
        }
    }

    /// A line of the authentication protocol, without its end.
    fn line(&mut self, deadline: Deadline) -> Result<String, DbusError> {
        let is_end = |it: &[u8]| it == b"\r\n";
        let mut count = 2;
        loop {
            let bytes = self.at_least(count, deadline)?;
            if let Some(end) = bytes.windows(2).position(is_end) {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            count = bytes.len() + 1;
            if count > MAX_MESSAGE {
                return Err(Malformed.into());
            }
        }
    }

    /// What was received, after waiting for this number of bytes.
    fn at_least(&mut self, count: usize, deadline: Deadline) -> Result<&[u8], DbusError> {
        let mut chunk = [0; 4096];
        while self.received.len() < count {
            match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(length) => self.received.extend(&chunk[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = deadline.limit.saturating_sub(deadline.began.elapsed());
                    if left.is_zero() {
                        return Err(DbusError::TimedOut(deadline.limit));
                    }
                    signals::wait_readable(self.stream.as_fd(), left)?;
                    signals::check()?;
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(&self.received)
    }
}

/// The address of a Unix socket: `unix:path=…` or `unix:abstract=…` ("Server Addresses"). `None` for other transports.
fn socket_address(address: &str) -> Option<UnixAddr> {
    let mut keys = address.strip_prefix("unix:")?.split(',');
    keys.find_map(|key| match key.split_once('=')? {
        ("path", path) => UnixAddr::new(OsStr::from_bytes(&unescape(path)?)).ok(),
        ("abstract", name) => UnixAddr::new_abstract(&unescape(name)?).ok(),
        _ => None,
    })
}

/// Replaces `%` and two hexadecimal digits with the byte.
fn unescape(value: &str) -> Option<Vec<u8>> {
    let mut parts = value.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    Some(bytes)
}

fn open(address: &UnixAddr) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Also limits connect(2), which waits while the backlog of the bus is full (unix(7)).
    setsockopt(
        &socket,
        SendTimeout,
        &TimeVal::new(BUS_LIMIT.as_secs() as i64, 0),
    )?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
