//! DEL ends, and its success means that nothing is left, whatever happened to the node since ADD.

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
fn assert_nothing_is_left(fixture: &Fixture, what: &str) {
    let left = difference(&fixture.empty, &fixture.state());
    assert_eq!(left, [""; 0], "{what}");
}

#[test]
fn the_link_of_an_unmounted_but_live_namespace_is_deleted() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("D4c: it is always an error") {
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
        assert_nothing_is_left(&fixture, "a namespace without a path");
    }
}

/// Configurations that changed since the ADD: invalid ones, or of another network.
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
fn del_does_not_depend_on_the_configuration() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("it requires the configuration of the ADD") {
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
        assert_nothing_is_left(&fixture, &config.to_string());
    }
}

#[test]
fn the_lease_is_kept_while_iptables_restore_of_one_family_fails() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("it releases the address first") {
        return;
    }
    // Rules of iptables-nft are removed without a program.
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let fixture = attached(LEGACY);
        let full = fixture.state();
        fixture.before_iptables(&format!(
            "[ $name = {program} ] && echo injected failure >&2 && exit 4"
        ));
        let call = fixture.call("DEL", &fixture.pod);
        let error = call.run().error();
        assert!(error.text().contains("injected failure"), "{error:?}");
        let leases = |facts: &[String]| {
            facts
                .iter()
                .filter(|fact| fact.starts_with("a lease"))
                .count()
        };
        assert_eq!(leases(&fixture.state()), leases(&full));
        fixture.node.unbind(fixture.iptables());
        call.run().ok();
        assert_nothing_is_left(&fixture, program);
    }
}

#[test]
fn after_iptables_was_uninstalled_del_fails_only_with_legacy_rules() {
    requires!("iptables-legacy", "ip6tables-legacy");
    if skip_for_go("D18: it needs ip6tables") {
        return;
    }
    let fixture = attached(LEGACY);
    // Only regular files are executed.
    fixture.node.bind("/dev/null", "/usr/sbin/iptables");
    fixture.node.bind("/dev/null", fixture.iptables());
    let call = fixture.call("DEL", &fixture.pod);
    let error = call.run().error();
    assert!(error.text().contains("tables-legacy-restore"), "{error:?}");
    fixture.call("DEL", &fixture.other).run().ok();
    fixture.node.unbind("/usr/sbin/iptables");
    fixture.node.unbind(fixture.iptables());
    call.run().ok();
    assert_nothing_is_left(&fixture, "iptables was missing");
}

#[test]
fn del_succeeds_without_the_lease_directory() {
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
fn a_read_only_lease_directory_is_reported() {
    requires!("nft", "iptables", "ip6tables");
    if skip_for_go("its error does not name the directory") {
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
    assert_nothing_is_left(&fixture, "the directory can be written again");
}
