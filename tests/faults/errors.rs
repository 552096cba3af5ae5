//! Every system call failing: an ADD either succeeds in full, or says in one document what failed and leaves the node
//! as it was.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::findings::{Findings, chosen};
use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::recovery::{left, succeeded, wrong_with_next};
use crate::support::{Answer, requires, skip_for_go, testing_go};
use crate::trace::{Fault, Step, disturbed, injected_line, steps};

/// What a full disk, a dying one, limits, a security module, a busy kernel and a signal do to system calls.
const ERRNOS: [&str; 7] = [
    "ENOSPC", "EIO", "EMFILE", "ENOMEM", "EPERM", "EBUSY", "EINTR",
];

/// Without memory no program can say anything; futex the kernel fails for wrong arguments only.
const VITAL: [&str; 8] = [
    "execve",
    "mmap",
    "munmap",
    "brk",
    "mprotect",
    "madvise",
    "exit_group",
    "futex",
];

/// The steps that are the plugin's own: from where it reads its configuration.
fn own(steps: &[Step]) -> Vec<Step> {
    let own = steps
        .iter()
        .skip_while(|step| !step.line.starts_with("read(0,"));
    own.filter(|step| !VITAL.contains(&step.name.as_str()))
        .cloned()
        .collect()
}

/// What is wrong with an answer that is neither a success nor one error document.
fn wrong_refusal(answer: &Answer) -> Vec<String> {
    let document: Result<Value, _> = serde_json::from_str(&answer.stdout);
    let msg = document.as_ref().ok().map(|document| &document["msg"]);
    let said = msg.and_then(Value::as_str).unwrap_or_default();
    if answer.code == Some(1) && said.len() > 10 {
        return Vec::new();
    }
    vec![format!("not one error document: {answer:?}")]
}

/// What is wrong after an ADD in which a system call failed.
fn wrong_after(fixture: &Fixture, answer: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if answer.code == Some(0) {
        let mut wanting = difference(&fixture.full, &fixture.state());
        wanting.retain(|fact| !is_unrecorded_boot(fact));
        wrong.extend(wanting);
        if let Some(result) = succeeded("ADD", answer, &mut wrong) {
            succeeded("CHECK", &fixture.check(&fixture.pod, &result), &mut wrong);
        }
        succeeded("DEL", &fixture.call("DEL", &fixture.pod).run(), &mut wrong);
    } else {
        wrong.extend(wrong_refusal(answer));
    }
    let mut left = left(fixture);
    let is_unrecorded = left.iter().any(|fact| is_unrecorded_boot(fact));
    left.retain(|fact| !is_unrecorded_boot(fact));
    wrong.extend(left);
    if !fixture.kind.used || !wrong.is_empty() || is_unrecorded {
        wrong.extend(wrong_with_next(fixture));
    }
    wrong
}

/// An ADD that cannot tell which boot this is records none; the next ADD does.
fn is_unrecorded_boot(fact: &str) -> bool {
    fact.starts_with("missing") && fact.ends_with(".gangplank.boot")
}

/// Has one system call of `every` fail in an ADD, with one errno after the other. What a signal has interrupted (EINTR)
/// is to be tried again; but for close(2), which closes all the same, and strace does not let it.
fn fail_add(what: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    let steps = own(&steps(&fixture, &fixture.call("ADD", &fixture.pod)));
    fixture.call("DEL", &fixture.pod).run().ok();
    let mut findings = Findings::of(what, steps.len());
    let mut messages = BTreeSet::new();
    let rounds: Vec<(Step, &str)> = steps
        .iter()
        .flat_map(|step| ERRNOS.map(|errno| (step.clone(), errno)))
        .collect();
    for (step, errno) in chosen(&rounds, every) {
        if !kind.used {
            fixture = Fixture::bare_like(&fixture);
        }
        let call = fixture.call("ADD", &fixture.pod);
        let answer = disturbed(&fixture, &call, step, Fault::Failing(errno));
        let Some(line) = injected_line(&fixture) else {
            // This time it did with fewer calls.
            fixture.call("DEL", &fixture.pod).run().ok();
            continue;
        };
        // The Go runtime gives up where it could not start up: no word about the plugin.
        if testing_go() && answer.stderr.contains("fatal error: ") {
            fixture = Fixture::new(kind);
            continue;
        }
        let said: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        messages.insert(format!("{} {}  <= {line}", said["msg"], said["details"]));
        let mut wrong = wrong_after(&fixture, &answer);
        if *errno == "EINTR" && answer.code != Some(0) && step.name != "close" {
            wrong.push(format!("it was not tried again: {}", answer.stdout));
        }
        if findings.note(&format!("{step}: {line}"), &wrong) {
            fixture = Fixture::new(kind);
        }
    }
    if std::env::var_os("GANGPLANK_FAULTS_TELL").is_some() {
        println!("{}", Vec::from_iter(messages).join("\n"));
    }
    findings.finish();
}

#[test]
fn an_add_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    fail_add("ADD with a failing system call", PLAIN, 8);
}

#[test]
fn an_add_with_nftables_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    if skip_for_go("Debian's knows no nftables") {
        return;
    }
    let kind = Kind {
        dual: true,
        rules: Rules::Nftables,
        ..PLAIN
    };
    fail_add(
        "dual-stack ADD with nftables and a failing system call",
        kind,
        17,
    );
}

#[test]
fn a_first_add_in_which_any_system_call_fails_succeeds_or_leaves_nothing_of_the_pod() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        rules: Rules::Iptables,
        used: false,
        ..PLAIN
    };
    fail_add(
        "first dual-stack ADD with ipMasq and a failing system call",
        kind,
        43,
    );
}

#[test]
fn an_add_with_rules_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        rules: Rules::Iptables,
        ..PLAIN
    };
    fail_add(
        "dual-stack ADD with ipMasq and a failing system call",
        kind,
        29,
    );
}

#[test]
fn when_a_program_that_was_started_is_killed_an_add_succeeds_or_leaves_nothing() {
    requires!("nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        rules: Rules::Iptables,
        ..PLAIN
    };
    // Before its work, and after it: the kernel has the rules then, and nobody says so.
    for when in ["", "/run/xtables $name \"$@\"; "] {
        for program in ["iptables-restore", "ip6tables-restore"] {
            let fixture = Fixture::new(kind);
            fixture.before_iptables(&format!(
                "[ $name = {program} ] && mkdir /run/once 2>/dev/null && {{ {when}kill -9 $$; }}"
            ));
            let answer = fixture.call("ADD", &fixture.pod).run();
            let wrong = wrong_after(&fixture, &answer);
            assert!(wrong.is_empty(), "{program}: {wrong:?} {answer:?}");
        }
    }
}
