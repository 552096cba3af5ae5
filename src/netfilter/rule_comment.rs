//! Comments of nftables objects, which name their attachment: in our table and in that of the Go plugin.

use sha2::{Digest, Sha512};

use crate::cni::names::{Attachment, NetworkName};

/// The longest comment that nft(8) accepts (NFTNL_UDATA_COMMENT_MAXLEN, libnftnl/udata.h), in bytes.
const MAX_COMMENT: usize = 128;

/// The comment of an attachment. It begins with a hash of the network and one of interface and container ID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleComment {
    key: String,
    comment: String,
}

impl RuleComment {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> RuleComment {
        let Attachment {
            container,
            interface,
        } = attachment;
        let key = format!(
            "{}{}",
            network_key(network),
            short_hash(&format!("{interface}:{container}"))
        );
        let interface = interface.as_str().replace('"', "");
        let mut comment = format!("{key}, net: {network}, if: {interface}, id: {container}");
        comment.truncate(comment.floor_char_boundary(MAX_COMMENT));
        RuleComment { key, comment }
    }

    /// That of an object.
    pub fn read(comment: &str) -> RuleComment {
        let key = comment.split(',').next().unwrap_or_default();
        RuleComment {
            key: key.to_owned(),
            comment: comment.to_owned(),
        }
    }

    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The network and the container ID of a comment, which may have been cut.
    pub fn parse(comment: &str) -> (&str, &str) {
        let after = |entry: &str| comment.split_once(entry).map_or("", |(_, rest)| rest);
        let network = after(", net: ").split(", if: ").next().unwrap_or_default();
        (network, after(", id: "))
    }

    /// The network and the attachment of a comment; `None` if it has been cut.
    pub fn attachment(comment: &str) -> Option<(NetworkName, Attachment)> {
        let (network, container) = RuleComment::parse(comment);
        let (_, rest) = comment.split_once(", if: ")?;
        let network = network.parse().ok()?;
        let attachment = Attachment {
            container: container.parse().ok()?,
            interface: rest.split(", id: ").next()?.parse().ok()?,
        };
        let is_whole = RuleComment::of(&network, &attachment).matches(comment);
        is_whole.then_some((network, attachment))
    }

    pub fn matches(&self, comment: &str) -> bool {
        comment.starts_with(&self.key)
    }

    /// Whether a comment belongs to any attachment of a network.
    pub fn is_of_network(network: &NetworkName, comment: &str) -> bool {
        comment.starts_with(&network_key(network))
    }
}

fn network_key(network: &NetworkName) -> String {
    format!("{}-", short_hash(network.as_str()))
}

/// The first sixteen hexadecimal digits of the SHA-512 sum.
pub fn short_hash(text: &str) -> String {
    let digest = Sha512::digest(text);
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comment(network: &str, container: &str, interface: &str) -> RuleComment {
        let attachment = Attachment {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        };
        RuleComment::of(&network.parse().unwrap(), &attachment)
    }

    #[test]
    fn comments_are_those_of_the_go_plugin() {
        let comment = comment("spec-masqnft", "spec-ctr-0001", "eth0");
        assert_eq!(
            comment.comment(),
            "35ddc5b01a1e3fef-acc65a2cd78de073, net: spec-masqnft, if: eth0, id: spec-ctr-0001"
        );
        assert!(comment.matches("35ddc5b01a1e3fef-acc65a2cd78de073, net: what follows may be cut"));
        assert_eq!(
            RuleComment::parse(comment.comment()),
            ("spec-masqnft", "spec-ctr-0001")
        );
        let network = "spec-masqnft".parse().unwrap();
        assert!(RuleComment::is_of_network(&network, comment.comment()));
        assert!(!RuleComment::is_of_network(
            &"other".parse().unwrap(),
            comment.comment()
        ));
    }

    #[test]
    fn truncated_comments_still_identify_the_attachment() {
        let long = "x".repeat(300);
        let (one, other) = (comment("n", &long, "eth0"), comment("n", &long, "eth1"));
        assert_eq!(one.comment().len(), 128);
        assert!(one.matches(one.comment()) && !one.matches(other.comment()));
    }
}
