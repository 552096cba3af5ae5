//! Links between host and container, independent of what the host connects them to.

pub mod namespace;
mod veths;

use std::fmt::Display;
use std::time::Duration;

use crate::error::{Code, Error};
use crate::kernel::netlink::{Link, Netlink, NetlinkError};
use crate::kernel::random;
use crate::net::{IfName, Mac};

pub use veths::{Veth, veths};

/// How long a finished port may take until frames pass; the kernel needs less than a millisecond, but on a node where
/// hundreds of namespaces come and go others hold its lock for seconds.
pub(crate) const PORT_LIMIT: Duration = Duration::from_secs(10);

/// An error that names operation, object and cause.
pub(crate) fn failed(operation: &str, object: impl Display, cause: NetlinkError) -> Error {
    let code = match cause {
        // Others hold the kernel's lock, or we are to end: neither says that it cannot be done.
        NetlinkError::NoAnswer | NetlinkError::Terminated(_) => Code::TRY_AGAIN,
        _ => Code::PLUGIN,
    };
    Error::new(code, format!("cannot {operation} {object}: {cause}"))
}

/// A MAC address for a link that is about to be created.
pub(crate) fn new_mac(link: impl Display) -> Result<Mac, Error> {
    random::mac()
        .map_err(|cause| Error::failed(format!("cannot choose a MAC address for {link}: {cause}")))
}

/// A link that was just created.
pub(crate) fn made(host: &Netlink, name: &IfName) -> Result<Link, Error> {
    host.link(name)
        .map_err(|cause| failed("look up", name, cause))?
        .ok_or_else(|| Error::failed(format!("{name} was deleted as soon as it was made")))
}
