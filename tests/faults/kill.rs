//! ADD, DEL and GC killed before one of their system calls.

use serde_json::json;

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::recovery::{succeeded, wrong_after_add, wrong_with_next};
use crate::report::{FaultReport, chosen};
use crate::support::{Call, requires, skip_for_go};
use crate::trace::{Fault, call_with_fault, last_lines, run_with_fault, steps, steps_of_call};

const MASQUERADED: Kind = Kind {
    rules: Rules::Iptables,
    ..PLAIN
};

/// Kills ADD before every `every`-th system call.
pub fn kill_add(what: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    let steps = steps(&fixture, "ADD", &fixture.pod);
    fixture.run("DEL", &fixture.pod).ok();
    let mut report = FaultReport::of(what, steps.len());
    for step in chosen(&steps, every) {
        if !kind.used {
            fixture = Fixture::bare_like(&fixture);
        }
        let answer = run_with_fault(&fixture, ("ADD", &fixture.pod), step, Fault::Killed);
        // This run made fewer system calls.
        if answer.code == Some(0) {
            fixture.run("DEL", &fixture.pod).ok();
            continue;
        }
        let round = format!("{step}: {}", last_lines(&fixture));
        if report.note(&round, &wrong_after_add(&fixture)) {
            fixture = Fixture::new(kind);
        }
    }
    report.finish();
}

/// Kills DEL before every `every`-th system call, and repeats it.
pub fn kill_del(what: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    fixture.run("ADD", &fixture.pod).ok();
    let steps = steps(&fixture, "DEL", &fixture.pod);
    let mut report = FaultReport::of(what, steps.len());
    for step in chosen(&steps, every) {
        fixture.run("ADD", &fixture.pod).ok();
        let answer = run_with_fault(&fixture, ("DEL", &fixture.pod), step, Fault::Killed);
        if answer.code == Some(0) {
            continue;
        }
        let round = format!("{step}: {}", last_lines(&fixture));
        if report.note(&round, &wrong_after_add(&fixture)) {
            fixture = Fixture::new(kind);
        }
    }
    report.finish();
}

/// Kills GC before every `every`-th system call, and repeats it.
fn kill_gc(what: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    let mut kept = prepare_gc(&fixture);
    let steps = steps_of_call(&fixture, &gc(&fixture));
    fixture.call("DEL", &fixture.other).run().ok();
    let mut report = FaultReport::of(what, steps.len());
    for step in chosen(&steps, every) {
        prepare_gc(&fixture);
        let answer = call_with_fault(&fixture, &gc(&fixture), step, Fault::Killed);
        let round = format!("{step}: {}", last_lines(&fixture));
        let mut wrong = Vec::new();
        if answer.code != Some(0) {
            succeeded("the next GC", &gc(&fixture).run(), &mut wrong);
        }
        wrong.extend(difference(&kept, &fixture.state()));
        succeeded(
            "DEL",
            &fixture.call("DEL", &fixture.other).run(),
            &mut wrong,
        );
        wrong.extend(wrong_with_next(&fixture));
        if report.note(&round, &wrong) {
            fixture = Fixture::new(kind);
            kept = prepare_gc(&fixture);
            gc(&fixture).run().ok();
            fixture.call("DEL", &fixture.other).run().ok();
        }
    }
    report.finish();
}

/// A GC for which only the other pod is valid.
fn gc(fixture: &Fixture) -> Call<'_> {
    let mut config = fixture.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] =
        json!([{ "containerID": fixture.other.id(), "ifname": "eth0" }]);
    fixture.node.cni("bridge").verb("GC").config(&config)
}

/// Adds a valid pod and one that is not. Returns the state with the valid pod alone.
fn prepare_gc(fixture: &Fixture) -> Vec<String> {
    fixture.call("ADD", &fixture.other).run().ok();
    let kept = fixture.state();
    fixture.call("ADD", &fixture.pod).run().ok();
    kept
}

