//! `gangplank install`: puts the binary under its plugin names, so that a runtime finds either the old or the new one
//! at every moment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::dispatch::Plugin;
use crate::error::Error;

/// Installs into a directory, which is made where it is not there. What another program had under one of the names is
/// kept as `NAME.orig`. Tells what was done, a line per plugin.
///
/// # Errors
/// When the directory cannot be written. What stood under a name before still stands there, or the new binary does.
pub fn install(directory: &Path) -> Result<Vec<String>, Error> {
    let binary = std::env::current_exe()
        .map_err(|cause| Error::failed(format!("install: cannot find this program: {cause}")))?;
    at(directory, "create", fs::create_dir_all(directory))?;
    let staged = directory.join(".gangplank.new");
    at(&staged, "write", stage(&binary, &staged))?;
    let done = Plugin::ALL.map(|plugin| place(directory, &staged, plugin.name()));
    at(&staged, "remove", fs::remove_file(&staged))?;
    done.into_iter().collect()
}

/// Copies the binary aside, complete on disk before it gets a name that anybody runs.
fn stage(binary: &Path, staged: &Path) -> io::Result<()> {
    remove_if_there(staged)?;
    let mut from = File::open(binary)?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(staged)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()
}

/// Puts the staged binary under a name, by a link and a rename.
fn place(directory: &Path, staged: &Path, name: &str) -> Result<String, Error> {
    let target = directory.join(name);
    let kept = directory.join(format!("{name}.orig"));
    let mut line = format!(
        "{}: gangplank {}",
        target.display(),
        env!("CARGO_PKG_VERSION")
    );
    if is_foreign(&target, staged) && !kept.exists() {
        at(&kept, "write", fs::hard_link(&target, &kept))?;
        line.push_str(&format!(", what was there is kept as {name}.orig"));
    }
    let linked = directory.join(format!(".{name}.new"));
    at(&linked, "remove", remove_if_there(&linked))?;
    at(&linked, "write", fs::hard_link(staged, &linked))?;
    at(&target, "replace", fs::rename(&linked, &target))?;
    // A rename of one link of a file onto another does nothing and leaves both (rename(2)).
    at(&linked, "remove", remove_if_there(&linked))?;
    Ok(line)
}

/// Whether another program is there.
fn is_foreign(target: &Path, staged: &Path) -> bool {
    match (fs::read(target), fs::read(staged)) {
        (Ok(there), Ok(ours)) => there != ours,
        (Ok(_), Err(_)) => true,
        (Err(_), _) => false,
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn at<T>(path: &Path, operation: &str, done: io::Result<T>) -> Result<T, Error> {
    done.map_err(|cause| {
        Error::failed(format!(
            "install: cannot {operation} {}: {cause}",
            PathBuf::from(path).display()
        ))
        .details("run it as root, or name a directory that you may write")
    })
}
