//! The network configurations of the node, as runtimes read them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cli::chain::Chain;
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::error::Error;
use crate::ipam::HostLocal;
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::plan::check_routes;

/// A network whose pods are ports of a bridge.
#[derive(Debug)]
pub struct Configured {
    /// The file it is in.
    pub file: PathBuf,
    /// The configuration as the plugin would get it.
    pub conf: NetConf,
    /// What it says of the bridge.
    pub bridge: BridgeConfig,
    /// Its addresses; `None` where there are none or another plugin gives them.
    pub host_local: Option<HostLocal>,
    /// The plugin that gives the addresses.
    pub ipam: Option<String>,
}

/// What a directory of configurations holds.
#[derive(Debug, Default)]
pub struct Configurations {
    /// The networks, in the order of their files.
    pub networks: Vec<Configured>,
    /// Files that no runtime can use, with the reason.
    pub unusable: Vec<(PathBuf, Error)>,
    /// The types of all plugins that are named, each with a file that does.
    pub plugins: Vec<(String, PathBuf)>,
    /// The names of all networks, each with its file.
    pub names: Vec<(String, PathBuf)>,
    /// The lists of plugins, each with its file.
    pub chains: Vec<(Chain, PathBuf)>,
}

impl Configurations {
    /// Reads the files that runtimes read: `.conflist`, `.conf` and `.json`, in the order of their names. A directory
    /// that is missing holds none.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read(directory: &Path, data_dir: &Path) -> Result<Configurations, Error> {
        let mut found = Configurations::default();
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(cause) => {
                let what = format!("cannot read {}: {cause}", directory.display());
                return Err(Error::failed(what));
            }
        };
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.filter(|file| is_configuration(file)).collect();
        files.sort();
        for file in files {
            if let Err(error) = found.add(&file, data_dir) {
                found.unusable.push((file, error));
            }
        }
        Ok(found)
    }

    fn add(&mut self, file: &Path, data_dir: &Path) -> Result<(), Error> {
        let wrong = |what: String| Error::failed(what);
        let content = fs::read(file).map_err(|cause| wrong(format!("cannot be read: {cause}")))?;
        let root: Value = serde_json::from_slice(&content)
            .map_err(|cause| wrong(format!("is not JSON: {cause}")))?;
        let Value::Object(root) = root else {
            return Err(wrong("is not a JSON object".to_owned()));
        };
        let plugins = match root.get("plugins") {
            None => vec![root.clone()],
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                return Err(wrong("has an empty list of plugins".to_owned()));
            }
            Some(Value::Array(plugins)) => {
                let objects = plugins.iter().map(|it| it.as_object().cloned());
                let all: Option<Vec<_>> = objects.collect();
                all.ok_or_else(|| wrong("has a plugin that is no object".to_owned()))?
            }
            Some(_) => return Err(wrong("has plugins that are no list".to_owned())),
        };
        let name = root.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            return Err(wrong(
                "has no name: runtimes refuse a network without one".to_owned(),
            ));
        }
        self.names.push((name.to_owned(), file.to_owned()));
        self.chains
            .push((Chain::new(&root, &plugins), file.to_owned()));
        for plugin in plugins {
            let kind = plugin
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if kind.is_empty() {
                return Err(wrong(format!(
                    "has a plugin of network {name} without a type"
                )));
            }
            self.plugins.push((kind.to_owned(), file.to_owned()));
            // The plugin bridge needs no other program for host-local.
            let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type"));
            let ipam = ipam.and_then(Value::as_str).unwrap_or_default();
            if !matches!(ipam, "" | "host-local") {
                self.plugins.push((ipam.to_owned(), file.to_owned()));
            }
            if kind == "bridge" {
                self.networks
                    .push(configured(file, &root, plugin, data_dir)?);
            }
        }
        Ok(())
    }
}

fn is_configuration(file: &Path) -> bool {
    let kind = file.extension().and_then(|kind| kind.to_str());
    matches!(kind, Some("conf" | "conflist" | "json")) && file.is_file()
}

/// One plugin of a list, with what a runtime adds (CNI spec 1.1, section 3, "Deriving request configuration").
fn configured(
    file: &Path,
    root: &Map<String, Value>,
    mut plugin: Map<String, Value>,
    data_dir: &Path,
) -> Result<Configured, Error> {
    for key in ["name", "cniVersion"] {
        if let Some(value) = root.get(key) {
            plugin.insert(key.to_owned(), value.clone());
        }
    }
    let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type"));
    let ipam = ipam.and_then(Value::as_str).map(str::to_owned);
    if let Some(Value::Object(ipam)) = plugin
        .get_mut("ipam")
        .filter(|_| ipam.as_deref() == Some("host-local"))
    {
        let place = ipam.entry("dataDir").or_insert(Value::Null);
        if place.as_str().is_none_or(str::is_empty) {
            *place = data_dir.to_string_lossy().into();
        }
    }
    let conf = NetConf::parse(Value::Object(plugin).to_string().into_bytes())?;
    let args = Args::default();
    let host_local = match ipam.as_deref() {
        Some("host-local") => Some(HostLocal::parse(&conf, &args)?),
        _ => None,
    };
    check_routes(host_local.as_ref().map_or(&[], HostLocal::routes))?;
    Ok(Configured {
        file: file.to_owned(),
        bridge: BridgeConfig::parse(&conf, &args)?,
        host_local,
        ipam,
        conf,
    })
}
