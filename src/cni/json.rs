//! Typed access to JSON; errors name the path of the value.
//!
//! Decodes like Go's encoding/json, because existing configurations rely on it: keys match case-insensitively, of
//! duplicate keys the last one wins (objects are merged), `null` means absent, unknown keys are ignored, integers have
//! no fraction or exponent, an unpaired surrogate is U+FFFD.

mod deserialize;
mod entries;
mod escape;

use std::cell::Cell;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::error::{Code, Error};
use crate::net::ParseError;

pub use deserialize::{KeyPath, KeyPaths, key_paths};
pub use entries::entries;

/// Maximum length of a document in bytes: enough for a GC of 40,000 attachments.
pub const MAX_BYTES: usize = 4 << 20;

/// Maximum number of values in a document. Limiting the length is not enough, because an object of 7 bytes takes 700 in
/// memory; both limits keep any document below 64 MiB.
pub const MAX_VALUES: u32 = 125_000;

/// Maximum nesting. Deeper values are checked for syntax and discarded: keys of plugins are nested at most six levels
/// deep, and code that walks a document recurses once per level.
const MAX_DEPTH: usize = 100;

/// Maximum length of a value quoted in an error, in characters.
const QUOTED: usize = 200;

/// Parses a JSON document; keys are converted to lower case.
///
/// # Errors
/// Code 6 if it is not exactly one JSON document or too large. `document` names it in errors.
pub fn parse(document: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let too_large = |what: String| Error::new(Code::DECODE, format!("{document} has {what}"));
    if bytes.len() > MAX_BYTES {
        return Err(too_large(format!("more than {MAX_BYTES} bytes")));
    }
    // Bytes that are not UTF-8 are valid only inside strings, where they become U+FFFD.
    let text = escape::without_lone_surrogates(String::from_utf8_lossy(bytes));
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let remaining = Cell::new(MAX_VALUES);
    let root = Decoder {
        remaining: &remaining,
        depth: 0,
    };
    root.deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|cause| match remaining.get() {
            0 => too_large(format!("more than {MAX_VALUES} values")),
            _ => Error::new(Code::DECODE, format!("{document} is not JSON: {cause}")),
        })
}

/// Deserializes a [`Value`] with case-folded keys.
#[derive(Clone, Copy)]
struct Decoder<'c> {
    /// Values that may still follow.
    remaining: &'c Cell<u32>,
    /// Nesting level.
    depth: usize,
}

impl Decoder<'_> {
    fn nested(self) -> Self {
        Decoder {
            depth: self.depth + 1,
            ..self
        }
    }
}

impl<'de> DeserializeSeed<'de> for Decoder<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.remaining.get().checked_sub(1) {
            None | Some(0) => {
                self.remaining.set(0);
                return Err(D::Error::custom("too many values"));
            }
            Some(remaining) => self.remaining.set(remaining),
        }
        if self.depth < MAX_DEPTH {
            return deserializer.deserialize_any(self);
        }
        // Skips the value without recursion.
        deserializer.deserialize_ignored_any(IgnoredAny)?;
        Ok(Value::Null)
    }
}

impl<'de> Visitor<'de> for Decoder<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // Go decodes "-0" as an integer, serde_json as a float.
        if value == 0.0 && value.is_sign_negative() {
            return Ok(0.into());
        }
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self.nested())? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.nested())?;
            merge(&mut object, fold(&key), value);
        }
        Ok(object.into())
    }
}

/// A key in lower case. Outside ASCII, the long s and the Kelvin sign fold to ASCII letters (Unicode, CaseFolding.txt).
fn fold(key: &str) -> String {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

fn merge(object: &mut Map<String, Value>, key: String, value: Value) {
    match (object.get_mut(&key), value) {
        (Some(_), Value::Null) => {}
        (Some(Value::Object(old)), Value::Object(new)) => {
            for (key, value) in new {
                merge(old, key, value);
            }
        }
        (_, value) => {
            object.insert(key, value);
        }
    }
}

/// Whether a key is left out of a configuration that is written.
pub fn is_unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A number of the configuration within a range.
///
/// # Errors
/// Code 7; `path` names the key.
pub fn within<T>(path: &str, value: i64, range: RangeInclusive<T>) -> Result<T, Error>
where
    T: TryFrom<i64> + PartialOrd + fmt::Display,
{
    let number = T::try_from(value).ok();
    let wanted = || format!("it must be {} to {}", range.start(), range.end());
    let number = number.filter(|number| range.contains(number));
    number.ok_or_else(|| Error::config(path, value, wanted()))
}

/// A value and its path in the document.
#[derive(Clone, Debug)]
pub struct JsonCursor<'a> {
    document: &'static str,
    path: String,
    value: &'a Value,
}

