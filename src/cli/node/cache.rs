//! What runtimes remember of their ADDs: the cache of libcni, which containerd, CRI-O, podman, kubelet and cnitool use.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cni::Version;
use crate::cni::json::{self, JsonCursor};
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::AddResult;
use crate::net::Cidr;

/// An attachment as a runtime remembers it.
#[derive(Debug)]
pub struct Cached {
    /// Its network.
    pub network: NetworkName,
    /// Which one it is.
    pub attachment: Attachment,
    /// `namespace/name` of the pod, where the runtime told it.
    pub pod: Option<String>,
    /// When the runtime wrote it, after ADD.
    pub written: Option<SystemTime>,
    /// What ADD answered; `None` where that cannot be read.
    pub result: Option<AddResult>,
}

impl Cached {
    /// All that the directories hold; what is not of libcni is passed by, and so is a directory that is not there.
    pub fn read_all(directories: &[PathBuf]) -> Vec<Cached> {
        let listed = directories.iter().flat_map(fs::read_dir);
        listed
            .flatten()
            .flatten()
            .filter_map(|entry| Cached::read(&entry.path()))
            .collect()
    }

    fn read(file: &PathBuf) -> Option<Cached> {
        // Reading a pipe would wait for a writer.
        let metadata = fs::metadata(file).ok()?;
        let content = fs::read(Some(file).filter(|_| metadata.is_file())?).ok()?;
        let root = json::parse("cache", &content).ok()?;
        let root = JsonCursor::root("cache", &root);
        let text = |key| root.text(key).ok().flatten();
        if text("kind")? != "cniCacheV1" {
            return None;
        }
        let result = root.object("result").ok().flatten();
        let result = result.and_then(|result| AddResult::parse(&result, Version::NEWEST).ok());
        Some(Cached {
            network: text("networkName")?.parse().ok()?,
            attachment: Attachment {
                container: text("containerId")?.parse().ok()?,
                interface: text("ifName")?.parse().ok()?,
            },
            pod: pod(&root),
            written: metadata.modified().ok(),
            result,
        })
    }

    /// The names of the interfaces on the host that ADD told.
    pub fn host_interfaces(&self) -> impl Iterator<Item = &str> {
        let interfaces = self.result.iter().flat_map(|result| &result.interfaces);
        interfaces
            .filter(|interface| interface.sandbox.is_empty())
            .map(|interface| &*interface.name)
    }

    /// The addresses that ADD told.
    pub fn addresses(&self) -> Vec<Cidr> {
        let ips = self.result.iter().flat_map(|result| &result.ips);
        ips.map(|ip| ip.address).collect()
    }

    /// The gateways that ADD told, with the prefix length of their subnets.
    pub fn gateways(&self) -> impl Iterator<Item = Cidr> {
        let ips = self.result.iter().flat_map(|result| &result.ips);
        ips.filter_map(|ip| Cidr::new(ip.gateway?, ip.address.prefix()))
    }

    /// The MAC address inside the container, and the path of its namespace.
    pub fn inside(&self) -> Option<(&str, &str)> {
        let mut interfaces = self.result.iter().flat_map(|result| &result.interfaces);
        interfaces
            .find(|interface| {
                !interface.sandbox.is_empty()
                    && interface.name == self.attachment.interface.as_str()
            })
            .map(|interface| (&*interface.mac, &*interface.sandbox))
    }
}

/// From `[["K8S_POD_NAMESPACE", "default"], …]`.
fn pod(root: &JsonCursor) -> Option<String> {
    let pairs = root.list("cniArgs").ok().flatten()?;
    let value = |wanted: &str| {
        pairs.iter().find_map(|pair| {
            let texts = pair.clone().into_list().ok()?;
            let texts: Vec<&str> = texts
                .iter()
                .filter_map(|text| text.as_text().ok())
                .collect();
            match texts[..] {
                [key, value] if key == wanted => Some(value.to_owned()),
                _ => None,
            }
        })
    };
    Some(format!(
        "{}/{}",
        value("K8S_POD_NAMESPACE")?,
        value("K8S_POD_NAME")?
    ))
}
