//! Waiting is bounded: for a lock and for a program alike it ends in code 11, says who is waited for, and the call that
//! comes when the way is free does all.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::scene::{Kind, PLAIN, Rules, Scene, difference};
use crate::support::{Call, Node, Refusal, needs, worse_in_go};
use crate::trace::steps;

const LEGACY: Kind = Kind {
    rules: Rules::Legacy,
    ..PLAIN
};

const MASQUERADED: Kind = Kind {
    rules: Rules::Iptables,
    ..PLAIN
};

/// The refusal of a call that waits for somebody, who is named in it, for less than so many seconds.
#[track_caller]
fn waited(call: &Call, seconds: u64, who: &str) -> Refusal {
    let began = Instant::now();
    let refusal = call.run().refused();
    assert_eq!(refusal.code, 11, "{refusal:?}");
    assert!(refusal.text().contains(who), "{who}: {refusal:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(seconds), "{took:?}: {refusal:?}");
    refusal
}

/// Locks a file on the scene's node as we do, and names us as errors name a holder.
fn hold(scene: &Scene, path: &str) -> (File, String) {
    let open = || File::options().create(true).append(true).open(path);
    let file = scene.node.inside(open).unwrap();
    file.lock().unwrap();
    (file, format!("pid {} (", std::process::id()))
}

#[test]
fn for_the_lock_of_the_leases() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it waits for ever") {
        return;
    }
    let scene = Scene::new(MASQUERADED);
    let path = "/var/lib/cni/networks/small/lock";
    let (lock, us) = hold(&scene, path);
    let add = scene.call("ADD", &scene.pod);
    let refusal = waited(&add, 20, &us);
    assert!(refusal.text().contains(path), "{refusal:?}");
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
    drop(lock);
    add.run().ok();
    let (lock, us) = hold(&scene, path);
    let del = scene.call("DEL", &scene.pod);
    waited(&del, 20, &us);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn for_the_lock_of_iptables() {
    needs!("iptables-legacy", "ip6tables-legacy");
    if worse_in_go("it waits for ever") {
        return;
    }
    let scene = Scene::new(LEGACY);
    let (lock, us) = hold(&scene, "/run/xtables.lock");
    let add = scene.call("ADD", &scene.pod);
    // The ADD waits once, its undo once more.
    waited(&add, 60, &us);
    drop(lock);
    let del = scene.call("DEL", &scene.pod);
    del.run().ok();
    add.run().ok();
    let (lock, us) = hold(&scene, "/run/xtables.lock");
    waited(&del, 40, &us);
    drop(lock);
    del.run().ok();
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn for_iptables_itself() {
    needs!(
        "nft",
        "iptables",
        "ip6tables",
        "iptables-legacy",
        "ip6tables-legacy"
    );
    if worse_in_go("it waits for ever") {
        return;
    }
    let (scene, legacy) = (Scene::new(MASQUERADED), Scene::new(LEGACY));
    legacy.call("ADD", &legacy.other).run().ok();
    scene.before_iptables("[ $name = iptables-restore ] && exec sleep 100");
    legacy.before_iptables("[ $name = iptables-legacy-restore ] && exec sleep 100");
    let add = scene.call("ADD", &scene.pod);
    // A DEL runs it only where the legacy variant holds the rules.
    let del = legacy.call("DEL", &legacy.other);
    std::thread::scope(|scope| {
        let names = "iptables-restore did not end within 30 s";
        let added = scope.spawn(move || waited(&add, 80, names));
        waited(&del, 50, "iptables-legacy-restore did not end within 30 s");
        added.join().unwrap();
    });
    for scene in [&scene, &legacy] {
        scene.node.unbind(scene.iptables());
        for pod in [&scene.pod, &scene.other] {
            scene.call("DEL", pod).run().ok();
        }
        assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
    }
    scene.call("ADD", &scene.pod).run().ok();
}

#[test]
fn for_an_ipam_plugin() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it waits for ever") {
        return;
    }
    let scene = Scene::new(PLAIN);
    let file = format!("{}/slow", Node::BIN);
    let script = "#!/bin/sh\n[ $CNI_COMMAND = DEL ] || exec sleep 100\n";
    scene.node.write(&file, script);
    scene.node.run(&format!("chmod 755 {file}"));
    let mut config = scene.config();
    config["ipam"] = json!({ "type": "slow" });
    let add = scene.node.network(config).call("ADD", &scene.pod);
    waited(&add, 80, "/slow did not end within 60 s");
    assert_eq!(difference(&scene.empty, &scene.standing()), [""; 0]);
}

#[test]
fn who_closes_its_stderr_and_works_on_is_waited_for_asleep() {
    needs!("strace", "nft", "iptables", "ip6tables");
    let scene = Scene::new(PLAIN);
    let file = format!("{}/quiet", Node::BIN);
    scene.node.write(
        &file,
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nexec 2>&-\nsleep 1\n\
         echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.77.0.9/24\"}]}'\n",
    );
    scene.node.run(&format!("chmod 755 {file}"));
    let mut config = scene.config();
    config["ipam"] = json!({ "type": "quiet" });
    let steps = steps(&scene, &scene.node.network(config).call("ADD", &scene.pod));
    assert!(steps.len() < 1000, "{} system calls", steps.len());
}
