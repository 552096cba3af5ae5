//! `gangplank status --metrics`.

use std::collections::BTreeMap;

use crate::fixture::Fixture;
use crate::support::{PLUGINS, requires, small_network};

const FILE: &str = "/run/gangplank/metrics";

/// The samples of a text in Prometheus' format, by name and labels.
type Samples = BTreeMap<String, f64>;

fn is_name(text: &str) -> bool {
    let is_start = |c: char| c.is_ascii_lowercase() || c == '_';
    text.starts_with(is_start) && text.chars().all(|c| is_start(c) || c.is_ascii_digit())
}

/// The labels of a sample.
fn labels(text: &str) -> BTreeMap<&str, &str> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect(text);
        let (value, more) = value.split_once('"').expect(text);
        assert!(is_name(name) && !value.contains(['\\', '\n']), "{text}");
        assert_eq!(labels.insert(name, value), None, "{text}");
        assert!(more.is_empty() || more.starts_with(','), "{text}");
        rest = more.trim_start_matches(',');
    }
    labels
}

/// Parses a text and checks the rules of the format and of histograms
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>, <https://prometheus.io/docs/practices/naming/>).
#[track_caller]
fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n') && !text.contains("\n\n"), "{text}");
    let mut samples = Samples::new();
    let (mut seen, mut family, mut kind) = (Vec::new(), "", "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("a text").0;
            assert!(
                is_name(family) && family.starts_with("gangplank_"),
                "{line}"
            );
            assert!(!seen.contains(&family), "{family} twice");
            seen.push(family);
            let next = lines.next().and_then(|it| it.strip_prefix("# TYPE "));
            let (of, is) = next.expect(line).split_once(' ').expect(line);
            assert_eq!(of, family);
            assert!(["counter", "gauge", "histogram"].contains(&is), "{is}");
            assert_eq!(is == "counter", family.ends_with("_total"), "{family}");
            kind = is;
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect(line);
        let (name, rest) = sample.split_once('{').expect(line);
        let suffix = name.strip_prefix(family).expect(line);
        let suffixes: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(suffixes.contains(&suffix), "{line}");
        let known = labels(rest.strip_suffix('}').expect(line));
        assert_eq!(known.contains_key("le"), suffix == "_bucket", "{line}");
        let value: f64 = value.parse().expect(line);
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert_eq!(samples.insert(sample.to_owned(), value), None, "{line}");
    }
    check_histograms(text, &samples);
    samples
}

/// Buckets are cumulative and in ascending order, and the last one has all observations.
fn check_histograms(text: &str, samples: &Samples) {
    let (mut bound, mut below) = (0.0, 0.0);
    for line in text.lines().filter(|line| line.contains("_bucket{")) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (series, le) = sample.split_once(",le=\"").expect("le is last");
        let value: f64 = value.parse().unwrap();
        // Rust parses "+Inf".
        let le: f64 = le.trim_end_matches("\"}").parse().unwrap();
        assert!(le > bound && value >= below, "{line}\n{text}");
        (bound, below) = (le, value);
        if le.is_infinite() {
            let count = format!("{}}}", series.replace("_bucket", "_count"));
            assert_eq!(samples.get(&count), Some(&value), "{count}");
            assert!(samples.contains_key(&count.replace("_count", "_sum")));
            (bound, below) = (0.0, 0.0);
        }
    }
    assert_eq!(bound, 0.0, "a histogram without +Inf:\n{text}");
}

#[track_caller]
fn metrics(fixture: &Fixture) -> Samples {
    let answer = fixture.status("--metrics");
    assert_eq!(answer.stderr, "");
    parse(answer.success())
}

fn calls(plugin: &str, command: &str, code: u32) -> String {
    format!(
        "gangplank_cni_calls_total{{plugin=\"{plugin}\",command=\"{command}\",code=\"{code}\"}}"
    )
}

