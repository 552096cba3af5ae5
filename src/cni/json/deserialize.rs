//! Deserializes keys of a configuration into a struct whose fields are the keys (serde).
//!
//! Keys match case-insensitively, `null` means absent, and errors name the path of the value, as with [`JsonCursor`].
//! A struct needs `#[serde(default)]`; `flatten` and tags are not supported.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

use crate::cni::json::JsonCursor;
use crate::error::Error;

impl<'a> JsonCursor<'a> {
    /// Reads the keys of this object that are fields of `T`.
    ///
    /// # Errors
    /// Code 6 for a wrong JSON type, code 7 for a value that a field rejects.
    pub fn read<T: Deserialize<'a>>(&self) -> Result<T, Error> {
        let value = ValueDeserializer {
            json: self.clone(),
            recorder: None,
        };
        T::deserialize(value).map_err(|invalid| invalid.at(self))
    }
}

/// The path of a key: the keys of the objects that contain it, and its own, in lower case. Lists have no key.
pub type KeyPath = Vec<String>;

pub type KeyPaths = BTreeSet<KeyPath>;

/// The keys that a type reads.
pub fn key_paths<T: DeserializeOwned>() -> KeyPaths {
    let mut known = BTreeSet::new();
    let mut pending = vec![KeyPath::new()];
    while let Some(path) = pending.pop() {
        let nested = |inner, key: &String| json!({ key: inner });
        let document = path.iter().rev().fold(json!({}), nested);
        let recorder = Cell::default();
        // Fails if the key at the end of the path is not that of an object.
        let _ = T::deserialize(ValueDeserializer {
            json: JsonCursor::root("", &document),
            recorder: Some(&recorder),
        });
        for field in recorder.get() {
            let path = [&path[..], &[field.to_ascii_lowercase()]].concat();
            known.insert(path.clone());
            pending.push(path);
        }
    }
    known
}

/// A value was rejected. Boxed, because derived code moves it from field to field.
#[derive(Debug)]
struct Invalid(Box<Cause>);

#[derive(Debug)]
enum Cause {
    /// A wrong JSON type; what the value must be.
    Type(String),
    /// A wrong value; what the value must be.
    Value(String),
    /// An error that names its path.
    Located(Error),
}

impl Invalid {
    fn at(self, json: &JsonCursor) -> Error {
        match *self.0 {
            Cause::Type(wanted) => json.mistyped(&wanted),
            Cause::Value(wanted) => json.invalid(json.value, format!("it must be {wanted}")),
            Cause::Located(error) => error,
        }
    }
}

fn located(error: Error) -> Invalid {
    Invalid(Box::new(Cause::Located(error)))
}

impl Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Invalid {}

impl de::Error for Invalid {
    fn custom<T: Display>(wanted: T) -> Invalid {
        Invalid(Box::new(Cause::Value(wanted.to_string())))
    }

    fn invalid_type(_: Unexpected, expected: &dyn de::Expected) -> Invalid {
        Invalid(Box::new(Cause::Type(expected.to_string())))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Invalid {
        let quoted: Vec<String> = expected.iter().map(|name| format!("{name:?}")).collect();
        Invalid::custom(quoted.join(" or "))
    }
}

struct ValueDeserializer<'de, 'r> {
    json: JsonCursor<'de>,
    /// For [`key_paths`]: takes the fields of the struct that reads an empty object.
    recorder: Option<&'r Cell<&'static [&'static str]>>,
}

impl<'de, 'r> ValueDeserializer<'de, 'r> {
    fn of(&self, json: JsonCursor<'de>) -> ValueDeserializer<'de, 'r> {
        ValueDeserializer {
            json,
            recorder: self.recorder,
        }
    }

    /// Reads the value of a key or an element.
    fn nested<T: DeserializeSeed<'de>>(
        &self,
        json: JsonCursor<'de>,
        seed: T,
    ) -> Result<T::Value, Invalid> {
        let outcome = seed.deserialize(self.of(json.clone()));
        outcome.map_err(|invalid| located(invalid.at(&json)))
    }

