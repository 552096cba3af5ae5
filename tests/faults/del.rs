//! DEL always ends, and its success means that nothing is left, whatever became of the node since the ADD.

use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use crate::scene::{Kind, PLAIN, Rules, Scene, difference};
use crate::support::{needs, worse_in_go};

const DUAL: Kind = Kind {
    rules: Rules::Iptables,
    dual: true,
    ..PLAIN
};

const LEGACY: Kind = Kind {
    rules: Rules::Legacy,
    ..DUAL
};

fn attached(kind: Kind) -> Scene {
    let scene = Scene::new(kind);
    scene.call("ADD", &scene.pod).run().ok();
    scene
}

#[track_caller]
fn nothing_is_left(scene: &Scene, what: &str) {
    let left = difference(&scene.empty, &scene.standing());
    assert_eq!(left, [""; 0], "{what}");
}

#[test]
fn a_namespace_that_was_unmounted_but_lives_on_loses_its_link_too() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("D4c: it is an error for ever") {
        return;
    }
    for is_removed in [false, true] {
        let scene = attached(DUAL);
        let path = scene.pod.path.as_str();
        scene.node.inside(|| {
            umount2(path, MntFlags::MNT_DETACH).unwrap();
            if is_removed {
                std::fs::remove_file(path).unwrap();
            }
        });
        assert!(scene.pod.link("eth0").is_some());
        scene.call("DEL", &scene.pod).run().ok();
        nothing_is_left(&scene, "a namespace without a path");
    }
}

/// Configurations that an administrator may have written since the ADD; none of them would do for another ADD, or it
/// would be another network's.
fn changed(config: &Value) -> Vec<Value> {
    let changes: [(&str, Value); 14] = [
        ("ipMasq", Value::Null),
        ("ipMasq", false.into()),
        ("isGateway", false.into()),
        ("bridge", "br9".into()),
        ("bridge", "a name that is much too long".into()),
        ("mtu", "large".into()),
        ("vlan", 99_999.into()),
        ("ipMasqBackend", "pf".into()),
        ("vlanTrunk", json!([null])),
        ("ipam", json!({ "type": "host-local" })),
        ("ipam", json!({ "type": "host-local", "ranges": 5 })),
        (
            "ipam",
            json!({ "type": "host-local", "subnet": "10.99.0.0/24" }),
        ),
        (
            "ipam",
            json!({ "type": "host-local", "subnet": "10.77.0.0/33", "routes": [null] }),
        ),
        (
            "ipam",
            json!({ "type": "host-local", "ranges": [[{ "subnet": "x" }], []], "resolvConf": "/nowhere" }),
        ),
    ];
    let change = |(key, value): (&str, Value)| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    changes.into_iter().map(change).collect()
}

#[test]
fn a_configuration_that_changed_since_the_add_does_not_matter() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it needs what it was configured with") {
        return;
    }
    let scene = Scene::new(DUAL);
    for config in changed(&scene.config()) {
        scene.call("ADD", &scene.pod).run().ok();
        let call = scene.node.network(config.clone()).call("DEL", &scene.pod);
        let answer = call.run();
        assert_eq!(answer.code, Some(0), "{config} {answer:?}");
        nothing_is_left(&scene, &config.to_string());
    }
}

#[test]
fn a_program_that_fails_in_one_family_keeps_the_lease_until_it_works_again() {
    needs!("iptables-legacy", "ip6tables-legacy");
    if worse_in_go("it releases the address first") {
        return;
    }
    // What iptables-nft holds is removed without a program.
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let scene = attached(LEGACY);
        let full = scene.standing();
        scene.before_iptables(&format!(
            "[ $name = {program} ] && echo it rains >&2 && exit 4"
        ));
        let call = scene.call("DEL", &scene.pod);
        let refusal = call.run().refused();
        assert!(refusal.text().contains("it rains"), "{refusal:?}");
        let leases = |facts: &[String]| {
            facts
                .iter()
                .filter(|fact| fact.starts_with("a lease"))
                .count()
        };
        assert_eq!(leases(&scene.standing()), leases(&full));
        scene.node.unbind(scene.iptables());
        call.run().ok();
        nothing_is_left(&scene, program);
    }
}

#[test]
fn when_iptables_is_not_installed_any_more_it_is_missed_only_by_who_has_rules() {
    needs!("iptables-legacy", "ip6tables-legacy");
    if worse_in_go("D18") {
        return;
    }
    let scene = attached(LEGACY);
    // What is no regular file is no program.
    scene.node.bind("/dev/null", "/usr/sbin/iptables");
    scene.node.bind("/dev/null", scene.iptables());
    let call = scene.call("DEL", &scene.pod);
    let refusal = call.run().refused();
    assert!(
        refusal.text().contains("tables-legacy-restore"),
        "{refusal:?}"
    );
    scene.call("DEL", &scene.other).run().ok();
    scene.node.unbind("/usr/sbin/iptables");
    scene.node.unbind(scene.iptables());
    call.run().ok();
    nothing_is_left(&scene, "iptables was missing");
}

#[test]
fn a_directory_of_leases_that_is_gone_holds_none() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it fails") {
        return;
    }
    let scene = attached(DUAL);
    scene.node.run("rm -r /var/lib/cni/networks");
    scene.call("DEL", &scene.pod).run().ok();
    let mut left = difference(&scene.empty, &scene.standing());
    left.retain(|fact| !fact.contains("/var/lib/cni"));
    assert_eq!(left, [""; 0]);
    scene.call("ADD", &scene.pod).run().ok();
}

#[test]
fn a_directory_of_leases_that_cannot_be_written_is_an_error_that_says_so() {
    needs!("nft", "iptables", "ip6tables");
    if worse_in_go("it says less") {
        return;
    }
    let scene = attached(DUAL);
    let dir = "/var/lib/cni/networks/small";
    scene.node.run(&format!("mount --bind {dir} {dir}"));
    scene.node.run(&format!("mount -o remount,ro,bind {dir}"));
    let call = scene.call("DEL", &scene.pod);
    let refusal = call.run().refused();
    for word in [dir, "writable", "Read-only"] {
        assert!(refusal.text().contains(word), "{word}: {refusal:?}");
    }
    scene.node.run(&format!("umount {dir}"));
    call.run().ok();
    nothing_is_left(&scene, "the directory can be written again");
}