#[test]
fn metrics_count_calls_addresses_and_attachments() {
    requires!("iptables", "ip6tables");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let first = fixture.pod("a");
    fixture.run_pod(&network, &first);
    assert!(!fixture.inside(|| std::path::Path::new(FILE).exists()));
    let before = metrics(&fixture);
    assert!(!before.keys().any(|key| key.starts_with("gangplank_cni")));
    let pod = fixture.pod("b");
    fixture.run_pod(&network, &pod);
    network.call("ADD", &pod).run().error();
    network.del(&pod);
    fixture.delete_cache("small", "b");
    network.call("DEL", &pod).run().ok();
    for plugin in PLUGINS {
        fixture.cni(plugin).verb("VERSION").run().ok();
    }
    fixture.cni("bridge").verb("SET").run().error();
    let after = metrics(&fixture);
    for (sample, value) in [
        (calls("bridge", "ADD", 0), 1.0),
        (calls("bridge", "ADD", 999), 1.0),
        (calls("bridge", "DEL", 0), 2.0),
        (calls("bridge", "other", 4), 1.0),
        ("gangplank_attachments{network=\"small\"}".to_owned(), 1.0),
        (
            "gangplank_unhealthy_attachments{network=\"small\"}".to_owned(),
            0.0,
        ),
        ("gangplank_port_mappings{network=\"small\"}".to_owned(), 0.0),
        (
            "gangplank_leases{network=\"small\",range=\"10.77.0.1-10.77.0.254\"}".to_owned(),
            1.0,
        ),
        (
            "gangplank_free_addresses{network=\"small\",range=\"10.77.0.1-10.77.0.254\"}"
                .to_owned(),
            252.0,
        ),
    ] {
        assert_eq!(after.get(&sample), Some(&value), "{sample} in {after:#?}");
    }
    for plugin in PLUGINS {
        assert_eq!(after.get(&calls(plugin, "VERSION", 0)), Some(&1.0));
    }
    assert!(
        after
            .keys()
            .any(|key| key.starts_with("gangplank_build_info{version=\""))
    );
    assert_eq!(fixture.run(&format!("stat -c %a {FILE}")).trim(), "600");
    if std::path::Path::new("/usr/bin/promtool").exists() {
        let text = fixture.status("--metrics");
        fixture.write("/run/metrics.prom", text.success());
        fixture.run("sh -c 'promtool check metrics < /run/metrics.prom'");
    }
}

#[test]
fn concurrent_calls_are_all_counted_and_a_damaged_file_starts_again() {
    requires!();
    let fixture = Fixture::new();
    metrics(&fixture);
    let version = || drop(fixture.cni("loopback").verb("VERSION").run().ok());
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| (0..5).for_each(|_| version()));
        }
    });
    let counted = |number| {
        let name = calls("loopback", "VERSION", 0);
        assert_eq!(metrics(&fixture).get(&name), Some(&number));
    };
    counted(200.0);
    // Not a multiple of the length of a record, and without a valid one.
    fixture.write(FILE, &"torn ".repeat(100));
    version();
    counted(1.0);
}

#[test]
fn a_call_that_cannot_be_counted_succeeds() {
    requires!();
    let fixture = Fixture::new();
    let network = fixture.network(small_network());
    let pod = fixture.pod("a");
    let add_and_del = |how: &str| {
        let started = std::time::Instant::now();
        for verb in ["ADD", "DEL"] {
            let answer = network.call(verb, &pod).run();
            answer.ok();
            assert_eq!(answer.stderr, "", "{how}");
        }
        started.elapsed()
    };
    let small = "mount -t tmpfs -o size=8k none /run/gangplank";
    fixture.run_all(&format!("mkdir /run/gangplank\n{small}"));
    metrics(&fixture);
    let filled = fixture.inside(|| std::fs::write("/run/gangplank/full", [0; 8192]));
    filled.unwrap_or_default();
    add_and_del("a full disk");
    fixture.run("mount -o remount,ro /run/gangplank");
    add_and_del("a read-only file system");
    let answer = fixture.status("--metrics");
    assert!(answer.stderr.contains(FILE), "{answer:?}");
    parse(&answer.stdout);
    fixture.run("umount /run/gangplank");
    for (how, make) in [
        ("a directory", format!("mkdir {FILE}")),
        ("a FIFO", format!("mkfifo {FILE}")),
        ("a link", format!("ln -s /etc/passwd {FILE}")),
    ] {
        fixture.run(&make);
        add_and_del(how);
        fixture.run(&format!("rm -r {FILE}"));
    }
    metrics(&fixture);
    let holder = fixture.inside(|| std::fs::File::open(FILE).unwrap());
    holder.lock().unwrap();
    let waited = add_and_del("a lock that is never released");
    assert!(waited.as_secs() < 10, "{waited:?}");
}
