//! A network's directory with any files in it: ADD, CHECK and DEL of host-local in a directory of its own in memory.

#![no_main]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gangplank::cni::conf::NetConf;
use gangplank::cni::request::{Args, Attachment};
use gangplank::ipam::HostLocal;
use gangplank::ipam::lease_file::{Claim, claim};
use libfuzzer_sys::fuzz_target;

/// At most this many files: each one costs some system calls.
const FILES: usize = 6;

struct Place {
    directory: PathBuf,
    outside: PathBuf,
    plugin: HostLocal,
    who: Attachment,
}

fuzz_target!(|data: &[u8]| {
    static PLACE: OnceLock<Place> = OnceLock::new();
    let place = PLACE.get_or_init(Place::new);
    let _ = fs::remove_dir_all(&place.directory);
    fs::create_dir(&place.directory).unwrap();
    let mut pieces = data.split(|byte| *byte == b'|');
    for _ in 0..FILES {
        let (Some(name), Some(content)) = (pieces.next(), pieces.next()) else {
            break;
        };
        place.fill(name, content);
    }
    place.live();
    assert_eq!(fs::read(&place.outside).unwrap(), b"outside", "a link was followed");
});

impl Place {
    fn new() -> Place {
        let root = PathBuf::from(format!("/dev/shm/gangplank-fuzz-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"net","ipam":{{"type":"host-local","dataDir":"{}","ranges":
            [[{{"subnet":"10.1.0.0/29"}}],[{{"subnet":"fd00::/125","rangeStart":"fd00::2","rangeEnd":"fd00::3"}}]]}}}}"#,
            root.display()
        );
        let conf = NetConf::parse(text.into_bytes()).unwrap();
        let outside = root.join("outside");
        fs::write(&outside, "outside").unwrap();
        Place {
            directory: root.join("net"),
            outside,
            plugin: HostLocal::parse(&conf, &Args::default()).unwrap(),
            who: Attachment {
                container: "c1".parse().unwrap(),
                interface: "eth0".parse().unwrap(),
            },
        }
    }

    /// `>` makes a symbolic link out of the directory, `/` a directory; everything else is a file's content.
    fn fill(&self, name: &[u8], content: &[u8]) {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        if name.components().count() != 1 || name.as_os_str().as_bytes().contains(&b'/') {
            return;
        }
        let path = self.directory.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return;
        }
        // What cannot be made is not there.
        let _ = match content.first() {
            Some(b'>') => symlink(&self.outside, path),
            Some(b'/') => fs::create_dir(path),
            _ => fs::write(path, content),
        };
    }

    /// The files that are somebody's, with their content.
    fn leases(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(&self.directory).unwrap();
        let files = entries.filter_map(|entry| {
            let path = entry.unwrap().path();
            path.file_name()?.to_str()?.parse::<std::net::IpAddr>().ok()?;
            let is_file = fs::symlink_metadata(&path).unwrap().is_file();
            let content = fs::read(&path).ok().filter(|_| is_file)?;
            (claim(&content, &self.who) != Claim::Garbled).then_some((path, content))
        });
        files.collect()
    }

    fn live(&self) {
        let before = self.leases();
        let Ok(lease) = self.plugin.reserve(&self.who) else {
            for (path, content) in before {
                assert_eq!(fs::read(path).unwrap(), content, "a refusal changes nothing");
            }
            return;
        };
        assert_eq!(lease.ips.len(), 2);
        for ip in &lease.ips {
            let path = self.directory.join(ip.address.address().to_string());
            assert!(before.iter().all(|(taken, _)| *taken != path), "{path:?} was somebody's");
            assert_eq!(fs::read(path).unwrap(), b"c1\r\neth0");
        }
        self.plugin.check(&self.who).unwrap();
        let held = self.plugin.held(&self.who).unwrap();
        self.plugin.release(&self.who, &held).unwrap();
        let left = self.plugin.held(&self.who).unwrap();
        let legacy = before.iter().any(|(_, content)| content.trim_ascii() == b"c1");
        assert!(left.addresses().is_empty() || legacy);
        for (path, content) in before {
            if !matches!(claim(&content, &self.who), Claim::Mine | Claim::Containers) {
                assert_eq!(fs::read(path).unwrap(), content, "somebody else's lease is untouched");
            }
        }
    }
}
