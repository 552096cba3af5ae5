//! The attachments that GC keeps (CNI spec 1.1, "GC: Clean up any stale resources").

use std::collections::{BTreeMap, BTreeSet};

use crate::cni::json::JsonCursor;
use crate::cni::names::{Attachment, ContainerId};
use crate::error::Error;
use crate::net::IfName;

/// All attachments of a network that exist for the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidAttachments {
    interfaces: BTreeMap<ContainerId, BTreeSet<IfName>>,
}

impl ValidAttachments {
    const KEY: &'static str = "cni.dev/valid-attachments";

    /// Parses the list of `{containerID, ifname}`. `None` if the key is absent, as with `cnitool gc`: no attachment is
    /// known to be stale. An empty list means that all are.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for an invalid attachment.
    pub fn parse(root: &JsonCursor) -> Result<Option<ValidAttachments>, Error> {
        let list = root.list(ValidAttachments::KEY)?;
        list.map(|list| list.into_iter().map(parse_attachment).collect())
            .transpose()
    }

    pub fn contains(&self, container: &ContainerId, interface: &str) -> bool {
        let interfaces = self.interfaces.get(container);
        interfaces.is_some_and(|all| all.iter().any(|valid| valid.as_str() == interface))
    }

    pub fn has_container(&self, container: &ContainerId) -> bool {
        self.interfaces.contains_key(container)
    }

    pub fn all(&self) -> impl Iterator<Item = Attachment> {
        self.interfaces.iter().flat_map(|(container, interfaces)| {
            interfaces.iter().map(|interface| Attachment {
                container: container.clone(),
                interface: interface.clone(),
            })
        })
    }

    pub fn containers(&self) -> impl Iterator<Item = &ContainerId> {
        self.interfaces.keys()
    }
}

impl FromIterator<Attachment> for ValidAttachments {
    fn from_iter<I: IntoIterator<Item = Attachment>>(attachments: I) -> ValidAttachments {
        let mut valid = ValidAttachments::default();
        for Attachment {
            container,
            interface,
        } in attachments
        {
            valid
                .interfaces
                .entry(container)
                .or_default()
                .insert(interface);
        }
        valid
    }
}

fn parse_attachment(json: JsonCursor) -> Result<Attachment, Error> {
    let json = json.into_object()?;
    let missing = |key: &str| {
        json.at(key)
            .invalid("missing", "a valid attachment needs it")
    };
    let text = json
        .text("containerID")?
        .ok_or_else(|| missing("containerID"))?;
    let container = text
        .parse()
        .map_err(|wanted| json.at("containerID").invalid(format!("{text:?}"), wanted))?;
    let interface = json.parsed("ifname")?.ok_or_else(|| missing("ifname"))?;
    Ok(Attachment {
        container,
        interface,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::conf::NetConf;

    fn parse(list: &str) -> Result<Option<ValidAttachments>, Error> {
        let text = format!(r#"{{"name": "n", "cniVersion": "1.1.0"{list}}}"#);
        NetConf::parse(text.into_bytes())
            .unwrap()
            .valid_attachments()
    }

    #[test]
    fn an_attachment_is_valid_by_container_and_interface() {
        let valid = parse(
            r#", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}, {"containerID": "a", "ifname": "net1"}]"#,
        )
        .unwrap()
        .unwrap();
        let id = |text: &str| text.parse::<ContainerId>().unwrap();
        assert!(valid.contains(&id("a"), "net1") && valid.has_container(&id("a")));
        assert!(!valid.contains(&id("a"), "net2") && !valid.has_container(&id("b")));
        let none = parse(r#", "cni.dev/valid-attachments": []"#).unwrap();
        assert_eq!(none, Some(ValidAttachments::default()));
    }

    #[test]
    fn an_absent_list_is_not_an_empty_list() {
        for list in ["", r#", "cni.dev/valid-attachments": null"#] {
            assert_eq!(parse(list).unwrap(), None);
        }
    }

    #[test]
    fn errors_name_the_path_of_an_invalid_attachment() {
        for (list, path, code) in [
            (
                r#", "cni.dev/valid-attachments": {}"#,
                "cni.dev/valid-attachments is {}",
                6,
            ),
            (
                r#", "cni.dev/valid-attachments": [null]"#,
                "attachments[0] is null",
                6,
            ),
            (
                r#", "cni.dev/valid-attachments": [{"ifname": "eth0"}]"#,
                "[0].containerID is missing",
                7,
            ),
            (
                r#", "cni.dev/valid-attachments": [{"containerID": "a"}]"#,
                "[0].ifname is missing",
                7,
            ),
            (
                r#", "cni.dev/valid-attachments": [{"containerID": 5, "ifname": "e"}]"#,
                "[0].containerID is 5",
                6,
            ),
            (
                r#", "cni.dev/valid-attachments": [{"containerID": "../a", "ifname": "e"}]"#,
                "[0].containerID is",
                7,
            ),
            (
                r#", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "e/"}]"#,
                "[0].ifname is",
                7,
            ),
        ] {
            let error = parse(list).unwrap_err();
            assert!(
                error.msg.contains(path) && error.code.0 == code,
                "{list}: {error:?}"
            );
        }
    }
}
