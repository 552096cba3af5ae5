//! The container's network namespace, and the errors to report for it.

use std::io;
use std::rc::Rc;

use crate::error::{Code, Error};
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::{Netns, NetnsError, OwnNetns};

/// The network namespaces that an attachment connects.
pub struct AttachContext {
    /// A socket in the host's namespace, shared with the undo stack.
    pub host: Rc<Netlink>,
    /// A socket in the container's namespace.
    pub pod: Netlink,
    pub netns: Netns,
}

impl AttachContext {
    /// Opens the namespace at a path, and a socket in it and in the host's.
    ///
    /// # Errors
    /// When there is no namespace at the path, or it is the plugin's own and that is not allowed; when no socket can be
    /// opened.
    pub fn open(path: &str, own_netns: OwnNetns) -> Result<AttachContext, Error> {
        let netns = open(path, own_netns)?;
        Ok(AttachContext {
            host: Rc::new(host_netlink()?),
            pod: netlink(&netns)?,
            netns,
        })
    }
}

/// The error to report for the path in CNI_NETNS.
pub fn error(path: &str, cause: NetnsError) -> Error {
    let code = match cause {
        NetnsError::Own => Code::OWN_NETNS,
        NetnsError::Missing | NetnsError::NotANamespace => Code::INVALID_ENVIRONMENT,
        NetnsError::Refused(_) => Code::PLUGIN,
    };
    let error = Error::new(code, format!("cannot use CNI_NETNS {path:?}: {cause}"));
    match cause {
        NetnsError::Own => {
            error.details("set CNI_NETNS_OVERRIDE=1 if the container really shares it")
        }
        NetnsError::Missing | NetnsError::NotANamespace => {
            error.details("expected a path like /run/netns/NAME or /proc/PID/ns/net")
        }
        NetnsError::Refused(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            error.details("entering a namespace needs root (CAP_SYS_ADMIN)")
        }
        NetnsError::Refused(_) => error,
    }
}

/// Opens the network namespace at the path in CNI_NETNS.
///
/// # Errors
/// If there is none, or if it is the plugin's own and that is not allowed.
pub fn open(path: &str, own_netns: OwnNetns) -> Result<Netns, Error> {
    Netns::open(path, own_netns).map_err(|cause| error(path, cause))
}

/// Opens the network namespace at the path in CNI_NETNS for a DEL; `None` if it no longer exists.
///
/// # Errors
/// If it cannot be opened, or if it is the plugin's own and that is not allowed.
pub fn open_existing(path: Option<&str>, own_netns: OwnNetns) -> Result<Option<Netns>, Error> {
    let Some(path) = path else { return Ok(None) };
    match Netns::open(path, own_netns) {
        Ok(netns) => Ok(Some(netns)),
        Err(cause) if cause.is_gone() => Ok(None),
        Err(cause) => Err(error(path, cause)),
    }
}

/// For IPAM plugins, which do not enter the namespace: any path except that of the plugin's own namespace is accepted.
///
/// # Errors
/// If it is the plugin's own namespace and that is not allowed.
pub fn reject_own(path: &str, own_netns: OwnNetns) -> Result<(), Error> {
    match Netns::open(path, own_netns) {
        Err(own @ NetnsError::Own) => Err(error(path, own)),
        _ => Ok(()),
    }
}

/// Opens a netlink socket in the container's network namespace.
///
/// # Errors
/// If the namespace cannot be entered or no socket can be opened.
pub fn netlink(netns: &Netns) -> Result<Netlink, Error> {
    let path = netns.path().to_string_lossy();
    Netlink::open_in(netns).map_err(|cause| error(&path, cause))
}

/// Opens a netlink socket in the host's network namespace.
///
/// # Errors
/// If no socket can be opened.
pub fn host_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(|cause| Error::failed(format!("cannot open a netlink socket: {cause}")))
}
