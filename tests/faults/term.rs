//! SIGTERM: an ADD turns back in order, wherever it is; a DEL goes on to its end.

use std::fs::File;

use serde_json::json;

use crate::aftermath::wrong_after_add;
use crate::findings::{Findings, chosen};
use crate::scene::{Kind, PLAIN, Rules, Scene, difference};
use crate::support::{Answer, Call, Node, needs, worse_in_go};
use crate::trace::{Fault, disturbed, last_lines, steps};

/// What is wrong with the answer of an ADD that got the signal.
fn wrong_answer(scene: &Scene, answer: &Answer) -> Vec<String> {
    match answer.code {
        Some(0) => Vec::new(),
        Some(1) => {
            let refusal = answer.refused();
            let mut wrong = difference(&scene.empty, &scene.standing());
            if refusal.code != 11 || !refusal.msg.contains("SIGTERM") {
                wrong.push(format!("it says {refusal:?}"));
            }
            wrong
        }
        // It came while the process started, or read its configuration.
        _ if answer.stdout.is_empty() => difference(&scene.empty, &scene.standing()),
        _ => vec![format!("{answer:?}")],
    }
}

fn terminate(verb: &str, kind: Kind, every: usize) {
    let mut scene = Scene::new(kind);
    let prepare = |scene: &Scene| {
        if verb == "DEL" {
            scene.call("ADD", &scene.pod).run().ok();
        }
    };
    prepare(&scene);
    let steps = steps(&scene, &scene.call(verb, &scene.pod));
    scene.call("DEL", &scene.pod).run().ok();
    let mut findings = Findings::of(&format!("{verb} terminated"), steps.len());
    for step in chosen(&steps, every) {
        prepare(&scene);
        let call = scene.call(verb, &scene.pod);
        let answer = disturbed(&scene, &call, step, Fault::Terminated);
        let round = format!("{step}: {}", last_lines(&scene));
        let mut wrong = match verb {
            "ADD" => wrong_answer(&scene, &answer),
            _ if answer.code == Some(1) => vec![format!("{answer:?}")],
            _ => Vec::new(),
        };
        if verb == "ADD" && answer.code == Some(0) || answer.code.is_none_or(|code| code > 1) {
            wrong.extend(wrong_after_add(&scene));
        }
        wrong.extend(difference(&scene.empty, &scene.standing()));
        if findings.note(&round, &wrong) {
            scene = Scene::new(kind);
        }
    }
    findings.finish();
}

#[test]
fn an_add_terminated_at_any_step_turns_back() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        rules: Rules::Iptables,
        ..PLAIN
    };
    terminate("ADD", kind, 4);
}

#[test]
fn a_del_terminated_at_any_step_goes_on_to_its_end() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        rules: Rules::Iptables,
        ..PLAIN
    };
    terminate("DEL", kind, 7);
}

/// A call that gets the signal so many seconds after its start, more than once.
fn terminated_after(scene: &Scene, call: &Call, seconds: &[&str]) -> Answer {
    let kills: Vec<String> = seconds
        .iter()
        .map(|seconds| format!("sleep {seconds}; kill -TERM $pid"))
        .collect();
    let script = format!(
        "exec 3<&0\n\"$@\" <&3 &\npid=$!\n{}\nwait $pid\n",
        kills.join("\n")
    );
    scene.node.write("/run/terminate", &script);
    call.clone().under("timeout 50 sh /run/terminate").run()
}

#[track_caller]
fn turned_back(scene: &Scene, answer: &Answer) {
    let refusal = answer.refused();
    assert_eq!(refusal.code, 11, "{refusal:?}");
    assert!(refusal.msg.contains("SIGTERM"), "{refusal:?}");
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn an_add_that_waits_for_the_lock_of_the_leases_turns_back() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it ends without a document") {
        return;
    }
    let scene = Scene::new(PLAIN);
    let path = "/var/lib/cni/networks/small/lock";
    let lock = scene.node.inside(|| File::open(path).unwrap());
    lock.lock().unwrap();
    let answer = terminated_after(&scene, &scene.call("ADD", &scene.pod), &["0.5"]);
    turned_back(&scene, &answer);
    drop(lock);
    scene.call("ADD", &scene.pod).run().ok();
}

#[test]
fn an_add_that_waits_for_iptables_turns_back_and_nothing_stops_its_undo() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it ends without a document") {
        return;
    }
    let scene = Scene::new(Kind {
        rules: Rules::Iptables,
        ..PLAIN
    });
    scene.slow_iptables("20", "1.5");
    let call = scene.call("ADD", &scene.pod);
    let answer = terminated_after(&scene, &call, &["0.7", "0.7", "0.3"]);
    turned_back(&scene, &answer);
}

#[test]
fn a_del_that_waits_for_iptables_goes_on_to_its_end() {
    needs!("iptables-legacy", "ip6tables-legacy");
    if worse_in_go("it ends without a document") {
        return;
    }
    let scene = Scene::new(Kind {
        rules: Rules::Legacy,
        ..PLAIN
    });
    scene.call("ADD", &scene.pod).run().ok();
    scene.slow_iptables("1.5", "0");
    let call = scene.call("DEL", &scene.pod);
    let began = std::time::Instant::now();
    terminated_after(&scene, &call, &["0.5", "0.5"]).ok();
    assert!(began.elapsed() > std::time::Duration::from_millis(1500));
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn an_ipam_plugin_that_was_waited_for_is_asked_to_take_back_what_it_gave() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it ends without a document") {
        return;
    }
    let scene = Scene::new(PLAIN);
    let file = format!("{}/slow", Node::BIN);
    scene.node.write(
        &file,
        "#!/bin/sh\n\
         echo $CNI_COMMAND >>/run/asked\n\
         grep -E 'Sig(Blk|Ign)' /proc/self/status >>/run/signals\n\
         [ $CNI_COMMAND = DEL ] || exec sleep 30\n",
    );
    scene.node.run(&format!("chmod 755 {file}"));
    let mut config = scene.config();
    config["ipam"] = json!({ "type": "slow" });
    let call = scene.node.network(config).call("ADD", &scene.pod);
    turned_back(&scene, &terminated_after(&scene, &call, &["0.7"]));
    assert_eq!(scene.node.read("/run/asked"), "ADD\nDEL\n");
    // It does not inherit what we do about signals.
    for line in scene.node.read("/run/signals").lines() {
        let (what, set) = line.split_once(':').unwrap();
        let set = u64::from_str_radix(set.trim(), 16).unwrap();
        let terminate = 1 << (15 - 1);
        assert_eq!(set & terminate, 0, "{what}");
    }
}
