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
<<<<<<< HEAD
    let stranger = who("somebody-else", "eth7").unwrap();
    let seen = owner_for(data, &stranger);
    assert!(seen != LeaseOwner::Attachment || text.contains("somebody-else"));
    // What an ADD of an attachment writes is its own and nobody else's.
=======
    let unrelated = attachment("unrelated", "eth7").unwrap();
    let seen = owner_for(data, &unrelated);
    assert!(seen != LeaseOwner::Mine || text.contains("unrelated"));
    // A lease written by ADD belongs to its attachment only.
>>>>>>> lang-tests
    let Some((container, interface)) = text.split_once(' ') else {
        return;
    };
    let Some(own) = attachment(container, interface) else {
        return;
    };
<<<<<<< HEAD
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
=======
    let written = format!("{}\r\n{}", own.container, own.interface);
    assert_eq!(owner_for(written.as_bytes(), &own), LeaseOwner::Mine);
    if own.container != unrelated.container {
        assert_eq!(owner_for(written.as_bytes(), &unrelated), LeaseOwner::Foreign);
    }
    let other = attachment(container, "another").unwrap();
    if other != own {
        assert_eq!(owner_for(written.as_bytes(), &other), LeaseOwner::Siblings);
    }
    assert_eq!(owner_for(container.as_bytes(), &own), LeaseOwner::Containers);
    // A truncated lease, as on a full disk, is never attributed to another container.
    for cut in 0..written.len() {
        let claimed = owner_for(&written.as_bytes()[..cut], &own);
        assert!(cut < container.len() || claimed != LeaseOwner::Foreign, "{cut}");
>>>>>>> lang-tests
    }
});
