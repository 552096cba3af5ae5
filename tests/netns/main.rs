//! The plugins in real namespaces: every test creates its own nodes and pods, and checks connectivity with packets. The
//! modules are named after those of `src`.

use gangplank_test_support as support;

mod bandwidth;
mod bridge;
mod chain_packets;
mod check;
mod cost;
mod del;
mod delegate;
mod error_messages;
mod flannel;
mod forward;
mod gc;
mod host_local;
mod log_record;
mod loopback;
mod mac_spoof_check;
mod masquerade;
mod ptp;
mod static_ipam;
mod status;
mod tuning;
mod undo;
mod walkthroughs;
