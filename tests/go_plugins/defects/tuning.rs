//! What tuning restores, and what it compares.

use std::path::Path;

use serde_json::{Value, json};

use super::chained::compare;
use super::{succeeds, with};
use crate::implementation::{Implementation, node_with, ready_for_chains};
use crate::support::{Answer, Node, Pod};

const BACKUP: &str = "/run/cni/tuning/a_eth0.json";

/// A pod with `eth0`, and tuning of one implementation.
struct Fixture {
    node: Node,
    pod: Pod,
    implementation: Implementation,
}

impl Fixture {
    fn new(implementation: Implementation, go: &Path) -> Fixture {
        let node = node_with(go);
        let pod = node.pod("a");
        pod.run("ip link add eth0 type veth peer name peer0");
        Fixture {
            node,
            pod,
            implementation,
        }
    }

    fn call(&self, verb: &str, keys: &Value) -> Answer {
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "tuned",
            "type": "tuning",
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "eth0", "sandbox": self.pod.path }],
            },
        });
        let keys = keys.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(keys);
        let call = self.implementation.call_for(&self.node, &config).verb(verb);
        call.pod(&self.pod).run()
    }

    fn mtu(&self) -> Value {
        self.pod.link("eth0").unwrap()["mtu"].clone()
    }

    fn somaxconn(&self) -> String {
        self.pod.run("sysctl -n net.core.somaxconn").trim().into()
    }

    fn has_backup(&self) -> bool {
        let exists = self.node.try_run(&format!("test -e {BACKUP}"));
        exists.status.success()
    }
}

fn somaxconn() -> Value {
    json!({ "net.core.somaxconn": "500" })
}

#[test]
fn td1_sysctls_of_args_need_none_in_the_configuration() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let codes = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let keys = json!({ "args": { "cni": { "sysctl": somaxconn() } } });
        ["ADD", "CHECK", "DEL"].map(|verb| fixture.call(verb, &keys).code)
    };
    compare(codes, [Some(0); 3], [Some(2); 3]);
}

#[test]
fn td2_sysctls_are_restored() {
    let Some(go) = ready_for_chains(&["sysctl"]) else {
        return;
    };
    let restored = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let before = fixture.somaxconn();
        fixture.call("ADD", &json!({ "sysctl": somaxconn() })).ok();
        fixture.call("DEL", &json!({})).ok();
        let after_del = fixture.somaxconn() == before;
        let fixture = Fixture::new(implementation, &go);
        // The Go plugin writes sysctls in random order, but all of them before the MTU.
        let keys = json!({ "sysctl": somaxconn(), "mtu": 70_000 });
        fixture.call("ADD", &keys).error();
        [after_del, fixture.somaxconn() == before]
    };
    compare(restored, [true; 2], [false; 2]);
}

#[test]
fn td3_del_restores_the_values_from_before_the_first_add() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let mtu = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        for mtu in [1400, 1400, 1300] {
            fixture.call("ADD", &json!({ "mtu": mtu })).ok();
        }
        // Another tuning in the chain.
        fixture.call("ADD", &json!({ "txQLen": 5 })).ok();
        fixture.call("DEL", &json!({})).ok();
        fixture.mtu()
    };
    assert_eq!(mtu(Implementation::Gangplank), 1500);
    assert_ne!(mtu(Implementation::Go), 1500);
}

#[test]
fn td4_a_failed_add_is_undone() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let unchanged = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let before = fixture.pod.link("eth0");
        let keys = json!({ "mac": "02:00:00:00:00:0a", "mtu": 70_000 });
        fixture.call("ADD", &keys).error();
        (fixture.pod.link("eth0") == before, fixture.has_backup())
    };
    compare(unchanged, (true, false), (false, true));
}

#[test]
fn td5_del_removes_a_file_that_cannot_be_restored() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let remains = |implementation: Implementation| {
        ["no netns", "netns gone", "link gone", "corrupt"].map(|case| {
            let fixture = Fixture::new(implementation, &go);
            fixture.call("ADD", &json!({ "mtu": 1400 })).ok();
            let config = json!({ "cniVersion": "1.0.0", "name": "tuned", "type": "tuning" });
            let del = implementation.call_for(&fixture.node, &config);
            let del = del.verb("DEL").pod(&fixture.pod);
            let del = match case {
                "no netns" => del.unset("CNI_NETNS"),
                "netns gone" => del.netns("/run/netns/gone"),
                "link gone" => {
                    fixture.pod.run("ip link del eth0");
                    del
                }
                _ => {
                    fixture.node.write(BACKUP, "{");
                    del
                }
            };
            del.run().ok();
            fixture.has_backup()
        })
    };
    compare(remains, [false; 4], [true; 4]);
}

