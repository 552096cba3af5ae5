//! Tests of the claims in .github/SECURITY.md.

use gangplank_test_support as support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use support::{Answer, Network, Node, plugin_file, requires, skip_for_go};

/// A temporary directory of a test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("gangplank-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// All entries with their modes.
    fn modes(&self) -> BTreeMap<String, u32> {
        let mut modes = BTreeMap::new();
        let mut left = vec![self.0.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let found = path.symlink_metadata().unwrap();
                let name = path.strip_prefix(&self.0).unwrap().display().to_string();
                modes.insert(name, found.permissions().mode() & 0o7777);
                if found.is_dir() {
                    left.push(path);
                }
            }
        }
        modes
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs host-local from a shell after `setting`: `umask 0`, `ulimit -v 65536`.
fn host_local(setting: &str, env: &[(&str, &str)], stdin: impl FnOnce(&mut dyn Write)) -> Answer {
    static NAMED: OnceLock<PathBuf> = OnceLock::new();
    // A shell cannot set argv[0].
    let host_local = NAMED.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host-local");
        let _ = fs::remove_file(&path);
        symlink(plugin_file("host-local"), &path).unwrap();
        path
    });
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("{setting}; exec \"$0\"")])
        .arg(host_local)
        .env_clear()
        .env("CNI_PATH", "/nonexistent")
        .env("CNI_NETNS", "/nonexistent/netns")
        .envs(env.iter().copied())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    stdin(&mut child.stdin.take().unwrap());
    Answer::of(child.wait_with_output().unwrap())
}

const ADD: [(&str, &str); 3] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
];

fn config(name: &str, data_dir: &Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": name, "type": "any",
            "ipam": { "type": "host-local", "subnet": "10.1.2.0/24", "dataDir": data_dir } })
}

fn add(config: &Value) -> Answer {
    host_local(":", &ADD, |pipe| {
        let _ = pipe.write_all(config.to_string().as_bytes());
    })
}

#[test]
fn a_gigabyte_of_input_is_rejected_with_little_memory() {
    if skip_for_go("it has no limit") {
        return;
    }
    const GIGABYTE: usize = 1 << 30;
    // The address space limit bounds resident memory.
    let limit = "ulimit -v 65536";
    for (start, again) in [
        ("", "\0"),
        ("", " "),
        ("", "["),
        ("", "{\"\":"),
        ("\"", "x"),
        ("[0", ",0"),
        ("[0", ",[]"),
        ("[0", ",{}"),
        ("[0", ",{\"\":0}"),
        ("[0", ",\"\u{fffd}\""),
        ("{\"a\":0", ",\"a\":[0]"),
        ("", "\u{1}"),
    ] {
        let answer = host_local(limit, &ADD, |pipe| {
            let piece = again.repeat((1 << 20) / again.len());
            let mut sent = io::copy(&mut start.as_bytes(), pipe).unwrap_or_default() as usize;
            while sent < GIGABYTE && pipe.write_all(piece.as_bytes()).is_ok() {
                sent += piece.len();
            }
            assert!(sent < GIGABYTE, "all of {start}{again}… was read");
        });
        assert_eq!(answer.error().code, 6, "{start}{again}…: {answer:?}");
        assert!(answer.stdout.len() < 2000, "{answer:?}");
    }
    // Inputs within the limits are accepted.
    let objects = vec!["{\"\":0}"; 62_000].join(",");
    let text = format!(
        "{{\"name\":5,\"x\":[{objects}],\"y\":\"{}\"}}",
        "y".repeat(3 << 20)
    );
    let answer = host_local(limit, &ADD, |pipe| pipe.write_all(text.as_bytes()).unwrap());
    assert!(answer.error().msg.contains("name is 5"), "{answer:?}");
}

#[test]
fn file_modes_do_not_depend_on_the_umask() {
    if skip_for_go("its directories and locks depend on the umask") {
        return;
    }
    let scratch = Scratch::new("modes");
    let text = config("net", &scratch.path("data/dir")).to_string();
    let answer = host_local("umask 0", &ADD, |pipe| {
        pipe.write_all(text.as_bytes()).unwrap()
    });
    answer.ok();
    for (name, mode) in scratch.modes() {
        let expected = match name.rsplit('/').next().unwrap() {
            "data" | "dir" | "net" => 0o755,
            "lock" => 0o750,
            _ => 0o600,
        };
        assert_eq!(mode, expected, "{name} has the mode {mode:o}");
    }
    assert!(scratch.modes().contains_key("data/dir/net/10.1.2.2"));
}

#[test]
fn names_cannot_escape_the_data_directory() {
    let scratch = Scratch::new("names");
    let data = scratch.path("a/b");
    fs::create_dir_all(&data).unwrap();
    let before = scratch.modes();
    for name in [
        "..",
        ".",
        "../x",
        "../../x",
        "/etc",
        "x/../../y",
        "x/y",
        "",
        "\0",
        "x\0",
        "-x",
        "x\n",
        "ü",
    ] {
        let answer = add(&config(name, &data));
        assert_eq!(answer.code, Some(1), "{name:?}: {answer:?}");
    }
    for (variable, value) in [
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", ".."),
        ("CNI_CONTAINERID", "x/y"),
        ("CNI_CONTAINERID", "x\ny"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "../x"),
        ("CNI_IFNAME", "x/y"),
        ("CNI_IFNAME", "x y"),
    ] {
        let mut env = ADD.to_vec();
        env.push((variable, value));
        let text = config("net", &data).to_string();
        let answer = host_local(":", &env, |pipe| {
            let _ = pipe.write_all(text.as_bytes());
        });
        assert_eq!(answer.code, Some(1), "{variable}={value:?}: {answer:?}");
    }
    assert_eq!(scratch.modes(), before);
}

