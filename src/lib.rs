//! gangplank: the CNI plugins of a node in one small binary.
//!
//! An attachment owns a *lease* (a file), a *link* (a veth pair) and a *masquerade entry* (packet filter rules).
//! Addresses, routes, port flags and sysctls are properties of the link and disappear with it. The bridge is shared and
//! never removed. ADD registers the inverse of each effect in `undo`; DEL removes the same resources, the lease last,
//! so that an address is not assigned again while a link or a rule still uses it.
//!
//! Modules, from top to bottom; each uses only those below it:
//!
//! - [`cli`]: the commands of `gangplank`
//! - [`plugins`]: the CNI plugins, and the dispatcher that reads a request and writes the result
//! - [`state`]: desired and observed state of bridges and ports
//! - `undo`: the effects of an ADD in reverse
//! - [`link`]: veth pairs between the host and containers
//! - [`ipam`]: address ranges and leases
//! - [`delegate`]: execution of other plugins
//! - [`netfilter`]: masquerading, the MAC spoof check and forward accept rules
//! - [`kernel`]: netlink, namespaces, sysctls, files, processes; the only module that talks to the kernel
//! - [`cni`]: the protocol: environment, configuration, results, versions
//! - [`net`], [`Error`] and [`build`]: values, errors, and the version in the binary

pub mod build;
pub mod cli;
pub mod cni;
pub mod delegate;
mod error;
pub mod ipam;
pub mod kernel;
pub mod link;
pub mod net;
pub mod netfilter;
pub mod plugins;
pub mod state;
#[cfg(test)]
mod test_random;
mod undo;

pub use error::{Code, Error, Failures};
