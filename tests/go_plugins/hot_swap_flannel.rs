//! Hot swap of flannel: pods of one implementation are deleted by the other. The Go plugin is that of version 0.9.0.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{BOTH, Implementation, nat_rules, node_with, ready_for_chains};
use crate::support::{Answer, Node, Pod, debian, leases};

/// The directories of recent Go plugins, and of a release with flannel.
fn directories() -> Option<(PathBuf, PathBuf)> {
    let go = ready_for_chains(&[])?;
    let old = debian("bullseye", &["containernetworking-plugins"])?;
    Some((go, old.join("usr/lib/cni")))
}

struct Fixture {
    node: Node,
    pod: Pod,
}

impl Fixture {
    fn new((go, old): &(PathBuf, PathBuf)) -> Fixture {
        let node = node_with(go);
        node.install_go_plugin_of(old, "flannel");
        node.run("mkdir -p /run/flannel");
        node.write(
            "/run/flannel/subnet.env",
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        );
        let pod = node.pod("a");
        Fixture { node, pod }
    }

    fn call(&self, by: Implementation, verb: &str, ifname: &str) -> Answer {
        let config = json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel", "delegate": { "isDefaultGateway": true },
        });
        let call = by.call_for(&self.node, &config).verb(verb);
        // The Go plugin executes its delegate, and that host-local.
        let paths = [
            Node::BIN.to_owned(),
            self.node.go_plugin_directory("bridge"),
            self.node.go_plugin_directory("host-local"),
        ];
        let paths = match by {
            Gangplank => paths[0].clone(),
            Go => paths[1..].join(":"),
        };
        call.pod(&self.pod)
            .ifname(ifname)
            .env("CNI_PATH", &paths)
            .run()
    }

    fn saved(&self) -> Option<Value> {
        let saved = self.node.try_run("cat /var/lib/cni/flannel/a");
        serde_json::from_slice(&saved.stdout).ok()
    }

    fn is_clean(&self) -> bool {
        let rules = nat_rules(&self.node);
        self.node.run("ip -o link show type veth").is_empty()
            && !rules.iter().any(|rule| rule.contains("10.42.1.2"))
            && leases(&self.node, "cbr0").is_empty()
            && self.saved().is_none()
    }
}

#[test]
fn pods_of_flannel_are_deleted_by_the_other_implementation() {
    let Some(directories) = directories() else {
        return;
    };
    for add in BOTH {
        for del in BOTH {
            let fixture = Fixture::new(&directories);
            fixture.call(add, "ADD", "eth0").ok();
            let saved = fixture.saved().expect("a configuration");
            assert_eq!(saved["type"], "bridge", "{saved}");
            fixture.pod.reaches("10.42.1.1");
            fixture.call(del, "DEL", "eth0").ok();
            assert!(fixture.is_clean(), "{add:?}, then {del:?}");
        }
    }
}

#[test]
fn the_second_interface_of_a_container_is_deleted() {
    let Some(directories) = directories() else {
        return;
    };
    for (implementation, expected) in [(Gangplank, true), (Go, false)] {
        let fixture = Fixture::new(&directories);
        for ifname in ["eth0", "eth1"] {
            fixture.call(implementation, "ADD", ifname).ok();
        }
        let deleted = ["eth0", "eth1"].map(|ifname| fixture.call(implementation, "DEL", ifname));
        let is_deleted = deleted.iter().all(|answer| answer.code == Some(0));
        assert_eq!(
            is_deleted && fixture.is_clean(),
            expected,
            "{implementation:?}"
        );
    }
}

#[test]
fn a_pod_is_deleted_if_a_crash_truncated_the_saved_configuration() {
    let Some(directories) = directories() else {
        return;
    };
    for (implementation, expected) in [(Gangplank, true), (Go, false)] {
        let fixture = Fixture::new(&directories);
        fixture.call(implementation, "ADD", "eth0").ok();
        fixture.node.run("truncate -s 9 /var/lib/cni/flannel/a");
        let deleted = fixture.call(implementation, "DEL", "eth0");
        assert_eq!(
            deleted.code == Some(0) && fixture.is_clean(),
            expected,
            "{implementation:?}"
        );
    }
}
