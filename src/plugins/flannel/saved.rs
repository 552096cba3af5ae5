//! The configurations with which delegates were called, for DEL: a file for each container, shared with the Go plugin.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cni::ValidAttachments;
use crate::cni::names::{ContainerId, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::files;

pub struct SavedConfs<'a> {
    directory: &'a Path,
    network: &'a NetworkName,
}

impl<'a> SavedConfs<'a> {
    pub fn new(directory: &'a str, network: &'a NetworkName) -> SavedConfs<'a> {
        SavedConfs {
            directory: Path::new(directory),
            network,
        }
    }

    fn path(&self, container: &ContainerId) -> PathBuf {
        self.directory.join(container.as_str())
    }

    /// The configuration of a container's attachment to this network. `None` if there is none, if a crash truncated it,
    /// or if it is of another network.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, container: &ContainerId) -> Result<Option<Map<String, Value>>, Error> {
        let saved = self.load(container)?;
        Ok(saved.filter(|saved| self.is_own(saved)))
    }

    /// Saves a configuration. That of another network is kept: the Go plugin would need it, and DEL does without.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, container: &ContainerId, conf: &str) -> Result<(), Error> {
        if self
            .load(container)?
            .is_some_and(|other| !self.is_own(&other))
        {
            return Ok(());
        }
        let mut directory = DirBuilder::new();
        let created = directory.recursive(true).mode(0o700).create(self.directory);
        created.map_err(|cause| failed("create", self.directory, &cause))?;
        let path = self.path(container);
        files::replace(&path, conf).map_err(|cause| failed("write", &path, &cause))
    }

    /// Removes the configuration of a container's attachment to this network.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        if self
            .load(container)?
            .is_some_and(|other| !self.is_own(&other))
        {
            return Ok(());
        }
        let path = self.path(container);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path, &cause))
            }
            _ => Ok(()),
        }
    }

    /// `None` without a file, and if it is no JSON object.
    fn load(&self, container: &ContainerId) -> Result<Option<Map<String, Value>>, Error> {
        let path = self.path(container);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read", &path, &cause)),
        }
    }

    fn is_own(&self, saved: &Map<String, Value>) -> bool {
        saved.get("name").and_then(Value::as_str) == Some(self.network.as_str())
    }

    /// Removes the configurations of containers that have no valid attachment.
    pub fn gc(&self, valid: &ValidAttachments, failures: &mut Failures) {
        let entries = fs::read_dir(self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for container in names {
            let is_valid = valid.all().any(|it| it.container == container);
            if !is_valid && matches!(self.read(&container), Ok(Some(_))) {
                failures.note(self.remove(&container));
            }
        }
    }
}

fn failed(operation: &str, path: &Path, cause: &std::io::Error) -> Error {
    Error::failed(format!("cannot {operation} {}: {cause}", path.display()))
        .details("DEL of the container reads the saved configuration")
}
