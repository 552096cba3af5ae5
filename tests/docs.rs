//! The documentation under .github/docs: its commands run, and its quotes match the program.

use gangplank_test_support as support;

use std::fs;
use std::path::Path;

use serde_json::json;
use support::{Node, binary, connect, requires, skip_for_go};

fn page(name: &str) -> String {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/docs");
    fs::read_to_string(pages.join(name)).unwrap()
}

/// The commands of a page as one script, which stops at the first failure.
fn script(page_name: &str) -> String {
    let page = page(page_name);
    let blocks = page.split("```sh\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() > 2, "{page_name} has too few commands");
    format!("set -euxo pipefail\n{}", blocks.concat())
}

/// A node with its own /etc and /opt, with gangplank in PATH, in a cluster with another node.
fn node() -> (Node, Node) {
    let (node, outside) = (Node::new("node"), Node::new("outside"));
    connect(&node, "eth0", &outside, "eth0");
    node.run_all(
        "mkdir -p /run/upper /run/work /run/bin
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc
        mount -t tmpfs tmpfs /opt
        mkdir -p /etc/cni/net.d /opt/cni/bin
        ip address add 192.0.2.11/24 dev eth0
        ip route add default via 192.0.2.1",
    );
    node.run(&format!("ln -s {} /run/bin/gangplank", binary().display()));
    let one = |name: &str, address: &str, range: &str| {
        json!({"kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let this = one("one", "192.0.2.11", "10.244.1.0/24");
    let all = json!({"kind": "List", "items": [this, one("two", "192.0.2.12", "10.244.2.0/24")]});
    node.write("/run/one.json", &this.to_string());
    node.write("/run/all.json", &all.to_string());
    // Stubs of kubectl and sudo.
    node.write(
        "/run/bin/kubectl",
        "#!/bin/sh\ncase $2 in nodes) cat /run/all.json ;; node) test \"$3\" = one && cat /run/one.json ;; esac\n",
    );
    node.write("/run/bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
    node.run("chmod +x /run/bin/kubectl /run/bin/sudo");
    (node, outside)
}

fn run(node: &Node, page: &str) -> String {
    node.write("/run/script", &script(page));
    node.run("env NODE=one PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin bash /run/script")
}

#[test]
fn the_commands_of_the_operation_page_run_in_order() {
    requires!("iptables", "bash");
    if skip_for_go("the Go plugins have no command line") {
        return;
    }
    let (node, _outside) = node();
    let output = run(&node, "operating.md");
    assert!(output.contains("via 192.0.2.12"), "{output}");
    assert!(
        node.run("ip route show proto 71")
            .contains("10.244.2.0/24 via 192.0.2.12 dev eth0")
    );
    let conf = node.read("/etc/cni/net.d/10-gangplank.conflist");
    let conf: serde_json::Value = serde_json::from_str(&conf).unwrap();
    assert_eq!(
        conf["plugins"][0]["nonMasqueradeCIDRs"],
        json!(["10.244.0.0/16"])
    );
    assert_eq!(conf["plugins"][0]["mtu"], 1500);
}

#[test]
fn the_commands_of_the_migration_page_run_with_a_pod_of_the_go_plugins() {
    requires!(
        "iptables",
        "bash",
        "cni:bridge",
        "cni:host-local",
        "cni:loopback"
    );
    if skip_for_go("the Go plugins have no command line") {
        return;
    }
    let (node, _outside) = node();
    node.run("cp /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/loopback /opt/cni/bin/");
    let list = support::example("10-gangplank.conflist");
    node.write("/etc/cni/net.d/10-gangplank.conflist", &list);
    node.install_go_plugin("bridge");
    node.install_go_plugin("host-local");
    let mut conf: serde_json::Value = serde_json::from_str(&list).unwrap();
    let mut conf = conf["plugins"][0].take();
    conf["name"] = json!("pods");
    conf["cniVersion"] = json!("1.0.0");
    let pod = node.pod("old");
    let mut by_go = conf.clone();
    by_go["type"] = json!("go-bridge");
    by_go["ipam"]["type"] = json!("go-host-local");
    node.network(by_go).add(&pod);
    let output = run(&node, "migration.md");
    assert!(
        output.contains("old") && output.contains("10.244.0.2"),
        "{output}"
    );
    assert!(output.contains("kept as bridge.orig"), "{output}");
    assert!(output.contains("bridge.orig is back"), "{output}");
    let restored = node.run("sha256sum /opt/cni/bin/bridge /usr/lib/cni/bridge");
    let sums: Vec<&str> = restored
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(sums[0], sums[1]);
    assert!(output.contains("\"bridge\": \"cbr0\""), "{output}");
}

#[test]
fn quoted_errors_exist_in_the_source() {
    let mut source = String::new();
    read_all(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut source,
    );
    let page = page("troubleshooting.md");
    let errors = page.split("## No error").next().unwrap();
    let mut quoted = 0;
    for line in errors.lines().filter(|line| line.starts_with("| `")) {
        let first = line.split('|').nth(1).unwrap();
        for fragment in first.split('`').skip(1).step_by(2) {
            assert!(
                source.contains(fragment),
                "{fragment:?} is not in the source"
            );
            quoted += 1;
        }
    }
    assert!(quoted > 15, "{quoted}");
    // The other table contains finding IDs and commands.
    for word in page.split('`').skip(1).step_by(2) {
        let is_finding = word.contains('-') && !word.contains(' ') && !word.starts_with('-');
        assert!(
            !is_finding || source.contains(&format!("\"{word}\"")),
            "no finding {word:?}"
        );
    }
}

fn read_all(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn all_doctor_findings_are_documented() {
    let page = page("operating.md");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/doctor/finding.rs");
    let source = fs::read_to_string(file).unwrap();
    let list = source.split("\nfindings! {").nth(1).unwrap();
    let list = list.split('}').next().unwrap();
    let ids: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(ids.len() > 30, "{ids:?}");
    for id in &ids {
        assert!(page.contains(&format!("`{id}`")), "{id} is not on the page");
    }
    // The finding IDs of a row are those before its first colon or bar.
    let table = page.split("| finding |").nth(1).unwrap();
    for row in table.lines().skip(2).take_while(|row| row.starts_with('|')) {
        let named = row.trim_start_matches('|').split([':', '|']).next();
        for id in named.unwrap().split('`').skip(1).step_by(2) {
            assert!(ids.contains(&id), "exists is no finding {id}");
        }
    }
}

#[test]
fn links_between_the_pages_are_valid() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github");
    for directory in [pages.join("docs"), pages] {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "md") {
                check_links(&path);
            }
        }
    }
}

fn check_links(page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let targets = text
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    for target in targets {
        let file = target.split('#').next().unwrap();
        if !target.starts_with("https://") && !file.is_empty() {
            let exists = page.with_file_name(file).exists();
            assert!(exists, "{}: {target} does not exist", page.display());
        }
    }
}