    fn read<T>(&self, outcome: Result<T, Error>) -> Result<T, Invalid> {
        outcome.map_err(located)
    }
}

impl<'de> Deserializer<'de> for ValueDeserializer<'de, '_> {
    type Error = Invalid;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match self.json.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(number) => visitor.visit_i64(number),
                None => Err(located(self.json.mistyped("a whole number"))),
            },
            Value::Array(_) => visitor.visit_seq(Elements::of(self)?),
            Value::Null | Value::Object(_) => visitor.visit_unit(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let value = self.json.value.as_bool();
        let value = value.ok_or_else(|| self.json.mistyped("true or false"));
        visitor.visit_bool(self.read(value)?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let value = self.json.value.as_i64();
        let value = value.ok_or_else(|| self.json.mistyped("a whole number"));
        visitor.visit_i64(self.read(value)?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let value = self.json.value.as_u64();
        let value = value.ok_or_else(|| self.json.mistyped("a whole number that is not negative"));
        visitor.visit_u64(self.read(value)?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let text = self.read(self.json.as_text())?;
        visitor.visit_borrowed_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        visitor.visit_seq(Elements::of(self)?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        let object = self.read(self.json.clone().into_object())?;
        if let Some(recorder) = self.recorder.filter(|_| object.keys().next().is_none()) {
            recorder.set(fields);
        }
        visitor.visit_map(Fields {
            object: self.of(object),
            fields: fields.iter(),
            value: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        let text = self.read(self.json.as_text())?;
        visitor.visit_enum(StrDeserializer::new(text))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct map identifier ignored_any
    }
}

/// The fields of a struct that an object has.
struct Fields<'de, 'r> {
    object: ValueDeserializer<'de, 'r>,
    fields: std::slice::Iter<'static, &'static str>,
    value: Option<JsonCursor<'de>>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Invalid;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Invalid> {
        let object = &self.object.json;
        let value_of = |field: &&'static str| Some((*field, object.get(field)?));
        let Some((field, value)) = self.fields.find_map(value_of) else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(StrDeserializer::new(field)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Invalid> {
        let value = self.value.take().expect("a value follows its key");
        self.object.nested(value, seed)
    }
}

/// The elements of a list.
struct Elements<'de, 'r> {
    list: ValueDeserializer<'de, 'r>,
    elements: std::vec::IntoIter<JsonCursor<'de>>,
}

impl<'de, 'r> Elements<'de, 'r> {
    fn of(list: ValueDeserializer<'de, 'r>) -> Result<Elements<'de, 'r>, Invalid> {
        let elements = match (&list.recorder, list.json.value) {
            // The path of a key has no lists.
            (Some(_), Value::Object(_)) => vec![list.json.clone()],
            _ => list.read(list.json.clone().into_list())?,
        };
        Ok(Elements {
            list,
            elements: elements.into_iter(),
        })
    }
}

impl<'de> SeqAccess<'de> for Elements<'de, '_> {
    type Error = Invalid;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Invalid> {
        let element = self.elements.next();
        element
            .map(|element| self.list.nested(element, seed))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    use crate::cni::json::parse;
    use crate::net::Cidr;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Keys {
        is_gateway: bool,
        vlan: Option<i64>,
        backend: Option<Backend>,
        ipam: Ipam,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Backend {
        Iptables,
        Nftables,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Ipam {
        ranges: Vec<Vec<Range>>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Range {
        subnet: Option<Cidr>,
    }

    fn read(text: &str) -> Result<Keys, Error> {
        let value = parse("configuration", text.as_bytes()).unwrap();
        JsonCursor::root("configuration", &value).read()
    }

    #[test]
    fn keys_are_read_case_insensitively_and_null_is_absent() {
        let keys = read(
            r#"{"ISGATEWAY": true, "vlan": null, "backend": "nftables", "other": [5],
                "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {}], []]}}"#,
        );
        let keys = keys.unwrap();
        assert!(keys.is_gateway && keys.vlan.is_none());
        assert_eq!(keys.backend, Some(Backend::Nftables));
        let subnet = "10.1.0.0/24".parse().ok();
        assert_eq!(keys.ipam.ranges[0][0].subnet, subnet);
        assert_eq!(keys.ipam.ranges[1], []);
        assert_eq!(read("{}").unwrap(), Keys::default());
    }

    #[test]
    fn errors_name_the_path_of_the_value() {
        for (text, code, msg) in [
            (
                r#"{"isGateway": 1}"#,
                6,
                "isGateway is 1, but it must be true or false",
            ),
            (
                r#"{"vlan": 1.5}"#,
                6,
                "vlan is 1.5, but it must be a whole number",
            ),
            (
                r#"{"backend": "x"}"#,
                7,
                "backend is \"x\", but it must be \"iptables\" or \"nftables\"",
            ),
            (r#"{"ipam": []}"#, 6, "ipam is [], but it must be an object"),
            (
                r#"{"ipam": {"ranges": [[null]]}}"#,
                6,
                "ipam.ranges[0][0] is null, but it must be an object",
            ),
            (
                r#"{"ipam": {"ranges": [[{"subnet": "x"}]]}}"#,
                7,
                "ipam.ranges[0][0].subnet is \"x\", but it must be",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(
                error.msg.starts_with(&format!("configuration: {msg}")),
                "{error}"
            );
            assert_eq!(error.code.0, code, "{text}");
        }
    }

    #[test]
    fn the_keys_of_a_type_are_found_in_nested_lists() {
        let paths = key_paths::<Keys>().into_iter();
        let paths: Vec<String> = paths.map(|path| path.join(".")).collect();
        let expected = [
            "backend",
            "ipam",
            "ipam.ranges",
            "ipam.ranges.subnet",
            "isgateway",
            "vlan",
        ];
        assert_eq!(paths, expected);
    }
}
