//! Waiting for locks and programs ends with error 11, which names the holder or program. A later call then succeeds.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::support::{Call, CniError, Node, requires, skip_for_go};
use crate::trace::steps_of_call;

const LEGACY: Kind = Kind {
    rules: Rules::Legacy,
    ..PLAIN
};

const MASQUERADED: Kind = Kind {
    rules: Rules::Iptables,
    ..PLAIN
};

/// Runs a call that must fail with error 11 within this many seconds. The error must contain `holder`.
#[track_caller]
fn assert_timeout(call: &Call, seconds: u64, holder: &str) -> CniError {
    let began = Instant::now();
    let error = call.run().error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.text().contains(holder), "{holder}: {error:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(seconds), "{took:?}: {error:?}");
    error
}

/// Locks a file on the fixture's node. Returns how errors name the holder: this process.
fn hold(fixture: &Fixture, path: &str) -> (File, String) {
    let open = || File::options().create(true).append(true).open(path);
    let file = fixture.node.inside(open).unwrap();
    file.lock().unwrap();
    (file, format!("pid {} (", std::process::id()))
}

#[test]
fn waiting_for_the_lease_lock_is_bounded() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it waits forever") {
        return;
    }
    let fixture = Fixture::new(MASQUERADED);
    let path = "/var/lib/cni/networks/small/lock";
    let (lock, holder) = hold(&fixture, path);
    let add = fixture.call("ADD", &fixture.pod);
    let error = assert_timeout(&add, 20, &holder);
    assert!(error.text().contains(path), "{error:?}");
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
    drop(lock);
    add.run().ok();
    let (lock, holder) = hold(&fixture, path);
    let del = fixture.call("DEL", &fixture.pod);
    assert_timeout(&del, 20, &holder);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn waiting_for_the_xtables_lock_is_bounded() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it waits forever") {
        return;
    }
    let fixture = Fixture::new(LEGACY);
    let (lock, holder) = hold(&fixture, "/run/xtables.lock");
    let add = fixture.call("ADD", &fixture.pod);
    // The ADD waits, then its undo.
    assert_timeout(&add, 60, &holder);
    drop(lock);
    let del = fixture.call("DEL", &fixture.pod);
    del.run().ok();
    add.run().ok();
    let (lock, holder) = hold(&fixture, "/run/xtables.lock");
    assert_timeout(&del, 40, &holder);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn waiting_for_iptables_is_bounded() {
    requires!(
        "nft",
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy"
    );
    if skip_for_go("it waits forever") {
        return;
    }
    let (fixture, legacy) = (Fixture::new(MASQUERADED), Fixture::new(LEGACY));
    legacy.call("ADD", &legacy.other).run().ok();
    fixture.before_iptables("[ $name = iptables-restore ] && exec sleep 100");
    legacy.before_iptables("[ $name = iptables-legacy-restore ] && exec sleep 100");
    let add = fixture.call("ADD", &fixture.pod);
    // DEL runs it only for legacy rules.
    let del = legacy.call("DEL", &legacy.other);
    std::thread::scope(|scope| {
        let names = "iptables-restore did not end within 30 s";
        let added = scope.spawn(move || assert_timeout(&add, 80, names));
        assert_timeout(&del, 50, "iptables-legacy-restore did not end within 30 s");
        added.join().unwrap();
    });
    for fixture in [&fixture, &legacy] {
        fixture.node.unbind(fixture.iptables());
        for pod in [&fixture.pod, &fixture.other] {
            fixture.call("DEL", pod).run().ok();
        }
        assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
    }
    fixture.call("ADD", &fixture.pod).run().ok();
}

#[test]
fn waiting_for_an_ipam_plugin_is_bounded() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it waits forever") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let file = format!("{}/slow", Node::BIN);
    let script = "#!/bin/sh\n[ $CNI_COMMAND = DEL ] || exec sleep 100\n";
    fixture.node.write_executable(&file, script);
    let mut config = fixture.config();
    config["ipam"] = json!({ "type": "slow" });
    let add = fixture.node.network(config).call("ADD", &fixture.pod);
    assert_timeout(&add, 80, "/slow did not end within 60 s");
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn waiting_for_an_ipam_plugin_that_closed_its_stderr_does_not_poll() {
    requires!("strace", "nft", "iptables", "ip6tables");
    let fixture = Fixture::new(PLAIN);
    let file = format!("{}/quiet", Node::BIN);
    fixture.node.write_executable(
        &file,
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nexec 2>&-\nsleep 1\n\
         echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.77.0.9/24\"}]}'\n",
    );
    let mut config = fixture.config();
    config["ipam"] = json!({ "type": "quiet" });
    let steps = steps_of_call(
        &fixture,
        &fixture.node.network(config).call("ADD", &fixture.pod),
    );
    assert!(steps.len() < 1000, "{} system calls", steps.len());
}
