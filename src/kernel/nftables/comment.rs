//! Comments of rules and elements, as nft(8) stores them in their user data.

/// The longest comment, in bytes: with its terminator its length must fit into a byte (struct nftnl_udata).
const MAX_COMMENT: usize = 254;

/// The type of a comment (enum nftnl_udata_rule_types and nftnl_udata_set_elem_types, libnftnl/udata.h).
const NFTNL_UDATA_COMMENT: u8 = 0;

/// User data with a comment: type, length, text with its terminator (struct nftnl_udata).
pub(super) fn userdata(comment: &str) -> Vec<u8> {
    let text = &comment[..comment.floor_char_boundary(MAX_COMMENT)];
    let mut data = vec![NFTNL_UDATA_COMMENT, text.len() as u8 + 1];
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    data
}

/// The comment in user data; empty if there is none.
pub(super) fn comment_of(userdata: &[u8]) -> String {
    let mut rest = userdata;
    while let [kind, length, more @ ..] = rest {
        let Some((value, next)) = more.split_at_checked((*length).into()) else {
            break;
        };
        if *kind == NFTNL_UDATA_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8_lossy(text).into_owned();
        }
        rest = next;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_have_the_format_of_nft() {
        assert_eq!(userdata("c1 eth0"), b"\x00\x08c1 eth0\x00");
        assert_eq!(comment_of(b"\x05\x01x\x00\x03ab\x00"), "ab");
        assert_eq!(comment_of(b"\x00\x09cut"), "");
        let long = "x".repeat(300);
        assert_eq!(comment_of(&userdata(&long)), long[..254]);
    }
}
