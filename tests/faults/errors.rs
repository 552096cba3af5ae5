//! An ADD in which a system call fails either succeeds completely, or prints one error document and leaves the node
//! unchanged.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::recovery::{left, succeeded, wrong_with_next};
use crate::report::{FaultReport, chosen};
use crate::support::{Answer, requires, skip_for_go, testing_go};
use crate::trace::{Fault, Step, injected_line, run_with_fault, steps};

/// Errors of a full or failing disk, of limits, of a security module, of a busy kernel and of signals.
const ERRNOS: [&str; 7] = [
    "ENOSPC", "EIO", "EMFILE", "ENOMEM", "EPERM", "EBUSY", "EINTR",
];

/// Without memory a program cannot report an error. futex fails only for invalid arguments.
const NOT_INJECTED: [&str; 8] = [
    "execve",
    "mmap",
    "munmap",
    "brk",
    "mprotect",
    "madvise",
    "exit_group",
    "futex",
];

/// The steps after the start of the process: from the read of the configuration.
fn after_start(steps: &[Step]) -> Vec<Step> {
    let mut after_start = Vec::new();
    for of_plugin in steps.chunk_by(|one, next| one.plugin == next.plugin) {
        let rest = of_plugin.iter();
        let rest = rest.skip_while(|step| !step.line.starts_with("read(0,"));
        let injected = rest.filter(|step| !NOT_INJECTED.contains(&step.name.as_str()));
        after_start.extend(injected.cloned());
    }
    after_start
}

/// A failure unless the answer is one error document.
fn wrong_error(answer: &Answer) -> Vec<String> {
    let document: Result<Value, _> = serde_json::from_str(&answer.stdout);
    let msg = document.as_ref().ok().map(|document| &document["msg"]);
    let message = msg.and_then(Value::as_str).unwrap_or_default();
    if answer.code == Some(1) && message.len() > 10 {
        return Vec::new();
    }
    vec![format!("not one error document: {answer:?}")]
}

/// Failures after an ADD in which a system call of a plugin failed.
fn wrong_after(fixture: &Fixture, answer: &Answer, plugin: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut left = if answer.code == Some(0) {
        let mut missing = difference(&fixture.full, &fixture.state());
        missing.retain(|fact| !is_unrecorded_boot(fact));
        wrong.extend(missing);
        if let Some(result) = succeeded("ADD", answer, &mut wrong) {
            succeeded("CHECK", &fixture.check(&fixture.pod, &result), &mut wrong);
        }
        succeeded("DEL", &fixture.run("DEL", &fixture.pod), &mut wrong);
        left(fixture, 0)
    } else {
        wrong.extend(wrong_error(answer));
        left(fixture, plugin)
    };
    let is_unrecorded = left.iter().any(|fact| is_unrecorded_boot(fact));
    left.retain(|fact| !is_unrecorded_boot(fact));
    wrong.extend(left);
    if plugin > 0 {
        // The runtime calls DEL after a failed ADD.
        succeeded("DEL", &fixture.run("DEL", &fixture.pod), &mut wrong);
    }
    if plugin > 0 || !fixture.kind.used || !wrong.is_empty() || is_unrecorded {
        wrong.extend(wrong_with_next(fixture));
    }
    wrong
}

/// An ADD that cannot read the boot ID does not record it; the next ADD does.
fn is_unrecorded_boot(fact: &str) -> bool {
    fact.starts_with("missing") && fact.ends_with(".gangplank.boot")
}

/// Lets one of `every` system calls of an ADD fail, with each errno. EINTR must be retried, except for close(2), which
/// is not restarted on Linux.
pub fn fail_add(what: &str, kind: Kind, every: usize) {
    let mut fixture = Fixture::new(kind);
    let steps = after_start(&steps(&fixture, "ADD", &fixture.pod));
    fixture.run("DEL", &fixture.pod).ok();
    let mut report = FaultReport::of(what, steps.len());
    let mut messages = BTreeSet::new();
    let rounds: Vec<(Step, &str)> = steps
        .iter()
        .flat_map(|step| ERRNOS.map(|errno| (step.clone(), errno)))
        .collect();
    for (step, errno) in chosen(&rounds, every) {
        if !kind.used {
            fixture = Fixture::bare_like(&fixture);
        }
        let add = ("ADD", &fixture.pod);
        let answer = run_with_fault(&fixture, add, step, Fault::Failing(errno));
        let Some(line) = injected_line(&fixture) else {
            // This run made fewer system calls.
            fixture.run("DEL", &fixture.pod).ok();
            continue;
        };
        // The Go runtime failed to start: this is no failure of the plugin.
        if testing_go() && answer.stderr.contains("fatal error: ") {
            fixture = Fixture::new(kind);
            continue;
        }
        let message: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        messages.insert(format!(
            "{} {}  <= {line}",
            message["msg"], message["details"]
        ));
        let mut wrong = wrong_after(&fixture, &answer, step.plugin);
        if *errno == "EINTR" && answer.code != Some(0) && step.name != "close" {
            wrong.push(format!("EINTR was not retried: {}", answer.stdout));
        }
        if report.note(&format!("{step}: {line}"), &wrong) {
            fixture = Fixture::new(kind);
        }
    }
    // For a review of the error messages.
    if std::env::var_os("GANGPLANK_FAULTS_MESSAGES").is_some() {
        println!("{}", Vec::from_iter(messages).join("\n"));
    }
    report.finish();
}

#[test]
fn an_add_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    fail_add("ADD with a failing system call", PLAIN, 8);
}

#[test]
fn an_add_with_nftables_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
    requires!("strace", "nft", "iptables", "ip6tables");
    if skip_for_go("Debian's version has no nftables backend") {
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
fn an_add_with_iptables_in_which_any_system_call_fails_succeeds_or_leaves_nothing() {
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
fn an_add_whose_iptables_restore_is_killed_succeeds_or_leaves_nothing() {
    requires!("nft", "iptables", "ip6tables");
    let kind = Kind {
        dual: true,
        rules: Rules::Iptables,
        ..PLAIN
    };
    // Before its work, and after it: then the kernel has the rules, but the plugin gets no success.
    for when in ["", "/run/xtables $name \"$@\"; "] {
        for program in ["iptables-restore", "ip6tables-restore"] {
            let fixture = Fixture::new(kind);
            fixture.before_iptables(&format!(
                "[ $name = {program} ] && mkdir /run/once 2>/dev/null && {{ {when}kill -9 $$; }}"
            ));
            let answer = fixture.call("ADD", &fixture.pod).run();
            let wrong = wrong_after(&fixture, &answer, 0);
            assert!(wrong.is_empty(), "{program}: {wrong:?} {answer:?}");
        }
    }
}
