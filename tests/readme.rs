//! The README: its configuration, commands and links, the reference of keys, and the demo.

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

/// The user nobody.
const NOBODY: u32 = 65534;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The configuration reference.
fn configuration_page() -> String {
    fs::read_to_string(root().join(".github/docs/configuration.md")).unwrap()
}

/// The code blocks of the README in a language.
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
fn the_configuration_in_the_readme_is_that_of_the_demo() {
    let blocks = blocks("json");
    assert_eq!(blocks, [example("10-gangplank.conflist")]);
    let list: Value = serde_json::from_str(&blocks[0]).unwrap();
    assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
}

#[test]
fn the_commands_in_the_readme_exist() {
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
    assert_eq!(lines, known, "an untested command");
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

/// GitHub's anchor of a heading.
fn anchor_of(heading: &str) -> String {
    let words = heading.trim_start_matches('#').split_whitespace();
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

fn has_heading(page: &str, anchor: &str) -> bool {
    page.lines()
        .any(|line| line.starts_with('#') && anchor_of(line) == anchor)
}

#[test]
fn the_links_in_the_readme_are_valid() {
    let readme = readme();
    let targets = readme.split("](").skip(1);
    let targets = targets.map(|rest| rest.split(')').next().unwrap());
    let (external, internal): (Vec<_>, Vec<_>) =
        targets.partition(|target| target.starts_with("https://"));
    for target in external {
        let project = target
            .strip_prefix("https://github.com/")
            .unwrap_or_default();
        let is_known =
            project.starts_with("containernetworking/") || project == "flannel-io/cni-plugin";
        assert!(is_known, "{target}");
    }
    assert!(internal.len() > 2);
    for target in internal {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let exists = match (file, anchor) {
            (file, "") => root().join(file).exists(),
            ("", anchor) => has_heading(&readme, anchor),
            (file, anchor) => {
                let page = fs::read_to_string(root().join(file)).unwrap_or_default();
                has_heading(&page, anchor)
            }
        };
        assert!(exists, "{target} does not exist");
    }
}

/// Collects the keys of a value, recursively.
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
fn all_documented_keys_have_examples_and_all_example_keys_are_documented() {
    let page = configuration_page();
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
    let without_example: Vec<&String> = named.difference(&shown).collect();
    assert!(
        without_example.is_empty(),
        "without an example: {without_example:?}"
    );
    // Keys within the value of another key are described there.
    let is_described = |key: &String| named.contains(key) || page.contains(&format!("`{key}`"));
    let undescribed: Vec<&String> = shown.iter().filter(|key| !is_described(key)).collect();
    assert_eq!(undescribed, ["runtimeConfig"], "not described");
}

#[test]
fn all_example_configurations_work() {
    requires!("iptables", "ip6tables");
    let blocks = blocks_of(&configuration_page(), "json");
    assert!(blocks.len() >= 10, "{}", blocks.len());
    for block in blocks {
        let node = Node::new("node");
        let list: Value = serde_json::from_str(&block).unwrap();
        if list["plugins"].is_array() {
            assert_list_works(&node, &list);
            continue;
        }
        if block.contains("\"flannel\"") {
            node.run("mkdir -p /run/flannel");
            let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
            node.write("/run/flannel/subnet.env", env);
        }
        let network = node.network_from(&block);
        let pod = node.pod("pod");
        let added = network.call("ADD", &pod).run();
        if block.contains("\"vlan\"") && added.code == Some(1) && added.error().code == 2 {
            note("skipped a configuration: this kernel has no VLAN filtering");
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

fn assert_list_works(node: &Node, list: &Value) {
    let families = ["iptables", "ip6tables"];
    let text = list.to_string();
    if text.contains("externalSetMarkChain") {
        for program in families {
            node.run(&format!("{program} -t nat -N KUBE-MARK-MASQ"));
        }
    }
    let before = families.map(|program| node.nat(program));
    let pod = node.pod("pod");
    let chain = node.chain(list);
    let result = chain.add(&pod);
    let checked = chain.check(&pod, &result);
    assert_eq!(checked.code, Some(0), "{text}: {checked:?}");
    chain.del(&pod, &result);
    assert_eq!(families.map(|program| node.nat(program)), before, "{text}");
    assert!(!node.run("nft list tables").contains("gangplank"), "{text}");
}

/// The demo, built from the current sources.
fn demo() -> &'static Path {
    static DEMO: OnceLock<PathBuf> = OnceLock::new();
    DEMO.get_or_init(|| {
        // `cargo test --test readme` builds no examples; after a plain `cargo test` the demo is up to date.
        let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
        let mut build = Command::new(cargo);
        build.current_dir(root());
        build.args(["build", "--locked", "--quiet", "--example", "demo"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
        let directory = Path::new(env!("CARGO_BIN_EXE_gangplank")).with_file_name("examples");
        directory.join("demo")
    })
}

/// The output of the demo; `None` if the machine does not permit namespaces.
fn demo_output(output: Output) -> Option<String> {
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stderr.contains("this machine does not let this user") {
        assert!(std::env::var_os("CI").is_none(), "{stderr}");
        note(&stderr);
        return None;
    }
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("All checks passed"), "{stdout}");
    assert!(stdout.contains("web → db"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "colors without a terminal");
    Some(stdout)
}

fn assert_masquerades(text: &str) {
    let outside_line =
        |line: &str| line.contains("→ world") && line.contains("seen as 203.0.113.5");
    assert!(text.lines().any(outside_line), "{text}");
    assert!(text.contains("rules of the nat table: none"), "{text}");
}

#[test]
fn the_demo_succeeds() {
    requires!("iptables");
    let output = Command::new(demo())
        .env("GANGPLANK_BIN", binary())
        .output()
        .unwrap();
    if let Some(text) = demo_output(output) {
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
    let dir = std::env::temp_dir().join(format!("gangplank-readme-{}", id()));
    fs::create_dir(&dir).unwrap();
    for (from, name) in files {
        fs::copy(from, dir.join(name)).unwrap();
    }
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&dir, executable).unwrap();
    let output = as_nobody(&dir.join("demo"), &dir.join("gangplank"));
    fs::remove_dir_all(&dir).unwrap();
    if let Some(text) = demo_output(output) {
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
        // The user namespace of `tests/run` has no other user; a nested one has.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => {
            let line = format!("unshare --user --map-user={NOBODY} --map-group={NOBODY}");
            let mut nested = command(&line);
            nested.arg(demo).env("GANGPLANK_BIN", binary);
            nested.output().unwrap()
        }
        output => output.unwrap(),
    }
}

#[test]
fn the_demo_uses_nftables_without_iptables() {
    requires!("iptables");
    let node = Node::new("node");
    node.bind("/dev/null", "/usr/sbin/iptables-restore");
    let mut demo = Command::new(demo());
    demo.env("GANGPLANK_BIN", binary());
    let output = node.inside(|| demo.output().unwrap());
    if let Some(text) = demo_output(output) {
        assert!(!text.contains("does not support ipMasq"), "{text}");
        assert!(text.contains("web → world"), "{text}");
    }
}

#[test]
fn the_demo_fails_if_the_binary_does_nothing() {
    requires!();
    let output = Command::new(demo())
        .env("GANGPLANK_BIN", "/bin/true")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("demo: ADD of web: "), "{stderr}");
}
