//! nf_tables replies of the kernel: rules and map elements.

#![no_main]

use gangplank::kernel::nat::PortAllocation;
use gangplank::kernel::nftables::{
    Action, Match, Rule, RuleEntry, comment, dnat_address, element, is_final, multiport,
};
use gangplank::net::Family;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for element in element::parse(data) {
        let chain = element.chain().unwrap_or_default();
        assert!(chain.len() <= data.len() && element.comment.len() <= 3 * data.len());
    }
    if let Some(entry) = RuleEntry::parse(data) {
        for action in [
            Action::Return,
            Action::Masquerade(PortAllocation::Preserve),
            Action::Jump("x".to_owned()),
        ] {
            let _ = entry.is(&Rule::new(vec![Match::Family(Family::V4)], action));
        }
        for family in Family::BOTH {
            let _ = (
                entry.source(family),
                entry.destination(family),
                dnat_address(&entry, family),
            );
        }
        let _ = (
            entry.protocol(),
            entry.destination_port(),
            entry.translated_to(),
        );
        let _ = (comment(&entry), multiport(&entry), is_final(&entry));
    }
});
