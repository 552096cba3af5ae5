//! The network configurations of the node, as runtimes read them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cli::plugin_list::{ListedPlugin, PluginList};
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::error::Error;
use crate::ipam::HostLocal;
use crate::link::plan::check_routes;
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::flannel;

/// The configuration of a network whose pods are ports of a bridge.
#[derive(Debug)]
pub struct Configured {
    pub file: PathBuf,
    /// The configuration that the plugin bridge gets from a runtime.
    pub conf: NetConf,
    pub bridge: BridgeConfig,
    /// `None` if the network has no addresses, or another IPAM plugin.
    pub host_local: Option<HostLocal>,
    /// The type of the IPAM plugin.
    pub ipam: Option<String>,
}

/// The content of a directory of configurations, in the order of the files' names.
#[derive(Debug, Default)]
pub struct Configurations {
    pub networks: Vec<Configured>,
    /// host-local of the networks without a bridge.
    pub others: Vec<HostLocal>,
    /// Files that no runtime can use, with the reason.
    pub unusable: Vec<(PathBuf, Error)>,
    /// The plugins of each file, of all types.
    pub lists: Vec<(PluginList, PathBuf)>,
}

impl Configurations {
    /// Reads the files that runtimes read: `.conflist`, `.conf` and `.json`. The directory may be missing.
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
        let content =
            fs::read(file).map_err(|cause| Error::failed(format!("cannot be read: {cause}")))?;
        let list = PluginList::parse(&content)?;
        let parse = |plugin: &ListedPlugin| match (&*plugin.plugin_type, &plugin.request) {
            ("", _) => {
                let what = format!("has a plugin of network {} without a type", list.name);
                Err(Error::failed(what))
            }
            ("bridge", Some(request)) => parse_bridge(file, request.clone(), data_dir).map(Some),
            ("flannel", Some(request)) => {
                let conf = NetConf::parse(Value::Object(request.clone()).to_string().into_bytes())?;
                let delegated = flannel::bridge_configuration(&conf)?;
                let parse = |request| parse_bridge(file, request, data_dir);
                delegated.map(parse).transpose()
            }
            _ => plugin.validate().map(|()| None),
        };
        let parsed: Vec<Result<Option<Configured>, Error>> =
            list.plugins.iter().map(parse).collect();
        let others = list.plugins.iter().filter(|plugin| {
            let plugin_type = plugin.plugin_type.as_str();
            !matches!(plugin_type, "bridge" | "flannel")
        });
        let others = others.filter_map(|plugin| other_host_local(plugin, data_dir));
        self.others.extend(others);
        self.lists.push((list, file.to_owned()));
        for network in parsed {
            self.networks.extend(network?);
        }
        Ok(())
    }
}

fn is_configuration(file: &Path) -> bool {
    let extension = file.extension().and_then(|it| it.to_str());
    matches!(extension, Some("conf" | "conflist" | "json")) && file.is_file()
}

/// Parses a configuration of the plugin bridge. `data_dir` is the directory of leases if it names none.
fn parse_bridge(
    file: &Path,
    mut request: Map<String, Value>,
    data_dir: &Path,
) -> Result<Configured, Error> {
    let ipam = request.get("ipam").and_then(|ipam| ipam.get("type"));
    let ipam = ipam.and_then(Value::as_str).map(str::to_owned);
    let is_host_local = ipam.as_deref() == Some("host-local");
    if is_host_local {
        set_data_dir(&mut request, data_dir);
    }
    let conf = NetConf::parse(Value::Object(request).to_string().into_bytes())?;
    let args = Args::default();
    let host_local = match is_host_local {
        true => Some(HostLocal::parse(&conf, &args)?),
        false => None,
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

/// host-local of a plugin other than bridge. `None` also if it cannot be parsed: the plugins of other projects may
/// complete their configuration themselves, as calico does with `"subnet": "usePodCidr"`.
fn other_host_local(plugin: &ListedPlugin, data_dir: &Path) -> Option<HostLocal> {
    let mut request = plugin.request.clone()?;
    if request.get("ipam")?.get("type")? != "host-local" {
        return None;
    }
    set_data_dir(&mut request, data_dir);
    let conf = NetConf::parse(Value::Object(request).to_string().into_bytes()).ok()?;
    HostLocal::parse(&conf, &Args::default()).ok()
}

/// Sets the directory of leases if the configuration of host-local names none.
fn set_data_dir(request: &mut Map<String, Value>, data_dir: &Path) {
    if let Some(Value::Object(ipam)) = request.get_mut("ipam") {
        let configured = ipam.entry("dataDir").or_insert(Value::Null);
        if configured.as_str().is_none_or(str::is_empty) {
            *configured = data_dir.to_string_lossy().into();
        }
    }
}
