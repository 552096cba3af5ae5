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
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = utc(now.unwrap_or_default());
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

/// A time in RFC 3339 format, in UTC with milliseconds.
fn utc(since: Duration) -> String {
    let (day, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = date(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date of a day that is counted from 1970 on. Years are counted from March on here, so that the leap day is the last
/// one; 400 of them have 146,097 days, and five months from March on have 153.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = match month {
        0..10 => (month + 3, 0),
        _ => (month - 9, 1),
    };
    (era * 400 + year + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), expected);
        }
        assert!(utc(Duration::from_millis(7)).ends_with("00.007Z"));
    }

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
