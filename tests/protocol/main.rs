//! The CNI protocol: environment, stdin, results and errors, without a network.

use gangplank_test_support as support;

mod invalid_inputs;
mod invalid_values;
mod rejection;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;
use support::{Answer, PLUGINS, binary, plugin_file, skip_for_go, testing_go};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// The versions of the plugins under test: Debian's are older.
fn versions() -> &'static [&'static str] {
    if testing_go() {
        &VERSIONS[..6]
    } else {
        &VERSIONS
    }
}

/// Runs a plugin with only these variables.
fn call(name: &str, arguments: &[&str], env: &[(&str, &str)], stdin: &str) -> Answer {
    let mut child = Command::new(plugin_file(name))
        .arg0(format!("/opt/cni/bin/{name}"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    Answer::of(child.wait_with_output().unwrap())
}

fn gangplank(arguments: &[&str], env: &[(&str, &str)]) -> Answer {
    let output = Command::new(binary())
        .arg0("gangplank")
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Answer::of(output)
}

fn config(version: &str) -> String {
    json!({ "cniVersion": version, "name": "net", "type": "any",
            "ipam": { "type": "host-local", "subnet": "10.1.2.0/24" } })
    .to_string()
}

#[test]
fn without_a_command_a_plugin_prints_its_version_on_stderr() {
    for plugin in PLUGINS {
        let answer = call(plugin, &[], &[], "");
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""));
        let lines: Vec<&str> = answer.stderr.lines().collect();
        let [about, supported] = lines[..] else {
            panic!("{lines:?}");
        };
        assert!(
            about.starts_with(&format!("CNI {plugin} plugin ")),
            "{about}"
        );
        assert!(about.contains(env!("CARGO_PKG_VERSION")) || testing_go());
        let all = versions().join(", ");
        assert_eq!(supported, format!("CNI protocol versions supported: {all}"));
    }
}

#[test]
fn version_is_one_line_and_ignores_stdin() {
    let expected = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\
                    \"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";
    for plugin in PLUGINS {
        for stdin in ["", "{\"cniVersion\":\"0.4.0\"}", "not JSON"] {
            let env = [
                ("CNI_COMMAND", "VERSION"),
                ("CNI_IFNAME", "dummy"),
                ("CNI_NETNS", "dummy"),
                ("CNI_PATH", "dummy"),
            ];
            let answer = call(plugin, &[], &env, stdin);
            assert_eq!(answer.code, Some(0), "{answer:?}");
            if !testing_go() {
                assert_eq!(answer.stdout, expected);
            } else {
                let document = answer.ok();
                assert_eq!(document["supportedVersions"], json!(versions()));
            }
            let bare = call(plugin, &[], &[("CNI_COMMAND", "VERSION")], stdin);
            assert_eq!(bare.stdout, answer.stdout);
        }
    }
}

/// The environment of a verb for a pod that does not exist.
fn environment(verb: &str) -> Vec<(&str, &str)> {
    vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/nonexistent/netns"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nonexistent"),
    ]
}

#[test]
fn check_requires_0_4_0() {
    for plugin in PLUGINS {
        for version in versions() {
            let answer = call(plugin, &[], &environment("CHECK"), &config(version));
            let too_old = *version < "0.4.0";
            let code = answer.error().code;
            assert_eq!(code == 1, too_old, "{plugin} {version}: {answer:?}");
        }
        for version in ["0.5.0", "9.9.9", "1.1", "x"] {
            let error = call(plugin, &[], &environment("CHECK"), &config(version)).error();
            if !testing_go() {
                assert_eq!(error.code, 1, "{version}");
                assert!(error.text().contains(version), "{error:?}");
            }
        }
    }
}

#[test]
fn gc_and_status_require_1_1_0() {
    if skip_for_go("Debian's version has neither") {
        return;
    }
    for plugin in PLUGINS {
        for verb in ["GC", "STATUS"] {
            for version in VERSIONS {
                let answer = call(plugin, &[], &environment(verb), &config(version));
                // The verbs may fail for another reason with this minimal configuration.
                let too_old = answer.code != Some(0) && answer.error().code == 1;
                assert_eq!(too_old, version != "1.1.0", "{plugin} {verb} {version}");
            }
            let junk = [
                ("CNI_COMMAND", verb),
                ("CNI_PATH", "/x"),
                ("CNI_CONTAINERID", "!"),
            ];
            let answer = call(plugin, &[], &junk, &config("1.1.0"));
            assert!(
                answer.code == Some(0) || answer.error().code != 4,
                "{answer:?}"
            );
        }
    }
}

