//! The network configuration on stdin: the keys that every plugin has (CNI spec 1.1, section 1).

use std::io::Read;

use serde_json::Value;

use crate::cni::json::{self, JsonCursor};
use crate::cni::names::NetworkName;
use crate::cni::result::AddResult;
use crate::cni::{ValidAttachments, Version};
use crate::error::{Code, Error};

const DOCUMENT: &str = "configuration";

/// A network configuration.
#[derive(Debug)]
pub struct NetConf {
    pub name: NetworkName,
    /// The version of the result.
    pub version: Version,
    /// The configuration as received, for delegated plugins.
    pub bytes: Vec<u8>,
    root: Value,
}

impl NetConf {
    /// # Errors
    /// Code 5 if reading fails.
    pub fn read(from: impl Read) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(4096);
        // Longer input is rejected because of its length.
        from.take(json::MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| {
                Error::new(
                    Code::IO,
                    format!("cannot read the configuration from stdin: {cause}"),
                )
            })?;
        Ok(bytes)
    }

    /// Parses a configuration.
    ///
    /// # Errors
    /// Code 6 for invalid JSON or a wrong type, 7 for the name, 1 for the version.
    pub fn parse(bytes: Vec<u8>) -> Result<NetConf, Error> {
        if bytes.trim_ascii().is_empty() {
            return Err(
                Error::new(Code::DECODE, format!("{DOCUMENT} on stdin is empty"))
                    .details("the runtime passes the network configuration there, as JSON"),
            );
        }
        let root = match json::parse(DOCUMENT, &bytes)? {
            Value::Null => Value::Object(Default::default()),
            root => root,
        };
        let json = JsonCursor::root(DOCUMENT, &root).into_object()?;
        let name = json.text("name")?.unwrap_or_default();
        let name = name
            .parse()
            .map_err(|wanted| json.at("name").invalid(format!("{name:?}"), wanted))?;
        let version = Version::parse(json.text("cniVersion")?.unwrap_or_default())?;
        Ok(NetConf {
            name,
            version,
            bytes,
            root,
        })
    }

    pub fn root(&self) -> JsonCursor<'_> {
        JsonCursor::root(DOCUMENT, &self.root)
    }

    /// `prevResult`; without a version of its own, it has the version of the configuration.
    ///
    /// # Errors
    /// Code 6 if it is not a result.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        let prev = self.root().object("prevResult")?;
        prev.map(|prev| AddResult::parse(&prev, self.version))
            .transpose()
    }

    /// The attachments that GC keeps; `None` if the key is absent.
    ///
    /// # Errors
    /// Code 6 or 7 if it is not a list of attachments.
    pub fn valid_attachments(&self) -> Result<Option<ValidAttachments>, Error> {
        ValidAttachments::parse(&self.root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> u32 {
        NetConf::parse(text.into()).unwrap_err().code.0
    }

    #[test]
    fn name_and_version_are_parsed() {
        let conf = NetConf::parse(br#"{"NAME": "net", "cniVersion": "0.4.0"}"#.to_vec()).unwrap();
        assert_eq!((conf.name.as_str(), conf.version), ("net", Version::V0_4_0));
        let conf = NetConf::parse(br#"{"name": "a..b", "cniVersion": null}"#.to_vec()).unwrap();
        assert_eq!(conf.version, Version::V0_1_0);
    }

    #[test]
    fn error_codes_of_invalid_configurations() {
        assert_eq!(
            [code(""), code(" \n"), code("[]"), code("5"), code("{}x")],
            [6; 5]
        );
        assert_eq!(
            [
                code(r#"{"name":5}"#),
                code(r#"{"name":"n","cniVersion":1}"#)
            ],
            [6; 2]
        );
        assert_eq!(
            [
                code("null"),
                code("{}"),
                code(r#"{"name":""}"#),
                code(r#"{"name":"../x"}"#)
            ],
            [7; 4]
        );
        assert_eq!(code(r#"{"name":"n","cniVersion":"9.9.9"}"#), 1);
    }
}
