//! Matches of iptables in rules of nf_tables (net/netfilter/nft_compat.c).

use super::attribute::Attributes;
use super::expression::Expressions;
use super::uapi::*;

/// The size of struct xt_comment_info (linux/netfilter/xt_comment.h), in bytes.
const COMMENT_SIZE: usize = 256;

impl Expressions {
    fn xt_match(self, name: &str, revision: u32, info: &[u8]) -> Expressions {
        let data = Attributes::default()
            .put_strz(NFTA_MATCH_NAME, name)
            .put_be32(NFTA_MATCH_REV, revision)
            .put(NFTA_MATCH_INFO, info);
        self.push("match", data)
    }

    pub(super) fn xt_comment(self, comment: &str) -> Expressions {
        let mut info = comment.as_bytes().to_vec();
        info.resize(COMMENT_SIZE, 0);
        self.xt_match("comment", 0, &info)
    }

    /// `match_flags` and `state_mask` are the only fields of struct xt_conntrack_mtinfo3 that are not 0
    /// (linux/netfilter/xt_conntrack.h).
    pub(super) fn xt_conntrack(self, states: &[XtState]) -> Expressions {
        let mask = states.iter().fold(0, |mask, state| mask | *state as u16);
        let mut info = [0; 164];
        info[146..148].copy_from_slice(&XT_CONNTRACK_STATE.to_ne_bytes());
        info[150..152].copy_from_slice(&mask.to_ne_bytes());
        self.xt_match("conntrack", 3, &info)
    }
}

/// A state of a connection (XT_CONNTRACK_STATE_BIT, linux/netfilter/xt_conntrack.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XtState {
    Established = 1 << 1,
    Related = 1 << 2,
    /// The destination was translated.
    Dnat = 1 << 7,
}
