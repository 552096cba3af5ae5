//! The log file: opened once, appended to, and renamed when it is large.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::kernel::files;

/// From this size on, in bytes, the file is renamed to `NAME.1`, which replaces the previous one.
pub const MAX_BYTES: u64 = 10 << 20;

/// Opens the file, or creates it with mode 0600.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = open_now(path)?;
    match file.metadata()?.len() < MAX_BYTES {
        true => Ok(file),
        false => Ok(rotate(path, file)),
    }
}

fn open_now(path: &Path) -> io::Result<File> {
    let file = files::no_follow()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

/// Renames a full file. Of several processes only the one renames it that gets its lock while it still has its name;
/// the others open the new file or append a last line to the old one.
fn rotate(path: &Path, full: File) -> File {
    if full.try_lock().is_ok() && is_at(path, &full) {
        let mut rotated = OsString::from(path);
        rotated.push(".1");
        let _ = fs::rename(path, rotated);
    }
    open_now(path).unwrap_or(full)
}

fn is_at(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("gangplank-log-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_new_file_is_private_and_symbolic_links_are_not_followed() {
        let dir = scratch("links");
        let path = dir.join("log");
        open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        symlink(&path, dir.join("link")).unwrap();
        assert!(files::is_link(&open(&dir.join("link")).unwrap_err()));
        assert!(open(&dir).is_err() && open(Path::new("/dev/null")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_file_is_renamed_once_and_no_line_is_lost() {
        let dir = scratch("rotate");
        let path = dir.join("log");
        let full = File::create(&path).unwrap();
        full.set_len(MAX_BYTES).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        open(&path).unwrap().write_all(b"line\n").unwrap();
                    }
                });
            }
        });
        let rotated = fs::read(dir.join("log.1")).unwrap();
        let now = fs::read(&path).unwrap();
        assert!(
            rotated.len() as u64 >= MAX_BYTES,
            "the old file is complete"
        );
        let late = (rotated.len() as u64 - MAX_BYTES) as usize;
        assert_eq!(late + now.len(), 16 * 50 * 5);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
