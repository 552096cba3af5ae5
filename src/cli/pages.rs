//! Completions and the manual page, generated from the command line and kept beside it: what generates them is eight
//! times their size. A test holds them to the command line.

use crate::cli::args::Shell;

/// The manual page, in roff.
pub const MANUAL: &str = include_str!("pages/gangplank.1");

/// The completions for a shell.
pub fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("pages/gangplank.bash"),
        Shell::Zsh => include_str!("pages/_gangplank"),
        Shell::Fish => include_str!("pages/gangplank.fish"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap_complete::{Shell as Generator, generate};

    use super::*;
    use crate::cli::args::CommandLine;

    /// With GANGPLANK_WRITE_PAGES set they are written instead of compared.
    #[test]
    fn completions_and_manual_are_those_of_the_command_line() {
        let script = |generator: Generator| {
            let mut script = Vec::new();
            generate(
                generator,
                &mut CommandLine::command(),
                "gangplank",
                &mut script,
            );
            script
        };
        for (file, kept, made) in [
            (
                "gangplank.bash",
                completions(Shell::Bash),
                script(Generator::Bash),
            ),
            (
                "_gangplank",
                completions(Shell::Zsh),
                script(Generator::Zsh),
            ),
            (
                "gangplank.fish",
                completions(Shell::Fish),
                script(Generator::Fish),
            ),
            ("gangplank.1", MANUAL, manual()),
        ] {
            let made = String::from_utf8(made).unwrap();
            if std::env::var_os("GANGPLANK_WRITE_PAGES").is_some() {
                let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/pages");
                std::fs::write(place.join(file), made).unwrap();
            } else {
                assert!(
                    made == kept,
                    "{file} is not of this command line: GANGPLANK_WRITE_PAGES=1 cargo test --lib pages"
                );
            }
        }
    }

    /// One page with a section for each command.
    fn manual() -> Vec<u8> {
        let mut page = Vec::new();
        let mut command = CommandLine::command();
        command.build();
        let render = |command: &clap::Command, page: &mut Vec<u8>| {
            let man = clap_mangen::Man::new(command.clone());
            man.render_description_section(page).unwrap();
            man.render_options_section(page).unwrap();
        };
        let man = clap_mangen::Man::new(command.clone());
        man.render_title(&mut page).unwrap();
        man.render_name_section(&mut page).unwrap();
        man.render_synopsis_section(&mut page).unwrap();
        render(&command, &mut page);
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            let title = format!(".SH \"GANGPLANK {}\"\n", sub.get_name().to_uppercase());
            page.extend(title.into_bytes());
            let mut body = Vec::new();
            clap_mangen::Man::new(sub.clone())
                .render_synopsis_section(&mut body)
                .unwrap();
            render(sub, &mut body);
            // Sections of a command are subsections of the page.
            let body = String::from_utf8(body).unwrap().replace(".SH ", ".SS ");
            page.extend(body.into_bytes());
        }
        man.render_extra_section(&mut page).unwrap();
        page
    }
}
