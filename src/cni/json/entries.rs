//! Objects whose keys are data, for example names of sysctls: case and order are kept, and so are duplicates.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{escape, fold};
use crate::error::{Code, Error};

/// The entries of the objects at a path, which consists of keys in lower case. `document` names the JSON document in
/// errors.
///
/// # Errors
/// Code 6 if it is not JSON, or a value on the path is neither an object nor null.
pub fn entries(
    document: &'static str,
    bytes: &[u8],
    path: &[&str],
) -> Result<Vec<(String, Value)>, Error> {
    let text = escape::without_lone_surrogates(String::from_utf8_lossy(bytes));
    let mut found = Vec::new();
    let collector = Collector {
        path,
        found: &mut found,
    };
    let collected = collector.deserialize(&mut serde_json::Deserializer::from_str(&text));
    collected.map_err(|cause| {
        let msg = format!("{document}: {} cannot be read: {cause}", path.join("."));
        Error::new(Code::DECODE, msg)
    })?;
    Ok(found)
}

struct Collector<'a> {
    path: &'a [&'a str],
    found: &'a mut Vec<(String, Value)>,
}

impl<'de> DeserializeSeed<'de> for Collector<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Collector<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.path {
                [] => self.found.push((key, map.next_value()?)),
                [next, path @ ..] if fold(&key) == *next => {
                    let found = &mut *self.found;
                    map.next_value_seed(Collector { path, found })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_case_order_and_duplicates() {
        let text = br#"{"Args": {"cni": {"b": "1", "A": null, "b": 2}, "x": [[1]]}, "args": null, "ARGS": {"CNI": {"B": "3"}}}"#;
        let found = entries("configuration", text, &["args", "cni"]).unwrap();
        let found: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(found, ["b=\"1\"", "A=null", "b=2", "B=\"3\""]);
        assert_eq!(
            entries("configuration", b"{}", &["args", "cni"]),
            Ok(vec![])
        );
        assert!(entries("configuration", br#"{"args": 5}"#, &["args"]).is_err());
    }
}
