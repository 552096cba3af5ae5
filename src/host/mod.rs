//! The only place that knows the kernel: namespaces, netlink, sysctls and other programs.

pub mod locks;
pub mod process;
