//! What a newcomer reads and types first: the README, its configuration, its commands, the demo.

use gangplank_test_support as support;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, id};
use std::sync::OnceLock;

use serde_json::Value;
use support::{Node, binary, command, example, note, requires};

/// A user without any rights.
const NOBODY: u32 = 65534;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The page with all keys.
fn reference_page() -> String {
    fs::read_to_string(root().join(".github/docs/configuration.md")).unwrap()
}

/// The blocks of the README in a language.
fn blocks(language: &str) -> Vec<String> {
    blocks_of(&readme(), language)
}

fn blocks_of(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = page.split(&fence).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_readmes_configuration_is_the_one_that_the_demo_uses() {
    let blocks = blocks("json");
    assert_eq!(blocks, [example("10-gangplank.conflist")]);
    let list: Value = serde_json::from_str(&blocks[0]).unwrap();
    assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
}

#[test]
fn the_readmes_commands_are_there() {
    let lines: Vec<String> = blocks("sh")
        .iter()
        .flat_map(|block| block.lines())
        .map(str::to_owned)
        .collect();
    let known = [
        "cargo build --release",
        "sudo target/*/release/gangplank install",
        "cargo run --release --example demo",
        "gangplank status",
        "gangplank doctor",
        "tests/bench/run",
        "tests/run",
        "tests/e2e/run",
    ];
    assert_eq!(lines, known, "a command that no test knows");
    for script in ["tests/run", "tests/bench/run", "tests/e2e/run"] {
        let mode = fs::metadata(root().join(script)).unwrap().permissions();
        assert!(mode.mode() & 0o100 != 0, "{script} is not executable");
    }
    let help = |command: &[&str]| {
        let output = Command::new(binary()).args(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for command in [
        "install",
        "uninstall",
        "status",
        "doctor",
        "reconcile",
        "routes",
        "conf",
    ] {
        assert!(
            help(&["--help"]).contains(&format!("\n  {command} ")),
            "{command}"
        );
    }
    assert!(help(&["install", "--help"]).contains("[default: /opt/cni/bin]"));
}

/// The name by which GitHub links to a heading.
fn anchor_of(heading: &str) -> String {
    let words = heading.trim_start_matches('#').split_whitespace();
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

fn has_heading(page: &str, anchor: &str) -> bool {
    page.lines()
        .any(|line| line.starts_with('#') && anchor_of(line) == anchor)
}

#[test]
fn the_readmes_links_lead_somewhere() {
    let readme = readme();
    let targets = readme.split("](").skip(1);
    let targets = targets.map(|rest| rest.split(')').next().unwrap());
    let (outside, inside): (Vec<_>, Vec<_>) =
        targets.partition(|target| target.starts_with("https://"));
    for target in outside {
        let host = "https://github.com/containernetworking/";
        assert!(target.starts_with(host), "{target}");
    }
    assert!(inside.len() > 2);
    for target in inside {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let there = match (file, anchor) {
            (file, "") => root().join(file).exists(),
            ("", anchor) => has_heading(&readme, anchor),
            (file, anchor) => {
                let page = fs::read_to_string(root().join(file)).unwrap_or_default();
                has_heading(&page, anchor)
            }
        };
        assert!(there, "{target} is not there");
    }
}

/// The keys of an object and of what is in it.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[test]
fn every_key_in_the_reference_of_the_configuration_has_an_example_and_the_other_way_round() {
    let page = reference_page();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let named = rows.filter_map(|row| {
        row.split('`')
            .nth(1)
            .filter(|_| row.split('|').nth(1).unwrap().contains('`'))
    });
    let named: BTreeSet<String> = named
        .map(|key| key.rsplit('.').next().unwrap().to_owned())
        .collect();
    assert!(named.len() >= 38, "{named:?}");
    let mut shown = BTreeSet::new();
    for block in blocks_of(&page, "json") {
        keys(&serde_json::from_str(&block).unwrap(), &mut shown);
    }
    let bare: Vec<&String> = named.difference(&shown).collect();
    assert!(bare.is_empty(), "without an example: {bare:?}");
    // Those that are parts of another key's value are told beside it.
    let told = |key: &String| named.contains(key) || page.contains(&format!("`{key}`"));
    let untold: Vec<&String> = shown.iter().filter(|key| !told(key)).collect();
    assert_eq!(untold, ["runtimeConfig"], "in no table");
}

#[test]
fn every_configuration_of_the_reference_does_what_it_says() {
    requires!("iptables", "ip6tables");
    let blocks = blocks_of(&reference_page(), "json");
    assert!(blocks.len() >= 10, "{}", blocks.len());
    for block in blocks {
        let node = Node::new("node");
        let network = node.network_from(&block);
        let pod = node.pod("pod");
        let added = network.call("ADD", &pod).run();
        if block.contains("\"vlan\"") && added.code == Some(1) && added.error().code == 2 {
            note("this kernel has no VLANs, so the configuration with them is not run");
            continue;
        }
        assert_eq!(added.code, Some(0), "{block}: {added:?}");
        let result = added.ok();
        let checked = network.check(&pod, &result);
        assert_eq!(checked.code, Some(0), "{block}: {checked:?}");
        network.del(&pod);
        assert_eq!(pod.run("ip -o link").lines().count(), 1, "{block}");
        assert_eq!(
            [node.nat("iptables"), node.nat("ip6tables")].concat(),
            [""; 0],
            "{block}"
        );
    }
}

/// The demo, built from what the sources are now.
fn demo() -> &'static Path {
    static DEMO: OnceLock<PathBuf> = OnceLock::new();
    DEMO.get_or_init(|| {
        // `cargo test --test newcomer` builds no examples; after a plain `cargo test` this has nothing to do.
        let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
        let mut build = Command::new(cargo);
        build.current_dir(root());
        build.args(["build", "--locked", "--quiet", "--example", "demo"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
        let beside = Path::new(env!("CARGO_BIN_EXE_gangplank")).with_file_name("examples");
        beside.join("demo")
    })
}

/// What the demo said; `None`, with words, where the machine permits no namespaces.
fn said(output: Output) -> Option<String> {
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stderr.contains("this machine does not let this user") {
        assert!(std::env::var_os("CI").is_none(), "{stderr}");
        note(&stderr);
        return None;
    }
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("Everything is as promised"), "{stdout}");
    assert!(stdout.contains("web → db"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "colours without a terminal");
    Some(stdout)
}

fn assert_masquerades(text: &str) {
    let world = |line: &str| line.contains("→ world") && line.contains("seen as 203.0.113.5");
    assert!(text.lines().any(world), "{text}");
    assert!(text.contains("rules of the nat table: none"), "{text}");
}

#[test]
fn the_demo_keeps_its_promises() {
    requires!("iptables");
    let output = Command::new(demo())
        .env("GANGPLANK_BIN", binary())
        .output()
        .unwrap();
    if let Some(text) = said(output) {
        assert_masquerades(&text);
        for needle in ["┌─ world", "┌─ node", "0a:58:0a:f4:00:02", "10.244.0.3/24"] {
            assert!(text.contains(needle), "{needle}: {text}");
        }
    }
}

#[test]
fn the_demo_needs_no_root() {
    requires!("iptables");
    let files = [(demo(), "demo"), (&*binary(), "gangplank")];
    let dir = std::env::temp_dir().join(format!("gangplank-newcomer-{}", id()));
    fs::create_dir(&dir).unwrap();
    for (from, name) in files {
        fs::copy(from, dir.join(name)).unwrap();
    }
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&dir, everybody).unwrap();
    let output = as_nobody(&dir.join("demo"), &dir.join("gangplank"));
    fs::remove_dir_all(&dir).unwrap();
    if let Some(text) = said(output) {
        assert!(text.contains("of an ordinary user"), "{text}");
        assert_masquerades(&text);
    }
}

fn as_nobody(demo: &Path, binary: &Path) -> Output {
    let mut direct = Command::new(demo);
    direct
        .env("GANGPLANK_BIN", binary)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/");
    match direct.output() {
        // In the user namespace of `tests/run` there is no other user; one below that has one.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => {
            let line = format!("unshare --user --map-user={NOBODY} --map-group={NOBODY}");
            let mut below = command(&line);
            below.arg(demo).env("GANGPLANK_BIN", binary);
            below.output().unwrap()
        }
        output => output.unwrap(),
    }
}

#[test]
fn without_iptables_the_demo_shows_all_of_it_by_nftables() {
    requires!("iptables");
    let node = Node::new("node");
    node.bind("/dev/null", "/usr/sbin/iptables-restore");
    let mut demo = Command::new(demo());
    demo.env("GANGPLANK_BIN", binary());
    let output = node.inside(|| demo.output().unwrap());
    if let Some(text) = said(output) {
        assert!(!text.contains("ipMasq cannot be had"), "{text}");
        assert!(text.contains("web → world"), "{text}");
    }
}

#[test]
fn the_demo_fails_when_the_binary_does_not_do_its_work() {
    requires!();
    let output = Command::new(demo())
        .env("GANGPLANK_BIN", "/bin/true")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("demo: ADD of web: "), "{stderr}");
}
