//! DEL always ends, and its success means that nothing is left, whatever became of the node since the ADD.

use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Kind, PLAIN, Rules, difference};
use crate::support::{requires, skip_for_go};

const DUAL: Kind = Kind {
    rules: Rules::Iptables,
    dual: true,
    ..PLAIN
};

const LEGACY: Kind = Kind {
    rules: Rules::Legacy,
    ..DUAL
};

fn attached(kind: Kind) -> Fixture {
    let fixture = Fixture::new(kind);
    fixture.call("ADD", &fixture.pod).run().ok();
    fixture
}

#[track_caller]
fn nothing_is_left(fixture: &Fixture, what: &str) {
    let left = difference(&fixture.empty, &fixture.state());
    assert_eq!(left, [""; 0], "{what}");
}

#[test]
fn a_namespace_that_was_unmounted_but_lives_on_loses_its_link_too() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("D4c: it is an error for ever") {
        return;
    }
    for is_removed in [false, true] {
        let fixture = attached(DUAL);
        let path = fixture.pod.path.as_str();
        fixture.node.inside(|| {
            umount2(path, MntFlags::MNT_DETACH).unwrap();
            if is_removed {
                std::fs::remove_file(path).unwrap();
            }
        });
        assert!(fixture.pod.link("eth0").is_some());
        fixture.call("DEL", &fixture.pod).run().ok();
        nothing_is_left(&fixture, "a namespace without a path");
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
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it needs what it was configured with") {
        return;
    }
    let fixture = Fixture::new(DUAL);
    for config in changed(&fixture.config()) {
        fixture.call("ADD", &fixture.pod).run().ok();
        let call = fixture
            .node
            .network(config.clone())
            .call("DEL", &fixture.pod);
        let answer = call.run();
        assert_eq!(answer.code, Some(0), "{config} {answer:?}");
        nothing_is_left(&fixture, &config.to_string());
    }
}

#[test]
fn a_program_that_fails_in_one_family_keeps_the_lease_until_it_works_again() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it releases the address first") {
        return;
    }
    // What iptables-nft holds is removed without a program.
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let fixture = attached(LEGACY);
        let full = fixture.state();
        fixture.before_iptables(&format!(
            "[ $name = {program} ] && echo it rains >&2 && exit 4"
        ));
        let call = fixture.call("DEL", &fixture.pod);
        let error = call.run().error();
        assert!(error.text().contains("it rains"), "{error:?}");
        let leases = |facts: &[String]| {
            facts
                .iter()
                .filter(|fact| fact.starts_with("a lease"))
                .count()
        };
        assert_eq!(leases(&fixture.state()), leases(&full));
        fixture.node.unbind(fixture.iptables());
        call.run().ok();
        nothing_is_left(&fixture, program);
    }
}

#[test]
fn when_iptables_is_not_installed_any_more_it_is_missed_only_by_who_has_rules() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("D18") {
        return;
    }
    let fixture = attached(LEGACY);
    // What is no regular file is no program.
    fixture.node.bind("/dev/null", "/usr/sbin/iptables");
    fixture.node.bind("/dev/null", fixture.iptables());
    let call = fixture.call("DEL", &fixture.pod);
    let error = call.run().error();
    assert!(error.text().contains("tables-legacy-restore"), "{error:?}");
    fixture.call("DEL", &fixture.other).run().ok();
    fixture.node.unbind("/usr/sbin/iptables");
    fixture.node.unbind(fixture.iptables());
    call.run().ok();
    nothing_is_left(&fixture, "iptables was missing");
}

#[test]
fn a_directory_of_leases_that_is_gone_holds_none() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it fails") {
        return;
    }
    let fixture = attached(DUAL);
    fixture.node.run("rm -r /var/lib/cni/networks");
    fixture.call("DEL", &fixture.pod).run().ok();
    let mut left = difference(&fixture.empty, &fixture.state());
    left.retain(|fact| !fact.contains("/var/lib/cni"));
    assert_eq!(left, [""; 0]);
    fixture.call("ADD", &fixture.pod).run().ok();
}

#[test]
fn a_directory_of_leases_that_cannot_be_written_is_an_error_that_says_so() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it says less") {
        return;
    }
    let fixture = attached(DUAL);
    let dir = "/var/lib/cni/networks/small";
    fixture.node.run(&format!("mount --bind {dir} {dir}"));
    fixture.node.run(&format!("mount -o remount,ro,bind {dir}"));
    let call = fixture.call("DEL", &fixture.pod);
    let error = call.run().error();
    for word in [dir, "writable", "Read-only"] {
        assert!(error.text().contains(word), "{word}: {error:?}");
    }
    fixture.node.run(&format!("umount {dir}"));
    call.run().ok();
    nothing_is_left(&fixture, "the directory can be written again");
}
