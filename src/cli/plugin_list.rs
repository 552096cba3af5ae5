//! A network configuration as a list of plugins, and whether each plugin supports it. Runtimes call all plugins with
//! the list's `cniVersion` and, from 1.1.0 on, with STATUS, where an error keeps a Kubernetes node NotReady.

use std::path::Path;

use serde_json::{Map, Value};

use crate::cli::doctor::finding::{Finding, Id};
use crate::cli::plugins::{find, status, supported_versions};
use crate::cni::Version;
use crate::cni::conf::NetConf;
use crate::error::Error;
use crate::plugins;

/// A list of plugins (CNI spec 1.1, section 1). A configuration of a single plugin is a list of one.
#[derive(Debug)]
pub struct PluginList {
    /// The network's name.
    pub name: String,
    pub version: String,
    pub plugins: Vec<ListedPlugin>,
}

#[derive(Debug)]
pub struct ListedPlugin {
    /// `type`; empty if absent.
    pub plugin_type: String,
    /// What a runtime passes to it (CNI spec 1.1, section 3, "Deriving request configuration"); absent for an IPAM plugin,
    /// which another plugin calls.
    pub request: Option<Map<String, Value>>,
}

impl ListedPlugin {
    /// Checks the keys, if it is a plugin of this program. A name with a prefix may be that of another program.
    ///
    /// # Errors
    /// The first invalid key.
    pub fn validate(&self) -> Result<(), Error> {
        let entry = plugins::named(&self.plugin_type).filter(|it| it.name() == self.plugin_type);
        match entry.zip(self.request.clone()) {
            Some((entry, request)) => {
                let request = Value::Object(request).to_string();
                entry.validate(NetConf::parse(request.into_bytes())?)
            }
            None => Ok(()),
        }
    }
}

impl PluginList {
    /// Parses the content of a configuration file.
    ///
    /// # Errors
    /// If runtimes reject it. The message continues a sentence that starts with the name of the file.
    pub fn parse(content: &[u8]) -> Result<PluginList, Error> {
        let root: Value = serde_json::from_slice(content)
            .map_err(|cause| Error::failed(format!("is not JSON: {cause}")))?;
        let Value::Object(root) = root else {
            return Err(Error::failed("is not a JSON object"));
        };
        let plugins = match root.get("plugins") {
            None => Some(vec![root.clone()]),
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                return Err(Error::failed("has an empty list of plugins"));
            }
            Some(Value::Array(plugins)) => {
                plugins.iter().map(|it| it.as_object().cloned()).collect()
            }
            Some(_) => return Err(Error::failed("has plugins that are no list")),
        };
        let plugins = plugins.ok_or_else(|| Error::failed("has a plugin that is no object"))?;
        let name = text(&root, "name");
        if name.is_empty() {
            return Err(Error::failed(
                "has no name: runtimes refuse a network without one",
            ));
        }
        let mut list = PluginList {
            name,
            version: text(&root, "cniVersion"),
            plugins: Vec::new(),
        };
        for mut request in plugins {
            for key in ["name", "cniVersion"] {
                if let Some(value) = root.get(key) {
                    request.insert(key.to_owned(), value.clone());
                }
            }
            let ipam = request.get("ipam").and_then(Value::as_object);
            let ipam = ipam.map(|ipam| text(ipam, "type")).unwrap_or_default();
            list.plugins.push(ListedPlugin {
                plugin_type: text(&request, "type"),
                request: Some(request),
            });
            // The plugin bridge needs no other program for host-local and static.
            if !matches!(ipam.as_str(), "" | "host-local" | "static") {
                list.plugins.push(ListedPlugin {
                    plugin_type: ipam,
                    request: None,
                });
            }
        }
        Ok(list)
    }

    /// The installed plugins that do not support the list's version or STATUS.
    pub fn unsupported(&self, cni_path: &str) -> Vec<Finding> {
        let check = |plugin: &ListedPlugin| {
            self.check(plugin, &find(cni_path, &plugin.plugin_type)?, cni_path)
        };
        self.plugins.iter().filter_map(check).collect()
    }

    fn check(&self, plugin: &ListedPlugin, file: &Path, cni_path: &str) -> Option<Finding> {
        // An absent version is the oldest one (CNI spec 0.2.0, "Network Configuration").
        let version = match self.version.as_str() {
            "" => Version::V0_1_0.as_str(),
            version => version,
        };
        let has_status = Version::parse(version).is_ok_and(|known| known >= Version::V1_1_0);
        let versions = supported_versions(file, cni_path);
        let status = match plugin.request.clone().filter(|_| has_status) {
            Some(request) => status(
                file,
                cni_path,
                Value::Object(request).to_string().as_bytes(),
            ),
            None => Ok(()),
        };
        let is_supported = matches!(&versions, Ok(all) if all.iter().any(|it| it == version));
        let (name, plugin) = (&self.name, &plugin.plugin_type);
        let older = newest_before(version, versions.as_deref().ok());
        let finding = match (is_supported, &status) {
            (true, Ok(())) => return None,
            (false, _) => Finding::new(
                Id::PluginCniVersion,
                format!("plugin {plugin} does not support cniVersion {version} of network {name}: every ADD fails"),
            )
            .remedy(format!("set cniVersion to {older} in the list, or install a newer {plugin}")),
            (true, Err(_)) => Finding::new(
                Id::PluginStatus,
                format!("plugin {plugin} of network {name} answers STATUS with an error: a Kubernetes node stays NotReady"),
            )
            .remedy(format!("fix the reported error; if it does not support STATUS, install a newer {plugin} or set cniVersion to {older} in the list")),
        };
        let (file, versions) = (file.display(), versions.map(|all| all.join(", ")));
        let versions = versions.unwrap_or_else(|error| error);
        let finding = finding.evidence(format!("{file} answers VERSION: {versions}"));
        Some(match status {
            Ok(()) => finding,
            Err(error) => finding.evidence(format!("{file} answers STATUS: {error}")),
        })
    }
}

/// The value of a key; empty if absent.
fn text(object: &Map<String, Value>, key: &str) -> String {
    let text = object.get(key).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// The newest version before this one that is among the supported ones.
fn newest_before(version: &str, supported: Option<&[String]>) -> Version {
    let before = Version::ALL.into_iter().filter(|known| {
        let is_older = Version::parse(version).map_or(true, |version| *known < version);
        let is_supported = |all: &[String]| all.iter().any(|it| it == known.as_str());
        is_older && supported.is_none_or(is_supported)
    });
    before.max().unwrap_or(Version::V1_0_0)
}
