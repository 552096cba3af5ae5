//! The file: opened once, only ever appended to, put aside when it is large.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::kernel::files;

/// From this size on the file is renamed to `NAME.1`, in place of the one before, and begun anew.
pub const MAX_BYTES: u64 = 10 << 20;

/// Opens a file, made with mode 0600 where it is missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = open_now(path)?;
    match file.metadata()?.len() < MAX_BYTES {
        true => Ok(file),
        false => Ok(turn(path, file)),
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

/// Puts a full file aside. Of many processes that find it full one has its lock and sees it still in its place; the others
/// find the new one, or write a last line into the old one.
fn turn(path: &Path, full: File) -> File {
    if full.try_lock().is_ok() && is_at(path, &full) {
        let mut aside = OsString::from(path);
        aside.push(".1");
        let _ = fs::rename(path, aside);
    }
    open_now(path).unwrap_or(full)
}

fn is_at(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
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
    fn a_new_file_is_the_owners_alone_and_links_are_not_followed() {
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
    fn of_many_that_find_it_full_one_puts_it_aside_and_no_line_is_lost() {
        let dir = scratch("turn");
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
        let aside = fs::read(dir.join("log.1")).unwrap();
        let now = fs::read(&path).unwrap();
        assert!(aside.len() as u64 >= MAX_BYTES, "the old one stays whole");
        let late = (aside.len() as u64 - MAX_BYTES) as usize;
        assert_eq!(late + now.len(), 16 * 50 * 5);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