#[test]
fn td6_del_reports_values_that_it_cannot_restore() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let reported = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        fixture.call("ADD", &json!({ "mtu": 1400 })).ok();
        fixture.node.write(BACKUP, r#"{"mtu": 70000}"#);
        let answer = fixture.call("DEL", &json!({}));
        (answer.code, answer.stderr.contains("MTU 70000"))
    };
    compare(reported, (Some(0), true), (Some(0), false));
}

#[test]
fn td7_directories_can_be_searched_by_their_owner() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let modes = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let keys = json!({ "mtu": 1400, "dataDir": "/run/new/tuning" });
        fixture.call("ADD", &keys).ok();
        fixture.node.run("stat -c %a /run/new /run/new/tuning")
    };
    compare(modes, "755\n700\n".to_owned(), "600\n600\n".to_owned());
}

#[test]
fn td8_an_unreadable_allowlist_matters_only_for_sysctls() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let answers = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let list = "/etc/cni/tuning/allowlist.conf";
        let hide = format!("mount -t tmpfs tmpfs /etc\nmkdir -p {list}");
        fixture.node.run_all(&hide);
        let keys = [json!({ "mtu": 1400 }), json!({ "sysctl": somaxconn() })];
        keys.map(|keys| succeeds(&fixture.call("ADD", &keys)))
    };
    compare(answers, [true, false], [false, false]);
}

#[test]
fn td10_check_compares_values_instead_of_texts() {
    let Some(go) = ready_for_chains(&["sysctl"]) else {
        return;
    };
    let cases = [
        (json!({ "mac": "02:00:00:00:00:0A" }), ""),
        (
            json!({ "sysctl": { "net.ipv4.ip_local_port_range": "2000 3000" } }),
            "",
        ),
        // A port of a bridge is promiscuous.
        (
            json!({ "mtu": 1400 }),
            "ip link add br0 type bridge\nip link set eth0 master br0",
        ),
    ];
    let passes = |implementation| {
        cases.each_ref().map(|(keys, change)| {
            let fixture = Fixture::new(implementation, &go);
            fixture.call("ADD", keys).ok();
            fixture.pod.run_all(change);
            succeeds(&fixture.call("CHECK", keys))
        })
    };
    compare(passes, [true; 3], [false; 3]);
    let names_value = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let keys = json!({ "txQLen": 7 });
        fixture.call("ADD", &keys).ok();
        fixture.pod.run("ip link set eth0 txqueuelen 9");
        let error = fixture.call("CHECK", &keys).error();
        // The Go plugin prints a pointer.
        let mut words = error.msg.split([' ', ',']);
        words.any(|word| word == "7")
    };
    compare(names_value, true, false);
}

#[test]
fn td11_two_values_of_one_sysctl_are_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let answer = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        let names = [
            "net.ipv4.conf.IFNAME.arp_ignore",
            "net.ipv4.conf.eth0.arp_ignore",
        ];
        let keys = json!({ "sysctl": { names[0]: "1", names[1]: "2" } });
        succeeds(&fixture.call("ADD", &keys))
    };
    compare(answer, false, true);
}

#[test]
fn td12_an_mtu_with_which_the_kernel_removes_ipv6_addresses_is_refused() {
    let Some(go) = ready_for_chains(&[]) else {
        return;
    };
    let addresses = |implementation| {
        let fixture = Fixture::new(implementation, &go);
        fixture.pod.run("ip addr add fd00::2/64 dev eth0 nodad");
        let refused = !succeeds(&fixture.call("ADD", &json!({ "mtu": 1200 })));
        (refused, fixture.pod.addresses("eth0").len())
    };
    compare(addresses, (true, 1), (false, 0));
    let fixture = Fixture::new(Implementation::Gangplank, &go);
    let keys = with(&json!({}), "mtu", 1200);
    fixture.call("ADD", &keys).ok();
    assert_eq!(fixture.mtu(), 1200, "without such an address");
}
