//! What only /sys tells of a link.

use std::fs;

use crate::net::Mac;

/// The MAC address was set, and does not change by itself (NET_ADDR_SET, linux/netdevice.h).
const NET_ADDR_SET: &str = "3";

/// Whether the MAC address of a link was set. `None` where /sys does not tell: it may be missing, or mounted for another
/// network namespace, which has no such link or another one of that name (sysfs(5)).
pub fn is_mac_set(name: &str, index: u32, mac: Mac) -> Option<bool> {
    let read = |file: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?;
        Some(text.trim().to_owned())
    };
    let is_same = read("ifindex")? == index.to_string() && read("address")? == mac.to_string();
    let kind = read("addr_assign_type").filter(|_| is_same)?;
    Some(kind == NET_ADDR_SET)
}
