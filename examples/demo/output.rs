//! Output to the terminal: plain lines, with colors if stdout is a terminal.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

pub fn heading(title: &str) {
    println!("\n{}", bold(title));
}

pub fn note(text: &str) {
    println!("  {text}");
}

/// A check that passed, and a remark such as its duration.
pub fn passed(check: &str, remark: &str) {
    let mark = style("32", "✓");
    if remark.is_empty() {
        println!("  {mark} {check}");
    } else {
        println!("  {mark} {check}  {}", style("2", remark));
    }
}

pub fn bold(text: &str) -> String {
    style("1", text)
}

pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Text in a style (ECMA-48, "select graphic rendition"), if stdout is a terminal and NO_COLOR (no-color.org) is not set.
fn style(code: &str, text: &str) -> String {
    let is_styled = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if is_styled {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
