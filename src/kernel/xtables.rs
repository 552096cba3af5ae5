//! The state of iptables-legacy that can be read without its programs.

use std::fs;
use std::io;

use crate::kernel::locks::holder;
use crate::net::Family;

/// The lock file of iptables-legacy (XT_LOCK_NAME, iptables/xshared.h), unless XTABLES_LOCKFILE names another one.
const LOCK: &str = "/run/xtables.lock";

/// The process that holds the xtables lock, as `pid 123 (name)`.
pub fn lock_holder() -> Option<String> {
    let file = std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| LOCK.into());
    holder(&fs::metadata(file).ok()?)
}

/// Whether iptables-legacy has this table in this network namespace.
/// The kernel lists its tables once it is used (`xt_proto_init`, net/netfilter/x_tables.c).
///
/// # Errors
/// If the list cannot be read, so that the table may exist.
pub fn has_table(family: Family, table: &str) -> io::Result<bool> {
    Ok(tables(family)?.lines().any(|name| name == table))
}

/// Whether iptables-legacy has any table in this network namespace.
///
/// # Errors
/// As [`has_table`].
pub fn is_used(family: Family) -> io::Result<bool> {
    Ok(!tables(family)?.trim().is_empty())
}

fn tables(family: Family) -> io::Result<String> {
    let list = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(list) {
        // The kernel lacks iptables-legacy, or it is not in use.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(cause) => Err(io::Error::new(
            cause.kind(),
            format!("cannot read {list}, the tables of the legacy iptables: {cause}"),
        )),
        read => read,
    }
}
