//! Faults in the plugins of a chain of bridge and all chained plugins. After a fault the runtime calls DEL of the whole
//! chain.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::concurrency::at_once;
use crate::errors::fail_add;
use crate::fixture::{Fixture, Kind, PLAIN, difference};
use crate::kill::{kill_add, kill_del};
use crate::recovery::succeeded;
use crate::report::FaultReport;
use crate::support::{Answer, Chain, Node, Pod, requires, skip_for_go, small_chain, testing_go};
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

/// Every which system call: an ADD of the Go plugins makes more than ten times as many.
fn sample(every: usize) -> usize {
    if testing_go() { 4 * every } else { every }
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

#[test]
fn del_of_a_chain_waits_for_a_program_started_by_a_killed_add() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("its DEL does not wait, so the rules stay") {
        return;
    }
    for killed in [1, 2] {
        let fixture = Fixture::new(IPTABLES);
        let answer = fixture.run_with("ADD", &fixture.pod, |plugin, call| {
            if plugin != killed {
                return call.run();
            }
            fixture.slow_iptables("1.5", "0");
            let limit = "timeout --foreground --signal=KILL 0.7";
            call.clone().under(limit).run()
        });
        assert_eq!(answer.code, Some(137), "{answer:?}");
        fixture.run("DEL", &fixture.pod).ok();
        // Wait for a process that may still be running.
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(
            difference(&fixture.empty, &fixture.state()),
            [""; 0],
            "plugin {killed}"
        );
    }
}

const PODS: usize = 200;

/// The chain of a pod, with a host port of its own.
fn concurrent_chain<'n>(node: &'n Node, backend: &str, index: usize) -> Chain<'n> {
    let mapping = json!({ "hostPort": 10_000 + index, "containerPort": 80, "protocol": "tcp" });
    node.chain(&small_chain())
        .with("portmap", "backend", backend)
        .with("firewall", "backend", backend)
        .with("firewall", "ingressPolicy", "same-bridge")
        .with_ports(json!([mapping]))
}

/// The rules of the chained plugins, without counters.
fn chained_rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = node.run(program);
        let of_plugins = saved
            .lines()
            .filter(|line| line.starts_with('-') && line.contains("CNI-"));
        rules.extend(of_plugins.map(|rule| format!("{program} {rule}")));
    }
    let native = node.run("nft list tables");
    rules.extend(
        native
            .lines()
            .filter(|table| table.contains("gangplank"))
            .map(str::to_owned),
    );
    rules
}

/// Runs ADD, CHECK and DEL of many chains at the same time, and reports failures, duplicates and leftovers.
fn run_concurrently(backend: &str) {
    let node = Node::new("node");
    let pods: Vec<(usize, Pod)> = (0..PODS).map(|n| (n, node.pod(&format!("c{n}")))).collect();
    let results: Vec<Mutex<Value>> = pods.iter().map(|_| Mutex::default()).collect();
    let what = format!("chain with {backend}: {PODS} pods, 20 at a time");
    let report = Mutex::new(FaultReport::of(&what, 0));
    let note = |index: usize, verb: &str, answer: &Answer| {
        let mut wrong = Vec::new();
        succeeded(verb, answer, &mut wrong);
        report
            .lock()
            .unwrap()
            .note(&format!("{verb} of c{index}"), &wrong);
    };
    at_once(&pods, |(index, pod)| {
        let answer = concurrent_chain(&node, backend, *index).try_add(pod);
        note(*index, "ADD", &answer);
        if answer.code == Some(0) {
            *results[*index].lock().unwrap() = answer.ok();
        }
    });
    let mut seen = BTreeSet::new();
    let mut duplicates = chained_rules(&node);
    duplicates.retain(|rule| !seen.insert(rule.clone()));
    report.lock().unwrap().note("duplicate rules", &duplicates);
    at_once(&pods, |(index, pod)| {
        let chain = concurrent_chain(&node, backend, *index);
        let result = results[*index].lock().unwrap().clone();
        if !result.is_null() {
            note(*index, "CHECK", &chain.check(pod, &result));
        }
        note(*index, "DEL", &chain.try_del(pod, &result));
    });
    report
        .lock()
        .unwrap()
        .note("left after DEL", &chained_rules(&node));
    report.into_inner().unwrap().finish();
}

#[test]
fn two_hundred_chains_are_added_checked_and_deleted_twenty_at_a_time() {
    requires!("nft", "iptables", "ip6tables");
    run_concurrently("iptables");
    if !skips_nftables() {
        run_concurrently("nftables");
    }
}
