//! Route netlink (rtnetlink(7)): interfaces, addresses, routes, VLANs of bridge ports, forwarding databases and traffic
//! control.
//!
//! A [`Netlink`] is a blocking socket in one network namespace with a method for each request. The types of
//! `netlink-packet-route` encode requests and decode answers. What the crate (0.34) lacks is in `message.rs` and
//! `link_operations.rs`, and in `tc.rs` and the files that use it:
//!
//! - It decodes a message completely or not at all. New attributes of bridges (IFLA_BR_MCAST_QUERIER_STATE), VXLAN and
//!   others have made releases of it refuse messages; here an attribute that cannot be decoded is skipped.
//! - It refuses an IFLA_IFNAME or IFLA_IFALIAS that is not UTF-8.
//! - It ends an IFLA_IFALIAS with a zero byte, with which the kernel refuses the longest one (`dev_set_alias`,
//!   net/core/dev.c).
//! - It has no ranges of VLANs: a range is two IFLA_BRIDGE_VLAN_INFO, with BRIDGE_VLAN_INFO_RANGE_BEGIN and _END.
//! - It has neither the options of the qdiscs `tbf` and `htb` nor programs of classic BPF.
//! - It has no names of message types (RTM_*), and no multicast groups (RTMGRP_*).

mod address;
mod connection;
mod error;
mod fdb;
mod filter;
mod flow_hash;
mod link_operations;
mod link_types;
mod message;
mod peers;
mod qdisc;
mod route;
mod tc;
mod uplink;
mod vlan;

pub use address::{Address, Detection, SubnetRoute};
pub use connection::Netlink;
pub use error::{NetlinkError, not_found_as_none};
pub use filter::IngressFilter;
pub use link_operations::{NewBridge, NewIfb, NewVeth};
pub use link_types::{Kind, Link, LinkSetting, PortFlags, Traffic, VlanFiltering};
pub use peers::{CrossLink, NetnsId};
pub use qdisc::{HtbClass, NewQdisc, Qdisc, TokenBucket, ticks};
pub use route::{RouteEntry, RouteQuery};
pub use tc::{Handle, TcChange};
