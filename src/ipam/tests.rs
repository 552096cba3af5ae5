use super::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary directory, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gangplank-ipam-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and the directories above it.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// The files of a directory without boot record and index, sorted.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(directory)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !matches!(name.as_str(), ".gangplank.boot" | ".gangplank.index"));
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn attachment_of(container: &str, interface: &str) -> Attachment {
    Attachment {
        container: container.parse().unwrap(),
        interface: interface.parse().unwrap(),
    }
}

fn conf(ipam: &str) -> NetConf {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"net"{ipam}}}"#);
    NetConf::parse(text.into_bytes()).unwrap()
}

fn parse(ipam: &str) -> Result<Option<Ipam>, Error> {
    Ipam::parse(&conf(ipam), &[], &Args::default())
}

#[test]
fn an_empty_ipam_is_a_layer_2_network() {
    for ipam in [
        "",
        r#","ipam":null"#,
        r#","ipam":{}"#,
        r#","ipam":{"type":""}"#,
        r#","ipam":{"type":null,"subnet":null}"#,
    ] {
        assert!(parse(ipam).unwrap().is_none(), "{ipam}");
        let released = IpamLeases::parse(&conf(ipam), &[]);
        assert!(released.unwrap().is_none(), "{ipam}");
    }
}

#[test]
fn an_ipam_without_existing_plugin_is_rejected() {
    for (ipam, expected) in [
        (r#","ipam":5"#, "ipam is 5"),
        (r#","ipam":{"type":5}"#, "ipam.type is 5"),
        (
            r#","ipam":{"subnet":"10.1.0.0/24"}"#,
            "ipam.type is missing, though ipam has subnet",
        ),
        (
            r#","ipam":{"type":"","dataDir":"/x"}"#,
            "ipam.type is missing",
        ),
        (r#","ipam":{"type":"absent"}"#, r#"ipam.type is "absent""#),
        (r#","ipam":{"type":"../x"}"#, r#"ipam.type is "../x""#),
        (r#","ipam":{"type":"host-local"}"#, "ipam.ranges is missing"),
    ] {
        let located = parse(ipam).and_then(|ipam| ipam.map_or(Ok(()), |ipam| ipam.locate()));
        let error = located.unwrap_err();
        assert!(error.msg.contains(expected), "{ipam}: {error}");
    }
}

#[test]
fn a_release_ignores_keys_that_only_add_needs() {
    for ipam in [
        r#","ipam":{"type":"host-local"}"#,
        r#","ipam":{"type":"host-local","ranges":5,"routes":[null]},"args":7,"runtimeConfig":[]"#,
        r#","ipam":{"type":"absent"}"#,
    ] {
        let ipam = IpamLeases::parse(&conf(ipam), &[]);
        assert!(ipam.unwrap().is_some());
    }
    let untyped = conf(r#","ipam":{"subnet":"10.1.0.0/24"}"#);
    let untyped = IpamLeases::parse(&untyped, &[]);
    assert!(untyped.unwrap().is_none());
}

#[test]
fn an_undo_releases_only_the_addresses_of_the_lease() {
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    let ipam = format!(
        r#","ipam":{{"type":"host-local","dataDir":"{dir}","ranges":[[{{"subnet":"10.1.0.0/24"}}],[{{"subnet":"fd00::/64"}}]]}}"#
    );
    let ipam = parse(&ipam).unwrap().unwrap();
    let attachment = attachment_of("a", "eth0");
    scratch.write("net/10.9.0.1", "a\r\neth0");
    let lease = ipam.reserve(&attachment).unwrap();
    assert_eq!(lease.held().addresses().len(), 2);
    ipam.check(&attachment).unwrap();
    ipam.leases()
        .release(&attachment, Some(lease.held()))
        .unwrap();
    let left = [
        "10.9.0.1",
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    ];
    assert_eq!(scratch.names("net"), left);
    assert_eq!(AddResult::from(lease).ips.len(), 2);
    ipam.leases().release(&attachment, None).unwrap();
    assert_eq!(scratch.names("net"), left[1..]);
}
