//! What `gangplank` shows and does for a person.

mod install;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where runtimes look for plugins unless they are told otherwise.
const DEFAULT_DIRECTORY: &str = "/opt/cni/bin";

const HELP: &str = "\
Container networking in one small binary: the CNI plugins bridge, host-local and loopback.

Usage: gangplank install [DIR]   put the plugins into DIR (/opt/cni/bin)
       gangplank --help          show this
       gangplank --version       show the version

Called as bridge, host-local or loopback, or with CNI_COMMAND set, it is that plugin.
";

/// Runs a command of the operator. Exit status: 0 done, 1 failed, 2 not understood.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["--help" | "-h" | "help"] => print!("{HELP}"),
        ["--version" | "-V"] => println!("gangplank {}", env!("CARGO_PKG_VERSION")),
        ["install"] => return install(DEFAULT_DIRECTORY.into()),
        ["install", "--help" | "-h"] => print!("{HELP}"),
        ["install", directory] if !directory.starts_with('-') => return install(directory.into()),
        [] => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
        _ => {
            eprintln!(
                "gangplank: cannot understand: {}\n\n{HELP}",
                words.join(" ")
            );
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn install(directory: PathBuf) -> ExitCode {
    match install::install(&directory) {
        Ok(installed) => {
            for line in installed {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gangplank: {error}");
            ExitCode::FAILURE
        }
    }
}
