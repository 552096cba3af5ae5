//! Faults in the plugins of the chain bridge, portmap and firewall. After a fault the runtime calls DEL of the whole
//! chain.

use crate::errors::fail_add;
use crate::fixture::{Kind, PLAIN};
use crate::kill::{kill_add, kill_del};
use crate::support::{requires, skip_for_go, testing_go};
use crate::term::terminate;

const IPTABLES: Kind = Kind {
    dual: true,
    chain: Some("iptables"),
    ..PLAIN
};

const NFTABLES: Kind = Kind {
    chain: Some("nftables"),
    ..IPTABLES
};

/// Every which system call: an ADD of the Go plugins makes ten times as many.
fn sample(every: usize) -> usize {
    if testing_go() { 10 * every } else { every }
}

/// The chain with nftables; the Go plugin firewall has no such backend.
fn skips_nftables() -> bool {
    testing_go() && skip_for_go("firewall has no nftables backend")
}

#[test]
fn an_add_of_a_chain_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    kill_add("chain: ADD killed", IPTABLES, sample(17));
}

#[test]
fn a_del_of_a_chain_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft", "iptables", "ip6tables");
    kill_del("chain: DEL killed", IPTABLES, sample(17));
}

#[test]
fn a_first_add_of_a_chain_killed_at_any_step_leaves_nothing_of_the_pod() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        used: false,
        ..IPTABLES
    };
    kill_add("chain: first ADD killed", kind, sample(37));
}

#[test]
fn an_add_of_a_chain_terminated_at_any_step_is_rolled_back() {
    requires!("strace", "nft", "iptables", "ip6tables");
    terminate("chain: ADD terminated", "ADD", IPTABLES, sample(23));
}

#[test]
fn a_del_of_a_chain_terminated_at_any_step_is_completed() {
    requires!("strace", "nft", "iptables", "ip6tables");
    terminate("chain: DEL terminated", "DEL", IPTABLES, sample(23));
}

#[test]
fn an_add_of_a_chain_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    fail_add(
        "chain: ADD with a failing system call",
        IPTABLES,
        sample(101),
    );
}

#[test]
fn an_add_of_a_chain_with_nftables_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft");
    if skips_nftables() {
        return;
    }
    kill_add("chain with nftables: ADD killed", NFTABLES, sample(13));
    kill_del("chain with nftables: DEL killed", NFTABLES, sample(13));
}

#[test]
fn an_add_of_a_chain_with_nftables_terminated_at_any_step_is_rolled_back() {
    requires!("strace", "nft");
    if skips_nftables() {
        return;
    }
    terminate(
        "chain with nftables: ADD terminated",
        "ADD",
        NFTABLES,
        sample(17),
    );
    terminate(
        "chain with nftables: DEL terminated",
        "DEL",
        NFTABLES,
        sample(17),
    );
}

#[test]
fn an_add_of_a_chain_with_nftables_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft");
    if skips_nftables() {
        return;
    }
    fail_add(
        "chain with nftables: ADD with a failing system call",
        NFTABLES,
        61,
    );
}
