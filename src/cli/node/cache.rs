//! The results of ADD that runtimes cache: libcni's cache, which containerd, CRI-O, podman, kubelet and cnitool use.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::Value;

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
    pub file: PathBuf,
    /// The whole entry; its keys are in lower case.
    root: Value,
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
        let entry = json::parse("cache", &content).ok()?;
        let root = JsonCursor::root("cache", &entry);
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
            root: entry,
            file,
        })
    }

    /// The configuration of ADD: a list of plugins, or a single one. `None` if the entry has none.
    pub fn configuration(&self) -> Option<Vec<u8>> {
        base64(self.root.get("config")?.as_str()?)
    }

    /// A value that the runtime passed to ADD for a capability.
    pub fn capability(&self, name: &str) -> Option<&Value> {
        let all = self.root.get("capabilityargs")?;
        all.get(name.to_ascii_lowercase())
    }

    /// The result as the last plugin returned it.
    pub fn document(&self) -> Option<&Value> {
        self.root.get("result")
    }

    /// The path of the container's network namespace.
    pub fn netns(&self) -> Option<&str> {
        let sandbox = self.container_interface().map(|it| &*it.sandbox);
        sandbox.or_else(|| self.root.get("netns")?.as_str())
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

/// Decodes a text as Go encodes a byte slice in JSON (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        let bits = group
            .iter()
            .try_fold(0, |bits, byte| Some(bits << 6 | u32::from(digit(*byte)?)))?;
        let decoded = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend(&decoded[1..group.len()]);
    }
    Some(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_decoded() {
        let decoded = ["", "eA==", "eDE=", "eDEy", "fn7/+w=="].map(|it| base64(it).unwrap());
        assert_eq!(decoded, [&b""[..], b"x", b"x1", b"x12", b"~~\xff\xfb"]);
        assert_eq!(base64("e-8="), None);
    }
}