impl<'a> JsonCursor<'a> {
    /// `document` names the document in errors.
    pub fn root(document: &'static str, value: &'a Value) -> JsonCursor<'a> {
        JsonCursor {
            document,
            path: String::new(),
            value,
        }
    }

    /// The value of a key; `None` if it is absent or null, or if this is not an object.
    pub fn get(&self, key: &str) -> Option<JsonCursor<'a>> {
        let value = self
            .value
            .get(key.to_ascii_lowercase())
            .filter(|value| !value.is_null())?;
        Some(JsonCursor {
            value,
            ..self.at(key)
        })
    }

    /// The keys of this object that are not null, in lower case.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        let entries = self.value.as_object().into_iter().flatten();
        entries
            .filter(|(_, value)| !value.is_null())
            .map(|(key, _)| key.as_str())
    }

    /// # Errors
    /// Code 6 for another JSON type; also for the accessors below.
    pub fn object(&self, key: &str) -> Result<Option<JsonCursor<'a>>, Error> {
        self.get(key).map(JsonCursor::into_object).transpose()
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        let read = |json: JsonCursor| {
            json.value
                .as_bool()
                .ok_or_else(|| json.mistyped("true or false"))
        };
        self.get(key).map(read).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.get(key).map(|json| json.as_text()).transpose()
    }

    /// A string; `None` if it is empty.
    pub fn non_empty_text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        Ok(self.text(key)?.filter(|text| !text.is_empty()))
    }

    pub fn integer(&self, key: &str) -> Result<Option<i64>, Error> {
        let read = |json: JsonCursor| {
            json.value
                .as_i64()
                .ok_or_else(|| json.mistyped("a whole number"))
        };
        self.get(key).map(read).transpose()
    }

    /// An integer within a range.
    ///
    /// # Errors
    /// Code 6 for another JSON type, code 7 for a number out of range.
    pub fn number<T>(&self, key: &str, range: RangeInclusive<T>) -> Result<Option<T>, Error>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display + Copy,
    {
        let Some(value) = self.integer(key)? else {
            return Ok(None);
        };
        let inside = T::try_from(value)
            .ok()
            .filter(|value| range.contains(value));
        inside.map(Some).ok_or_else(|| {
            let wanted = format!("it must be {} to {}", range.start(), range.end());
            self.at(key).invalid(value, wanted)
        })
    }

    /// # Errors
    /// Code 6 for another JSON type, code 7 for invalid text.
    pub fn parsed<T: FromStr<Err = ParseError>>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get(key)
            .map(|json| json.parse_with(str::parse))
            .transpose()
    }

    pub fn list(&self, key: &str) -> Result<Option<Vec<JsonCursor<'a>>>, Error> {
        self.get(key).map(JsonCursor::into_list).transpose()
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(list) = self.list(key)? else {
            return Ok(None);
        };
        let texts = list.iter().map(|item| item.as_text().map(str::to_owned));
        texts.collect::<Result<_, _>>().map(Some)
    }

    pub fn into_object(self) -> Result<JsonCursor<'a>, Error> {
        if self.value.is_object() {
            Ok(self)
        } else {
            Err(self.mistyped("an object"))
        }
    }

    /// The elements of this list, including null.
    pub fn into_list(self) -> Result<Vec<JsonCursor<'a>>, Error> {
        let list = self
            .value
            .as_array()
            .ok_or_else(|| self.mistyped("a list"))?;
        let element = |(index, value)| JsonCursor {
            document: self.document,
            path: format!("{}[{index}]", self.path),
            value,
        };
        Ok(list.iter().enumerate().map(element).collect())
    }

    pub fn as_text(&self) -> Result<&'a str, Error> {
        self.value.as_str().ok_or_else(|| self.mistyped("a string"))
    }

    pub fn parse_with<T>(&self, parse: impl Fn(&str) -> Result<T, ParseError>) -> Result<T, Error> {
        self.parse_text(self.as_text()?, parse)
    }

    /// Parses text that was read from here.
    ///
    /// # Errors
    /// Code 7 for invalid text.
    pub fn parse_text<T>(
        &self,
        text: &str,
        parse: impl Fn(&str) -> Result<T, ParseError>,
    ) -> Result<T, Error> {
        parse(text).map_err(|error| {
            self.invalid(
                format!("{:?}", error.value),
                format!("it must be {}", error.wanted),
            )
        })
    }

    /// An error about this value, code 7: `value` is quoted, `wanted` describes the valid values.
    pub fn invalid(&self, value: impl fmt::Display, wanted: impl fmt::Display) -> Error {
        self.error(Code::INVALID_CONFIG, value, wanted)
    }

    /// The path of a key of this object, for errors.
    pub fn at(&self, key: &str) -> JsonCursor<'a> {
        let separator = if self.path.is_empty() { "" } else { "." };
        JsonCursor {
            document: self.document,
            path: format!("{}{separator}{key}", self.path),
            value: self.value,
        }
    }

    fn mistyped(&self, wanted: &str) -> Error {
        self.error(Code::DECODE, self.value, format!("it must be {wanted}"))
    }

    fn error(&self, code: Code, value: impl fmt::Display, wanted: impl fmt::Display) -> Error {
        let path = if self.path.is_empty() {
            "its top level"
        } else {
            &self.path
        };
        let mut value = value.to_string();
        if let Some((cut, _)) = value.char_indices().nth(QUOTED) {
            value.truncate(cut);
            value.push('…');
        }
        Error::new(
            code,
            format!("{}: {path} is {value}, but {wanted}", self.document),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(text: &str) -> Value {
        parse("configuration", text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_case_insensitively_and_the_last_one_wins() {
        let value = doc(
            r#"{"MTU": 1, "mtu": 2, "Mtu": 3, "mTU": null, "ipam": {"a": 1}, "IPAM": {"b": 2}}"#,
        );
        let root = JsonCursor::root("configuration", &value);
        assert_eq!(root.integer("mtu"), Ok(Some(3)));
        let ipam = root.object("ipam").unwrap().unwrap();
        assert_eq!(
            (ipam.integer("A"), ipam.integer("b")),
            (Ok(Some(1)), Ok(Some(2)))
        );
    }

    #[test]
    fn errors_name_path_value_and_valid_values() {
        let value =
            doc(r#"{"ipam": {"ranges": [[{"subnet": 5}, null]], "mtu": 1500.0}, "n": 70000}"#);
        let root = JsonCursor::root("configuration", &value);
        let ipam = root.object("ipam").unwrap().unwrap();
        let set = ipam
            .list("ranges")
            .unwrap()
            .unwrap()
            .remove(0)
            .into_list()
            .unwrap();
        let errors = [
            set[0].text("subnet").unwrap_err(),
            set[1].clone().into_object().unwrap_err(),
            ipam.integer("mtu").unwrap_err(),
            root.number::<u32>("n", 68..=65535).unwrap_err(),
        ];
        let messages = errors.each_ref().map(|error| error.msg.as_str());
        assert_eq!(
            messages,
            [
                "configuration: ipam.ranges[0][0].subnet is 5, but it must be a string",
                "configuration: ipam.ranges[0][1] is null, but it must be an object",
                "configuration: ipam.mtu is 1500.0, but it must be a whole number",
                "configuration: n is 70000, but it must be 68 to 65535",
            ]
        );
        assert_eq!(errors.map(|error| error.code.0), [6, 6, 6, 7]);
    }

    #[test]
    fn invalid_documents_are_rejected() {
        for invalid in [
            "",
            "{",
            "{} {}",
            "\u{feff}{}",
            "nul",
            "{\"a\":1,}",
            &"[".repeat(1000),
            &format!("{}1 2{}", "[".repeat(20_000), "]".repeat(20_000)),
            r#"{"a": "\ud800x"#,
            r#"{"a": "\u12"}"#,
            &format!("[{}0]", "0,".repeat(MAX_VALUES as usize)),
            &" ".repeat(MAX_BYTES + 1),
        ] {
            assert_eq!(
                parse("configuration", invalid.as_bytes()).unwrap_err().code,
                Code::DECODE
            );
        }
        assert!(parse("configuration", b"{\"a\": \"\xff\"} \n").is_ok());
    }

    #[test]
    fn nesting_is_not_limited() {
        let deep = format!(
            r#"{{"name": "n", "x": {}5{}}}"#,
            "[".repeat(1_000_000),
            "]".repeat(1_000_000)
        );
        let value = doc(&deep);
        assert_eq!(
            JsonCursor::root("configuration", &value).text("name"),
            Ok(Some("n"))
        );
        let objects = format!("{}5{}", r#"{"a":"#.repeat(200_000), "}".repeat(200_000));
        assert!(doc(&objects).is_object());
    }

    #[test]
    fn keys_match_with_unicode_case_folding() {
        let value = doc("{\"i\u{17f}Gateway\": true, \"\u{212a}\": 5}");
        let root = JsonCursor::root("configuration", &value);
        assert_eq!(
            (root.bool("isGateway"), root.integer("k")),
            (Ok(Some(true)), Ok(Some(5)))
        );
    }

    #[test]
    fn unpaired_surrogates_are_replaced() {
        let value = doc(r#"{"a": "x\ud800y", "\udc00": "\uD83D\uDE00\\ud800"}"#);
        let root = JsonCursor::root("configuration", &value);
        assert_eq!(root.text("a"), Ok(Some("x\u{fffd}y")));
        assert_eq!(root.text("\u{fffd}"), Ok(Some("\u{1f600}\\ud800")));
    }

    #[test]
    fn a_long_value_is_truncated_in_errors() {
        let value = doc(&format!(r#"{{"a": "{}"}}"#, "ü".repeat(5000)));
        let root = JsonCursor::root("configuration", &value);
        let error = root.bool("a").unwrap_err();
        assert!(error.msg.len() < 600 && error.msg.contains('…'), "{error}");
        assert!(root.parsed::<crate::net::Mac>("a").unwrap_err().msg.len() < 600);
    }
}
