//! The legacy variant of iptables, as far as the kernel tells of it without a program.

use std::fs;

use crate::net::Family;

/// Whether the legacy variant has a table of that name in this namespace.
///
/// The lists are there once the variant was used (`xt_proto_init`, net/netfilter/x_tables.c).
pub fn has_table(family: Family, table: &str) -> bool {
    let list = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(list).is_ok_and(|names| names.lines().any(|name| name == table))
}
