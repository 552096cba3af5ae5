//! The build script: generates the shell completions and the manual page from the command line in `args.rs`.
//!
//! The generators stay out of the binary, where they would take more room than what they generate.

#[allow(dead_code)]
#[path = "args.rs"]
mod args;

use std::path::PathBuf;
use std::{env, fs, io};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// Stands in for the crate's module: `args.rs` needs a type that can be parsed, and nothing is parsed here.
mod net {
    #[derive(Clone, Debug)]
    pub struct Cidr;

    impl std::str::FromStr for Cidr {
        type Err = std::convert::Infallible;

        fn from_str(_: &str) -> Result<Cidr, Self::Err> {
            Ok(Cidr)
        }
    }
}

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/cli/args.rs");
    println!("cargo::rerun-if-changed=src/cli/build.rs");
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut command = args::CommandLine::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "gangplank", &directory)?;
    }
    command.build();
    fs::write(directory.join("gangplank.1"), manual(&command)?)
}

/// One page with a section for each command.
fn manual(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for sub in command.get_subcommands() {
        if sub.get_name() != "help" {
            page.extend(section(sub)?.into_bytes());
        }
    }
    man.render_extra_section(&mut page)?;
    Ok(page)
}

/// The section for a command. clap_mangen renders it as a page of its own, whose sections become subsections.
fn section(command: &Command) -> io::Result<String> {
    let mut body = Vec::new();
    let man = Man::new(command.clone());
    man.render_synopsis_section(&mut body)?;
    man.render_description_section(&mut body)?;
    man.render_options_section(&mut body)?;
    let body = String::from_utf8(body).map_err(io::Error::other)?;
    let name = command.get_name().to_uppercase();
    Ok(format!(
        ".SH \"GANGPLANK {name}\"\n{}",
        body.replace(".SH ", ".SS ")
    ))
}
