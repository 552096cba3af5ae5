//! Network names, container IDs, and the attachments they identify (CNI spec 1.1, section 1 "Configuration format" and
//! section 2 "Parameters").

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha512};

use crate::net::IfName;

/// Network names and container IDs contain no slash and are neither `.` nor `..`: each is a single path component.
const SYNTAX: &str =
    "it must be a letter or digit followed by letters, digits, \"_\", \".\" and \"-\"";

fn validate(text: &str) -> Result<String, &'static str> {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(rest) {
        Ok(text.to_owned())
    } else {
        Err(SYNTAX)
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<$name, Self::Err> {
                validate(text).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// A network's `name`: an ASCII letter or digit, then any of `[A-Za-z0-9_.-]`.
    NetworkName
}

identifier! {
    /// CNI_CONTAINERID: an ASCII letter or digit, then any of `[A-Za-z0-9_.-]`.
    ContainerId
}

/// Identifies an attachment within a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container: ContainerId,
    /// CNI_IFNAME, the interface inside the container.
    pub interface: IfName,
}

impl Attachment {
    /// The name of the host interface. Derived, so that DEL finds it without the container's namespace.
    pub fn host_interface(&self, network: &NetworkName) -> IfName {
        IfName::derived("veth", self.digest(network))
    }

    /// Identifies the attachment among those of all networks.
    pub fn digest(&self, network: &NetworkName) -> impl AsRef<[u8]> {
        let names = [
            network.as_str(),
            self.container.as_str(),
            self.interface.as_str(),
        ];
        Sha512::digest(names.join("\0"))
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "container {} interface {}",
            self.container, self.interface
        )
    }
}