#[test]
fn a_gc_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft", "iptables", "ip6tables");
    if skip_for_go("D4d: its GC does nothing") {
        return;
    }
    let kind = Kind {
        dual: true,
        ..MASQUERADED
    };
    kill_gc("GC killed", kind, 13);
    let kind = Kind {
        rules: Rules::Nftables,
        ..kind
    };
    kill_gc("GC with nftables killed", kind, 13);
}

#[test]
fn an_add_among_many_leases_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        many_leases: true,
        ..PLAIN
    };
    kill_add("ADD among 80 leases killed", kind, 7);
}

#[test]
fn a_del_among_many_leases_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        many_leases: true,
        ..PLAIN
    };
    kill_del("DEL among 80 leases killed", kind, 7);
}

#[test]
fn an_add_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    kill_add("ADD killed", PLAIN, 1);
}

#[test]
fn an_add_with_iptables_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    kill_add("ADD with ipMasq killed", MASQUERADED, 3);
}

#[test]
fn an_add_of_two_families_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        ..MASQUERADED
    };
    kill_add("dual-stack ADD with ipMasq killed", kind, 6);
}

#[test]
fn an_add_with_legacy_rules_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "iptables-legacy", "ip6tables-legacy");
    let kind = Kind {
        rules: Rules::Legacy,
        ..MASQUERADED
    };
    kill_add("ADD with legacy ipMasq killed", kind, 8);
}

#[test]
fn an_add_with_nftables_killed_at_any_step_leaves_nothing_after_its_del() {
    requires!("strace", "nft", "iptables", "ip6tables");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let kind = Kind {
        rules: Rules::Nftables,
        dual: true,
        ..PLAIN
    };
    kill_add("dual-stack ADD with nftables killed", kind, 4);
    kill_del("dual-stack DEL with nftables killed", kind, 5);
}

#[test]
fn a_first_add_with_nftables_killed_at_any_step_does_not_block_later_adds() {
    requires!("strace", "nft", "iptables", "ip6tables");
    if skip_for_go("Debian's version has no nftables backend") {
        return;
    }
    let kind = Kind {
        rules: Rules::Nftables,
        dual: true,
        used: false,
        ..PLAIN
    };
    kill_add("first ADD with nftables killed", kind, 9);
}

#[test]
fn a_first_add_killed_at_any_step_leaves_a_bridge_that_the_next_add_completes() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        used: false,
        ..MASQUERADED
    };
    kill_add("first dual-stack ADD with ipMasq killed", kind, 9);
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft", "iptables", "ip6tables");
    kill_del("DEL killed", PLAIN, 1);
}

#[test]
fn a_del_with_iptables_killed_at_any_step_is_finished_by_the_next_one() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        ..MASQUERADED
    };
    kill_del("dual-stack DEL with ipMasq killed", kind, 5);
}

#[test]
fn del_waits_for_a_program_started_by_a_killed_add() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("its DEL does not wait, so the rules stay") {
        return;
    }
    let fixture = Fixture::new(MASQUERADED);
    fixture.slow_iptables("2", "0");
    let call = fixture.call("ADD", &fixture.pod);
    let answer = call.under("timeout --foreground --signal=KILL 0.8").run();
    assert_eq!(answer.code, Some(137), "{answer:?}");
    fixture.call("DEL", &fixture.pod).run().ok();
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
    // Wait for a process that may still be running.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn a_program_started_by_a_killed_del_does_not_affect_the_next_add() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it runs a program per rule") {
        return;
    }
    let fixture = Fixture::new(Kind {
        rules: Rules::Legacy,
        ..PLAIN
    });
    fixture.call("ADD", &fixture.pod).run().ok();
    fixture.slow_iptables("2", "0");
    let call = fixture.call("DEL", &fixture.pod);
    let answer = call
        .clone()
        .under("timeout --foreground --signal=KILL 0.8")
        .run();
    assert_eq!(answer.code, Some(137), "{answer:?}");
    call.run().ok();
    fixture.call("ADD", &fixture.pod).run().ok();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(difference(&fixture.full, &fixture.state()), [""; 0]);
}
