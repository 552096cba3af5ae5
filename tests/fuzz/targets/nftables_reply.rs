//! nf_tables replies of the kernel: rules and map elements.

#![no_main]

use gangplank::kernel::nat::PortAllocation;
use gangplank::kernel::nftables::{Action, Match, Rule, RuleEntry, element};
use gangplank::net::Family;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for element in element::parse(data) {
        assert!(element.chain.len() <= data.len() && element.comment.len() <= 3 * data.len());
    }
    if let Some(entry) = RuleEntry::parse(data) {
        for action in [
            Action::Return,
            Action::Masquerade(PortAllocation::Preserve),
            Action::Jump("x".to_owned()),
        ] {
            let _ = entry.is(&Rule::new(vec![Match::Family(Family::V4)], action));
        }
    }
});
