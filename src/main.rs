//! Entry point: chooses plugin or command line by `argv[0]`.

use std::path::Path;
use std::process::ExitCode;

use gangplank::cli;
use gangplank::cni::environment::Environment;
use gangplank::plugins::{self, Program, dispatch};

fn main() -> ExitCode {
    // The runtime expects a CNI error on stdout, even for a panic.
    std::panic::set_hook(Box::new(|panic| {
        dispatch::report_internal_error(&panic.to_string());
        std::process::exit(1);
    }));
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let env = Environment::of_process();
    match Program::named(&name, &env) {
        Program::Plugin(plugin) => dispatch::serve(plugin, &env, std::io::stdin().lock()),
        Program::CommandLine => cli::run(args),
        Program::Unknown => plugins::reject_name(&name, &env),
    }
}
