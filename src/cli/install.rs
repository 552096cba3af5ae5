//! `gangplank install` and `uninstall`: the binary under its plugin names, so that a runtime finds either the old or the
//! new program at every moment.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::plugins::{Identity, identify};
use crate::dispatch::Plugin;
use crate::error::Error;
use crate::host::locks::lock_within;
use crate::host::process;

/// How long to wait for another install: it copies two megabytes, and asks programs that may hang what they are.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Installs into a directory, which is made where it is not there. What another program had under one of the names is
/// kept as `NAME.orig`. Tells what was done, a line per plugin.
///
/// # Errors
/// When the directory cannot be written. What stood under a name before still stands there, or the new binary does.
pub fn install(directory: &Path) -> Result<String, Error> {
    at(directory, "create", fs::create_dir_all(directory))?;
    let _alone = alone(directory)?;
    let staged = directory.join(".gangplank.new");
    let written = stage(Path::new(process::OWN), &staged).inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    });
    at(&staged, "write", written)?;
    let done = Plugin::ALL.map(|plugin| place(directory, &staged, plugin.name()));
    at(&staged, "remove", fs::remove_file(&staged))?;
    let lines: Vec<String> = done.into_iter().collect::<Result<_, _>>()?;
    Ok(lines.concat())
}

/// Takes the plugins out of a directory: what `install` kept comes back, and where it kept nothing, nothing stays. A
/// program that is not gangplank stays. Tells what was done, a line per plugin.
///
/// # Errors
/// When the directory cannot be written.
pub fn uninstall(directory: &Path) -> Result<String, Error> {
    let _alone = alone(directory)?;
    let lines = Plugin::ALL.map(|plugin| bring_back(directory, plugin.name()));
    let lines: Vec<String> = lines.into_iter().collect::<Result<_, _>>()?;
    Ok(lines.concat())
}

/// Keeps others from installing into a directory meanwhile: the one's half of a file would get the other's name. `None`
/// where there is no directory.
fn alone(directory: &Path) -> Result<Option<File>, Error> {
    let opened = match File::open(directory) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => at(directory, "open", opened)?,
    };
    let locked = lock_within(opened, LOCK_LIMIT).map_err(|cause| {
        Error::failed(format!("cannot lock {}: {cause}", directory.display()))
            .details("another install or uninstall is at work there")
    })?;
    Ok(Some(locked))
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
    // Whatever the umask is: whoever runs a plugin need not be its owner.
    to.set_permissions(Permissions::from_mode(0o755))?;
    to.sync_all()
}

/// Puts the staged binary under a name, by a link and a rename.
fn place(directory: &Path, staged: &Path, name: &str) -> Result<String, Error> {
    let target = directory.join(name);
    let mut kept = String::new();
    if let Identity::Other(said) = identify(&target) {
        let orig = original(directory, name);
        let aside = directory.join(format!(".{name}.orig"));
        relink(&target, &aside, &orig)?;
        let said = if said.is_empty() {
            "what was there".to_owned()
        } else {
            said
        };
        kept = format!(", {said} is kept as {name}.orig");
    }
    relink(staged, &directory.join(format!(".{name}.new")), &target)?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!("{}: gangplank {version}{kept}\n", target.display()))
}

/// Gives a file a second name in place of whatever has that name, by way of a third one.
fn relink(file: &Path, aside: &Path, name: &Path) -> Result<(), Error> {
    at(aside, "remove", remove_if_there(aside))?;
    at(aside, "write", fs::hard_link(file, aside))?;
    at(name, "replace", fs::rename(aside, name))?;
    // A rename of one link of a file onto another does nothing and leaves both (rename(2)).
    at(aside, "remove", remove_if_there(aside))
}

fn bring_back(directory: &Path, name: &str) -> Result<String, Error> {
    let (target, orig) = (directory.join(name), original(directory, name));
    let done = match identify(&target) {
        Identity::Other(said) => format!("is not gangplank but {said:?}, and stays"),
        _ if orig.symlink_metadata().is_ok() => {
            at(&target, "replace", fs::rename(&orig, &target))?;
            format!("{name}.orig is back")
        }
        Identity::Absent => "is not there".to_owned(),
        Identity::This | Identity::Gangplank(_) => {
            at(&target, "remove", remove_if_there(&target))?;
            "removed; nothing had been there before".to_owned()
        }
    };
    Ok(format!("{}: {done}\n", target.display()))
}

fn original(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.orig"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn at<T>(path: &Path, operation: &str, done: io::Result<T>) -> Result<T, Error> {
    done.map_err(|cause| {
        let is_forbidden = cause.kind() == io::ErrorKind::PermissionDenied;
        let remedy = match is_forbidden {
            true => "run it as root, or name a directory that you may write",
            false => "another directory can be named: gangplank install DIR",
        };
        Error::failed(format!("cannot {operation} {}: {cause}", path.display())).details(remedy)
    })
}
