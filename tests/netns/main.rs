//! The plugins at work: every test makes hosts and pods in namespaces of its own and lets packets flow there.

use gangplank_test_support as support;

mod bridge;
mod chain;
mod check;
mod cost;
mod del;
mod delegate;
mod forward;
mod gc;
mod host_local;
mod host_local_neighbours;
mod log;
mod loopback;
mod masquerade;
mod neighbours;
mod nftables;
mod policy;
mod spoof;
mod status;
mod undo;
mod uplink;
mod vlan;
mod walkthroughs;
mod wishes;
mod words;
