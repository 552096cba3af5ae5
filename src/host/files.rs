//! What this process may do with files, asked without doing it.

use std::io::{Error, ErrorKind};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

/// Whether files can be made in a directory, which is made itself where it is missing.
///
/// # Errors
/// Why not: the directory that would have to be written, and what the kernel says of it.
pub fn can_fill(directory: &Path) -> Result<(), String> {
    let refused = |place: &Path, cause: Error| Err(format!("{}: {cause}", place.display()));
    for place in directory.ancestors() {
        match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) if place.is_dir() => return Ok(()),
            Ok(()) => return refused(place, ErrorKind::NotADirectory.into()),
            Err(errno) => match Error::from(errno) {
                cause if cause.kind() == ErrorKind::NotFound => {}
                cause => return refused(place, cause),
            },
        }
    }
    // A relative path starts where we are, which is there.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_can_be_filled_when_it_or_what_is_above_it_can_be_written() {
        let scratch = std::env::temp_dir();
        assert_eq!(can_fill(&scratch), Ok(()));
        assert_eq!(can_fill(&scratch.join("none/of/these")), Ok(()));
        assert_eq!(can_fill(Path::new("none/of/these")), Ok(()));
        let below_a_file = can_fill(Path::new("/proc/version/x")).unwrap_err();
        assert!(below_a_file.contains("/proc/version"), "{below_a_file}");
        assert!(can_fill(Path::new("/dev/null")).is_err());
    }
}
