//! The content of a lease file: whose it is, whatever it holds.

#![no_main]

use gangplank::cni::names::Attachment;
use gangplank::ipam::lease_file::{LeaseOwner, owner_for};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let who = |container: &str, interface: &str| -> Option<Attachment> {
        Some(Attachment {
            container: container.parse().ok()?,
            interface: interface.parse().ok()?,
        })
    };
    let stranger = who("somebody-else", "eth7").unwrap();
    let seen = owner_for(data, &stranger);
    assert!(seen != LeaseOwner::Attachment || text.contains("somebody-else"));
    // What an ADD of an attachment writes is its own and nobody else's.
    let Some((container, interface)) = text.split_once(' ') else {
        return;
    };
    let Some(me) = who(container, interface) else {
        return;
    };
    let written = format!("{}\r\n{}", me.container, me.interface);
    assert_eq!(owner_for(written.as_bytes(), &me), LeaseOwner::Attachment);
    if me.container != stranger.container {
        assert_eq!(owner_for(written.as_bytes(), &stranger), LeaseOwner::OtherContainer);
    }
    let other = who(container, "another").unwrap();
    if other != me {
        assert_eq!(owner_for(written.as_bytes(), &other), LeaseOwner::OtherInterface);
    }
    assert_eq!(owner_for(container.as_bytes(), &me), LeaseOwner::Container);
    // Cut at any place, as a full disk leaves it, it is never another container's of the same node by mistake.
    for cut in 0..written.len() {
        let claimed = owner_for(&written.as_bytes()[..cut], &me);
        assert!(cut < container.len() || claimed != LeaseOwner::OtherContainer, "{cut}");
    }
});
