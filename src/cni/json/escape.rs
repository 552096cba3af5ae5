//! Unpaired surrogates in the escapes of JSON strings.

use std::borrow::Cow;
use std::ops::RangeInclusive;

const HIGH: RangeInclusive<u16> = 0xd800..=0xdbff;
const LOW: RangeInclusive<u16> = 0xdc00..=0xdfff;

/// The length of `\uXXXX`.
const LENGTH: usize = 6;

/// Replaces each unpaired surrogate with U+FFFD.
pub fn without_lone_surrogates(text: Cow<'_, str>) -> Cow<'_, str> {
    let mut replaced = String::new();
    let mut copied = 0;
    let mut at = 0;
    // In valid JSON a backslash occurs only in strings, where it starts an escape sequence.
    while let Some(next) = text[at..].find('\\') {
        at += next;
        let length = match (unit(&text, at), unit(&text, at + LENGTH)) {
            (Some(high), Some(low)) if HIGH.contains(&high) && LOW.contains(&low) => 2 * LENGTH,
            (Some(unit), _) if HIGH.contains(&unit) || LOW.contains(&unit) => {
                replaced.push_str(&text[copied..at]);
                replaced.push_str("\\ufffd");
                copied = at + LENGTH;
                LENGTH
            }
            _ => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
        at += length;
    }
    if copied == 0 {
        return text;
    }
    replaced.push_str(&text[copied..]);
    Cow::Owned(replaced)
}

/// The UTF-16 code unit of an escape at this position.
fn unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + LENGTH)?.strip_prefix("\\u")?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex
        .then(|| u16::from_str_radix(digits, 16).ok())
        .flatten()
}
