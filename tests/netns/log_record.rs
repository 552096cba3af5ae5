//! `logFile`, `logLevel` and GANGPLANK_LOG: one line per call.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Network, Node, Pod, requires, skip_for_go, small_network};

const WHY: &str = "it has no log";
const FILE: &str = "/run/gangplank.log";

fn with_log() -> Value {
    let mut config = small_network();
    config["logFile"] = FILE.into();
    config
}

/// The lines of a log, each as its fields.
fn lines(node: &Node) -> Vec<BTreeMap<String, String>> {
    let text = node.inside(|| std::fs::read_to_string(FILE).unwrap_or_default());
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(fields).collect()
}

/// The fields of a line in logfmt.
fn fields(line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = line;
    while let Some((key, value)) = rest.split_once('=') {
        let (value, more) = match value.strip_prefix('"') {
            None => value.split_once(' ').unwrap_or((value, "")),
            Some(quoted) => {
                let ends = |(at, _): &(usize, &str)| {
                    let before = &quoted[..*at];
                    (before.len() - before.trim_end_matches('\\').len()).is_multiple_of(2)
                };
                let (end, _) = quoted.match_indices('"').find(ends).expect("an end");
                (&quoted[..end], quoted[end + 1..].trim_start())
            }
        };
        assert!(!key.is_empty() && !key.contains([' ', '"']), "{line}");
        let value = value.replace("\\\"", "\"").replace("\\\\", "\\");
        assert_eq!(
            fields.insert(key.to_owned(), value),
            None,
            "{key} twice: {line}"
        );
        rest = more;
    }
    assert_eq!(rest, "", "{line}");
    fields
}

#[track_caller]
fn assert_fields(line: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(
            line.get(*key).map(String::as_str),
            Some(*value),
            "{key} of {line:?}"
        );
    }
}

fn milliseconds(line: &BTreeMap<String, String>, key: &str) -> f64 {
    let value = line
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {line:?}"));
    value.parse().unwrap()
}

#[test]
fn every_call_is_logged_with_result_and_timings() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let network = node
        .network(with_log())
        .with("ipMasq", true)
        .with("cniVersion", "1.1.0");
    let pod = node.pod("c1");
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
    let result = network.call("ADD", &pod).args(args).run().ok();
    network.check(&pod, &result).ok();
    network.call("DEL", &pod).run().ok();
    let gc = network.with("cni.dev/valid-attachments", json!([]));
    gc.call_for("GC", "").run().ok();
    network.call_for("STATUS", "").run().ok();
    let lines = lines(&node);
    assert_eq!(
        lines.len(),
        4,
        "STATUS is too frequent to be logged: {lines:?}"
    );
    let [add, check, del, gc] = &lines[..] else {
        panic!("{lines:?}")
    };
    let identity = [
        ("plugin", "bridge"),
        ("network", "small"),
        ("level", "info"),
        ("result", "ok"),
    ];
    for (line, verb) in [(add, "ADD"), (check, "CHECK"), (del, "DEL"), (gc, "GC")] {
        assert_fields(line, &identity);
        assert_fields(line, &[("verb", verb)]);
        let parts = ["ipam_ms", "link_ms", "masquerade_ms"];
        let sum: f64 = parts
            .iter()
            .filter_map(|key| line.get(*key))
            .map(|it| it.parse::<f64>().unwrap())
            .sum();
        assert!(sum <= milliseconds(line, "total_ms"), "{line:?}");
        assert!(
            !line.contains_key("request") && !line.contains_key("conf"),
            "{line:?}"
        );
    }
    assert_fields(
        add,
        &[
            ("pod", "shop/web"),
            ("container", "c1"),
            ("ifname", "eth0"),
            ("ips", "10.77.0.2/24"),
        ],
    );
    assert_fields(del, &[("pod", "c1")]);
    for key in ["ipam_ms", "link_ms", "masquerade_ms"] {
        assert!(milliseconds(add, key) > 0.0 && milliseconds(del, key) > 0.0);
    }
    assert_eq!(add["time"].len(), "2026-01-31T03:12:45.678Z".len());
    assert_eq!(node.run(&format!("stat -c %a {FILE}")).trim(), "600");
}

