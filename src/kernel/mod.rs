//! Access to the kernel and to other programs: netlink, namespaces, sysctls, processes, locks, signals. No other module
//! uses them directly.
//! Values are those of [`crate::net`]. An errno that callers handle is a variant of an error type; nothing here depends
//! on CNI.

pub mod boot;
pub mod conntrack;
pub mod dbus;
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
pub mod threads;
pub mod xtables;
