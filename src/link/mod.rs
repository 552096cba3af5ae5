//! Links between host and container, independent of what the host connects them to.

pub mod container;
pub mod namespace;
pub mod plan;
pub mod veth;
mod veths;

use std::fmt::Display;
use std::time::Duration;

use crate::error::{Code, Error};
use crate::kernel::netlink::{Kind, Link, Netlink, NetlinkError};
use crate::kernel::netns::Netns;
use crate::kernel::random;
use crate::net::{Cidr, Family, IfName, Mac};

pub use veths::{Veth, veths};

/// Time limit until a started port forwards frames. It usually takes less than a millisecond, but the rtnl lock can be
/// held for seconds while hundreds of namespaces are created and deleted.
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

/// Adds operation and object to an error of the kernel; see [`failed`].
pub(crate) trait Context<T> {
    fn context(self, operation: &str, object: impl Display) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, NetlinkError> {
    fn context(self, operation: &str, object: impl Display) -> Result<T, Error> {
        self.map_err(|cause| failed(operation, object, cause))
    }
}

/// A random MAC address.
pub(crate) fn new_mac(link: impl Display) -> Result<Mac, Error> {
    random::mac()
        .map_err(|cause| Error::failed(format!("cannot choose a MAC address for {link}: {cause}")))
}

/// Looks up a link by name.
pub(crate) fn look_up(netlink: &Netlink, name: &IfName) -> Result<Option<Link>, Error> {
    netlink.link(name).context("look up", name)
}

/// The peer of a veth, if it is in the network namespace of `host`. An index alone does not identify it: each namespace
/// has its own, so the peer must refer to the veth as well.
pub(crate) fn peer_on_host(host: &Netlink, veth: &Link) -> Result<Option<Link>, NetlinkError> {
    let peer = veth.peer.map_or(Ok(None), |index| host.link_at(index))?;
    Ok(peer.filter(|peer| peer.kind == Kind::Veth && peer.peer == Some(veth.index)))
}

/// Looks up a link that was just created.
pub(crate) fn created_link(host: &Netlink, name: &IfName) -> Result<Link, Error> {
    look_up(host, name)?
        .ok_or_else(|| Error::failed(format!("{name} was deleted right after it was created")))
}

/// Waits until packets to the IPv6 addresses among these of a link are delivered; those to IPv4 addresses are at once.
/// `netns` is the network namespace of `netlink` if it is not the thread's.
pub(crate) fn wait_delivered(
    netlink: &Netlink,
    netns: Option<&Netns>,
    addresses: &[Cidr],
    (index, name): (u32, &str),
) -> Result<(), Error> {
    let is_v6 = |cidr: &&Cidr| cidr.family() == Family::V6;
    for cidr in addresses.iter().filter(is_v6) {
        netlink
            .wait_delivered((index, cidr.address()), netns, PORT_LIMIT)
            .context(
                &format!("wait until packets to {cidr} are delivered on"),
                name,
            )?;
    }
    Ok(())
}
