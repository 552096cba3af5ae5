//! The rooms of the source keep to themselves: who may know the kernel, who may print, who may depend on whom.

use std::fs;
use std::path::{Path, PathBuf};

/// A file under `src/`: its path there, and its code without comments and without the tests at its end.
struct Source {
    path: String,
    code: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut dirs = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                let code = text.lines().map(str::trim_end);
                let code = code.take_while(|line| *line != "#[cfg(test)]");
                sources.push(Source {
                    path: name.to_owned(),
                    code: code.map(str::to_owned).collect(),
                });
            }
        }
    }
    // A file that holds nothing but the tests of its neighbour is none of the product's.
    sources.retain(|source| !source.path.ends_with("tests.rs"));
    assert!(sources.len() > 3);
    sources
}

/// Whether a line has the word, and not as the end of a longer one.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// Fails where a file outside `rooms` has a line with one of the words; comments do not count.
fn only_in(rooms: &[&str], words: &[&str]) {
    let mut wrong = Vec::new();
    for source in sources() {
        if rooms.iter().any(|room| source.path.starts_with(room)) {
            continue;
        }
        for (index, line) in source.code.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| names(code, word)) {
                wrong.push(format!("src/{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "only in {rooms:?}:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_host_room_knows_the_kernel_and_other_programs() {
    let kernel = [
        "rtnetlink",
        "netlink_packet",
        "netlink_proto",
        "netlink_sys",
        "nix::",
        "libc::",
        "tokio::",
        "std::process::Command",
        "process::{Command",
        "os::unix::process",
        "\"/proc",
        "\"/sys",
    ];
    only_in(&["host/"], &kernel);
}

#[test]
fn only_the_ends_of_the_program_print() {
    let ends = ["dispatch.rs", "cli/", "cli.rs", "main.rs"];
    let print = ["println!", "print!(", "dbg!", "io::stdout", "stdout()"];
    only_in(&ends, &print);
}

#[test]
fn unfinished_business_is_not_left_in_the_code() {
    only_in(&[], &["todo!", "unimplemented!", "FIXME", "XXX"]);
}

/// What a room must not name: `crate::` and the beginning of a path.
const MUST_NOT: &[(&str, &[&str])] = &[
    (
        "net.rs",
        &[
            "cni",
            "host",
            "bridge",
            "ipam",
            "masquerade",
            "forward",
            "loopback",
            "state",
            "undo",
            "log",
            "dispatch",
            "cli",
        ],
    ),
    (
        "cni/",
        &[
            "host",
            "bridge",
            "ipam",
            "masquerade",
            "forward",
            "loopback",
            "state",
            "undo",
            "log",
            "dispatch",
            "cli",
        ],
    ),
    (
        "host/",
        &[
            "cni",
            "bridge",
            "ipam",
            "masquerade",
            "forward",
            "loopback",
            "state",
            "undo",
            "log",
            "dispatch",
            "cli",
        ],
    ),
    (
        "state/",
        &[
            "bridge",
            "ipam",
            "masquerade",
            "forward",
            "loopback",
            "undo",
            "log",
            "dispatch",
            "cli",
        ],
    ),
    (
        "ipam/",
        &[
            "bridge",
            "masquerade",
            "forward",
            "loopback",
            "log",
            "dispatch",
            "cli",
        ],
    ),
    (
        "masquerade/",
        &[
            "bridge", "ipam", "forward", "loopback", "log", "dispatch", "cli",
        ],
    ),
    (
        "forward.rs",
        &["bridge", "ipam", "loopback", "dispatch", "cli"],
    ),
    (
        "loopback",
        &["bridge", "ipam", "masquerade", "dispatch", "cli"],
    ),
    ("bridge/", &["loopback", "dispatch", "cli"]),
    ("undo", &["bridge", "loopback", "dispatch", "cli"]),
];

#[test]
fn rooms_depend_on_each_other_in_one_direction() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (room, forbidden) in MUST_NOT {
            if !source.path.starts_with(room) {
                continue;
            }
            for (index, line) in source.code.iter().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for name in *forbidden {
                    let named = |after: &str| code.contains(&format!("crate::{name}{after}"));
                    if named("::") || named(";") {
                        wrong.push(format!("src/{}:{}: crate::{name}", source.path, index + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    for source in sources() {
        let lines = source.code.len();
        assert!(lines <= 400, "src/{} has {lines} lines", source.path);
        if source.path != "main.rs" || lines > 1 {
            let first = source.code.first().map_or("", String::as_str);
            assert!(first.starts_with("//!"), "src/{} has no words", source.path);
        }
    }
}
