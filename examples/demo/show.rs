//! What the reader sees: plain lines, with colours where a terminal shows them.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

/// A heading.
pub fn section(title: &str) {
    println!("\n{}", bold(title));
}

/// Something to know.
pub fn note(text: &str) {
    println!("  {text}");
}

/// A promise that is kept, and a remark.
pub fn done(what: &str, remark: &str) {
    let mark = paint("32", "✓");
    if remark.is_empty() {
        println!("  {mark} {what}");
    } else {
        println!("  {mark} {what}  {}", paint("2", remark));
    }
}

/// Emphasis.
pub fn bold(text: &str) -> String {
    paint("1", text)
}

/// A length of time.
pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Text in a colour (ECMA-48, "select graphic rendition"), if somebody looks; see no-color.org.
fn paint(colour: &str, text: &str) -> String {
    let is_seen = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if is_seen {
        format!("\x1b[{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
