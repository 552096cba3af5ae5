//! The legacy variant of iptables, as far as the kernel tells of it without a program.

use std::fs;
use std::io;

use crate::kernel::locks::holder;
use crate::net::Family;

/// What the legacy programs lock while they change a table (XT_LOCK_NAME, iptables/xshared.h), unless the environment
/// names another file.
const LOCK: &str = "/run/xtables.lock";

/// Who keeps the programs of the legacy variant waiting, as `pid 123 (name)`; `None` when nobody does.
pub fn lock_holder() -> Option<String> {
    let file = std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| LOCK.into());
    holder(&fs::metadata(file).ok()?)
}

/// Whether the legacy variant has a table of that name in this namespace.
///
/// The lists are there once the variant was used (`xt_proto_init`, net/netfilter/x_tables.c).
///
/// # Errors
/// When the list cannot be read: then there may be one.
pub fn has_table(family: Family, table: &str) -> io::Result<bool> {
    Ok(tables(family)?.lines().any(|name| name == table))
}

/// Whether the legacy variant has any table in this namespace.
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
        // A kernel without the variant, or in which it was not used.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(cause) => Err(io::Error::new(
            cause.kind(),
            format!("cannot read {list}, the tables of the legacy iptables: {cause}"),
        )),
        read => read,
    }
}
