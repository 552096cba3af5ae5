//! Which program a file in a CNI bin directory is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::dispatch::ABOUT;
use crate::host::process;

/// How long a program may take to say what it is.
const LIMIT: Duration = Duration::from_secs(5);

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing is there.
    Absent,
    /// This very program.
    This,
    /// gangplank of another version or build; what it says of itself.
    Gangplank(String),
    /// Another program; what it says of itself, empty when it says nothing.
    Other(String),
}

/// Finds out what a file is: by its content, else by what it says when it is called without a command, as all CNI
/// plugins do.
pub fn identify(file: &Path) -> Identity {
    // Neither a pipe nor a directory is read: one would be waited for.
    let is_file = fs::metadata(file).is_ok_and(|it| it.is_file());
    let Some(content) = is_file.then(|| fs::read(file).ok()).flatten() else {
        return match file.symlink_metadata() {
            Ok(_) => Identity::Other(String::new()),
            Err(_) => Identity::Absent,
        };
    };
    let own = fs::read(process::OWN);
    if own.is_ok_and(|own| own == content) {
        return Identity::This;
    }
    let said = process::run(file, &[], &[], b"", LIMIT).map(|output| output.stderr);
    let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
    let first = said.lines().next().unwrap_or_default().to_owned();
    match first.contains(ABOUT) {
        true => Identity::Gangplank(first),
        false => Identity::Other(first),
    }
}
