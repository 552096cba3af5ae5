//! Findings about files: unusable configurations, and plugins that are missing or of another version or program.

use std::path::PathBuf;

use crate::cli::args::DoctorArgs;
use crate::cli::doctor::finding::{Finding, Id};
use crate::cli::node::Node;
use crate::cli::plugins::{Identity, find, identify, self_description};
use crate::plugins;

pub fn examine(node: &Node, args: &DoctorArgs, findings: &mut Vec<Finding>) {
    unusable_configurations(node, findings);
    same_names(node, findings);
    missing_plugins(node, &args.cni_path, findings);
    let names = plugins::NAMES
        .iter()
        .filter(|name| is_configured(node, name));
    let files = names.filter_map(|name| find(&args.cni_path, name));
    findings.extend(files.filter_map(other_program));
}

fn unusable_configurations(node: &Node, findings: &mut Vec<Finding>) {
    for (file, error) in &node.unusable {
        let file = file.display().to_string();
        let cause = format!("{file} cannot be used by a runtime: {}", error.msg);
        let remedy = match error.details.as_str() {
            "" => "correct or remove it; a runtime may use the next file instead, or none",
            details => details,
        };
        let finding = Finding::new(Id::UnusableConfiguration, cause);
        findings.push(finding.evidence(file).remedy(remedy));
    }
}

fn same_names(node: &Node, findings: &mut Vec<Finding>) {
    for (at, (list, file)) in node.lists.iter().enumerate() {
        let name = &list.name;
        let mut others = node.lists[..at].iter();
        if let Some((_, other)) = others.find(|(other, _)| other.name == *name) {
            let cause = format!(
                "network {name} is configured twice: pods of both share leases and rules, and GC of one removes the other's"
            );
            findings.push(
                Finding::new(Id::SameName, cause)
                    .evidence(other.display().to_string())
                    .evidence(file.display().to_string())
                    .remedy("give one of them another name, or remove it"),
            );
        }
    }
}

fn missing_plugins(node: &Node, cni_path: &str, findings: &mut Vec<Finding>) {
    let mut examined = Vec::new();
    for (list, file) in &node.lists {
        for plugin in list.plugins.iter().map(|it| it.plugin_type.as_str()) {
            if plugin.is_empty() || examined.contains(&plugin) {
                continue;
            }
            examined.push(plugin);
            if find(cni_path, plugin).is_some() {
                continue;
            }
            let cause = format!("plugin {plugin}, named in {}, is missing", file.display());
            findings.push(
                Finding::new(Id::PluginMissing, cause)
                    .evidence(format!("not in {}", cni_path.replace(':', ", ")))
                    .remedy(match plugins::named(plugin) {
                        Some(_) => "gangplank install DIR".to_owned(),
                        None => format!("install the package that contains {plugin}, or remove it from the configuration"),
                    }),
            );
        }
    }
}

/// Whether a configuration of this node calls a plugin.
fn is_configured(node: &Node, name: &str) -> bool {
    let mut plugins = node.lists.iter().flat_map(|(list, _)| &list.plugins);
    plugins.any(|it| it.plugin_type == name)
}

/// A file with the name of a plugin of this binary that is another program or version: two implementations may manage
/// the same pods.
fn other_program(file: PathBuf) -> Option<Finding> {
    let (id, what, evidence) = match identify(&file) {
        Identity::Absent | Identity::This => return None,
        Identity::Gangplank(version) => (
            Id::PluginVersion,
            "is gangplank of another version or build",
            format!("its version is {version}"),
        ),
        Identity::Other => (
            Id::PluginForeign,
            "is not gangplank",
            self_description(&file)
                .unwrap_or_else(|| "it prints no description of itself".to_owned()),
        ),
    };
    let (directory, name) = (file.parent()?.display(), file.file_name()?.display());
    let remedy = format!("gangplank install {directory} --only {name}");
    let cause = format!("{} {what}", file.display());
    Some(Finding::new(id, cause).evidence(evidence).remedy(remedy))
}
