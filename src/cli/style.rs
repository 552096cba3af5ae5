//! Colors and tables.

use std::io::IsTerminal;

use crate::cli::args::ColorChoice;

#[derive(Clone, Copy, Debug)]
pub struct Style {
    has_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Title,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// `Auto` uses colors on a terminal, unless NO_COLOR is set (no-color.org).
    pub fn new(choice: ColorChoice) -> Style {
        let is_disabled = || std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
        Style {
            has_color: match choice {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => std::io::stdout().is_terminal() && !is_disabled(),
            },
        }
    }

    /// A text in a color (ECMA-48, "SGR").
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Title => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        match self.has_color && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Rows with aligned columns. Only cells of the last column may have a color, which counts in the width.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("  {cell:width$}"))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [
            row(["a", "bb", "c"]),
            row(["ää", "b", ""]),
            row(["", "", "ccc"]),
        ];
        assert_eq!(table(&rows), "  a   bb  c\n  ää  b\n          ccc\n");
    }

    #[test]
    fn text_has_colors_only_if_they_are_enabled() {
        assert_eq!(Style::new(ColorChoice::Never).tone(Tone::Bad, "x"), "x");
        assert_eq!(
            Style::new(ColorChoice::Always).tone(Tone::Bad, "x"),
            "\x1b[31mx\x1b[0m"
        );
    }
}
