//! The structure of the source: layers, imports, sizes, and the module map in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The layers, from the highest to the lowest. A module imports only from lower layers. Names without a path under src
/// are planned modules.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli", "agent"],
    &["plugins"],
    &["dispatch"],
    &["flannel"],
    &["bridge"],
    &["attachment"],
    &["plugin"],
    &["call_metrics", "log_record"],
    &["state"],
    &["link"],
    &["undo"],
    &["ipam"],
    &["delegate"],
    &["netfilter"],
    &["kernel"],
    &["cni"],
    &["net"],
    &["build", "error"],
];

/// Imports that the layers would allow and that must not exist: importer, imported module.
const UNRELATED: &[(&str, &str)] = &[
    ("loopback", "ipam"),
    ("loopback", "netfilter"),
    ("ipam", "netfilter"),
    ("kernel", "cni"),
    ("kernel", "error"),
];

/// Known import cycles, as lists of files. None may be added; a resolved one must be removed here.
const KNOWN_CYCLES: &[&[&str]] = &[];

/// Maximum length of a file in lines, without tests.
const MAX_LINES: usize = 400;

/// A file under `src`.
struct Source {
    /// The path below `src`.
    path: String,
    /// The lines without tests.
    lines: Vec<String>,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let text = fs::read_to_string(path).unwrap();
        Source {
            path: path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
            lines: without_tests(&text),
        }
    }

    /// The lines without comments.
    fn code(&self) -> impl Iterator<Item = &str> {
        self.lines
            .iter()
            .map(|line| line.split("//").next().unwrap_or_default())
    }

    /// The module path: `["kernel", "netlink"]` for `kernel/netlink.rs` and for `kernel/netlink/mod.rs`.
    fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let path = path.strip_suffix("/mod").unwrap_or(path);
        if path == "lib" {
            return Vec::new();
        }
        path.split('/').map(str::to_owned).collect()
    }
}

/// The lines of a file without items under `#[cfg(test)]`, which begin in the first column.
fn without_tests(text: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push(line.to_owned());
            continue;
        }
        let is_last = |line: &str| line == "}" || (!line.starts_with(' ') && line.ends_with(';'));
        lines.by_ref().find(|line| is_last(line));
    }
    kept
}

fn src() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All files under `src`, except those that contain only tests.
fn sources() -> Vec<Source> {
    let root = src();
    let mut sources = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(Source::read(&root, &path));
            }
        }
    }
    sources.retain(|source| !source.path.ends_with("tests.rs") && source.path != "test_random.rs");
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(sources.len() > 3);
    sources
}

fn is_part_of_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Whether the code contains the word at the beginning of a name.
fn contains_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part_of_name))
}

