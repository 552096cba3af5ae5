//! Shell completions and the manual page. The generators add 70 KB to the binary.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Generator;
use clap_mangen::Man;

use crate::cli::args::{CommandLine, Shell};

pub fn completions(shell: Shell) -> io::Result<Vec<u8>> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generator.try_generate(&command(), &mut script)?;
    Ok(script)
}

/// One manual page in roff format, with a section for each command.
pub fn manual() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let command = command();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            page.extend(section(subcommand)?);
        }
    }
    man.render_extra_section(&mut page)?;
    Ok(page)
}

fn command() -> Command {
    let mut command = CommandLine::command().bin_name("gangplank");
    command.build();
    command
}

/// The section of a command: its own page, whose sections become subsections.
fn section(command: &Command) -> io::Result<Vec<u8>> {
    let name = command.get_name().to_uppercase();
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let page = String::from_utf8_lossy(&page).replace(".SH ", ".SS ");
    let mut section = Vec::new();
    write!(section, ".SH \"GANGPLANK {name}\"\n{page}")?;
    Ok(section)
}