#[test]
fn a_failed_call_is_logged_with_error_and_redacted_request() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let network = node
        .network(with_log())
        .with("logLevel", "error")
        .with("token", "s3cret");
    let mut network = network.with("args", json!({ "mine": { "password": "s3cret" } }));
    let pod = node.pod("c1");
    network.add(&pod);
    assert_eq!(
        lines(&node).len(),
        0,
        "successful calls are not logged at this level"
    );
    let args = "IgnoreUnknown=1;TOKEN=s3cret;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
    network.call("ADD", &pod).args(args).run().error();
    network.config["ipam"]["subnet"] = "10.77.0.5/24".into();
    network.call("ADD", &pod).run().error();
    network
        .call("ADD", &pod)
        .args("K8S_POD_NAME=web;TOKEN=s3cret=a")
        .run()
        .error();
    let lines = lines(&node);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_fields(
        &lines[0],
        &[
            ("level", "error"),
            ("result", "error"),
            ("code", "999"),
            ("pod", "shop/web"),
        ],
    );
    assert!(lines[0]["msg"].contains("already"), "{lines:?}");
    assert!(
        lines[0]["request"].contains("CNI_NETNS=/run/netns/c1 "),
        "{lines:?}"
    );
    assert_fields(&lines[1], &[("code", "7")]);
    assert!(
        lines[1]["conf"].contains(r#""subnet":"10.77.0.5/24""#),
        "{lines:?}"
    );
    let text = node.read(FILE);
    assert!(!text.contains("s3cret"), "{text}");
    assert!(
        text.contains("TOKEN=…") && text.contains(r#"\"token\":\"…\""#),
        "{text}"
    );
}

#[test]
fn gangplank_log_overrides_the_configuration_and_logs_each_step() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let network = node
        .network(with_log())
        .with("logFile", "/run/other.log")
        .with("ipMasq", true);
    let pod = node.pod("c1");
    let setting = format!("debug:{FILE}");
    network
        .call("ADD", &pod)
        .env("GANGPLANK_LOG", &setting)
        .run()
        .ok();
    let all = lines(&node);
    let steps: Vec<&str> = all
        .iter()
        .filter_map(|line| line.get("step"))
        .map(String::as_str)
        .collect();
    for step in [
        "RTM_NEWLINK",
        "RTM_NEWADDR",
        "iptables-restore: exit status: 0",
    ] {
        assert!(
            steps.iter().any(|it| it.ends_with(step)),
            "{step}: {steps:?}"
        );
    }
    assert_fields(all.last().unwrap(), &[("verb", "ADD"), ("level", "info")]);
    network
        .call_for("STATUS", "")
        .env("CNI_COMMAND", "STATUS")
        .env("GANGPLANK_LOG", &setting)
        .run()
        .error();
    // Also without a configuration.
    let version = node
        .cni("bridge")
        .verb("VERSION")
        .env("GANGPLANK_LOG", &setting);
    version.run().ok();
    assert_fields(
        lines(&node).last().unwrap(),
        &[("verb", "VERSION"), ("level", "debug")],
    );
    assert!(!node.inside(|| std::path::Path::new("/run/other.log").exists()));
    network.call("DEL", &pod).run().ok();
    assert!(node.read("/run/other.log").contains("verb=DEL"));
}

#[test]
fn host_local_and_loopback_log_direct_calls() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("c1");
    for (plugin, ips) in [
        ("host-local", "10.77.0.2/24"),
        ("loopback", "127.0.0.1/8,::1/128"),
    ] {
        let network = node.network(with_log()).with("type", plugin);
        network.add(&pod);
        network.call("DEL", &pod).run().ok();
        let lines = lines(&node);
        let [.., add, del] = &lines[..] else {
            panic!("{lines:?}")
        };
        assert_fields(
            add,
            &[
                ("plugin", plugin),
                ("verb", "ADD"),
                ("result", "ok"),
                ("ips", ips),
            ],
        );
        assert_fields(
            del,
            &[("plugin", plugin), ("verb", "DEL"), ("result", "ok")],
        );
    }
}

#[test]
fn an_unwritable_log_is_a_warning_and_no_error() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    node.run_all("mkdir /run/small /run/dir\nmount -t tmpfs -o size=4k none /run/small");
    // A full disk.
    let filled = node.inside(|| std::fs::write("/run/small/log", [b'x'; 4096]));
    assert!(filled.is_ok());
    node.run_all("touch /run/target\nln -s /run/target /run/link");
    let pod = node.pod("c1");
    for (file, warning) in [
        ("/run/small/log", ""),
        ("/run/none/log", "cannot log to /run/none/log: "),
        ("/run/dir", "cannot log to /run/dir: "),
        ("/run/link", "cannot log to /run/link: "),
        ("/dev/null", "not a regular file"),
    ] {
        let network = node.network(with_log()).with("logFile", file);
        for verb in ["ADD", "DEL"] {
            let answer = network.call(verb, &pod).run();
            answer.ok();
            assert!(answer.stderr.contains(warning), "{file}: {answer:?}");
            assert_eq!(answer.stderr.is_empty(), warning.is_empty(), "{answer:?}");
        }
    }
    assert_eq!(node.read("/run/target"), "", "a link is not followed");
    let answer = node
        .network(small_network())
        .call("ADD", &pod)
        .env("GANGPLANK_LOG", "a.log")
        .run();
    answer.ok();
    assert!(
        answer.stderr.contains("GANGPLANK_LOG is \"a.log\""),
        "{answer:?}"
    );
}

#[test]
fn del_works_with_invalid_log_keys() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let network = node.network(with_log());
    let pod = node.pod("c1");
    network.add(&pod);
    let wrong = network.with("logFile", "relative.log");
    assert_eq!(wrong.call("ADD", &node.pod("c2")).run().error().code, 7);
    wrong.del(&pod);
    assert_eq!(node.leases("small").len(), 0);
}

#[test]
fn concurrent_processes_rotate_the_log_once_without_losing_lines() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    node.run(&format!("truncate -s 10M {FILE}"));
    let network: Network = node.network(with_log());
    let pods: Vec<Pod> = (0..20).map(|n| node.pod(&format!("c{n}"))).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            let network = &network;
            scope.spawn(move || {
                network.add(pod);
                network.del(pod);
            });
        }
    });
    let rotated = node.inside(|| std::fs::read(format!("{FILE}.1")).unwrap());
    let late = String::from_utf8(rotated[10 << 20..].to_vec()).unwrap();
    let all = late + &node.read(FILE);
    assert_eq!(all.lines().count(), 40);
    for (line, pod) in pods.iter().flat_map(|pod| [("ADD", pod), ("DEL", pod)]) {
        let is_logged = |text: &&str| text.contains(&format!("verb={line} pod={} ", pod.id()));
        assert_eq!(
            all.lines().filter(is_logged).count(),
            1,
            "{line} {}",
            pod.id()
        );
    }
    assert!(all.lines().all(|line| !fields(line).is_empty()));
}
