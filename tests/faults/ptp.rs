//! Faults in the plugin ptp, with dual-stack masquerading.

use crate::errors::fail_add;
use crate::fixture::{Kind, PLAIN, Rules};
use crate::kill::{kill_add, kill_del};
use crate::support::requires;
use crate::term::terminate;

const PTP: Kind = Kind {
    plugin: "ptp",
    rules: Rules::Nftables,
    dual: true,
    ..PLAIN
};

#[test]
fn an_add_of_ptp_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft");
    kill_add("ptp: ADD killed", PTP, 3);
}

#[test]
fn a_del_of_ptp_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft");
    kill_del("ptp: DEL killed", PTP, 3);
}

#[test]
fn an_add_of_ptp_terminated_at_any_step_is_rolled_back() {
    requires!("strace", "nft");
    terminate("ptp: ADD terminated", "ADD", PTP, 5);
}

#[test]
fn an_add_of_ptp_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft");
    fail_add("ptp: ADD with a failing system call", PTP, 13);
}
