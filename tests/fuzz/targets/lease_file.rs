//! The content of a lease file: its owner.

#![no_main]

use gangplank::cni::names::Attachment;
use gangplank::ipam::lease_file::{LeaseOwner, owner_for};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let attachment = |container: &str, interface: &str| -> Option<Attachment> {
        Some(Attachment {
            container: container.parse().ok()?,
            interface: interface.parse().ok()?,
        })
    };
    let unrelated = attachment("unrelated", "eth7").unwrap();
    let seen = owner_for(data, &unrelated);
    assert!(seen != LeaseOwner::Attachment || text.contains("unrelated"));
    // A lease written by ADD belongs to its attachment only.
    let Some((container, interface)) = text.split_once(' ') else {
        return;
    };
    let Some(own) = attachment(container, interface) else {
        return;
    };
    let written = format!("{}\r\n{}", own.container, own.interface);
    assert_eq!(owner_for(written.as_bytes(), &own), LeaseOwner::Attachment);
    if own.container != unrelated.container {
        assert_eq!(
            owner_for(written.as_bytes(), &unrelated),
            LeaseOwner::OtherContainer
        );
    }
    let other = attachment(container, "another").unwrap();
    if other != own {
        assert_eq!(
            owner_for(written.as_bytes(), &other),
            LeaseOwner::OtherInterface
        );
    }
    assert_eq!(owner_for(container.as_bytes(), &own), LeaseOwner::Container);
    // A truncated lease, as on a full disk, is never attributed to another container.
    for cut in 0..written.len() {
        let claimed = owner_for(&written.as_bytes()[..cut], &own);
        assert!(
            cut < container.len() || claimed != LeaseOwner::OtherContainer,
            "{cut}"
        );
    }
});
