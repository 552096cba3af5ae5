//! `gangplank conf`: both implementations accept its output.

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::support::{Node, connect, requires};

/// The configuration that a runtime passes to the plugin of a list.
fn request(list: &Value) -> Value {
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    plugin
}

/// A node with an uplink with this MTU.
fn node_with_uplink(mtu: u32) -> (Fixture, Node) {
    let fixture = Fixture::new();
    let outside = Node::new("outside");
    connect(&fixture, "up0", &outside, "eth0");
    fixture.run_all(&format!(
        "ip link set up0 mtu {mtu}\nip addr add 192.0.2.1/24 dev up0\nip route add default via 192.0.2.2\nip route add 10.8.0.0/16 via 192.0.2.3"
    ));
    outside.run("ip addr add 192.0.2.2/24 dev eth0");
    (fixture, outside)
}

#[test]
fn both_implementations_accept_the_output() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    let (fixture, _outside) = node_with_uplink(1400);
    let flags = "--name kube --bridge kube0 --overhead 50 --non-masquerade 10.0.0.0/8";
    let list = fixture
        .gangplank(&format!("conf 10.44.3.0/24 fd44:3::/64 {flags}"))
        .ok();
    assert_eq!(list["name"], "kube");
    let plugin = &list["plugins"][0];
    assert_eq!(plugin["mtu"], 1350);
    assert_eq!(plugin["nonMasqueradeCIDRs"], json!(["10.0.0.0/8"]));
    assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
    let config = request(&list);
    fixture.configure("10-kube.conflist", &config);
    let (gangplank_pod, go_pod) = (fixture.pod("ours"), fixture.pod("theirs"));
    fixture.run_pod(&fixture.network(config.clone()), &gangplank_pod);
    fixture.run_pod(&fixture.go(&config), &go_pod);
    for pod in [&gangplank_pod, &go_pod] {
        assert_eq!(pod.link("eth0").unwrap()["mtu"], 1350);
        pod.reaches("10.44.3.1");
        pod.reaches("fd44:3::1");
        pod.reaches("192.0.2.2");
    }
    // hairpinMode is set, so that a pod reaches itself through a Service.
    assert!(fixture.run("bridge -d link").matches("hairpin on").count() == 2);
    // The Go plugin ignores nonMasqueradeCIDRs; `reconcile` adds the rules.
    let health = || fixture.status("--json").ok()[0]["pods"][1]["health"].clone();
    assert_eq!(health(), json!(["not masqueraded as configured"]));
    fixture.reconcile("").success();
    assert_eq!(health(), json!([]));
}

#[test]
fn ranges_are_read_from_a_kubernetes_node() {
    requires!();
    let (fixture, _outside) = node_with_uplink(9000);
    let ranges = |text: &str| {
        fixture.gangplank_with_stdin("conf", text).ok()["plugins"][0]["ipam"]["ranges"].clone()
    };
    let node = json!({ "kind": "Node", "metadata": { "name": "a" }, "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd10:1::/64"] } });
    assert_eq!(
        ranges(&node.to_string()),
        json!([[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd10:1::/64" }]])
    );
    let old = json!({ "kind": "Node", "metadata": { "name": "a" }, "spec": { "podCIDR": "10.244.1.0/24" } });
    assert_eq!(
        ranges(&old.to_string()),
        json!([[{ "subnet": "10.244.1.0/24" }]])
    );
    let list = json!({ "kind": "List", "items": [old] });
    assert_eq!(
        ranges(&list.to_string()),
        json!([[{ "subnet": "10.244.1.0/24" }]])
    );
    let answer = fixture.gangplank_with_stdin("conf", &node.to_string()).ok();
    assert_eq!(answer["plugins"][0]["mtu"], 9000);
    assert_eq!(
        answer["plugins"][0]["ipam"]["routes"],
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }])
    );
    let bare = json!({ "kind": "Node", "metadata": { "name": "a" }, "spec": {} });
    let answer = fixture.gangplank_with_stdin("conf", &bare.to_string());
    assert!(
        answer.failure().contains("node a has no spec.podCIDRs")
            && answer.stderr.contains("--allocate-node-cidrs"),
        "{answer:?}"
    );
    let two = json!({ "items": [
        { "metadata": { "name": "a" }, "spec": { "podCIDR": "10.244.1.0/24" } },
        { "metadata": { "name": "b" }, "spec": { "podCIDR": "10.244.2.0/24" } },
    ] });
    let answer = fixture.gangplank_with_stdin("conf", &two.to_string());
    assert!(answer.failure().contains("2 nodes"), "{answer:?}");
    let answer = fixture.gangplank_with_stdin("conf", "");
    assert!(answer.failure().contains("empty"), "{answer:?}");
}

