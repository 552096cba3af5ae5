//! Errors of route netlink; those that callers handle are variants.

use nix::errno::Errno;

use crate::kernel::netlink_socket::{ANSWER_LIMIT, ReceiveError};
use crate::kernel::signals::Terminated;
use crate::net::Cidr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// ENODEV, ENOENT, EADDRNOTAVAIL, ESRCH.
    #[error("{}", .0.desc())]
    NotFound(Errno),
    /// EEXIST.
    #[error("it exists already")]
    Exists,
    /// ENETUNREACH, EHOSTUNREACH.
    #[error("the next hop is not on a connected network")]
    Unreachable,
    /// EPERM, EACCES.
    #[error("not permitted: CAP_NET_ADMIN in that network namespace is needed")]
    Denied,
    /// EOPNOTSUPP.
    #[error("this kernel does not support it")]
    Unsupported,
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The socket failed; whether the kernel processed the request is unknown.
    #[error("the netlink socket failed")]
    Lost,
    #[error(transparent)]
    Terminated(#[from] Terminated),
    #[error("the kernel did not answer within {} s", ANSWER_LIMIT.as_secs())]
    NoAnswer,
    #[error("the kernel's answer cannot be parsed")]
    Unreadable,
    #[error("timed out")]
    TimedOut,
    #[error("another host on the network has {0}")]
    Duplicate(Cidr),
    /// NLM_F_DUMP_INTR at each attempt.
    #[error("kept changing during the dump")]
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
