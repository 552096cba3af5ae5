//! Files: configurations that no runtime can use, and plugins that are missing or not ours.

use std::path::PathBuf;

use crate::cli::args;
use crate::cli::doctor::finding::Finding;
use crate::cli::node::Node;
use crate::cli::plugins::{Identity, about, identify};
use crate::plugins;

/// Looks at the files.
pub fn examine(node: &Node, asked: &args::Doctor, findings: &mut Vec<Finding>) {
    for (file, error) in &node.unusable {
        let cause = format!(
            "{} cannot be used by a runtime: {}",
            file.display(),
            error.msg
        );
        let finding =
            Finding::error("unusable-configuration", cause).shown_by(file.display().to_string());
        let remedy = match error.details.is_empty() {
            true => "correct it or move it away; a runtime may take the next file instead, or none"
                .to_owned(),
            false => error.details.clone(),
        };
        findings.push(finding.remedy(remedy));
    }
    same_names(node, findings);
    let directories: Vec<PathBuf> = std::env::split_paths(&asked.cni_path).collect();
    missing(node, &directories, findings);
    foreign(node, &directories, findings);
}

fn same_names(node: &Node, findings: &mut Vec<Finding>) {
    for (at, (name, file)) in node.names.iter().enumerate() {
        let twin = node.names[..at].iter().find(|(other, _)| other == name);
        if let Some((_, other)) = twin {
            let cause = format!(
                "network {name} is configured twice: pods of both share leases and rules, and GC of one removes the other's"
            );
            findings.push(
                Finding::warning("same-name", cause)
                    .shown_by(other.display().to_string())
                    .shown_by(file.display().to_string())
                    .remedy("give one of them another name, or remove it"),
            );
        }
    }
}

fn missing(node: &Node, directories: &[PathBuf], findings: &mut Vec<Finding>) {
    for (at, (kind, file)) in node.plugins.iter().enumerate() {
        if node.plugins[..at].iter().any(|(other, _)| other == kind) {
            continue;
        }
        let is_there = |directory: &PathBuf| directory.join(kind).is_file();
        if !directories.iter().any(is_there) {
            let cause = format!("plugin {kind}, which {} names, is missing", file.display());
            findings.push(
                Finding::error("plugin-missing", cause)
                    .shown_by(format!("looked in {}", listed(directories)))
                    .remedy(match plugins::named(kind) {
                        Some(_) => "gangplank install DIR".to_owned(),
                        None => format!("install the package that has {kind}, or take it out of the configuration"),
                    }),
            );
        }
    }
}

/// Plugins under our names that are not this program: two versions at work on the same pods.
fn foreign(node: &Node, directories: &[PathBuf], findings: &mut Vec<Finding>) {
    if node.names.is_empty() {
        return;
    }
    for name in plugins::NAMES {
        let mut files = directories.iter().map(|directory| directory.join(name));
        let Some(file) = files.find(|file| file.is_file()) else {
            continue;
        };
        let (id, what, said) = match identify(&file) {
            Identity::Absent | Identity::This => continue,
            Identity::Gangplank(version) => (
                "plugin-version",
                "is gangplank of another version or build",
                format!("its version is {version}"),
            ),
            Identity::Other => ("plugin-foreign", "is not gangplank", about(&file)),
        };
        let cause = format!("{} {what}", file.display());
        let said = if said.is_empty() {
            "it does not say what it is".to_owned()
        } else {
            said
        };
        let directory = file
            .parent()
            .map(|it| it.display().to_string())
            .unwrap_or_default();
        findings.push(
            Finding::warning(id, cause)
                .shown_by(said)
                .remedy(format!("gangplank install {directory}")),
        );
    }
}

fn listed(directories: &[PathBuf]) -> String {
    let names: Vec<String> = directories
        .iter()
        .map(|it| it.display().to_string())
        .collect();
    names.join(", ")
}
