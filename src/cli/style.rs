//! Colours and tables.

use std::io::IsTerminal;

use crate::cli::args::Colour;

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    is_on: bool,
}

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Tone {
    Title,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// What was asked for; without a wish colours on a terminal, unless NO_COLOR is set (no-color.org).
    pub fn new(wish: Colour) -> Style {
        let is_wanted = || std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        Style {
            is_on: match wish {
                Colour::Always => true,
                Colour::Never => false,
                Colour::Auto => std::io::stdout().is_terminal() && is_wanted(),
            },
        }
    }

    /// A text in its colour (ECMA-48, "SGR").
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Title => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        match self.is_on && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Rows in columns that line up, each as wide as its widest cell; the last cell of a row may have a colour.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str("  ");
            line.push_str(cell);
            line.extend(std::iter::repeat_n(
                ' ',
                width.saturating_sub(cell.chars().count()),
            ));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let rows = [
            row(&["a", "bb", "c"]),
            row(&["ää", "b", ""]),
            row(&["", "", "ccc"]),
        ];
        assert_eq!(table(&rows), "  a   bb  c\n  ää  b\n          ccc\n");
    }

    #[test]
    fn there_are_no_colours_where_none_are_wanted() {
        assert_eq!(Style::new(Colour::Never).tone(Tone::Bad, "x"), "x");
        assert_eq!(
            Style::new(Colour::Always).tone(Tone::Bad, "x"),
            "\x1b[31mx\x1b[0m"
        );
    }
}
