//! Waiting is bounded: for a lock and for a program alike it ends in code 11, says who is waited for, and the call that
//! comes when the way is free does all.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::support::{Call, CniError, Node, requires, skip_for_go};
use crate::trace::steps;

const LEGACY: Kind = Kind {
    rules: Rules::Legacy,
    ..PLAIN
};

const MASQUERADED: Kind = Kind {
    rules: Rules::Iptables,
    ..PLAIN
};

/// The error of a call that waits for somebody, who is named in it, for less than so many seconds.
#[track_caller]
fn waited(call: &Call, seconds: u64, who: &str) -> CniError {
    let began = Instant::now();
    let error = call.run().error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.text().contains(who), "{who}: {error:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(seconds), "{took:?}: {error:?}");
    error
}

/// Locks a file on the fixture's node as we do, and names us as errors name a holder.
fn hold(fixture: &Fixture, path: &str) -> (File, String) {
    let open = || File::options().create(true).append(true).open(path);
    let file = fixture.node.inside(open).unwrap();
    file.lock().unwrap();
    (file, format!("pid {} (", std::process::id()))
}

#[test]
fn for_the_lock_of_the_leases() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it waits for ever") {
        return;
    }
    let fixture = Fixture::new(MASQUERADED);
    let path = "/var/lib/cni/networks/small/lock";
    let (lock, us) = hold(&fixture, path);
    let add = fixture.call("ADD", &fixture.pod);
    let error = waited(&add, 20, &us);
    assert!(error.text().contains(path), "{error:?}");
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
    drop(lock);
    add.run().ok();
    let (lock, us) = hold(&fixture, path);
    let del = fixture.call("DEL", &fixture.pod);
    waited(&del, 20, &us);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn for_the_lock_of_iptables() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it waits for ever") {
        return;
    }
    let fixture = Fixture::new(LEGACY);
    let (lock, us) = hold(&fixture, "/run/xtables.lock");
    let add = fixture.call("ADD", &fixture.pod);
    // The ADD waits once, its undo once more.
    waited(&add, 60, &us);
    drop(lock);
    let del = fixture.call("DEL", &fixture.pod);
    del.run().ok();
    add.run().ok();
    let (lock, us) = hold(&fixture, "/run/xtables.lock");
    waited(&del, 40, &us);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn for_iptables_itself() {
    requires!(
        "nft",
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy"
    );
    if skip_for_go("it waits for ever") {
        return;
    }
    let (fixture, legacy) = (Fixture::new(MASQUERADED), Fixture::new(LEGACY));
    legacy.call("ADD", &legacy.other).run().ok();
    fixture.before_iptables("[ $name = iptables-restore ] && exec sleep 100");
    legacy.before_iptables("[ $name = iptables-legacy-restore ] && exec sleep 100");
    let add = fixture.call("ADD", &fixture.pod);
    // A DEL runs it only where the legacy variant holds the rules.
    let del = legacy.call("DEL", &legacy.other);
    std::thread::scope(|scope| {
        let names = "iptables-restore did not end within 30 s";
        let added = scope.spawn(move || waited(&add, 80, names));
        waited(&del, 50, "iptables-legacy-restore did not end within 30 s");
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
fn for_an_ipam_plugin() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it waits for ever") {
        return;
    }
    let fixture = Fixture::new(PLAIN);
    let file = format!("{}/slow", Node::BIN);
    let script = "#!/bin/sh\n[ $CNI_COMMAND = DEL ] || exec sleep 100\n";
    fixture.node.write_executable(&file, script);
    let mut config = fixture.config();
    config["ipam"] = json!({ "type": "slow" });
    let add = fixture.node.network(config).call("ADD", &fixture.pod);
    waited(&add, 80, "/slow did not end within 60 s");
    assert_eq!(difference(&fixture.empty, &fixture.state()), [""; 0]);
}

#[test]
fn who_closes_its_stderr_and_works_on_is_waited_for_asleep() {
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
    let steps = steps(
        &fixture,
        &fixture.node.network(config).call("ADD", &fixture.pod),
    );
    assert!(steps.len() < 1000, "{} system calls", steps.len());
}
