//! The configurations in `examples/chains`, which are equivalent to those of container runtimes and Kubernetes
//! distributions: packets, CHECK, and DEL in every order and after every failure, with only gangplank's file in the CNI
//! bin directory, and with one plugin of the chain replaced by the Go plugin.

use gangplank_test_support::{self as support, implementation};

mod clients;
mod packets;
mod remains;
mod scene;
mod table;

use std::collections::BTreeSet;
use std::path::PathBuf;

use implementation::for_each_case;
use scene::Scene;
use support::{debian, note, recent_go_plugins, requires, skip_for_go};
use table::{Runtime, TABLE};

/// A chain, and the plugin in it that is the Go plugin.
pub struct Case {
    runtime: &'static Runtime,
    go: Option<(String, PathBuf)>,
    /// Whether no chain with the same plugins was interrupted before.
    is_interrupted: bool,
}

impl Case {
    fn name(&self) -> String {
        let with = self
            .go
            .as_ref()
            .map(|(plugin, _)| format!(", {plugin} of Go"));
        format!("{}{}", self.runtime.name, with.unwrap_or_default())
    }

    fn run(&self) {
        let Some(mut scene) = Scene::new(self) else {
            return;
        };
        scene.pods_reach_what_they_should();
        if !self.is_interrupted {
            return;
        }
        scene.any_order_of_del_removes_everything();
        scene.del_after_a_missing_plugin_removes_everything();
        scene.del_after_a_killed_plugin_removes_everything();
    }
}

/// The file of a Go plugin. flannel left the project after version 0.9.1.
fn go_plugin(plugin: &str) -> Option<PathBuf> {
    let directory = match plugin {
        "flannel" => debian("bullseye", &["containernetworking-plugins"])?.join("usr/lib/cni"),
        _ => recent_go_plugins()?,
    };
    Some(directory.join(plugin))
}

#[test]
fn chains_of_all_runtimes_work_and_leave_nothing_behind() {
    requires!("iptables", "ip6tables", "nft", "strace", "conntrack", "tc");
    if skip_for_go("it runs with one Go plugin at a time") {
        return;
    }
    let cases: Vec<Case> = TABLE
        .iter()
        .map(|runtime| Case {
            runtime,
            go: None,
            is_interrupted: true,
        })
        .collect();
    for_each_case(&cases, Case::name, Case::run);
}

#[test]
fn chains_of_all_runtimes_work_with_any_plugin_of_go() {
    requires!("iptables", "ip6tables", "nft", "strace", "conntrack", "tc");
    if skip_for_go("it runs with one Go plugin at a time") {
        return;
    }
    let mut cases = Vec::new();
    let mut interrupted = BTreeSet::new();
    for runtime in TABLE {
        let is_interrupted = interrupted.insert(runtime.programs());
        for plugin in runtime.programs() {
            match go_plugin(&plugin) {
                Some(file) => cases.push(Case {
                    runtime,
                    go: Some((plugin, file)),
                    is_interrupted,
                }),
                None => note(&format!(
                    "skipped: no Go plugin {plugin} for {}",
                    runtime.name
                )),
            }
        }
    }
    for_each_case(&cases, Case::name, Case::run);
}

#[test]
fn every_example_is_in_the_table_and_in_the_readme() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/chains");
    let readme = support::example("chains/README.md");
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".conflist").map(str::to_owned)
        })
        .collect();
    names.sort();
    let mut tested: Vec<&str> = TABLE.iter().map(|runtime| runtime.name).collect();
    tested.sort_unstable();
    assert_eq!(names, tested);
    for name in names {
        assert!(
            readme.contains(&format!("({name}.conflist)")),
            "{name} is not in the README"
        );
    }
}
