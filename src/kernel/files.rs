//! Files in directories where other users may have put something else: symbolic links are not followed, and opening a
//! FIFO does not block.

use std::fs::{self, OpenOptions};
use std::io::{self, Error, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, access};

use crate::kernel::retry::retry_on_eintr;

/// Checks that files can be created in a directory, which may have to be created first. A transient failure is not an
/// error.
///
/// # Errors
/// The directory that is not writable, and the cause.
pub fn check_writable(directory: &Path) -> Result<(), String> {
    let refused = |path: &Path, cause: Error| Err(format!("{}: {cause}", path.display()));
    for path in directory.ancestors() {
        match access(path, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) if path.is_dir() => return Ok(()),
            Ok(()) => return refused(path, ErrorKind::NotADirectory.into()),
            Err(errno) => match Error::from(errno) {
                cause if cause.kind() == ErrorKind::NotFound => {
                    if path.is_symlink() {
                        return refused(path, Error::other("a dangling symbolic link"));
                    }
                }
                cause if needs_repair(&cause) => return refused(path, cause),
                _ => return Ok(()),
            },
        }
    }
    // A relative path begins in the working directory, which exists.
    Ok(())
}

/// Whether a failure persists until an administrator repairs the path or its permissions. A full disk, a lack of memory
/// or file descriptors, an interrupted call and an unreachable server are transient.
pub fn needs_repair(cause: &Error) -> bool {
    let Some(errno) = cause.raw_os_error().map(Errno::from_raw) else {
        return true;
    };
    matches!(
        errno,
        Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::ELOOP
            | Errno::ENAMETOOLONG
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EROFS
            | Errno::ENOEXEC
    )
}

/// Options to open a file; a symbolic link at the path is an error ([`is_link`]).
pub fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// Whether opening failed because the path is a symbolic link (open(2), "O_NOFOLLOW").
pub fn is_link(cause: &Error) -> bool {
    cause.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Gives a file with this content a new name, under which it appears completely or not at all. The old name may remain.
/// FAT, 9p and some FUSE file systems lack hard links: there the file is renamed. If the file system cannot rename
/// without overwriting, the content is written to a new file, which is removed if that fails.
///
/// # Errors
/// EEXIST if the name is in use; those of link(2), renameat2(2) and open(2).
pub fn name_new(file: &Path, name: &Path, content: &[u8]) -> io::Result<()> {
    let linked = retry_on_eintr(|| fs::hard_link(file, name));
    if !linked.as_ref().is_err_and(is_unsupported) {
        return linked;
    }
    let rename = || {
        Ok(renameat2(
            AT_FDCWD,
            file,
            AT_FDCWD,
            name,
            RenameFlags::RENAME_NOREPLACE,
        )?)
    };
    let renamed = retry_on_eintr(rename);
    if !renamed.as_ref().is_err_and(is_unsupported) {
        return renamed;
    }
    let mut options = OpenOptions::new();
    let mut new = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(name)?;
    new.write_all(content).inspect_err(|_| {
        let _ = fs::remove_file(name);
    })
}

/// The suffix of temporary files.
pub const TEMPORARY: &str = ".tmp";

/// The temporary file of [`replace`], which may remain if the process is killed.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY);
    path.with_file_name(name)
}

/// Replaces a file, of mode 0600. Other processes see the old content or the new one.
///
/// # Errors
/// Those of open(2), write(2) and rename(2).
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    let temporary = temporary(path);
    let mut options = no_follow();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let replaced = retry_on_eintr(|| options.open(&temporary))
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| retry_on_eintr(|| fs::rename(&temporary, path)));
    replaced.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// The errors of an operation that the file system does not support (link(2), rename(2)).
fn is_unsupported(cause: &Error) -> bool {
    let errno = Errno::from_raw(cause.raw_os_error().unwrap_or(0));
    matches!(
        errno,
        Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK | Errno::EINVAL
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_is_writable_if_it_or_its_closest_existing_parent_is() {
        let scratch = std::env::temp_dir();
        assert_eq!(check_writable(&scratch), Ok(()));
        assert_eq!(check_writable(&scratch.join("none/of/these")), Ok(()));
        assert_eq!(check_writable(Path::new("none/of/these")), Ok(()));
        let below_a_file = check_writable(Path::new("/proc/version/x")).unwrap_err();
        assert!(below_a_file.contains("/proc/version"), "{below_a_file}");
        assert!(check_writable(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_symbolic_link_is_reported_and_not_followed() {
        let link = std::env::temp_dir().join(format!("gangplank-link-{}", std::process::id()));
        symlink("/etc/passwd", &link).unwrap();
        let refused = no_follow().read(true).open(&link).unwrap_err();
        std::fs::remove_file(&link).unwrap();
        assert!(is_link(&refused), "{refused}");
        assert!(!is_link(&no_follow().read(true).open(&link).unwrap_err()));
        assert!(no_follow().read(true).open("/etc/passwd").is_ok());
    }
}
