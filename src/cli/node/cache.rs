//! The results of ADD that runtimes cache: libcni's cache, which containerd, CRI-O, podman, kubelet and cnitool use.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cni::Version;
use crate::cni::json::{self, JsonCursor};
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::{AddResult, Interface};
use crate::net::Cidr;

#[derive(Debug)]
pub struct CachedResult {
    pub network: NetworkName,
    pub attachment: Attachment,
    /// `namespace/name` of the pod, if the runtime passed it.
    pub pod: Option<String>,
    /// When the runtime wrote the file, which is after ADD.
    pub written: Option<SystemTime>,
    /// `None` if it cannot be parsed.
    result: Option<AddResult>,
}

impl CachedResult {
    /// Reads all files in the directories. Ignores files in other formats, and directories that do not exist.
    pub fn read_all(directories: &[PathBuf]) -> Vec<CachedResult> {
        let entries = directories.iter().flat_map(fs::read_dir).flatten();
        let files = entries.flatten().map(|entry| entry.path());
        files.filter_map(CachedResult::read).collect()
    }

    fn read(file: PathBuf) -> Option<CachedResult> {
        // Opening a FIFO blocks until it has a writer.
        let metadata = fs::metadata(&file).ok().filter(|it| it.is_file())?;
        let content = fs::read(&file).ok()?;
        let root = json::parse("cache", &content).ok()?;
        let root = JsonCursor::root("cache", &root);
        let text = |key| root.text(key).ok().flatten();
        if text("kind")? != "cniCacheV1" {
            return None;
        }
        let result = root.object("result").ok().flatten();
        Some(CachedResult {
            network: text("networkName")?.parse().ok()?,
            attachment: Attachment {
                container: text("containerId")?.parse().ok()?,
                interface: text("ifName")?.parse().ok()?,
            },
            pod: pod_name(&root),
            written: metadata.modified().ok(),
            result: result.and_then(|it| AddResult::parse(&it, Version::NEWEST).ok()),
        })
    }

    fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.result.iter().flat_map(|result| &result.interfaces)
    }

    /// The names of the interfaces on the host.
    pub fn host_interfaces(&self) -> impl Iterator<Item = &str> {
        let on_host = self.interfaces().filter(|it| it.sandbox.is_empty());
        on_host.map(|interface| &*interface.name)
    }

    pub fn addresses(&self) -> Vec<Cidr> {
        let ips = self.result.iter().flat_map(|result| &result.ips);
        ips.map(|ip| ip.address).collect()
    }

    /// The gateways, with the prefix length of their subnets.
    pub fn gateways(&self) -> Vec<Cidr> {
        let ips = self.result.iter().flat_map(|result| &result.ips);
        ips.filter_map(|ip| Cidr::new(ip.gateway?, ip.address.prefix()))
            .collect()
    }

    /// The interface in the container.
    pub fn container_interface(&self) -> Option<&Interface> {
        let name = self.attachment.interface.as_str();
        self.interfaces()
            .find(|it| !it.sandbox.is_empty() && it.name == name)
    }
}

/// The pod's name from `"cniArgs": [["K8S_POD_NAMESPACE", "default"], …]`.
fn pod_name(root: &JsonCursor) -> Option<String> {
    let pairs = root.list("cniArgs").ok().flatten()?;
    let value = |wanted: &str| {
        pairs.iter().find_map(|pair| {
            let texts = pair.clone().into_list().ok()?;
            let texts: Vec<&str> = texts.iter().filter_map(|it| it.as_text().ok()).collect();
            match texts[..] {
                [key, value] if key == wanted => Some(value.to_owned()),
                _ => None,
            }
        })
    };
    let (namespace, name) = (value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some(format!("{namespace}/{name}"))
}
