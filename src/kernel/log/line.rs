//! A line in logfmt: `key=value key="a longer value"`.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Level;

/// The longest value, in bytes; the rest is cut.
const MAX_VALUE: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line(String);

impl Line {
    /// A line with time, level and pid.
    pub fn new(level: Level) -> Line {
        // A clock before 1970 is a panic in the crate.
        let now = humantime::format_rfc3339_millis(SystemTime::now().max(UNIX_EPOCH));
        let pid = std::process::id();
        Line(format!("time={now} level={} pid={pid}", level.as_str()))
    }

    /// Appends a field, unless its value is empty.
    pub fn field(mut self, key: &str, value: &str) -> Line {
        if value.is_empty() {
            return self;
        }
        let cut = &value[..value.floor_char_boundary(MAX_VALUE)];
        let more = if cut.len() < value.len() { "…" } else { "" };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,+@%".contains(&byte);
        if cut.bytes().all(is_plain) {
            let _ = write!(self.0, " {key}={cut}{more}");
            return self;
        }
        let _ = write!(self.0, " {key}=\"");
        for c in cut.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                '\t' => self.0.push_str("\\t"),
                c if c.is_control() => {
                    let _ = write!(self.0, "\\u{:04x}", c as u32);
                }
                c => self.0.push(c),
            }
        }
        let _ = write!(self.0, "{more}\"");
        self
    }

    /// Appends a duration in milliseconds.
    pub fn milliseconds(mut self, key: &str, time: Duration) -> Line {
        let millis = time.as_secs() * 1000 + u64::from(time.subsec_millis());
        let _ = write!(self.0, " {key}={millis}.{:03}", time.subsec_micros() % 1000);
        self
    }

    pub(super) fn end(mut self) -> String {
        self.0.push('\n');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_cut() {
        let line = Line(String::new())
            .field("a", "10.1.2.3/24,fd00::2/64")
            .field("b", "two \"words\"\\\n\u{1b}[2J")
            .field("c", "")
            .field("d", "k=v")
            .milliseconds("t", Duration::from_micros(1_234_005));
        let expected = " a=10.1.2.3/24,fd00::2/64 b=\"two \\\"words\\\"\\\\\\n\\u001b[2J\" d=\"k=v\" t=1234.005";
        assert_eq!(line.0, expected);
        let long = Line(String::new()).field("a", &"ü".repeat(9000)).0;
        assert!(long.len() < MAX_VALUE + 10 && long.ends_with("…\""));
    }
}
