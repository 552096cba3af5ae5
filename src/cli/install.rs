//! `gangplank install` and `uninstall`: the binary under its plugin names, so that a runtime finds either the old or the
//! new program at every moment.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::build;
use crate::cli::plugins::{Identity, about, identify};
use crate::error::Error;
use crate::kernel::locks::lock_within;
use crate::kernel::process;
use crate::plugins;

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
    let placed = plugins::NAMES
        .iter()
        .map(|name| place(directory, &staged, name));
    let done: Vec<Result<String, Error>> = placed.collect();
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
    let restored = plugins::NAMES
        .iter()
        .map(|name| bring_back(directory, name));
    let restored: Vec<Result<String, Error>> = restored.collect();
    let lines: Vec<String> = restored.into_iter().collect::<Result<_, _>>()?;
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
        .mode(0o700)
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
    if identify(&target) == Identity::Other {
        let said = described(&target, "what was there");
        let older = keep(directory, name)?;
        kept = format!(", {said} is kept as {name}.orig");
        if let Some(older) = older {
            kept.push_str(&format!(", and the {name}.orig of before as {older}"));
        }
    }
    relink(staged, &directory.join(format!(".{name}.new")), &target)?;
    let version = build::version();
    Ok(format!("{}: {version}{kept}\n", target.display()))
}

/// What a program says that it is.
fn described(program: &Path, otherwise: &str) -> String {
    let said = about(program);
    match said.is_empty() {
        true => otherwise.to_owned(),
        false => said,
    }
}

/// Gives what is under a name a second one, `NAME.orig`. Another program that has that name keeps a numbered one, which is
/// returned: `uninstall` brings back the latest.
fn keep(directory: &Path, name: &str) -> Result<Option<String>, Error> {
    let (target, orig) = (directory.join(name), original(directory, name));
    let is_kept = orig.symlink_metadata().is_ok();
    let older = match is_kept && !is_same(&target, &orig) {
        true => Some(number(directory, name)?),
        false => None,
    };
    relink(&target, &directory.join(format!(".{name}.orig")), &orig)?;
    Ok(older)
}

/// Gives `NAME.orig` the first free name of `NAME.orig.1`, `NAME.orig.2` and so on as well.
fn number(directory: &Path, name: &str) -> Result<String, Error> {
    let orig = original(directory, name);
    let mut number = 1;
    loop {
        let older = format!("{name}.orig.{number}");
        match fs::hard_link(&orig, directory.join(&older)) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => number += 1,
            done => return at(&directory.join(&older), "create", done).map(|()| older),
        }
    }
}

/// Whether two names are of one file, of files with the same content, or of links to the same place.
fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::read_link(one), fs::read_link(other)) {
        (Ok(one), Ok(other)) => one == other,
        (Err(_), Err(_)) => {
            let contents = [fs::read(one), fs::read(other)];
            matches!(contents, [Ok(one), Ok(other)] if one == other)
        }
        _ => false,
    }
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
        Identity::Other => {
            let said = described(&target, "another program");
            format!("is not gangplank but {said:?}, and stays")
        }
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

/// Whose directory a file is in.
fn owner(file: &Path) -> Option<String> {
    let directory = file.ancestors().find(|it| it.is_dir())?;
    let owner = fs::metadata(directory).ok()?.uid();
    Some(format!("{} belongs to user {owner}", directory.display()))
}

fn at<T>(path: &Path, operation: &str, done: io::Result<T>) -> Result<T, Error> {
    done.map_err(|cause| {
        let remedy = match (cause.kind(), owner(path)) {
            (io::ErrorKind::PermissionDenied, Some(owner)) => format!(
                "{owner}; run it as root with the capabilities DAC_OVERRIDE and FOWNER, or name a directory that you may write"
            ),
            _ => "another directory can be named: gangplank install DIR".to_owned(),
        };
        Error::failed(format!("cannot {operation} {}: {cause}", path.display())).details(remedy)
    })
}