/// Asserts that the words occur only in the code of `allowed` files.
fn only_in(allowed: &[&str], words: &[&str]) {
    let mut wrong = Vec::new();
    for source in sources() {
        if allowed.iter().any(|path| source.path.starts_with(path)) {
            continue;
        }
        for code in source.code() {
            if let Some(word) = words.iter().find(|word| contains_word(code, word)) {
                wrong.push(format!("src/{}: {word}: {}", source.path, code.trim()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "only in {allowed:?}:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn only_the_kernel_module_talks_to_the_kernel_and_starts_programs() {
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
    only_in(&["kernel/"], &kernel);
}

#[test]
fn only_the_dispatcher_and_the_command_line_print() {
    let allowed = ["plugins/dispatch.rs", "plugins/mod.rs", "cli/", "main.rs"];
    let print = ["println!", "print!(", "dbg!", "io::stdout", "stdout()"];
    only_in(&allowed, &print);
}

#[test]
fn no_unfinished_code_is_committed() {
    only_in(&[], &["todo!", "unimplemented!", "FIXME", "XXX"]);
}

#[test]
fn files_are_short_and_begin_with_documentation() {
    for source in sources() {
        let lines = source.lines.len();
        assert!(lines <= MAX_LINES, "src/{} has {lines} lines", source.path);
        let first = source.lines.first().map_or("", String::as_str);
        assert!(first.starts_with("//!"), "src/{} has no //!", source.path);
    }
}

#[test]
fn no_module_is_larger_than_a_third_of_the_code() {
    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources() {
        let lines = source.code().filter(|line| !line.trim().is_empty()).count();
        let module = source.module().into_iter().next().unwrap_or_default();
        *modules.entry(module).or_default() += lines;
    }
    let all: usize = modules.values().sum();
    for (module, lines) in &modules {
        assert!(
            lines * 3 <= all,
            "{module} has {lines} of {all} lines: {modules:?}"
        );
    }
}

/// The imports between the files under `src`.
struct Imports {
    /// The file of each module.
    files: BTreeMap<Vec<String>, String>,
    /// The names declared by `use` in each module, with their paths.
    names: BTreeMap<Vec<String>, BTreeMap<String, Vec<String>>>,
    /// The files from which each file imports.
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Imports {
    fn of(sources: &[Source]) -> Imports {
        let mut imports = Imports {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            edges: BTreeMap::new(),
        };
        for source in sources {
            let module = source.module();
            imports.files.insert(module.clone(), source.path.clone());
            let mut names = BTreeMap::new();
            for (path, name) in declarations(&source.code().collect::<Vec<_>>().join("\n")) {
                names.insert(name, path);
            }
            imports.names.insert(module, names);
        }
        for source in sources {
            let code: Vec<&str> = source.code().collect();
            let module = source.module();
            let mut to = BTreeSet::new();
            for path in crate_paths(&code.join("\n")) {
                let file = imports.file_of(&module, &path, 0);
                to.extend(file.filter(|file| *file != source.path));
            }
            imports.edges.insert(source.path.clone(), to);
        }
        imports
    }

    /// The file that defines the item of a path in `module`; re-exports are followed.
    fn file_of(&self, module: &[String], path: &[String], depth: usize) -> Option<String> {
        let mut at = module.to_vec();
        for (index, segment) in path.iter().enumerate() {
            match segment.as_str() {
                "crate" | "gangplank" if index == 0 => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                _ => {
                    let child = [&at[..], std::slice::from_ref(segment)].concat();
                    if self.files.contains_key(&child) {
                        at = child;
                        continue;
                    }
                    // Not a module: an item of this module, or a re-export.
                    let named = self.names.get(&at).and_then(|names| names.get(segment));
                    let followed = named.filter(|_| depth < 8).and_then(|target| {
                        let target = [&target[..], &path[index + 1..]].concat();
                        self.file_of(&at, &target, depth + 1)
                    });
                    return followed.or_else(|| self.files.get(&at).cloned());
                }
            }
        }
        self.files.get(&at).cloned()
    }

    /// The files that `file` imports, directly or indirectly.
    fn reachable(&self, file: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut left = vec![file];
        while let Some(file) = left.pop() {
            for next in &self.edges[file] {
                if found.insert(next.as_str()) {
                    left.push(next);
                }
            }
        }
        found
    }

    /// The sets of files that import each other, sorted.
    fn cycles(&self) -> BTreeSet<Vec<&str>> {
        let reachable: BTreeMap<&str, BTreeSet<&str>> = self
            .edges
            .keys()
            .map(|file| (file.as_str(), self.reachable(file)))
            .collect();
        let in_cycle = reachable
            .keys()
            .filter(|file| reachable[*file].contains(*file));
        let cycle = |file: &&str| -> Vec<&str> {
            let both = |other: &&&str| reachable[**other].contains(*file);
            reachable[*file].iter().filter(both).copied().collect()
        };
        in_cycle.map(cycle).collect()
    }
}

/// The paths in code that begin with `crate`, `super` or the crate's name, with their groups expanded.
fn crate_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for root in ["crate::", "super::", "gangplank::"] {
        for (at, _) in code.match_indices(root) {
            let before = &code[..at];
            if !before.ends_with(is_part_of_name) && !before.ends_with(':') {
                let tree = expand(&mut Tokens::new(&code[at..]), &[]);
                paths.extend(tree.into_iter().map(|(path, _)| path));
            }
        }
    }
    paths
}

/// The `use` declarations in code: path and declared name.
fn declarations(code: &str) -> Vec<(Vec<String>, String)> {
    let mut declared = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if !code[..at].ends_with(is_part_of_name) {
            declared.extend(expand(&mut Tokens::new(&code[at + 4..]), &[]));
        }
    }
    declared
}

/// A tokenizer of names and punctuation.
struct Tokens<'t> {
    rest: &'t str,
}

impl<'t> Tokens<'t> {
    fn new(rest: &'t str) -> Tokens<'t> {
        Tokens { rest }
    }

    /// The next name; `*` is one too.
    fn name(&mut self) -> Option<&'t str> {
        self.rest = self.rest.trim_start();
        if self.skip("*") {
            return Some("*");
        }
        let end = self.rest.find(|character| !is_part_of_name(character));
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(name).filter(|name| !name.is_empty())
    }

    fn skip(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }
}

/// The paths of a `use` tree or of an expression, with their names.
fn expand(tokens: &mut Tokens, prefix: &[String]) -> Vec<(Vec<String>, String)> {
    let mut path = prefix.to_vec();
    loop {
        if tokens.skip("{") {
            let mut paths = Vec::new();
            while !tokens.skip("}") {
                let before = tokens.rest.len();
                paths.extend(expand(tokens, &path));
                tokens.skip(",");
                assert!(
                    tokens.rest.len() < before,
                    "not a path: {:.40}",
                    tokens.rest
                );
            }
            return paths;
        }
        match tokens.name() {
            Some("*" | "self") if !path.is_empty() => {}
            Some(name) => path.push(name.to_owned()),
            None => break,
        }
        if !tokens.skip("::") {
            break;
        }
    }
    let Some(last) = path.last().cloned() else {
        return Vec::new();
    };
    let alias = if tokens.rest.starts_with(" as ") {
        tokens.skip("as");
        tokens.name()
    } else {
        None
    };
    let name = alias.map_or(last, str::to_owned);
    vec![(path, name)]
}

#[test]
fn imports_have_no_cycles() {
    let imports = Imports::of(&sources());
    let found = imports.cycles();
    let known: BTreeSet<Vec<&str>> = KNOWN_CYCLES.iter().map(|files| files.to_vec()).collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(new.is_empty(), "new cycles: {new:#?}");
    let resolved: Vec<_> = known.difference(&found).collect();
    assert!(
        resolved.is_empty(),
        "remove from KNOWN_CYCLES: {resolved:#?}"
    );
}

/// The part that a file belongs to: the top module under `src`, or the plugin under `plugins`; `None` for the crate
/// root, which only re-exports.
fn part(file: &str) -> Option<&str> {
    let mut names = file
        .split('/')
        .map(|name| name.trim_end_matches(".rs"))
        .filter(|name| *name != "mod");
    let top = names.next().filter(|top| *top != "lib")?;
    let plugin = names.next().filter(|_| top == "plugins");
    Some(plugin.unwrap_or(top))
}

/// The layer of a file. Plugins are in the layer of `bridge`.
fn layer(file: &str, part: &str) -> usize {
    let is_named = LAYERS.iter().any(|layer| layer.contains(&part));
    let is_plugin = file.starts_with("plugins/") && !is_named;
    let name = if is_plugin { "bridge" } else { part };
    let layer = LAYERS.iter().position(|layer| layer.contains(&name));
    layer.unwrap_or_else(|| panic!("src/{file} is in no layer: add {part} to LAYERS"))
}

#[test]
fn imports_go_from_higher_to_lower_layers() {
    let imports = Imports::of(&sources());
    let mut wrong = Vec::new();
    for (from, files) in &imports.edges {
        for to in files {
            let (Some(importer), Some(imported)) = (part(from), part(to)) else {
                continue;
            };
            let is_upward = layer(from, importer) >= layer(to, imported);
            let is_unrelated = UNRELATED.contains(&(importer, imported));
            if importer != imported && (is_upward || is_unrelated) {
                wrong.push(format!("src/{from} imports src/{to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_import_parser_finds_cycles_and_follows_re_exports() {
    let source = |path: &str, code: &str| Source {
        path: path.to_owned(),
        lines: without_tests(code),
    };
    let sources = [
        source(
            "lib.rs",
            "pub mod a;\npub mod b;\nmod c;\npub use c::Error;",
        ),
        source(
            "a/mod.rs",
            "mod deep;\npub use deep::{Deep, Deeper as Other};",
        ),
        source(
            "a/deep.rs",
            "use crate::{\n    Error,\n    b::{self, B},\n};",
        ),
        source(
            "b.rs",
            "// use crate::c;\nfn f() { super::a::Other::new(x) }",
        ),
        source("c.rs", "#[cfg(test)]\nmod tests {\n    use crate::b;\n}\n"),
        source("main.rs", "use gangplank::a;"),
    ];
    let imports = Imports::of(&sources);
    let from =
        |file: &str| -> Vec<&str> { imports.edges[file].iter().map(String::as_str).collect() };
    assert_eq!(from("a/deep.rs"), ["b.rs", "c.rs"]);
    assert_eq!(from("b.rs"), ["a/deep.rs"]);
    assert_eq!(from("c.rs"), [""; 0]);
    assert_eq!(from("main.rs"), ["a/mod.rs"]);
    assert_eq!(
        imports.cycles(),
        BTreeSet::from([vec!["a/deep.rs", "b.rs"]])
    );
}

/// The entries of the module map in ARCHITECTURE.md, at the two levels below `src`. A directory ends with a slash.
fn map() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, map) = page
        .split_once("```text\nsrc/\n")
        .expect("a block that begins with src/");
    let (map, _) = map.split_once("```").unwrap();
    let mut entries = BTreeSet::new();
    let mut directory = String::new();
    for line in map.lines() {
        let entry = line.trim_start();
        let (name, what) = entry.split_once(' ').unwrap_or((entry, ""));
        assert!(!what.trim().is_empty(), "the map does not describe {name}");
        match line.len() - entry.len() {
            2 => {
                directory = name.to_owned();
                entries.insert(name.to_owned());
            }
            4 => assert!(entries.insert(format!("{directory}{name}"))),
            _ => panic!("two or four spaces before {entry:?}"),
        }
    }
    entries
}

#[test]
fn the_module_map_matches_the_source() {
    let mut existing = BTreeSet::new();
    for source in sources() {
        let mut parts = source.path.split_inclusive('/');
        let top = parts.next().unwrap_or_default();
        existing.insert(top.to_owned());
        existing.extend(parts.next().map(|below| format!("{top}{below}")));
    }
    let map = map();
    // A plugin is listed with the others in the registry.
    let is_plugin = |path: &&String| {
        let module = path.strip_prefix("plugins/").unwrap_or_default();
        let module = module.trim_end_matches('/').trim_end_matches(".rs");
        gangplank::plugins::NAMES.contains(&module.replace('_', "-").as_str())
    };
    let missing = existing.difference(&map).filter(|path| !is_plugin(path));
    let missing: Vec<_> = missing.collect();
    let gone: Vec<_> = map.difference(&existing).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "the map in .github/ARCHITECTURE.md lacks {missing:?}, and has {gone:?}, which do not exist"
    );
}
