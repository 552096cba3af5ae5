//! Killed at every step: ADD and DEL end before each of their system calls in turn.

use crate::aftermath::wrong_after_add;
use crate::findings::{Findings, chosen};
use crate::scene::{Kind, PLAIN, Rules, Scene, difference};
use crate::support::{needs, worse_in_go};
use crate::trace::{Fault, disturbed, last_lines, steps};

const MASQUERADED: Kind = Kind {
    rules: Rules::Iptables,
    ..PLAIN
};

/// Kills ADD before one system call of `every`.
fn kill_add(what: &str, kind: Kind, every: usize) {
    let mut scene = Scene::new(kind);
    let steps = steps(&scene, &scene.call("ADD", &scene.pod));
    scene.call("DEL", &scene.pod).run().ok();
    let mut findings = Findings::of(&format!("{what}, {} system calls", steps.len()));
    for step in chosen(&steps, every) {
        if !kind.used {
            scene = Scene::bare_like(&scene);
        }
        let answer = disturbed(&scene, &scene.call("ADD", &scene.pod), step, Fault::Killed);
        // This time it did with fewer calls.
        if answer.code == Some(0) {
            scene.call("DEL", &scene.pod).run().ok();
            continue;
        }
        let round = format!("{step}: {}", last_lines(&scene));
        if findings.note(&round, &wrong_after_add(&scene)) {
            scene = Scene::new(kind);
        }
    }
    findings.finish();
}

/// Kills DEL before one system call of `every`, and repeats it.
fn kill_del(what: &str, kind: Kind, every: usize) {
    let mut scene = Scene::new(kind);
    scene.call("ADD", &scene.pod).run().ok();
    let steps = steps(&scene, &scene.call("DEL", &scene.pod));
    let mut findings = Findings::of(&format!("{what}, {} system calls", steps.len()));
    for step in chosen(&steps, every) {
        scene.call("ADD", &scene.pod).run().ok();
        let answer = disturbed(&scene, &scene.call("DEL", &scene.pod), step, Fault::Killed);
        if answer.code == Some(0) {
            continue;
        }
        let round = format!("{step}: {}", last_lines(&scene));
        if findings.note(&round, &wrong_after_add(&scene)) {
            scene = Scene::new(kind);
        }
    }
    findings.finish();
}

#[test]
fn an_add_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "nft", "iptables", "ip6tables");
    kill_add("ADD killed", PLAIN, 1);
}

#[test]
fn an_add_with_rules_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "nft", "iptables", "ip6tables");
    kill_add("ADD with ipMasq killed", MASQUERADED, 3);
}

#[test]
fn an_add_of_two_families_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        ..MASQUERADED
    };
    kill_add("dual-stack ADD with ipMasq killed", kind, 4);
}

#[test]
fn an_add_with_legacy_rules_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "iptables-legacy", "ip6tables-legacy");
    let kind = Kind {
        rules: Rules::Legacy,
        ..MASQUERADED
    };
    kill_add("ADD with legacy ipMasq killed", kind, 5);
}

#[test]
fn a_first_add_killed_at_any_step_leaves_a_bridge_that_the_next_one_makes_whole() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        used: false,
        ..PLAIN
    };
    kill_add("first ADD on a node killed", kind, 4);
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next_one() {
    needs!("strace", "nft", "iptables", "ip6tables");
    kill_del("DEL killed", PLAIN, 1);
}

#[test]
fn a_del_with_rules_killed_at_any_step_is_finished_by_the_next_one() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        ..MASQUERADED
    };
    kill_del("dual-stack DEL with ipMasq killed", kind, 3);
}

#[test]
fn what_a_killed_add_has_started_is_waited_for() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("its DEL comes too early, and the rules stay") {
        return;
    }
    let scene = Scene::new(MASQUERADED);
    scene.slow_iptables("2", "0");
    let call = scene.call("ADD", &scene.pod);
    let answer = call.under("timeout --foreground --signal=KILL 0.8").run();
    assert_eq!(answer.code, Some(137), "{answer:?}");
    scene.call("DEL", &scene.pod).run().ok();
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
    // Time for whoever is late.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn what_a_killed_del_has_started_does_not_meet_the_next_add() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it has no single program that could be late") {
        return;
    }
    let scene = Scene::new(MASQUERADED);
    scene.call("ADD", &scene.pod).run().ok();
    scene.slow_iptables("2", "0");
    let call = scene.call("DEL", &scene.pod);
    let answer = call
        .clone()
        .under("timeout --foreground --signal=KILL 0.8")
        .run();
    assert_eq!(answer.code, Some(137), "{answer:?}");
    call.run().ok();
    scene.call("ADD", &scene.pod).run().ok();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(difference(&scene.full, &scene.standing()), [""; 0]);
}
