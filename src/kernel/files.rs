//! What this process may do with files, and files where anybody may have put something else: a link there is not
//! followed, a pipe not waited for.

use std::fs::{self, OpenOptions};
use std::io::{self, Error, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, access};

use crate::kernel::retry::retry_on_eintr;

/// Whether files can be made in a directory, which is made itself where it is missing; also where that fails only for now.
///
/// # Errors
/// Why not: the directory that would have to be written, and what the kernel says of it.
pub fn check_writable(directory: &Path) -> Result<(), String> {
    let refused = |place: &Path, cause: Error| Err(format!("{}: {cause}", place.display()));
    for place in directory.ancestors() {
        match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) if place.is_dir() => return Ok(()),
            Ok(()) => return refused(place, ErrorKind::NotADirectory.into()),
            Err(errno) => match Error::from(errno) {
                cause if cause.kind() == ErrorKind::NotFound => {
                    if place.is_symlink() {
                        return refused(place, Error::other("a symbolic link to nothing"));
                    }
                }
                cause if needs_repair(&cause) => return refused(place, cause),
                _ => return Ok(()),
            },
        }
    }
    // A relative path starts where we are, which is there.
    Ok(())
}

/// Whether a failure lasts until a person repairs the path or its permissions. A full disk, a lack of memory or of file
/// descriptors, an interrupted call or a server that does not answer pass by themselves.
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

/// Options that open only what is at the path itself; a symbolic link there is an error ([`is_link`]).
pub fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// Whether opening failed because there is a symbolic link (open(2), "O_NOFOLLOW").
pub fn is_link(cause: &Error) -> bool {
    cause.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Gives a file its name, which no other file may have (EEXIST) and under which it appears whole; the name it has may stay
/// behind. `content` is what it holds.
///
/// File systems of FAT, of some FUSE servers and of 9p have no hard links; then the file is renamed, and where the file
/// system cannot do that without overwriting, it is written anew, and removed if that fails.
///
/// # Errors
/// When the name is taken, or the kernel refuses.
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

/// The kernel's and file systems' answers to an operation that they do not have (link(2), rename(2)).
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
    fn a_directory_can_be_filled_when_it_or_what_is_above_it_can_be_written() {
        let scratch = std::env::temp_dir();
        assert_eq!(check_writable(&scratch), Ok(()));
        assert_eq!(check_writable(&scratch.join("none/of/these")), Ok(()));
        assert_eq!(check_writable(Path::new("none/of/these")), Ok(()));
        let below_a_file = check_writable(Path::new("/proc/version/x")).unwrap_err();
        assert!(below_a_file.contains("/proc/version"), "{below_a_file}");
        assert!(check_writable(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_link_is_told_and_its_target_not_opened() {
        let link = std::env::temp_dir().join(format!("gangplank-link-{}", std::process::id()));
        symlink("/etc/passwd", &link).unwrap();
        let refused = no_follow().read(true).open(&link).unwrap_err();
        std::fs::remove_file(&link).unwrap();
        assert!(is_link(&refused), "{refused}");
        assert!(!is_link(&no_follow().read(true).open(&link).unwrap_err()));
        assert!(no_follow().read(true).open("/etc/passwd").is_ok());
    }
}
