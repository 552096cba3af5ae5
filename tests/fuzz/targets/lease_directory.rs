//! A lease directory with arbitrary files, in memory: owners of addresses, the next address, the index, and GC. A test
//! of host-local does the same with real files.

#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use gangplank::cni::ValidAttachments;
use gangplank::cni::args::Args;
use gangplank::cni::conf::NetConf;
use gangplank::cni::names::Attachment;
use gangplank::ipam::allocate::next_free;
use gangplank::ipam::config::Config;
use gangplank::ipam::lease_file::{LeaseOwner, owner_for};
use gangplank::ipam::store::index::{Index, text_of};
use gangplank::ipam::store::is_kept;
use gangplank::ipam::store::scan::{LeaseScan, address_named, parse_last_reserved};
use libfuzzer_sys::fuzz_target;

const INDEX: &[u8] = b".gangplank.index";

/// File names and contents.
type Files<'a> = BTreeMap<&'a [u8], &'a [u8]>;

struct Directory {
    config: Config,
    attachments: [Attachment; 3],
    /// Only the first attachment.
    valid: ValidAttachments,
}

fuzz_target!(|data: &[u8]| {
    static DIRECTORY: OnceLock<Directory> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(Directory::new);
    let mut files = Files::new();
    let mut pieces = data.split(|byte| *byte == b'|');
    while let (Some(name), Some(content)) = (pieces.next(), pieces.next()) {
        files.entry(name).or_insert(content);
    }
    for attachment in &directory.attachments {
        let scan = scan(&files, attachment);
        directory.check_next_address(&files, attachment, &scan);
        directory.index(&files, attachment, &scan);
    }
    directory.check_gc(&files);
});

/// The result of reading a file: `>` stands for a symbolic link, `/` for a directory, `?` for a file that was deleted
/// concurrently.
fn read(content: &[u8]) -> Result<Vec<u8>, Error> {
    match content.first() {
        Some(b'>' | b'/') => Err(Error::other("not a file")),
        Some(b'?') => Err(ErrorKind::NotFound.into()),
        _ => Ok(content.to_vec()),
    }
}

fn scan(files: &Files, attachment: &Attachment) -> LeaseScan {
    let entries = files
        .iter()
        .map(|(name, content)| (OsStr::from_bytes(name), || read(content)));
    LeaseScan::of(entries, attachment)
}

/// The owner of a lease, relative to an attachment; `None` if there is no readable lease.
fn owner_of(files: &Files, address: IpAddr, attachment: &Attachment) -> Option<LeaseOwner> {
    let content = read(files.get(address.to_string().as_bytes())?).ok()?;
    Some(owner_for(&content, attachment))
}

/// Whether an address is free: its file does not exist or is corrupt.
fn is_free(files: &Files, address: IpAddr, attachment: &Attachment) -> bool {
    match files
        .get(address.to_string().as_bytes())
        .map(|content| read(content))
    {
        None => true,
        Some(Ok(content)) => owner_for(&content, attachment) == LeaseOwner::Invalid,
        Some(Err(cause)) => cause.kind() == ErrorKind::NotFound,
    }
}

