use super::*;
use crate::ipam::tests::{Scratch, attachment_of};
use std::os::unix::fs::PermissionsExt;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn store(scratch: &Scratch) -> Store {
    Store::new(scratch.path(), &"net".parse().unwrap())
}

#[test]
fn files_are_those_of_the_go_plugin() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let attachment = attachment_of("c1", "eth0");
    let locked = store.lock_or_create().unwrap();
    locked.create_lease(ip("10.1.0.2"), &attachment).unwrap();
    locked.create_lease(ip("fd00:0::2"), &attachment).unwrap();
    locked.set_last_reserved(1, ip("fd00::2")).unwrap();
    drop(locked);
    let file = |name: &str| {
        let path = scratch.path().join("net").join(name);
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        (fs::read_to_string(path).unwrap(), mode)
    };
    assert_eq!(file("10.1.0.2"), ("c1\r\neth0".into(), 0o600));
    assert_eq!(file("fd00::2"), ("c1\r\neth0".into(), 0o600));
    assert_eq!(file("last_reserved_ip.1"), ("fd00::2".into(), 0o600));
    assert_eq!(file("lock"), (String::new(), 0o750));
    let names = ["10.1.0.2", "fd00::2", "last_reserved_ip.1", "lock"];
    assert_eq!(scratch.names("net"), names);
}

#[test]
fn legacy_leases_count_only_if_the_attachment_has_no_other() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let attachment = attachment_of("c1", "eth0");
    scratch.write("net/10.1.0.2", "c1");
    scratch.write("net/10.1.0.3", "c1\r\neth0");
    scratch.write("net/10.1.0.4", "c1\r\neth1");
    assert_eq!(
        store.held(&attachment).unwrap().addresses(),
        [ip("10.1.0.3")]
    );
    let other = attachment_of("c1", "net1");
    assert_eq!(store.held(&other).unwrap().addresses(), [ip("10.1.0.2")]);
    let leases = store.scan(&attachment).unwrap();
    let all = ["10.1.0.2", "10.1.0.3", "10.1.0.4"];
    assert!(all.iter().all(|address| leases.is_taken(ip(address))));
}

#[test]
fn other_files_are_not_touched() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let attachment = attachment_of("c1", "eth0");
    let other_files = [
        "notes",
        "010.1.0.2",
        "10.1.0.0/24x",
        "FD00::1",
        "::ffff:10.1.0.7",
        "lock",
    ];
    for name in other_files {
        scratch.write(&format!("net/{}", name.replace('/', "_")), "c1\r\neth0");
    }
    scratch.write("net/10.1.0.9/10.1.0.8", "c1\r\neth0");
    std::os::unix::fs::symlink("notes", scratch.path().join("net/10.1.0.10")).unwrap();
    let before = scratch.names("net");
    let leases = store.scan(&attachment).unwrap();
    assert_eq!(leases.held.addresses, [] as [IpAddr; 0]);
    // Their addresses cannot be allocated.
    let taken = |address| leases.is_taken(ip(address));
    assert!(taken("10.1.0.9") && taken("10.1.0.10") && !taken("10.1.0.7"));
    let all = HeldLeases::of(vec![ip("10.1.0.7"), ip("10.1.0.2")]);
    store.release(&attachment, &all).unwrap();
    assert_eq!(scratch.names("net"), before);
}

#[test]
fn only_invalid_leases_are_replaced() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let attachment = attachment_of("c1", "eth0");
    scratch.write("net/10.1.0.2", "");
    scratch.write("net/10.1.0.3", "c2\r\neth0");
    let locked = store.lock_or_create().unwrap();
    let leases = store.scan(&attachment).unwrap();
    assert!(leases.is_taken(ip("10.1.0.3")) && !leases.is_taken(ip("10.1.0.2")));
    locked.create_lease(ip("10.1.0.2"), &attachment).unwrap();
    assert_eq!(scratch.read("net/10.1.0.2"), "c1\r\neth0");
    let error = locked
        .create_lease(ip("10.1.0.3"), &attachment)
        .unwrap_err();
    assert!(error.msg.contains("10.1.0.3"), "{error}");
    assert_eq!(scratch.read("net/10.1.0.3"), "c2\r\neth0");
    assert!(!scratch.path().join("net").join(TEMP_FILE).exists());
}

