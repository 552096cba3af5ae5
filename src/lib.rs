//! gangplank: the CNI plugins `bridge`, `host-local` and `loopback` in one small binary.
//!
//! An attachment owns three things: a *lease* (a file), a *link* (a veth pair) and a *masquerade entry* (rules of the
//! nat table). Addresses, routes, port flags and sysctls are properties of the link and die with it. The bridge is
//! shared and never removed. So undo is a stack of at most three entries, and DEL gives back the same three, the
//! address last: no address is free for another pod while its link or its rules still stand.
//!
//! A request's way from stdin to stdout:
//!
//! ```text
//! bytes ── cni::conf ──▶ shape ── *::config ──▶ typed, valid        refused here: nothing touched yet
//!       ── ipam ──▶ Lease                                           [undo: lease]
//!       ── bridge::plan ──▶ Plan: names, MACs, addresses, routes
//!       ── bridge::attach ──▶ facts from the kernel                 [undo: link]        ┐ side by side
//!       ── masquerade ──▶ installed                                 [undo: masquerade]  ┘
//!       ── cni::result ──▶ the shape of the asked cniVersion ──▶ written once
//! ```
//!
//! Dependencies point one way: `net ← cni ← state ← {bridge, ipam, masquerade, forward, loopback} ← dispatch, cli`; [`host`] is the only
//! room that knows the kernel.

pub mod build;
pub mod cli;
pub mod cni;
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