impl Directory {
    fn new() -> Directory {
        let text = r#"{"cniVersion":"1.0.0","name":"net","ipam":{"type":"host-local","ranges":
            [[{"subnet":"10.1.0.0/29"}],[{"subnet":"fd00::/125","rangeStart":"fd00::2","rangeEnd":"fd00::3"}]]}}"#;
        let conf = NetConf::parse(text.as_bytes().to_vec()).unwrap();
        let attachment = |container: &str, interface: &str| Attachment {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        };
        let attachments = [("c1", "eth0"), ("c1", "net1"), ("10.1.0.2", "eth0")];
        let attachments =
            attachments.map(|(container, interface)| attachment(container, interface));
        Directory {
            config: Config::parse(&conf, &Args::default()).unwrap(),
            valid: [attachments[0].clone()].into_iter().collect(),
            attachments,
        }
    }

    /// The next address of each range is free; without one, all are leased. After its lease is added, the attachment
    /// has it, and no other lease is lost.
    fn check_next_address(&self, files: &Files, attachment: &Attachment, scan: &LeaseScan) {
        let taken = scan.taken();
        let mine = |address: &IpAddr| {
            matches!(
                owner_of(files, *address, attachment),
                Some(LeaseOwner::Attachment | LeaseOwner::Container)
            )
        };
        assert!(scan.of_attachment.iter().all(mine));
        assert!(
            taken
                .iter()
                .all(|address| !is_free(files, *address, attachment))
        );
        for (index, pool) in self.config.pools.iter().enumerate() {
            let cursor = files.get(format!("last_reserved_ip.{index}").as_bytes());
            let last = cursor.and_then(|content| parse_last_reserved(content));
            let is_taken = |address| taken.contains(&address);
            let Some((range, address)) =
                next_free(&pool.set, last, &self.config.gateways, is_taken)
            else {
                let leased = taken
                    .iter()
                    .filter(|address| pool.set.range_of(**address).is_some());
                assert!(leased.count() as u128 >= pool.set.usable(&self.config.gateways));
                continue;
            };
            assert!(range.contains(address) && !range.is_edge(address));
            assert!(!self.config.gateways.contains(&address));
            assert!(is_free(files, address, attachment), "{address} is leased");
            let (name, lease) = (
                address.to_string(),
                format!("{}\r\n{}", attachment.container, attachment.interface),
            );
            let mut after = files.clone();
            after.insert(name.as_bytes(), lease.as_bytes());
            let after = self::scan(&after, attachment);
            assert!(after.of_attachment.contains(&address) && after.taken().is_superset(&taken));
            assert_eq!(after.other_interfaces, scan.other_interfaces);
        }
    }

    /// A valid index agrees with the leases; arbitrary text causes no panic.
    fn index(&self, files: &Files, attachment: &Attachment, scan: &LeaseScan) {
        let changed = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        let text = text_of(&scan.owned, changed, (7, 8));
        assert!(Index::validate(text.clone(), changed + Duration::from_nanos(1), (7, 8)).is_none());
        assert!(Index::validate(text.clone(), changed, (7, 9)).is_none());
        let index = Index::validate(text.clone(), changed, (7, 8)).unwrap();
        assert_eq!(index.addresses(), scan.taken());
        let indexed = index.leases_of(attachment);
        let is = |expected: LeaseOwner| {
            move |address: &IpAddr| {
                owner_of(files, *address, attachment).as_ref() == Some(&expected)
            }
        };
        if indexed.of_attachment.iter().all(is(LeaseOwner::Attachment))
            && indexed.of_container.iter().all(is(LeaseOwner::Container))
        {
            let mut from_index = if indexed.of_attachment.is_empty() {
                indexed.of_container
            } else {
                indexed.of_attachment
            };
            let mut from_scan = scan.of_attachment.clone();
            from_index.sort();
            from_scan.sort();
            assert_eq!(from_index, from_scan);
            assert!(indexed.other_interfaces || !scan.other_interfaces);
        }
        if let Some(garbage) = files.get(INDEX) {
            let head = text.lines().next().unwrap_or_default();
            let text = format!("{head}\n{}", String::from_utf8_lossy(garbage));
            let index = Index::validate(text, changed, (7, 8)).unwrap();
            index.addresses();
            index.leases_of(attachment);
        }
    }

    /// GC keeps exactly the leases of valid attachments.
    fn check_gc(&self, files: &Files) {
        let valid = &self.attachments[0];
        for (name, content) in files {
            let Some(address) = address_named(OsStr::from_bytes(name)) else {
                continue;
            };
            let kept = is_kept(content, &self.valid);
            if matches!(
                owner_of(files, address, valid),
                Some(LeaseOwner::Attachment | LeaseOwner::Container)
            ) {
                assert!(kept, "{address} is valid");
            }
            let names_it = content.windows(2).any(|bytes| bytes == b"c1");
            assert!(names_it || !kept, "{address} has no valid owner");
        }
    }
}
