//! Links between host and container, independent of what the host connects them to.

pub mod container;
pub mod namespace;
pub mod plan;
pub mod veth;
mod veths;

use std::fmt::Display;
use std::time::Duration;

use crate::error::{Code, Error};
use crate::kernel::netlink::{Link, Netlink, NetlinkError};
use crate::kernel::random;
use crate::net::{IfName, Mac};

pub use veths::{Veth, veths};

/// Time limit until a started port forwards frames. The kernel takes less than a millisecond, but on a node on which hundreds
/// of namespaces are created and deleted, its rtnl lock is held for seconds.
pub(crate) const PORT_LIMIT: Duration = Duration::from_secs(10);

/// An error that names operation, object and cause.
pub(crate) fn failed(operation: &str, object: impl Display, cause: NetlinkError) -> Error {
    let code = match cause {
        // The rtnl lock is held for long, or SIGTERM arrived: a retry may succeed.
        NetlinkError::NoAnswer | NetlinkError::Terminated(_) => Code::TRY_AGAIN,
        _ => Code::PLUGIN,
    };
    Error::new(code, format!("cannot {operation} {object}: {cause}"))
}

/// A random MAC address.
pub(crate) fn new_mac(link: impl Display) -> Result<Mac, Error> {
    random::mac()
        .map_err(|cause| Error::failed(format!("cannot choose a MAC address for {link}: {cause}")))
}

/// A link that was just created.
pub(crate) fn made(host: &Netlink, name: &IfName) -> Result<Link, Error> {
    host.link(name)
        .map_err(|cause| failed("look up", name, cause))?
        .ok_or_else(|| Error::failed(format!("{name} was deleted right after it was created")))
}
