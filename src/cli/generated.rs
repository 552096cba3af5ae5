//! The shell completions and the manual page, which the build script (`build.rs`) generates from `args.rs`.

use crate::cli::args::Shell;

/// The manual page, in roff.
pub const MANUAL: &str = include_str!(concat!(env!("OUT_DIR"), "/gangplank.1"));

/// The completions for a shell.
pub fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!(concat!(env!("OUT_DIR"), "/gangplank.bash")),
        Shell::Zsh => include_str!(concat!(env!("OUT_DIR"), "/_gangplank")),
        Shell::Fish => include_str!(concat!(env!("OUT_DIR"), "/gangplank.fish")),
    }
}