#[test]
fn a_stale_temporary_file_is_not_written_to() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let (dead, attachment) = (attachment_of("dead", "eth0"), attachment_of("c1", "eth0"));
    scratch.write("net/10.1.0.2", "dead\r\neth0");
    let net = scratch.path().join("net");
    // Killed between creating the hard link and removing the temporary file.
    fs::hard_link(net.join("10.1.0.2"), net.join(TEMP_FILE)).unwrap();
    let locked = store.lock_or_create().unwrap();
    locked.create_lease(ip("10.1.0.3"), &attachment).unwrap();
    drop(locked);
    assert_eq!(scratch.read("net/10.1.0.2"), "dead\r\neth0");
    assert!(!net.join(TEMP_FILE).exists());

    fs::hard_link(net.join("10.1.0.2"), net.join(TEMP_FILE)).unwrap();
    let held = store.held(&dead).unwrap();
    assert_eq!(held.addresses(), [ip("10.1.0.2")]);
    store.release(&dead, &held).unwrap();
    assert_eq!(scratch.names("net"), ["10.1.0.3", "lock"]);
}

#[test]
fn reading_creates_nothing() {
    let scratch = Scratch::new();
    let attachment = attachment_of("c1", "eth0");
    let store = store(&scratch);
    assert!(store.held(&attachment).unwrap().is_empty());
    assert!(store.lock().unwrap().is_none());
    assert!(!scratch.path().join("net").exists());
    // Also if the directory cannot be created.
    let impossible = Store::new(Path::new("/dev/null/x"), &"net".parse().unwrap());
    assert!(impossible.held(&attachment).unwrap().is_empty());
    assert!(impossible.lock().unwrap().is_none());
    assert!(impossible.lock_or_create().is_err());
    let long = Store::new(scratch.path(), &"n".repeat(256).parse().unwrap());
    assert!(long.held(&attachment).unwrap().is_empty());
}

#[test]
fn an_invalid_last_reserved_address_is_ignored() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let locked = store.lock_or_create().unwrap();
    assert_eq!(locked.last_reserved(0), None);
    for (content, expected) in [
        ("10.1.0.2", Some(ip("10.1.0.2"))),
        ("10.1.0.2\n", None),
        ("", None),
        ("x", None),
    ] {
        scratch.write("net/last_reserved_ip.0", content);
        assert_eq!(locked.last_reserved(0), expected);
    }
}

#[test]
fn long_container_ids_are_read_completely() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let id = "x".repeat(5000);
    let attachment = attachment_of(&id, "eth0");
    let locked = store.lock_or_create().unwrap();
    locked.create_lease(ip("10.1.0.2"), &attachment).unwrap();
    assert_eq!(
        store.held(&attachment).unwrap().addresses(),
        [ip("10.1.0.2")]
    );
}

#[test]
fn symbolic_links_are_not_followed() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let attachment = attachment_of("c1", "eth0");
    scratch.write("outside", "c1\r\neth0");
    scratch.write("net/10.1.0.9", "c2\r\neth0");
    let link = |name: &str| {
        let target = scratch.path().join("outside");
        std::os::unix::fs::symlink(target, scratch.path().join("net").join(name)).unwrap();
    };
    for name in ["10.1.0.2", TEMP_FILE, "last_reserved_ip.0"] {
        link(name);
    }
    let locked = store.lock_or_create().unwrap();
    let leases = store.scan(&attachment).unwrap();
    assert!(leases.held.addresses.is_empty() && leases.is_taken(ip("10.1.0.2")));
    assert_eq!(locked.last_reserved(0), None);
    assert!(locked.create_lease(ip("10.1.0.2"), &attachment).is_err());
    drop(locked);
    let held = HeldLeases::of(vec![ip("10.1.0.2")]);
    store.release(&attachment, &held).unwrap();
    let locked = store.lock_or_create().unwrap();
    link(TEMP_FILE);
    locked.create_lease(ip("10.1.0.3"), &attachment).unwrap();
    locked.set_last_reserved(0, ip("10.1.0.3")).unwrap();
    drop(locked);
    assert_eq!(scratch.read("outside"), "c1\r\neth0");
    assert_eq!(scratch.read("net/last_reserved_ip.0"), "10.1.0.3");
    assert!(scratch.path().join("net/10.1.0.2").is_symlink());
    assert!(store.holder(ip("10.1.0.2")).is_none());

    fs::remove_file(scratch.path().join("net/lock")).unwrap();
    link("lock");
    let error = store.lock_or_create().unwrap_err();
    assert!(error.to_string().contains("not followed here"), "{error}");
    fs::remove_file(scratch.path().join("outside")).unwrap();
    assert!(store.lock_or_create().is_err());
    assert!(!scratch.path().join("outside").exists());
}