#[test]
fn symbolic_links_below_the_data_directory_are_not_followed() {
    if skip_for_go("it follows symbolic links") {
        return;
    }
    let scratch = Scratch::new("links");
    let (data, real) = (scratch.path("data"), scratch.path("real"));
    fs::create_dir_all(real.join("net")).unwrap();
    symlink(&real, &data).unwrap();
    let outside = scratch.path("outside");
    fs::write(&outside, "precious").unwrap();
    for name in [
        "10.1.2.2",
        "last_reserved_ip.0",
        ".gangplank.new",
        ".gangplank.boot",
    ] {
        symlink(&outside, real.join("net").join(name)).unwrap();
    }
    let result = add(&config("net", &data)).ok();
    assert_eq!(Network::address(&result), "10.1.2.3");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
    fs::remove_file(real.join("net/lock")).unwrap();
    symlink(scratch.path("new"), real.join("net/lock")).unwrap();
    let error = add(&config("net", &data)).error();
    assert!(error.text().contains("symbolic link"), "{error:?}");
    assert!(!scratch.path("new").exists());
}

#[test]
fn errors_contain_no_secrets() {
    let scratch = Scratch::new("secrets");
    let secret = "hunter2";
    for (key, value) in [
        (
            "ipam",
            json!({ "type": "host-local", "subnet": "10.1.2.9/24", "token": secret }),
        ),
        ("ipam", json!({ "type": "absent", "password": secret })),
        (
            "ipam",
            json!({ "type": "host-local", "subnet": "10.1.2.0/24", "dataDir": "/proc/x", "p": secret }),
        ),
        ("cniVersion", json!("9.9.9")),
        (
            "runtimeConfig",
            json!({ "ips": ["x"], "credentials": secret }),
        ),
    ] {
        let mut config = config("net", &scratch.0);
        config["secret"] = json!({ "key": secret });
        config[key] = value;
        let text = config.to_string();
        let mut env = ADD.to_vec();
        env.extend([
            ("SECRET", secret),
            ("CNI_ARGS", "IgnoreUnknown=1;PASSWORD=hunter2"),
        ]);
        let answer = host_local(":", &env, |pipe| pipe.write_all(text.as_bytes()).unwrap());
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let output = format!("{}{}", answer.stdout, answer.stderr);
        assert!(!output.contains(secret), "{output}");
    }
}

#[test]
fn only_iptables_is_executed_and_no_shell_evaluates_the_input() {
    requires!("iptables");
    if skip_for_go("it requires iptables in PATH") {
        return;
    }
    let node = Node::new("node");
    let pod = node.pod("pod");
    node.run("mkdir /run/evil");
    for program in ["sh", "nft", "ip", "bridge", "sysctl"] {
        let file = format!("/run/evil/{program}");
        node.write_executable(&file, "#!/bin/sh\necho \"$0\" >> /run/evil/ran\n");
    }
    let mut network = node.network(support::small_network());
    network.config["ipMasq"] = json!(true);
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=$(touch /run/evil/ran);K8S_POD_NAME=`touch /run/evil/ran`";
    let call = |verb| {
        network
            .call(verb, &pod)
            .env("PATH", "/run/evil")
            .args(args)
            .run()
    };
    call("ADD").ok();
    call("DEL").ok();
    let ran = node.try_run("cat /run/evil/ran");
    assert!(
        !ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stdout)
    );
}

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn all_dependencies_are_documented() {
    let mut declared = BTreeSet::new();
    for manifest in ["Cargo.toml", "tests/support/Cargo.toml"] {
        let mut inside = false;
        for line in file(manifest).lines() {
            if line.starts_with('[') {
                inside = line.ends_with("dependencies]");
            } else if let Some((name, what)) = line.split_once(" = ").filter(|_| inside) {
                // A path dependency is part of this repository.
                if !what.contains("path = ") {
                    declared.insert(name.to_owned());
                }
            }
        }
    }
    let listed = file(".github/SECURITY.md");
    let rows = listed.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<String> = rows
        .map(|row| row.split('`').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        listed, declared,
        "the table in .github/SECURITY.md, and the manifests"
    );
}

#[test]
fn the_code_has_no_unsafe_and_starts_programs_in_one_module() {
    assert!(file("Cargo.toml").contains("unsafe_code = \"forbid\""));
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap();
        let is_tests = path.ends_with("tests.rs");
        for word in ["Command::new", "\"sh\"", "/bin/sh", "\"-c\""] {
            let allowed = word == "Command::new" && path.ends_with("kernel/process.rs");
            assert!(
                allowed || is_tests || !product.contains(word),
                "{}: {word}",
                path.display()
            );
        }
    }
}
