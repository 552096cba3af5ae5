//! Nodes with a history: bridges, links, rules, leases and files that an administrator, another tool or the Go plugins
//! made before a plugin is called. Each test creates the foreign state first; where the Go plugins handle the case, the
//! same test runs on them.

use gangplank_test_support::{self as support, implementation};

mod bridges;
mod configurations;
mod identity;
mod leases;
mod mac_spoof_check;
mod random;
mod rules;
mod rules_observed;
