//! Protocol versions, and the operations that each supports.

use std::fmt;

use crate::cni::environment::Command;
use crate::cni::json::{self, JsonCursor};
use crate::error::{Code, Error};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Also the meaning of an absent `cniVersion`.
    V0_1_0,
    V0_2_0,
    /// Introduced results with interfaces and lists of addresses.
    V0_3_0,
    V0_3_1,
    /// Introduced CHECK and prevResult.
    V0_4_0,
    V1_0_0,
    /// Introduced GC and STATUS.
    V1_1_0,
}

/// The encodings of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// `ip4` and `ip6`: 0.1.0 and 0.2.0.
    V0_1,
    /// `ips` with a `version` in each entry: 0.3.0, 0.3.1 and 0.4.0.
    V0_3,
    /// `ips` without `version`: 1.0.0 and 1.1.0.
    V1,
}

impl Version {
    /// Oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    pub const NEWEST: Version = Version::V1_1_0;

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    pub fn schema(self) -> Schema {
        match self {
            Version::V0_1_0 | Version::V0_2_0 => Schema::V0_1,
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => Schema::V0_3,
            Version::V1_0_0 | Version::V1_1_0 => Schema::V1,
        }
    }

    /// Parses a `cniVersion`; an empty one means 0.1.0 (CNI spec 0.2.0, "Network Configuration").
    ///
    /// # Errors
    /// Code 1 for an unsupported version.
    pub fn parse(text: &str) -> Result<Version, Error> {
        if text.is_empty() {
            return Ok(Version::V0_1_0);
        }
        let known = Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text);
        known.ok_or_else(|| {
            Error::new(
                Code::INCOMPATIBLE_VERSION,
                format!("incompatible CNI versions: the configuration's cniVersion is {text:?}"),
            )
            .details(format!("supported are {}", Version::list()))
        })
    }

    /// The versions in a plugin's result of VERSION; empty if it is invalid.
    pub fn supported_in(result: &[u8]) -> Vec<String> {
        let value = json::parse("versions", result).unwrap_or_default();
        let versions = JsonCursor::root("versions", &value).texts("supportedVersions");
        versions.ok().flatten().unwrap_or_default()
    }

    /// Rejects an operation that this version does not have.
    ///
    /// # Errors
    /// Code 1 for CHECK before 0.4.0, GC and STATUS before 1.1.0.
    pub fn allow(self, command: Command) -> Result<(), Error> {
        let since = match command {
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
            Command::Add | Command::Del | Command::Version => return Ok(()),
        };
        if self >= since {
            return Ok(());
        }
        Err(Error::new(
            Code::INCOMPATIBLE_VERSION,
            format!(
                "{command} needs cniVersion {since} or newer, but the configuration's is {self}"
            ),
        )
        .details(format!("supported are {}", Version::list())))
    }

    pub fn list() -> String {
        Version::ALL.map(Version::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_released_versions_are_accepted() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Ok(version));
        }
        assert_eq!(Version::parse(""), Ok(Version::V0_1_0));
        for invalid in ["1.1", "0.3.2", "9.9.9", " 1.0.0", "v1.0.0", "1.0.0 "] {
            assert_eq!(
                Version::parse(invalid).unwrap_err().code,
                Code::INCOMPATIBLE_VERSION
            );
        }
    }

    #[test]
    fn operations_require_their_version() {
        assert!(Version::V0_1_0.allow(Command::Add).is_ok());
        assert!(Version::V0_3_1.allow(Command::Check).is_err());
        assert!(Version::V0_4_0.allow(Command::Check).is_ok());
        assert!(Version::V1_0_0.allow(Command::Gc).is_err());
        assert!(Version::V1_1_0.allow(Command::Status).is_ok());
    }
}