#[test]
fn flags_set_their_keys() {
    requires!();
    let (fixture, _outside) = node_with_uplink(1500);
    let of = |words: &str| {
        fixture
            .gangplank(&format!("conf 10.44.3.0/24 {words}"))
            .ok()
    };
    assert_eq!(of("--mtu 1280")["plugins"][0]["mtu"], 1280);
    assert_eq!(of("--no-masquerade")["plugins"][0]["ipMasq"], false);
    assert_eq!(of("--cni-version 0.4.0")["cniVersion"], "0.4.0");
    let portmap = of("--portmap");
    assert_eq!(
        portmap["plugins"][1],
        json!({ "type": "portmap", "capabilities": { "portMappings": true } })
    );
    // Without a default route there is no MTU to use.
    let lone = Fixture::new();
    assert_eq!(
        lone.gangplank("conf 10.44.3.0/24").ok()["plugins"][0].get("mtu"),
        None
    );
}

#[test]
fn invalid_arguments_are_rejected() {
    requires!();
    let (fixture, _outside) = node_with_uplink(1500);
    for (words, wanted) in [
        ("10.44.3.0/24 10.45.0.0/24", "both IPv4"),
        ("fd44::/64 fd45::/64", "both IPv6"),
        ("10.8.3.0/24", "10.8.0.0/16 via 192.0.2.3 dev up0"),
        ("10.0.0.0/8", "10.8.0.0/16"),
        ("192.0.2.0/25", "192.0.2.0/24 dev up0"),
        ("10.44.3.7/24", "10.44.3.0/24"),
        ("10.44.3.0/24 --name ../x", "name"),
        ("10.44.3.0/24 --name=-x", "name"),
        ("10.44.3.0/24 --bridge much-too-long-a-name", "bridge"),
        ("10.44.3.0/24 --bridge a/b", "bridge"),
        ("10.44.3.0/24 --overhead 1500", "overhead"),
        ("10.44.3.0/24 --mtu 3", "mtu"),
        ("fd44:3::/64 --mtu 1279", "IPv6 needs at least 1280"),
        ("10.44.3.0/24 --cni-version 9.9", "9.9"),
        ("10.44.3.0/32", "10.44.3.0/32"),
        ("10.44.3.0/31", "10.44.3.0/31"),
    ] {
        let answer = fixture.gangplank(&format!("conf {words} -o /run/out.conflist"));
        assert!(matches!(answer.code, Some(1 | 2)), "{words}: {answer:?}");
        assert!(answer.stderr.contains(wanted), "{words}: {answer:?}");
        assert!(
            fixture.try_run("ls /run/out.conflist").status.code() != Some(0),
            "{words}"
        );
    }
    for words in [
        "10.44.3.0",
        "10.44.3.0/33",
        "nonsense",
        "10.44.3.0/24 --mtu x",
        "--bogus",
    ] {
        let answer = fixture.gangplank(&format!("conf {words}"));
        assert_eq!(
            (answer.code, &*answer.stdout),
            (Some(2), ""),
            "{words}: {answer:?}"
        );
    }
}

#[test]
fn conf_can_be_repeated_for_a_running_network() {
    requires!();
    let (fixture, _outside) = node_with_uplink(1500);
    let list = fixture.gangplank("conf 10.44.3.0/24").ok();
    let pod = fixture.pod("a");
    fixture.network(request(&list)).add(&pod);
    assert_eq!(fixture.gangplank("conf 10.44.3.0/24").ok(), list);
    let other = fixture.gangplank("conf 10.44.3.0/24 --bridge other0");
    assert!(other.failure().contains("dev cni0"), "{other:?}");
}

#[test]
fn the_file_is_written_completely_or_not_at_all() {
    requires!();
    let (fixture, _outside) = node_with_uplink(1500);
    fixture.run("mkdir /run/out");
    let line = "conf 10.44.3.0/24 --output /run/out/10-pods.conflist";
    assert_eq!(
        fixture.gangplank(line).success(),
        "/run/out/10-pods.conflist: written\n"
    );
    let written = fixture.read("/run/out/10-pods.conflist");
    assert_eq!(written, fixture.gangplank("conf 10.44.3.0/24").success());
    assert_eq!(fixture.run("ls -A /run/out"), "10-pods.conflist\n");
    fixture.run_all("mkdir /run/small\nmount -t tmpfs -o size=4k,nr_inodes=3 tmpfs /run/small");
    fixture.write("/run/small/10-pods.conflist", &"x".repeat(4096));
    let full = fixture.gangplank("conf 10.44.3.0/24 -o /run/small/10-pods.conflist");
    assert!(full.failure().contains("No space left"), "{full:?}");
    assert_eq!(
        fixture.read("/run/small/10-pods.conflist"),
        "x".repeat(4096)
    );
    assert_eq!(fixture.run("ls -A /run/small"), "10-pods.conflist\n");
    let none = fixture.gangplank("conf 10.44.3.0/24 -o /run/none/10-pods.conflist");
    assert!(
        none.failure()
            .contains("cannot write /run/none/10-pods.conflist"),
        "{none:?}"
    );
    fixture.run("mkdir /run/out/there");
    let existing = fixture.gangplank("conf 10.44.3.0/24 -o /run/out/there");
    assert!(
        existing.failure().contains("/run/out/there"),
        "{existing:?}"
    );
    assert_eq!(fixture.run("ls -A /run/out"), "10-pods.conflist\nthere\n");
}

