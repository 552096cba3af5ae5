//! The only place that knows the kernel: namespaces, netlink, sysctls and other programs.
//!
//! It speaks in the values of [`crate::net`]; what an errno means for the caller is a variant of its errors.

pub mod boot;
pub mod files;
pub mod locks;
pub mod log;
pub mod nat;
pub mod netlink;
mod netlink_socket;
pub mod netns;
pub mod nftables;
pub mod process;
pub mod procfs;
pub mod random;
pub mod retry;
pub mod signals;
pub mod sysctl;
pub mod sysfs;
pub mod xtables;
