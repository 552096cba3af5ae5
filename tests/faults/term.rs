//! SIGTERM: an ADD is rolled back at any step; a DEL is completed.

use std::fs::File;

use serde_json::json;

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::recovery::wrong_after_add;
use crate::report::{FaultReport, chosen};
use crate::support::{Answer, Call, Node, requires, skip_for_go};
use crate::trace::{Fault, last_lines, run_with_fault, steps};

/// Failures in the answer of an ADD that got SIGTERM.
fn wrong_answer(fixture: &Fixture, answer: &Answer, plugin: usize) -> Vec<String> {
    let before = &fixture.partial[plugin];
    match answer.code {
        Some(0) => Vec::new(),
        Some(1) => {
            let error = answer.error();
            let mut wrong = difference(before, &fixture.state());
            if error.code != 11 || !error.msg.contains("SIGTERM") {
                wrong.push(format!("unexpected error {error:?}"));
            }
            wrong
        }
        // The signal came while the process started or read its configuration.
        _ if answer.stdout.is_empty() => difference(before, &fixture.state()),
        _ => vec![format!("{answer:?}")],
    }
}

pub fn terminate(what: &str, verb: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    let prepare = |fixture: &Fixture| {
        if verb == "DEL" {
            fixture.run("ADD", &fixture.pod).ok();
        }
    };
    prepare(&fixture);
    let steps = steps(&fixture, verb, &fixture.pod);
    fixture.run("DEL", &fixture.pod).ok();
    let mut report = FaultReport::of(what, steps.len());
    for step in chosen(&steps, every) {
        prepare(&fixture);
        let call = (verb, &fixture.pod);
        let answer = run_with_fault(&fixture, call, step, Fault::Terminated);
        let round = format!("{step}: {}", last_lines(&fixture));
        let mut wrong = match verb {
            "ADD" => wrong_answer(&fixture, &answer, step.plugin),
            _ if answer.code == Some(1) => vec![format!("{answer:?}")],
            _ => Vec::new(),
        };
        let is_added = verb == "ADD" && (answer.code == Some(0) || step.plugin > 0);
        if is_added || answer.code.is_none_or(|code| code > 1) {
            wrong.extend(wrong_after_add(&fixture));
        }
        wrong.extend(difference(&fixture.empty, &fixture.state()));
        if report.note(&round, &wrong) {
            fixture = Fixture::new(kind);
        }
    }
    report.finish();
}

#[test]
fn an_add_terminated_at_any_step_is_rolled_back() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        rules: Rules::Iptables,
        ..PLAIN
    };
    terminate("ADD terminated", "ADD", kind, 4);
}

#[test]
fn a_del_terminated_at_any_step_is_completed() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        rules: Rules::Iptables,
        ..PLAIN
    };
    terminate("DEL terminated", "DEL", kind, 7);
}

/// Runs a call and sends it SIGTERM repeatedly, with these pauses in seconds.
fn terminated_after(fixture: &Fixture, call: &Call, seconds: &[&str]) -> Answer {
    let kills: Vec<String> = seconds
        .iter()
        .map(|seconds| format!("sleep {seconds}; kill -TERM $pid"))
        .collect();
    let script = format!(
        "exec 3<&0\n\"$@\" <&3 &\npid=$!\n{}\nwait $pid\n",
        kills.join("\n")
    );
    fixture.node.write("/run/terminate", &script);
    call.clone().under("timeout 50 sh /run/terminate").run()
}

#[track_caller]
fn assert_rolled_back(fixture: &Fixture, answer: &Answer) {
    let error = answer.error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.msg.contains("SIGTERM"), "{error:?}");
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn an_add_waiting_for_the_lease_lock_is_rolled_back() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it prints no error document") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let path = "/var/lib/cni/networks/small/lock";
    let lock = fixture.node.inside(|| File::open(path).unwrap());
    lock.lock().unwrap();
    let answer = terminated_after(&fixture, &fixture.call("ADD", &fixture.pod), &["0.5"]);
    assert_rolled_back(&fixture, &answer);
    drop(lock);
    fixture.call("ADD", &fixture.pod).run().ok();
}

#[test]
fn an_add_waiting_for_iptables_is_rolled_back_and_the_undo_is_not_interrupted() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it prints no error document") {
        return;
    }
    let fixture = Fixture::new(Kind {
        rules: Rules::Iptables,
        ..PLAIN
    });
    fixture.slow_iptables("20", "1.5");
    let call = fixture.call("ADD", &fixture.pod);
    let answer = terminated_after(&fixture, &call, &["0.7", "0.7", "0.3"]);
    assert_rolled_back(&fixture, &answer);
}

#[test]
fn a_del_waiting_for_iptables_is_completed() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it prints no error document") {
        return;
    }
    let fixture = Fixture::new(Kind {
        rules: Rules::Legacy,
        ..PLAIN
    });
    fixture.call("ADD", &fixture.pod).run().ok();
    fixture.slow_iptables("1.5", "0");
    let call = fixture.call("DEL", &fixture.pod);
    let began = std::time::Instant::now();
    terminated_after(&fixture, &call, &["0.5", "0.5"]).ok();
    assert!(began.elapsed() > std::time::Duration::from_millis(1500));
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn an_add_waiting_for_an_ipam_plugin_calls_its_del() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it prints no error document") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let file = format!("{}/slow", Node::BIN);
    fixture.node.write_executable(
        &file,
        "#!/bin/sh\n\
         echo $CNI_COMMAND >>/run/asked\n\
         grep -E 'Sig(Blk|Ign)' /proc/self/status >>/run/signals\n\
         [ $CNI_COMMAND = DEL ] || exec sleep 30\n",
    );
    let mut config = fixture.config();
    config["ipam"] = json!({ "type": "slow" });
    let call = fixture.node.network(config).call("ADD", &fixture.pod);
    assert_rolled_back(&fixture, &terminated_after(&fixture, &call, &["0.7"]));
    assert_eq!(fixture.node.read("/run/asked"), "ADD\nDEL\n");
    // It does not inherit the plugin's signal dispositions.
    for line in fixture.node.read("/run/signals").lines() {
        let (what, set) = line.split_once(':').unwrap();
        let set = u64::from_str_radix(set.trim(), 16).unwrap();
        let terminate = 1 << (15 - 1);
        assert_eq!(set & terminate, 0, "{what}");
    }
}
