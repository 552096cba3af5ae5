//! A line in logfmt, `key=value key="a longer value"`, or a JSON object.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Format, Level};

/// The longest value, in bytes; the rest is cut.
const MAX_VALUE: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: String,
    format: Format,
    pub(super) level: Level,
}

impl Line {
    /// A line with time, level and pid.
    pub fn new(level: Level) -> Line {
        // A clock before 1970 is a panic in the crate.
        let now = humantime::format_rfc3339_millis(SystemTime::now().max(UNIX_EPOCH));
        let format = super::format();
        let text = match format {
            Format::Logfmt => format!("time={now}"),
            Format::Json => format!("{{\"time\":\"{now}\""),
        };
        let line = Line {
            text,
            format,
            level,
        };
        line.field("level", level.as_str())
            .raw("pid", &std::process::id().to_string())
    }

    /// Appends a value that is a number, or an object in JSON.
    fn raw(mut self, key: &str, value: &str) -> Line {
        let _ = match self.format {
            Format::Logfmt => write!(self.text, " {key}={value}"),
            Format::Json => write!(self.text, ",\"{key}\":{value}"),
        };
        self
    }

    /// Appends a field, unless its value is empty.
    pub fn field(mut self, key: &str, value: &str) -> Line {
        if value.is_empty() {
            return self;
        }
        let cut = &value[..value.floor_char_boundary(MAX_VALUE)];
        let more = if cut.len() < value.len() { "…" } else { "" };
        if self.format == Format::Json {
            return self.raw(key, &json_string(&format!("{cut}{more}")));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,+@%".contains(&byte);
        if cut.bytes().all(is_plain) {
            return self.raw(key, &format!("{cut}{more}"));
        }
        let _ = write!(self.text, " {key}=\"");
        for c in cut.chars() {
            match c {
                '"' | '\\' => self.text.extend(['\\', c]),
                '\n' => self.text.push_str("\\n"),
                '\t' => self.text.push_str("\\t"),
                c if c.is_control() => {
                    let _ = write!(self.text, "\\u{:04x}", c as u32);
                }
                c => self.text.push(c),
            }
        }
        let _ = write!(self.text, "{more}\"");
        self
    }

    /// Appends a duration in milliseconds.
    pub fn milliseconds(self, key: &str, time: Duration) -> Line {
        let millis = time.as_secs() * 1000 + u64::from(time.subsec_millis());
        let micros = time.subsec_micros() % 1000;
        self.raw(key, &format!("{millis}.{micros:03}"))
    }

    /// Appends the attributes of a span whose values are not empty, as a JSON object.
    pub(super) fn attributes(self, attributes: &[(&str, String)]) -> Line {
        let known = attributes.iter().filter(|(_, value)| !value.is_empty());
        let members = known.map(|(key, value)| format!("\"{key}\":{}", json_string(value)));
        let members = members.collect::<Vec<_>>().join(",");
        self.raw("attributes", &format!("{{{members}}}"))
    }

    pub(super) fn end(mut self) -> String {
        if self.format == Format::Json {
            self.text.push('}');
        }
        self.text.push('\n');
        self.text
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(format: Format) -> Line {
        Line {
            text: String::new(),
            format,
            level: Level::Info,
        }
    }

    #[test]
    fn values_are_escaped_and_cut() {
        let line = empty(Format::Logfmt)
            .field("a", "10.1.2.3/24,fd00::2/64")
            .field("b", "two \"words\"\\\n\u{1b}[2J")
            .field("c", "")
            .field("d", "k=v")
            .milliseconds("t", Duration::from_micros(1_234_005));
        let expected = " a=10.1.2.3/24,fd00::2/64 b=\"two \\\"words\\\"\\\\\\n\\u001b[2J\" d=\"k=v\" t=1234.005";
        assert_eq!(line.text, expected);
        let long = empty(Format::Logfmt).field("a", &"ü".repeat(9000)).text;
        assert!(long.len() < MAX_VALUE + 10 && long.ends_with("…\""));
    }

    #[test]
    fn values_in_json_are_escaped_and_cut() {
        let line = empty(Format::Json)
            .field("a", "two \"words\"\\\n\u{1b}")
            .field("c", &"ü".repeat(9000))
            .milliseconds("t", Duration::from_micros(1_234_005))
            .attributes(&[("x.y", "\"".to_owned()), ("x.z", String::new())]);
        let text = format!("{{\"first\":0{}", line.end());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["a"], "two \"words\"\\\n\u{1b}");
        assert!(value["c"].as_str().unwrap().ends_with("ü…"));
        assert_eq!(value["t"], 1234.005);
        assert_eq!(value["attributes"], serde_json::json!({ "x.y": "\"" }));
    }
}
