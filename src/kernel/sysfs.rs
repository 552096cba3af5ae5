//! Properties of links that only /sys has.

use std::fs;

use crate::net::Mac;

/// The MAC address was set by user space, so that a bridge keeps it (linux/netdevice.h).
const NET_ADDR_SET: &str = "3";

/// Whether the MAC address of a link was set by user space. `None` if /sys is not mounted or shows another network
/// namespace (sysfs(5)), recognised by ifindex and MAC address.
pub fn is_mac_set(name: &str, index: u32, mac: Mac) -> Option<bool> {
    let read = |file: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?;
        Some(text.trim().to_owned())
    };
    let is_same = read("ifindex")? == index.to_string() && read("address")? == mac.to_string();
    let kind = read("addr_assign_type").filter(|_| is_same)?;
    Some(kind == NET_ADDR_SET)
}
