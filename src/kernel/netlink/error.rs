//! What the kernel refused, as far as callers tell refusals apart.

use nix::errno::Errno;

use crate::kernel::netlink_socket::{ANSWER_LIMIT, ReceiveError};
use crate::kernel::signals::Terminated;
use crate::net::Cidr;

/// Why the kernel did not do or answer what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// ENODEV, ENOENT, EADDRNOTAVAIL, ESRCH: what was named is not there.
    #[error("{}", .0.desc())]
    NotFound(Errno),
    /// EEXIST: the name or value is taken.
    #[error("it exists already")]
    Exists,
    /// ENETUNREACH, EHOSTUNREACH: no connected network leads to the next hop.
    #[error("the next hop is not on a connected network")]
    Unreachable,
    /// EPERM, EACCES.
    #[error("not permitted: CAP_NET_ADMIN in that network namespace is needed")]
    Denied,
    /// EOPNOTSUPP: a part of the kernel is missing.
    #[error("this kernel does not support it")]
    Unsupported,
    /// Any other errno.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The connection to the kernel broke: whether it did what it was asked is not known.
    #[error("the connection to the kernel broke")]
    Lost,
    /// SIGTERM ended a wait.
    #[error(transparent)]
    Terminated(#[from] Terminated),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", ANSWER_LIMIT.as_secs())]
    NoAnswer,
    /// The kernel answered something else than was asked for.
    #[error("the kernel's answer cannot be read")]
    Unreadable,
    /// What was waited for did not happen.
    #[error("it did not happen in time")]
    TimedOut,
    /// A duplicate address was detected.
    #[error("another host on the network has {0}")]
    Duplicate(Cidr),
    /// A dump was interrupted by changes again and again.
    #[error("it changed too often to be listed")]
    Unsteady,
}

impl NetlinkError {
    pub(super) fn of(errno: Errno) -> NetlinkError {
        match errno {
            Errno::ENODEV | Errno::ENOENT | Errno::EADDRNOTAVAIL | Errno::ESRCH => {
                NetlinkError::NotFound(errno)
            }
            Errno::EEXIST => NetlinkError::Exists,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => NetlinkError::Unreachable,
            Errno::EPERM | Errno::EACCES => NetlinkError::Denied,
            Errno::EOPNOTSUPP => NetlinkError::Unsupported,
            errno => NetlinkError::Refused(errno),
        }
    }
}

/// `None` for [`NetlinkError::NotFound`].
pub fn not_found_as_none<T>(outcome: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match outcome {
        Err(NetlinkError::NotFound(_)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl From<ReceiveError> for NetlinkError {
    fn from(error: ReceiveError) -> NetlinkError {
        match error {
            ReceiveError::NotSent(errno) => NetlinkError::of(errno),
            ReceiveError::Broken(_) => NetlinkError::Lost,
            ReceiveError::TimedOut => NetlinkError::NoAnswer,
            ReceiveError::Malformed => NetlinkError::Unreadable,
        }
    }
}
