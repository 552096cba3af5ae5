//! The backup file of an attachment: the values from before the ADD, in the format of the Go plugin and with the sysctls,
//! which the Go plugin ignores.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, DirEntry};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cni::ValidAttachments;
use crate::cni::json::is_unset;
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::result::indented;
use crate::error::{Error, Failures};
use crate::kernel::files;
use crate::kernel::netlink::LinkSetting;
use crate::kernel::sysctl::NetSysctl;
use crate::plugins::tuning::values::Values;

/// The content of the file. A value of zero or an empty one is absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Saved {
    #[serde(skip_serializing_if = "is_unset")]
    mac: String,
    #[serde(skip_serializing_if = "is_unset")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_unset")]
    mtu: u32,
    #[serde(skip_serializing_if = "is_unset")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "is_unset")]
    tx_queue_length: Option<u32>,
    /// By path below /proc/sys.
    #[serde(skip_serializing_if = "is_unset")]
    sysctl: BTreeMap<String, String>,
    /// The network, for GC.
    #[serde(skip_serializing_if = "is_unset")]
    network: String,
}

impl Saved {
    pub fn new(values: &Values, network: &NetworkName) -> Saved {
        let sysctls = values.sysctls.iter();
        let mut saved = Saved {
            sysctl: sysctls
                .map(|(sysctl, value)| (sysctl.path().to_owned(), value.clone()))
                .collect(),
            network: network.to_string(),
            ..Saved::default()
        };
        for setting in &values.settings {
            match *setting {
                LinkSetting::Mac(mac) => saved.mac = mac.to_string(),
                LinkSetting::Promiscuous(enabled) => saved.promisc = Some(enabled),
                LinkSetting::Mtu(mtu) => saved.mtu = mtu,
                LinkSetting::AllMulticast(enabled) => saved.allmulti = Some(enabled),
                LinkSetting::TxQueueLength(length) => saved.tx_queue_length = Some(length),
            }
        }
        saved
    }

    /// These values, and those of `later` that are missing: the older ones are from before the first ADD.
    pub fn or(self, later: Saved) -> Saved {
        let mut sysctl = later.sysctl;
        sysctl.extend(self.sysctl);
        Saved {
            mac: Some(self.mac)
                .filter(|mac| !mac.is_empty())
                .unwrap_or(later.mac),
            promisc: self.promisc.or(later.promisc),
            mtu: Some(self.mtu).filter(|mtu| *mtu != 0).unwrap_or(later.mtu),
            allmulti: self.allmulti.or(later.allmulti),
            tx_queue_length: self.tx_queue_length.or(later.tx_queue_length),
            sysctl,
            network: later.network,
        }
    }

    /// The saved values, as far as they are valid.
    pub fn values(&self) -> Values {
        let settings = [
            self.mac.parse().ok().map(LinkSetting::Mac),
            self.promisc.map(LinkSetting::Promiscuous),
            Some(self.mtu).filter(|mtu| *mtu != 0).map(LinkSetting::Mtu),
            self.allmulti.map(LinkSetting::AllMulticast),
            self.tx_queue_length.map(LinkSetting::TxQueueLength),
        ];
        let sysctls = self.sysctl.iter();
        Values {
            sysctls: sysctls
                .filter_map(|(path, value)| Some((NetSysctl::at(path)?, value.clone())))
                .collect(),
            settings: settings.into_iter().flatten().collect(),
        }
    }
}

/// The backup file of an attachment.
#[derive(Clone, Debug)]
pub struct Backup {
    path: PathBuf,
}

impl Backup {
    pub fn of(directory: &Path, attachment: &Attachment) -> Backup {
        Backup {
            path: directory.join(file_name(attachment)),
        }
    }

    /// `None` if there is no file.
    ///
    /// # Errors
    /// If it cannot be read or is invalid.
    pub fn read(&self) -> Result<Option<Saved>, Error> {
        match read(&self.path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            saved => saved.map(Some).map_err(|cause| self.failed("read", cause)),
        }
    }

