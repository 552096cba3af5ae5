//! The plugins of a list, and whether each of them can take part in it: runtimes call them all with the list's cniVersion,
//! and from 1.1.0 on poll them with STATUS, where the error of one keeps a Kubernetes node NotReady.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cli::plugins::{status, supported_versions};
use crate::cni::Version;

/// A list of plugins (CNI spec 1.1, section 1).
#[derive(Clone, Debug)]
pub struct Chain {
    /// The network's name.
    pub name: String,
    /// Its `cniVersion`.
    pub version: String,
    /// Its plugins.
    pub links: Vec<ChainLink>,
}

/// A program that a list names.
#[derive(Clone, Debug)]
pub struct ChainLink {
    /// Its `type`.
    pub plugin: String,
    /// What a runtime passes to it; absent for an IPAM plugin, which another plugin calls.
    request: Option<Value>,
}

/// A plugin that cannot take part in a list.
#[derive(Clone, Debug)]
pub struct Unfit {
    /// What it lacks.
    pub lack: Lack,
    /// Which plugin it is and what is wrong.
    pub cause: String,
    /// What it answered.
    pub answers: Vec<String>,
    /// What to do.
    pub remedy: String,
}

/// What a plugin lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It does not support the list's cniVersion: every ADD fails.
    Version,
    /// It answers STATUS with an error.
    Status,
}

impl Chain {
    /// The plugins of a list, or of a configuration that is one plugin.
    pub fn new(root: &Map<String, Value>, plugins: &[Map<String, Value>]) -> Chain {
        let text = |key: &str| root.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut links = Vec::new();
        for plugin in plugins {
            let mut request = plugin.clone();
            for key in ["name", "cniVersion"] {
                request.insert(key.to_owned(), text(key).into());
            }
            let kind = |value: &Map<String, Value>| {
                let kind = value.get("type").and_then(Value::as_str);
                kind.unwrap_or_default().to_owned()
            };
            links.push(ChainLink {
                plugin: kind(plugin),
                request: Some(request.into()),
            });
            // Bridge needs no other program for host-local.
            let ipam = plugin.get("ipam").and_then(Value::as_object);
            let ipam = ipam.map(kind).unwrap_or_default();
            if !matches!(ipam.as_str(), "" | "host-local") {
                links.push(ChainLink {
                    plugin: ipam,
                    request: None,
                });
            }
        }
        Chain {
            name: text("name").to_owned(),
            version: text("cniVersion").to_owned(),
            links,
        }
    }

    /// Asks the plugins, those that are not there excepted.
    pub fn unfit(&self, cni_path: &str) -> Vec<Unfit> {
        let directories: Vec<PathBuf> = std::env::split_paths(cni_path).collect();
        let find = |link: &&ChainLink| {
            let mut files = directories.iter().map(|it| it.join(&link.plugin));
            files.find(|file| file.is_file())
        };
        let files = self
            .links
            .iter()
            .filter_map(|link| Some((link, find(&link)?)));
        files
            .filter_map(|(link, file)| self.ask(link, &file, cni_path))
            .collect()
    }

    fn ask(&self, link: &ChainLink, file: &Path, cni_path: &str) -> Option<Unfit> {
        let (name, plugin, wanted) = (&self.name, &link.plugin, self.version());
        let versions = supported_versions(file, cni_path);
        let is_supported = matches!(&versions, Ok(all) if all.iter().any(|it| it == wanted));
        let asked = link.request.as_ref().filter(|_| self.is_polled());
        let status = asked.map_or(Ok(()), |request| {
            status(file, cni_path, request.to_string().as_bytes())
        });
        let lack = match (is_supported, &status) {
            (true, Ok(())) => return None,
            (true, Err(_)) => Lack::Status,
            (false, _) => Lack::Version,
        };
        let cause = match lack {
            Lack::Version => format!(
                "plugin {plugin} does not support cniVersion {wanted} of network {name}: every ADD fails"
            ),
            Lack::Status => format!(
                "plugin {plugin} of network {name} answers STATUS with an error: a Kubernetes node is NotReady as long as it does"
            ),
        };
        let mut answers = vec![match &versions {
            Ok(all) => format!("{} answers VERSION: {}", file.display(), all.join(", ")),
            Err(said) => format!("{} answers VERSION: {said}", file.display()),
        }];
        answers.extend(
            status
                .err()
                .map(|said| format!("{} answers STATUS: {said}", file.display())),
        );
        let other = newest_before(wanted, versions.ok().as_deref());
        Some(Unfit {
            lack,
            cause,
            answers,
            remedy: match lack {
                Lack::Version => {
                    format!("set cniVersion to {other} in the list, or install a newer {plugin}")
                }
                Lack::Status => format!(
                    "correct what it answers; if it does not know STATUS, install a newer {plugin} or set cniVersion to {other} in the list"
                ),
            },
        })
    }

    /// An absent version is the oldest one (CNI spec 0.2.0, "Network Configuration").
    fn version(&self) -> &str {
        match self.version.as_str() {
            "" => Version::V0_1_0.as_str(),
            version => version,
        }
    }

    /// Whether runtimes ask for STATUS.
    fn is_polled(&self) -> bool {
        Version::parse(&self.version).is_ok_and(|version| version >= Version::V1_1_0)
    }
}

/// The newest version before this one that is among the supported ones and known to us.
fn newest_before(version: &str, supported: Option<&[String]>) -> Version {
    let before = Version::ALL.into_iter().rev().filter(|known| {
        let is_older = Version::parse(version).map_or(true, |version| *known < version);
        let is_supported = |all: &[String]| all.iter().any(|it| it == known.as_str());
        is_older && supported.is_none_or(is_supported)
    });
    before.max().unwrap_or(Version::V1_0_0)
}
