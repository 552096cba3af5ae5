//! `logFile`, `logLevel` and GANGPLANK_LOG: one line per call.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Network, Node, PLUGINS, Pod, requires, skip_for_go, small_network};

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
        for part in line.keys().filter(|key| key.ends_with("_ms")) {
            let (part, total) = (milliseconds(line, part), milliseconds(line, "total_ms"));
            assert!(part <= total, "{line:?}");
        }
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

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The lines of a log in JSON.
fn objects(node: &Node) -> Vec<Value> {
    let text = node.read(FILE);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The spans of a log, whose times lie within those of their parents. The first is that of the call.
#[track_caller]
fn spans(node: &Node) -> Vec<Value> {
    let mut spans = objects(node);
    spans.retain(|line| line.get("name").is_some());
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    let call = &spans[0];
    for span in &spans {
        assert_eq!(span["trace_id"], call["trace_id"], "{span}");
        let (start, end) = ("start_time_unix_nano", "end_time_unix_nano");
        let of_id = |parent: &&Value| parent["span_id"] == span["parent_span_id"];
        let same_id = spans.iter().filter(|it| it["span_id"] == span["span_id"]);
        assert_eq!(same_id.count(), 1, "{span}");
        let Some(parent) = spans.iter().find(of_id) else {
            assert_eq!(span, call, "only the call has a parent outside");
            continue;
        };
        assert!(time(parent, start) <= time(span, start), "{span} {parent}");
        assert!(time(span, start) <= time(span, end), "{span}");
        assert!(time(span, end) <= time(parent, end), "{span} {parent}");
    }
    spans
}

fn named<'s>(spans: &'s [Value], name: &str) -> &'s Value {
    let found = spans.iter().find(|span| span["name"] == name);
    found.unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
}

#[test]
fn spans_of_a_call_continue_the_trace_of_the_runtime() {
    requires!("iptables", "ip6tables");
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let network = node
        .network(with_log())
        .with("logFormat", "json")
        .with("ipMasq", true)
        .with("ipMasqBackend", "iptables");
    let pod = node.pod("c1");
    let traceparent = format!("00-{TRACE_ID}-{PARENT}-01");
    let call = |verb| {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
        let call = network.call(verb, &pod).args(args);
        call.env("TRACEPARENT", &traceparent).run().ok();
        let (spans, lines) = (spans(&node), objects(&node));
        node.run(&format!("rm {FILE}"));
        assert_eq!(lines[0]["verb"], verb);
        assert_eq!(lines[0]["trace_id"], TRACE_ID);
        assert_eq!(lines[0]["span_id"], spans[0]["span_id"]);
        assert!(lines[0]["total_ms"].is_number(), "{}", lines[0]);
        assert_eq!(spans[0]["name"], format!("cni.{verb}"));
        assert_eq!(spans[0]["parent_span_id"], PARENT);
        assert_eq!(spans[0]["status_code"], "UNSET");
        let attributes = json!({
            "cni.plugin": "bridge", "cni.command": verb, "cni.network": "small", "cni.interface": "eth0",
            "container.id": "c1", "k8s.namespace.name": "shop", "k8s.pod.name": "web",
        });
        assert_eq!(spans[0]["attributes"], attributes);
        spans
    };
    let add = call("ADD");
    for phase in ["parse", "ipam", "link", "masquerade", "result"] {
        assert_eq!(named(&add, phase)["parent_span_id"], add[0]["span_id"]);
    }
    let start = |name| {
        let start = named(&add, name)["start_time_unix_nano"].as_str();
        start.unwrap().parse::<u128>().unwrap()
    };
    let end = named(&add, "link")["end_time_unix_nano"].as_str();
    let link_end: u128 = end.unwrap().parse().unwrap();
    assert!(start("ipam") < start("link") && start("masquerade") < link_end);
    let del = call("DEL");
    for phase in ["parse", "ipam", "link", "masquerade"] {
        named(&del, phase);
    }
}

#[test]
fn an_executed_ipam_plugin_continues_the_trace_in_the_span_of_its_phase() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let spy = "env | sed -n s/^TRACEPARENT=//p > /run/traceparent\necho '{\"code\": 104, \"msg\": \"no\"}'; exit 1";
    node.write_executable(
        &format!("{}/spy", Node::BIN),
        &format!("#!/bin/sh\n{spy}\n"),
    );
    let network = node
        .network(small_network())
        .with("ipam", json!({ "type": "spy" }));
    let pod = node.pod("c1");
    let traceparent = format!("00-{TRACE_ID}-{PARENT}-00");
    let call = || network.call("ADD", &pod).env("TRACEPARENT", &traceparent);
    call().run().error();
    let unchanged = node.read("/run/traceparent");
    assert_eq!(unchanged.trim(), traceparent, "without spans");
    let logged = call().env("GANGPLANK_LOG", &format!("error,json:{FILE}"));
    logged.run().error();
    let spans = spans(&node);
    let ipam = named(&spans, "ipam");
    let id = ipam["span_id"].as_str().unwrap();
    let expected = format!("00-{TRACE_ID}-{id}-00");
    assert_eq!(node.read("/run/traceparent").trim(), expected);
    assert_eq!(ipam["status_code"], "ERROR");
    assert_eq!(spans[0]["status_message"], "no");
    assert_eq!(spans[0]["attributes"]["error.type"], "104");
}

#[test]
fn an_invalid_traceparent_is_ignored_and_logged_once() {
    requires!();
    if skip_for_go(WHY) {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("c1");
    let config = with_log();
    for plugin in PLUGINS {
        let network = node
            .network(config.clone())
            .with("logFormat", "json")
            .with("type", plugin);
        let call = network.call("DEL", &pod);
        // Another version of CNI would be needed for some plugins; a failed call has spans as well.
        let answer = call.env("TRACEPARENT", "00-XYZ-1-01").run();
        assert!(!answer.stderr.contains("TRACEPARENT"), "{answer:?}");
        let warnings = objects(&node);
        let warnings = warnings.iter().filter_map(|line| line["warning"].as_str());
        let of_trace = warnings.filter(|it| it.contains("00-XYZ-1-01"));
        assert_eq!(of_trace.count(), 1, "{plugin}");
        let spans = spans(&node);
        assert_eq!(spans[0]["name"], "cni.DEL");
        assert_eq!(spans[0]["attributes"]["cni.plugin"], plugin);
        assert!(spans[0].get("parent_span_id").is_none());
        assert_ne!(spans[0]["trace_id"], "0".repeat(32));
        named(&spans, "parse");
        node.run(&format!("rm {FILE}"));
    }
}
