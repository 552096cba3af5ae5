//! `gangplank install` and `uninstall`: links the binary under the plugins' names, so that a runtime finds the old or the new
//! program at any time.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::build;
use crate::cli::plugins::{Identity, identify, self_description};
use crate::error::Error;
use crate::kernel::locks::lock_within;
use crate::kernel::process;

/// Another installation copies two megabytes, and executes the programs that it replaces, which may hang.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Installs the named plugins in a directory, which is created if it does not exist. Another program of the same name is
/// kept as `NAME.orig`. Returns a line for each plugin.
///
/// # Errors
/// If the directory cannot be written. Each name then refers either to the old or to the new program.
pub fn install(directory: &Path, names: &[&str]) -> Result<String, Error> {
    with_path(directory, "create", fs::create_dir_all(directory))?;
    let _lock = lock(directory)?;
    let staged = directory.join(".gangplank.new");
    let written = stage(Path::new(process::OWN), &staged).inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    });
    with_path(&staged, "write", written)?;
    let installed = for_each(names, |name| install_plugin(directory, &staged, name));
    with_path(&staged, "remove", fs::remove_file(&staged))?;
    installed
}

/// Removes the named plugins from a directory and restores each `NAME.orig`. A program other than gangplank is left unchanged.
/// Returns a line for each plugin.
pub fn uninstall(directory: &Path, names: &[&str]) -> Result<String, Error> {
    let _lock = lock(directory)?;
    for_each(names, |name| uninstall_plugin(directory, name))
}

/// Calls `run` for all names, and returns its lines or its first error.
fn for_each(names: &[&str], run: impl Fn(&str) -> Result<String, Error>) -> Result<String, Error> {
    let lines: Vec<Result<String, Error>> = names.iter().map(|name| run(name)).collect();
    lines.into_iter().collect()
}

/// Locks a directory, because two installs write the same temporary file. `None` if there is no directory.
fn lock(directory: &Path) -> Result<Option<File>, Error> {
    let opened = match File::open(directory) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => with_path(directory, "open", opened)?,
    };
    let locked = lock_within(opened, LOCK_LIMIT).map_err(|cause| {
        Error::failed(format!("cannot lock {}: {cause}", directory.display()))
            .details("another install or uninstall is in progress there")
    })?;
    Ok(Some(locked))
}

/// Copies the binary to a temporary file, which is synced before it gets a plugin's name.
fn stage(binary: &Path, staged: &Path) -> io::Result<()> {
    remove_if_exists(staged)?;
    let mut from = File::open(binary)?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(staged)?;
    io::copy(&mut from, &mut to)?;
    // Regardless of the umask: the runtime may run as another user than the file's owner.
    to.set_permissions(Permissions::from_mode(0o755))?;
    to.sync_all()
}

/// Links the staged binary under a plugin's name.
fn install_plugin(directory: &Path, staged: &Path, name: &str) -> Result<String, Error> {
    let target = directory.join(name);
    let mut kept = String::new();
    if identify(&target) == Identity::Other {
        let program = self_description(&target).unwrap_or_else(|| "the existing file".to_owned());
        let older = keep_original(directory, name)?;
        kept = format!(", {program} is kept as {name}.orig");
        if let Some(older) = older {
            kept.push_str(&format!(", and the {name}.orig of before as {older}"));
        }
    }
    relink(staged, &directory.join(format!(".{name}.new")), &target)?;
    let version = build::version();
    Ok(format!("{}: {version}{kept}\n", target.display()))
}

/// Links an existing file as `NAME.orig`, which `uninstall` restores. If that name belongs to another file, the other
/// one gets a number, and its new name is returned.
fn keep_original(directory: &Path, name: &str) -> Result<Option<String>, Error> {
    let (target, orig) = (directory.join(name), original(directory, name));
    let is_kept = orig.symlink_metadata().is_ok();
    let older = match is_kept && !is_same(&target, &orig) {
        true => Some(rename_older_original(directory, name)?),
        false => None,
    };
    relink(&target, &directory.join(format!(".{name}.orig")), &orig)?;
    Ok(older)
}

/// Links `NAME.orig` under the first free name of `NAME.orig.1`, `NAME.orig.2` and so on.
fn rename_older_original(directory: &Path, name: &str) -> Result<String, Error> {
    let orig = original(directory, name);
    let mut number = 1;
    loop {
        let older = format!("{name}.orig.{number}");
        match fs::hard_link(&orig, directory.join(&older)) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => number += 1,
            done => return with_path(&directory.join(&older), "create", done).map(|()| older),
        }
    }
}

/// Whether two names are symbolic links with the same target, or files with the same content.
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

/// Links a file under another name, replacing an existing file atomically: links it under a temporary name, and renames that.
fn relink(file: &Path, temporary: &Path, name: &Path) -> Result<(), Error> {
    with_path(temporary, "remove", remove_if_exists(temporary))?;
    with_path(temporary, "write", fs::hard_link(file, temporary))?;
    with_path(name, "replace", fs::rename(temporary, name))?;
    // A rename of one link of a file onto another does nothing and leaves both (rename(2)).
    with_path(temporary, "remove", remove_if_exists(temporary))
}

fn uninstall_plugin(directory: &Path, name: &str) -> Result<String, Error> {
    let (target, orig) = (directory.join(name), original(directory, name));
    let done = match identify(&target) {
        Identity::Other => {
            let program = self_description(&target).unwrap_or_else(|| "another program".to_owned());
            format!("is not gangplank but {program:?}, and stays")
        }
        _ if orig.symlink_metadata().is_ok() => {
            with_path(&target, "replace", fs::rename(&orig, &target))?;
            format!("{name}.orig is back")
        }
        Identity::Absent => "is not there".to_owned(),
        Identity::This | Identity::Gangplank(_) => {
            with_path(&target, "remove", remove_if_exists(&target))?;
            "removed; nothing had been there before".to_owned()
        }
    };
    Ok(format!("{}: {done}\n", target.display()))
}

fn original(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.orig"))
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The owner of the nearest existing directory.
fn owner(file: &Path) -> Option<String> {
    let directory = file.ancestors().find(|it| it.is_dir())?;
    let owner = fs::metadata(directory).ok()?.uid();
    Some(format!("{} belongs to user {owner}", directory.display()))
}

fn with_path<T>(path: &Path, operation: &str, done: io::Result<T>) -> Result<T, Error> {
    done.map_err(|cause| {
        let remedy = match (cause.kind(), owner(path)) {
            (io::ErrorKind::PermissionDenied, Some(owner)) => format!(
                "{owner}; run it as root with the capabilities DAC_OVERRIDE and FOWNER, or pass a directory that you may write"
            ),
            _ => "another directory can be used: gangplank install DIR".to_owned(),
        };
        Error::failed(format!("cannot {operation} {}: {cause}", path.display())).details(remedy)
    })
}
