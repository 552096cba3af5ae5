//! The plugins at work: every test makes hosts and pods in namespaces of its own and lets packets flow there.

use gangplank_test_support as support;

mod bridge;
mod check;
mod cost;
mod del;
mod delegate;
mod error_messages;
mod forward;
mod gc;
mod host_local;
mod log_record;
mod loopback;
mod mac_spoof_check;
mod masquerade;
mod status;
mod undo;
mod walkthroughs;
