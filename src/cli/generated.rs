//! Shell completions and the manual page. The generators add 70 KB to the binary.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::{Generator, Shell as Complete};
use clap_mangen::Man;

use crate::cli::args::{CommandLine, Shell};

pub fn completions(shell: Shell, output: &mut dyn Write) -> io::Result<()> {
    let generator = match shell {
        Shell::Bash => Complete::Bash,
        Shell::Zsh => Complete::Zsh,
        Shell::Fish => Complete::Fish,
    };
    generator.try_generate(&command(), output)
}

/// Writes one manual page in roff format, with a section for each command.
pub fn manual(output: &mut dyn Write) -> io::Result<()> {
    let command = command();
    let man = Man::new(command.clone());
    man.render_title(output)?;
    man.render_name_section(output)?;
    man.render_synopsis_section(output)?;
    man.render_description_section(output)?;
    man.render_options_section(output)?;
    for sub in command.get_subcommands() {
        if sub.get_name() != "help" {
            section(sub, output)?;
        }
    }
    man.render_extra_section(output)
}

fn command() -> Command {
    let mut command = CommandLine::command().bin_name("gangplank");
    command.build();
    command
}

/// Writes the section for a command: clap_mangen's page for it, whose sections become subsections.
fn section(command: &Command, output: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_uppercase();
    writeln!(output, ".SH \"GANGPLANK {name}\"")?;
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let page = String::from_utf8_lossy(&page).replace(".SH ", ".SS ");
    output.write_all(page.as_bytes())
}