#[test]
fn all_missing_variables_are_reported_together() {
    let cases = [
        ("ADD", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
        ("CHECK", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
        ("DEL", "[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"),
        ("GC", "[CNI_PATH]"),
        ("STATUS", "[CNI_PATH]"),
    ];
    for plugin in PLUGINS {
        for (verb, missing) in cases {
            if testing_go() && ["GC", "STATUS"].contains(&verb) {
                continue;
            }
            let command = ("CNI_COMMAND", verb);
            for env in [&[command][..], &[command, ("CNI_CONTAINERID", "")]] {
                let error = call(plugin, &[], env, &config("1.0.0")).error();
                assert_eq!(error.code, 4);
                assert!(error.msg.contains(missing), "{error:?}");
            }
        }
        // A malformed variable is reported first.
        let env = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a/b")];
        let error = call(plugin, &[], &env, &config("1.0.0")).error();
        assert_eq!(error.code, 4);
        let is_named = error.text().contains("a/b");
        assert!(is_named || testing_go(), "{error:?}");
    }
}

#[test]
fn an_error_is_one_document_on_stdout() {
    for plugin in PLUGINS {
        let answer = call(plugin, &[], &environment("ADD"), "{");
        let error = answer.error();
        assert_eq!(error.code, 6);
        assert!(answer.stdout.starts_with("{\n    \""), "{}", answer.stdout);
        let position = |key: &str| answer.stdout.find(&format!("\n    \"{key}\": "));
        assert!(position("code").unwrap() < position("msg").unwrap());
        if let Some(details) = position("details") {
            assert!(position("msg").unwrap() < details);
            assert!(!error.details.is_empty());
        }
    }
}

#[test]
fn argv_0_selects_the_plugin() {
    // With the same configuration each plugin fails with its own error.
    let conf = json!({ "cniVersion": "1.0.0", "name": "net", "type": "any", "mtu": "big",
                       "ipam": { "type": "host-local", "subnet": "10.1.2.3/24" } })
    .to_string();
    let error_text = |plugin| {
        let answer = call(plugin, &[], &environment("ADD"), &conf);
        answer.error().text()
    };
    if !testing_go() {
        assert!(
            error_text("bridge").contains("mtu"),
            "{}",
            error_text("bridge")
        );
        assert!(error_text("loopback").contains("/nonexistent/netns"));
    }
    assert!(
        error_text("host-local").contains("10.1.2."),
        "{}",
        error_text("host-local")
    );
}

#[test]
fn gangplank_with_cni_command_is_the_bridge_plugin() {
    if skip_for_go("the Go plugins have no command line") {
        return;
    }
    let version = gangplank(&[], &[("CNI_COMMAND", "VERSION")]);
    assert!(version.stdout.starts_with("{\"cniVersion\":\"1.1.0\""));
    let missing = gangplank(&[], &[("CNI_COMMAND", "ADD")]).error();
    assert_eq!(missing.code, 4);
}

#[test]
fn the_command_line_has_help_and_version() {
    if skip_for_go("the Go plugins have no command line") {
        return;
    }
    for arguments in [&["--help"][..], &["-h"], &["help"], &[]] {
        let answer = gangplank(arguments, &[]);
        let text = format!("{}{}", answer.stdout, answer.stderr);
        assert!(text.contains("install"), "{arguments:?}: {answer:?}");
        assert!(text.contains("--version"), "{arguments:?}: {answer:?}");
    }
    assert_eq!(gangplank(&["--help"], &[]).code, Some(0));
    let answer = gangplank(&["--version"], &[]);
    assert_eq!(answer.code, Some(0));
    let version = env!("CARGO_PKG_VERSION");
    assert!(answer.stdout.starts_with(&format!("gangplank {version}")));
    for wrong in [
        &["frobnicate"][..],
        &["--frobnicate"],
        &["install", "a", "b"],
    ] {
        let answer = gangplank(wrong, &[]);
        assert!(answer.code.is_some_and(|code| code != 0), "{wrong:?}");
        assert_eq!(answer.stdout, "", "errors are printed on stderr");
        assert!(answer.stderr.contains(wrong[wrong.len() - 1]), "{answer:?}");
    }
}

#[test]
fn install_creates_the_plugins() {
    if skip_for_go("the Go plugins have no command line") {
        return;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("installed/bin");
    let _ = std::fs::remove_dir_all(&dir);
    // A second install replaces the files, even while they are executed.
    for _ in 0..2 {
        let answer = gangplank(&["install", dir.to_str().unwrap()], &[]);
        assert_eq!(answer.code, Some(0), "{answer:?}");
    }
    for plugin in PLUGINS {
        let file = dir.join(plugin);
        let output = Command::new(&file).env_clear().output().unwrap();
        let about = String::from_utf8(output.stderr).unwrap();
        assert!(
            about.starts_with(&format!("CNI {plugin} plugin")),
            "{about}"
        );
    }
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "gangplank")
        .collect();
    names.sort();
    assert_eq!(names, PLUGINS, "no temporary file is left");
    let nowhere = gangplank(&["install", "/proc/nowhere/bin"], &[]);
    assert!(nowhere.code.is_some_and(|code| code != 0));
    assert!(nowhere.stderr.contains("/proc/nowhere"), "{nowhere:?}");
}

#[test]
fn a_closed_stdout_causes_no_panic() {
    let mut child = Command::new(plugin_file("bridge"))
        .arg0("bridge")
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    if !testing_go() {
        assert_eq!(status.signal(), None, "{status}");
    }
}

#[test]
fn the_release_binary_is_static_and_small() {
    let Some(file) = std::env::var_os("GANGPLANK_BIN") else {
        return support::note("cannot run: GANGPLANK_BIN is not set; use tests/run");
    };
    let elf = std::fs::read(file).unwrap();
    assert!(elf.len() <= 3_600_000, "{} bytes", elf.len());
    // ELF-64: offset, size and number of the program headers (elf(5)).
    let number = |at: usize, bytes: usize| {
        let read = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        elf[at..at + bytes].iter().rev().fold(0, read)
    };
    assert_eq!((&elf[..4], elf[4], elf[5]), (&b"\x7fELF"[..], 2, 1));
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    const PT_INTERP: usize = 3;
    for header in 0..count {
        assert_ne!(
            number(table + header * size, 4),
            PT_INTERP,
            "dynamically linked"
        );
    }
}
