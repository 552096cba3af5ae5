//! Killed at every step: ADD and DEL end before each of their system calls in turn.

use serde_json::json;

use crate::aftermath::{succeeded, wrong_after_add, wrong_with_next};
use crate::findings::{Findings, chosen};
use crate::scene::{Kind, PLAIN, Rules, Scene, difference};
use crate::support::{Call, needs, worse_in_go};
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
    let mut findings = Findings::of(what, steps.len());
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
    let mut findings = Findings::of(what, steps.len());
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

/// Kills GC before one system call of `every`, and repeats it.
fn kill_gc(what: &str, kind: Kind, every: usize) {
    let mut scene = Scene::new(kind);
    let mut kept = prepare_gc(&scene);
    let steps = steps(&scene, &gc(&scene));
    scene.call("DEL", &scene.other).run().ok();
    let mut findings = Findings::of(what, steps.len());
    for step in chosen(&steps, every) {
        prepare_gc(&scene);
        let answer = disturbed(&scene, &gc(&scene), step, Fault::Killed);
        let round = format!("{step}: {}", last_lines(&scene));
        let mut wrong = Vec::new();
        if answer.code != Some(0) {
            succeeded("the next GC", &gc(&scene).run(), &mut wrong);
        }
        wrong.extend(difference(&kept, &scene.standing()));
        succeeded("DEL", &scene.call("DEL", &scene.other).run(), &mut wrong);
        wrong.extend(wrong_with_next(&scene));
        if findings.note(&round, &wrong) {
            scene = Scene::new(kind);
            kept = prepare_gc(&scene);
            gc(&scene).run().ok();
            scene.call("DEL", &scene.other).run().ok();
        }
    }
    findings.finish();
}

/// A GC that keeps the other pod.
fn gc(scene: &Scene) -> Call<'_> {
    let mut config = scene.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] =
        json!([{ "containerID": scene.other.id(), "ifname": "eth0" }]);
    scene.node.cni("bridge").verb("GC").config(&config)
}

/// Attaches a pod that is valid, and one that is not; what stands when the first is alone.
fn prepare_gc(scene: &Scene) -> Vec<String> {
    scene.call("ADD", &scene.other).run().ok();
    let kept = scene.standing();
    scene.call("ADD", &scene.pod).run().ok();
    kept
}

#[test]
fn a_gc_killed_at_any_step_is_finished_by_the_next_one() {
    needs!("strace", "nft", "iptables", "ip6tables");
    if worse_in_go("D4d: it collects nothing") {
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
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        crowded: true,
        ..PLAIN
    };
    kill_add("ADD among 80 leases killed", kind, 7);
}

#[test]
fn a_del_among_many_leases_killed_at_any_step_is_finished_by_the_next_one() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        crowded: true,
        ..PLAIN
    };
    kill_del("DEL among 80 leases killed", kind, 7);
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
    kill_add("dual-stack ADD with ipMasq killed", kind, 6);
}

#[test]
fn an_add_with_legacy_rules_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "iptables-legacy", "ip6tables-legacy");
    let kind = Kind {
        rules: Rules::Legacy,
        ..MASQUERADED
    };
    kill_add("ADD with legacy ipMasq killed", kind, 8);
}

#[test]
fn an_add_with_nftables_killed_at_any_step_leaves_nothing_after_its_del() {
    needs!("strace", "nft", "iptables", "ip6tables");
    if worse_in_go("Debian's knows no nftables") {
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
fn a_first_add_with_nftables_killed_at_any_step_hinders_nobody() {
    needs!("strace", "nft", "iptables", "ip6tables");
    if worse_in_go("Debian's knows no nftables") {
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
fn a_first_add_killed_at_any_step_leaves_a_bridge_that_the_next_one_makes_whole() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        used: false,
        ..MASQUERADED
    };
    kill_add("first dual-stack ADD with ipMasq killed", kind, 9);
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
    kill_del("dual-stack DEL with ipMasq killed", kind, 5);
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
    needs!("iptables-legacy", "ip6tables-legacy");
    if worse_in_go("it has no single program that could be late") {
        return;
    }
    let scene = Scene::new(Kind {
        rules: Rules::Legacy,
        ..PLAIN
    });
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
