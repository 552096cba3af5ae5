//! Debian's package of the Go plugins and gangplank on the same nodes, with the same files.
//! Each test also runs with the Go plugins alone, to prove that its expectations are right. Deliberate differences are
//! listed in a table with their reason, and the Go plugins must show them.

use gangplank_test_support::{self as support, implementation};

mod concurrency;
mod defects;
mod gangplank_keys;
mod hot_swap;
mod hot_swap_bandwidth;
mod hot_swap_chain;
mod hot_swap_firewalld;
mod hot_swap_flannel;
mod hot_swap_ptp;
mod hot_swap_static;
mod hot_swap_tuning;
mod iptables_versions;
mod mixed_chains;
mod normalize;
mod side_by_side;