    /// Creates or replaces the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, saved: &Saved) -> Result<(), Error> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        create_directory(directory)
            .and_then(|()| files::replace(&self.path, &indented(saved, b" ")))
            .map_err(|cause| self.failed("write", cause))
    }

    /// Removes the file and its temporary file, as far as they exist.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        let files = [&self.path, &files::temporary(&self.path)];
        files
            .into_iter()
            .try_for_each(|file| match fs::remove_file(file) {
                Err(cause) if is_absent(&cause) => Ok(()),
                removed => removed.map_err(|cause| self.failed("remove", cause)),
            })
    }

    fn failed(&self, operation: &str, cause: io::Error) -> Error {
        let path = self.path.display();
        Error::failed(format!(
            "cannot {operation} the backup file {path}: {cause}"
        ))
    }
}

/// Removes the files of a network whose attachments are not valid. Files of the Go plugin do not name their network.
///
/// # Errors
/// If a file cannot be removed, after all others were tried.
pub fn gc(directory: &Path, network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Err(cause) if is_absent(&cause) => return Ok(()),
        entries => entries.map_err(|cause| {
            let directory = directory.display();
            Error::failed(format!(
                "cannot list the backup files in {directory}: {cause}"
            ))
        })?,
    };
    let valid: BTreeSet<String> = valid.all().map(|it| file_name(&it)).collect();
    let is_stale = |entry: &DirEntry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        !valid.contains(name.strip_suffix(files::TEMPORARY).unwrap_or(&name))
    };
    let mut failures = Failures::default();
    for entry in entries.flatten().filter(is_stale) {
        let path = entry.path();
        if read(&path).is_ok_and(|saved| saved.network == network.as_str()) {
            failures.note(Backup { path }.remove());
        }
    }
    failures.into_result()
}

fn file_name(attachment: &Attachment) -> String {
    format!("{}_{}.json", attachment.container, attachment.interface)
}

fn read(path: &Path) -> io::Result<Saved> {
    let mut bytes = Vec::new();
    files::no_follow()
        .read(true)
        .open(path)?
        .read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn is_absent(cause: &io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Only the directory itself is closed to other users: other programs use its parents, for example /run/cni.
fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let create = |path: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(path);
    directory
        .parent()
        .map_or(Ok(()), |parent| create(parent, 0o755))?;
    create(directory, 0o700)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(text: &str) -> Saved {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_format_is_that_of_the_go_plugin_with_the_sysctls() {
        let values = Values {
            sysctls: vec![(NetSysctl::at("net/core/somaxconn").unwrap(), "4096".into())],
            settings: vec![
                LinkSetting::Mac("42:fa:4f:c3:a5:c4".parse().unwrap()),
                LinkSetting::Promiscuous(false),
                LinkSetting::Mtu(1500),
                LinkSetting::AllMulticast(false),
                LinkSetting::TxQueueLength(1000),
            ],
        };
        let text = indented(&Saved::new(&values, &"small".parse().unwrap()), b" ");
        let of_go = "{\n \"mac\": \"42:fa:4f:c3:a5:c4\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false,\n \
                     \"txQLen\": 1000";
        let ours = ",\n \"sysctl\": {\n  \"net/core/somaxconn\": \"4096\"\n },\n \"network\": \"small\"\n}";
        assert_eq!(text, format!("{of_go}{ours}"));
        assert_eq!(saved(&text).values(), values);
        assert_eq!(
            saved(&format!("{of_go}\n}}")).values().settings,
            values.settings
        );
    }

    #[test]
    fn older_values_are_kept() {
        let old =
            saved(r#"{"mtu": 1500, "promisc": false, "sysctl": {"net/core/somaxconn": "4096"}}"#);
        let new = saved(
            r#"{"mac": "02:00:00:00:00:01", "promisc": true, "mtu": 1400, "sysctl": {"net/core/somaxconn": "1",
            "net/core/xfrm_larval_drop": "1"}, "network": "n"}"#,
        );
        let merged = saved(
            r#"{"mac": "02:00:00:00:00:01", "promisc": false, "mtu": 1500, "sysctl": {"net/core/somaxconn":
            "4096", "net/core/xfrm_larval_drop": "1"}, "network": "n"}"#,
        );
        assert_eq!(old.or(new), merged);
    }

    #[test]
    fn invalid_values_of_a_file_are_ignored() {
        let saved =
            saved(r#"{"mac": "x", "sysctl": {"kernel/hostname": "x", "net/../kernel/x": "x"}}"#);
        assert_eq!(saved.values(), Values::default());
    }
}