#[test]
fn a_plugin_without_support_for_the_version_is_a_warning() {
    requires!("cni:portmap");
    let (fixture, _outside) = node_with_uplink(1500);
    let bin = "/run/chain";
    fixture.run_all(&format!(
        "mkdir {bin}\ncp -L {} {bin}/bridge",
        crate::support::binary().display()
    ));
    fixture.run(&format!(
        "cp -L {} {bin}/portmap",
        crate::support::go_plugins().join("portmap").display()
    ));
    let conf = |flags: &str| {
        fixture.gangplank(&format!(
            "conf 10.44.3.0/24 --portmap --cni-path {bin} {flags}"
        ))
    };
    // Debian's portmap is older than cniVersion 1.1.0 and has no STATUS.
    let answer = conf("--cni-version 1.1.0");
    assert_eq!(answer.ok()["cniVersion"], "1.1.0");
    let is_old = !fixture
        .under(&format!("env CNI_COMMAND=VERSION {bin}/portmap"))
        .stdout
        .contains("1.1.0");
    for word in [
        "plugin portmap",
        "cniVersion 1.1.0",
        "answers VERSION: 0.1.0",
        "answers STATUS: ",
        "set cniVersion to 1.0.0",
    ] {
        assert_eq!(answer.stderr.contains(word), is_old, "{word}: {answer:?}");
    }
    assert!(!answer.stderr.contains("plugin bridge "), "{answer:?}");
    assert_eq!(conf("").stderr, "", "1.0.0 has no STATUS");
    // A plugin that supports the version, but not STATUS.
    let script = "case $CNI_COMMAND in VERSION) echo '{\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}';; *) echo '{\"code\":4,\"msg\":\"unknown CNI_COMMAND\"}'; exit 1;; esac\n";
    fixture.run(&format!("rm {bin}/portmap"));
    fixture.write_executable(&format!("{bin}/portmap"), &format!("#!/bin/sh\n{script}"));
    let answer = conf("--cni-version 1.1.0");
    for word in [
        "answers STATUS with an error",
        "unknown CNI_COMMAND (code 4)",
        "set cniVersion to 1.0.0",
    ] {
        assert!(answer.stderr.contains(word), "{word}: {answer:?}");
    }
    // A hanging plugin is killed, and a missing plugin is ignored.
    fixture.write(&format!("{bin}/portmap"), "#!/bin/sh\nexec sleep 60\n");
    let answer = conf("--cni-version 1.1.0");
    assert!(
        answer.stderr.contains("did not end within 5 s"),
        "{answer:?}"
    );
    fixture.run(&format!("rm {bin}/portmap"));
    assert_eq!(conf("--cni-version 1.1.0").stderr, "");
}

#[test]
fn the_output_is_written_to_an_unpredictable_temporary_file() {
    requires!("strace");
    let (fixture, _outside) = node_with_uplink(1500);
    fixture.write("/run/victim", "precious");
    fixture.run_all("mkdir -m 777 /run/out\nln -s /run/victim /run/out/10-pods.gangplank-new\nln -s /run/victim /run/out/10-pods.conflist");
    let line = "conf 10.44.3.0/24 --output /run/out/10-pods.conflist";
    let answer = fixture.under(&format!("strace -f -o /run/trace BINARY {line}"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(fixture.read("/run/victim"), "precious");
    let file = fixture.run("stat -c %F-%a /run/out/10-pods.conflist");
    assert_eq!(file, "regular file-644\n");
    let trace = fixture.read("/run/trace");
    let opened = |trace: &str| {
        let lines = trace
            .lines()
            .filter(|line| line.contains("\"/run/out/") && line.contains("O_CREAT"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let first = opened(&trace);
    assert!(first.len() == 1 && first[0].contains("O_EXCL"), "{first:?}");
    let synced = trace.find("fsync(").expect("fsync");
    assert!(synced < trace.find("rename").expect("rename"), "{trace}");
    let answer = fixture.under(&format!("strace -f -o /run/trace BINARY {line}"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let name = |line: &str| line.split('"').nth(1).unwrap().to_owned();
    assert_ne!(
        name(&opened(&fixture.read("/run/trace"))[0]),
        name(&first[0])
    );
    assert_eq!(
        fixture.run("ls -A /run/out"),
        "10-pods.conflist\n10-pods.gangplank-new\n"
    );
}
