use super::*;
use crate::error::Code;
use crate::ipam::lease_file::{LeaseOwner, owner_for};
use crate::ipam::tests::{Scratch, attachment_of};
use crate::test_random::TestRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

fn plugin(scratch: &Scratch, ranges: &str, args: &str) -> HostLocal {
    let dir = scratch.path().display();
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"net","ipam":{{"type":"host-local","dataDir":"{dir}","ranges":{ranges}}}}}"#
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    HostLocal::parse(&conf, &Args::parse(args).unwrap()).unwrap()
}

fn reserve(host_local: &HostLocal, container: &str) -> Result<Vec<String>, Error> {
    let lease = host_local.reserve(&attachment_of(container, "eth0"))?;
    let text = |ip: &IpConfig| format!("{} via {}", ip.address, ip.gateway.unwrap());
    Ok(lease.ips.iter().map(text).collect())
}

fn release(host_local: &HostLocal, container: &str) {
    let attachment = attachment_of(container, "eth0");
    let held = host_local.store.held(&attachment).unwrap();
    host_local.store.release(&attachment, &held).unwrap();
}

const SMALL: &str = r#"[[{"subnet":"10.1.0.0/29","rangeEnd":"10.1.0.4"}]]"#;

#[test]
fn allocation_is_round_robin_and_only_the_owner_releases() {
    let scratch = Scratch::new();
    let pool = plugin(&scratch, SMALL, "");
    assert_eq!(reserve(&pool, "a").unwrap(), ["10.1.0.2/29 via 10.1.0.1"]);
    assert_eq!(reserve(&pool, "b").unwrap(), ["10.1.0.3/29 via 10.1.0.1"]);
    release(&pool, "a");
    release(&pool, "a");
    release(&pool, "never");
    assert_eq!(reserve(&pool, "c").unwrap(), ["10.1.0.4/29 via 10.1.0.1"]);
    assert_eq!(reserve(&pool, "d").unwrap(), ["10.1.0.2/29 via 10.1.0.1"]);
    assert_eq!(scratch.read("net/last_reserved_ip.0"), "10.1.0.2");
    assert_eq!(scratch.read("net/10.1.0.3"), "b\r\neth0");
}

#[test]
fn the_error_of_an_exhausted_set_names_the_oldest_holders() {
    let scratch = Scratch::new();
    let pool = plugin(&scratch, SMALL, "");
    for container in ["a", "b", "c"] {
        reserve(&pool, container).unwrap();
    }
    let error = reserve(&pool, "d").unwrap_err();
    assert_eq!(error.code, Code::PLUGIN);
    assert!(
        error
            .msg
            .contains("no IP addresses available in range set: 10.1.0.1-10.1.0.4"),
        "{error}"
    );
    assert!(error.details.contains("all 3 are reserved in"), "{error}");
    assert!(
        error
            .details
            .contains("10.1.0.2 by container a interface eth0 for 0 s"),
        "{error}"
    );
}

#[test]
fn a_second_reservation_is_rejected_and_keeps_the_first() {
    let scratch = Scratch::new();
    reserve(&plugin(&scratch, SMALL, ""), "a").unwrap();
    for args in ["", "IP=10.1.0.4"] {
        let error = reserve(&plugin(&scratch, SMALL, args), "a").unwrap_err();
        assert!(error.msg.contains("already holds 10.1.0.2"), "{error}");
        assert_eq!(error.details, "run DEL first");
    }
    assert_eq!(
        scratch.names("net"),
        ["10.1.0.2", "last_reserved_ip.0", "lock"]
    );
}

#[test]
fn a_requested_address_becomes_the_last_reserved_one() {
    let scratch = Scratch::new();
    let requesting = plugin(&scratch, SMALL, "IP=10.1.0.3");
    assert_eq!(
        reserve(&requesting, "a").unwrap(),
        ["10.1.0.3/29 via 10.1.0.1"]
    );
    let error = reserve(&requesting, "b").unwrap_err();
    assert!(
        error
            .msg
            .contains("requested IP address 10.1.0.3 is not available"),
        "{error}"
    );
    assert!(error.details.contains("container a"), "{error}");
    let plain = plugin(&scratch, SMALL, "");
    assert_eq!(reserve(&plain, "b").unwrap(), ["10.1.0.4/29 via 10.1.0.1"]);
}

#[test]
fn a_failure_in_a_later_set_leaves_nothing_and_keeps_older_leases() {
    let scratch = Scratch::new();
    let one = r#"[[{"subnet":"10.2.0.0/24"}]]"#;
    reserve(&plugin(&scratch, one, ""), "a").unwrap();
    let two = r#"[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/126","rangeEnd":"fd00::2"}]]"#;
    let both = plugin(&scratch, two, "");
    reserve(&both, "b").unwrap();
    assert!(reserve(&both, "a").is_err());
    assert_eq!(scratch.read("net/10.2.0.2"), "a\r\neth0");
    assert!(!scratch.names("net").contains(&"10.1.0.3".to_owned()));
}

#[test]
fn a_partial_write_is_undone() {
    let scratch = Scratch::new();
    // A directory cannot be replaced by a file.
    scratch.write("net/last_reserved_ip.1/x", "");
    let two = r#"[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]]"#;
    let error = reserve(&plugin(&scratch, two, ""), "a").unwrap_err();
    assert!(error.msg.contains("last_reserved_ip.1"), "{error}");
    let left = ["last_reserved_ip.0", "last_reserved_ip.1", "lock"];
    let names = scratch.names("net");
    assert!(
        names.iter().all(|name| left.contains(&name.as_str())),
        "{names:?}"
    );
}

#[test]
fn the_gateway_of_one_range_is_not_allocated_from_another() {
    let scratch = Scratch::new();
    let ranges = r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.20","gateway":"10.1.0.200"}],
                     [{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.200","rangeEnd":"10.1.0.210","gateway":"10.1.0.10"}]]"#;
    let pool = plugin(&scratch, ranges, "");
    let expected = ["10.1.0.11/24 via 10.1.0.200", "10.1.0.201/24 via 10.1.0.10"];
    assert_eq!(reserve(&pool, "a").unwrap(), expected);
}

#[test]
fn the_flat_layer_2_network_of_the_walkthrough_works() {
    let scratch = Scratch::new();
    let ranges = r#"[[{"subnet":"10.10.0.0/16","rangeStart":"10.10.1.1","rangeEnd":"10.10.1.101","gateway":"10.10.1.0"}]]"#;
    let pool = plugin(&scratch, ranges, "");
    assert_eq!(reserve(&pool, "a").unwrap(), ["10.10.1.1/16 via 10.10.1.0"]);
}

#[test]
fn releasing_and_checking_create_nothing_and_need_no_valid_ranges() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("missing");
    let text = format!(
        r#"{{"name":"net","ipam":{{"dataDir":"{}","ranges":5,"routes":"x"}}}}"#,
        dir.display()
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    let store = Store::of(&conf).unwrap();
    let attachment = attachment_of("a", "eth0");
    let held = store.held(&attachment).unwrap();
    assert!(held.addresses().is_empty());
    store.release(&attachment, &held).unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_release_removes_only_leases_that_still_belong_to_the_attachment() {
    let scratch = Scratch::new();
    let pool = plugin(&scratch, SMALL, "");
    let attachment = attachment_of("a", "eth0");
    reserve(&pool, "a").unwrap();
    let held = pool.store.held(&attachment).unwrap();
    pool.check(&attachment).unwrap();
    scratch.write("net/10.1.0.2", "b\r\neth0");
    pool.store.release(&attachment, &held).unwrap();
    assert_eq!(scratch.read("net/10.1.0.2"), "b\r\neth0");
}

#[test]
fn an_unreadable_resolv_conf_is_reported_before_anything_is_created() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("missing");
    let text = format!(
        r#"{{"name":"net","ipam":{{"dataDir":"{}","subnet":"10.1.0.0/24","resolvConf":"/nonexistent"}}}}"#,
        dir.display()
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    let pool = HostLocal::parse(&conf, &Args::default()).unwrap();
    let error = pool.reserve(&attachment_of("a", "eth0")).unwrap_err();
    assert!(error.msg.contains("/nonexistent"), "{error}");
    assert!(!dir.exists());
}

#[test]
fn concurrent_reservations_get_different_addresses() {
    let scratch = Scratch::new();
    let ranges = r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.151"}],[{"subnet":"fd00::/64"}]]"#;
    let pool = plugin(&scratch, ranges, "");
    let seen = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for worker in 0..20 {
            let (pool, seen) = (&pool, &seen);
            scope.spawn(move || {
                for round in 0..10 {
                    let container = format!("c{worker}-{round}");
                    match reserve(pool, &container) {
                        Ok(addresses) => {
                            for address in addresses {
                                assert!(seen.lock().unwrap().insert(address), "allocated twice");
                            }
                        }
                        Err(error) => {
                            assert!(error.msg.contains("no IP addresses available"), "{error}")
                        }
                    }
                }
            });
        }
    });
    assert_eq!(seen.lock().unwrap().len(), 300);
    // 150 leases of each family, two hints and the lock.
    assert_eq!(scratch.names("net").len(), 303);
}

/// The same requests on two directories, one of them without an index.
#[test]
fn results_with_and_without_an_index_are_equal() {
    let (with, without) = (Scratch::new(), Scratch::new());
    let ranges = r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.140"}]]"#;
    let pools = [plugin(&with, ranges, ""), plugin(&without, ranges, "")];
    let (mut seed, mut indexed_rounds) = (7_u64, 0);
    for round in 0..1200 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let container = format!("c{}", (seed >> 33) % 180);
        if round % 50 == 49 {
            // Another plugin creates a lease; every second one is empty.
            let lease = format!("net/10.1.0.{}", 2 + (seed >> 40) % 138);
            let content = if round % 100 == 49 {
                ""
            } else {
                "other\r\neth0"
            };
            for scratch in [&with, &without] {
                // It creates and removes leases; it does not modify them in place.
                let _ = std::fs::remove_file(scratch.path().join(&lease));
                scratch.write(&lease, content);
            }
        }
        let _ = std::fs::remove_file(without.path().join("net/.gangplank.index"));
        indexed_rounds += usize::from(with.path().join("net/.gangplank.index").exists());
        let results = pools.each_ref().map(|pool| match (seed >> 60) % 3 {
            0 => {
                release(pool, &container);
                Ok(Vec::new())
            }
            _ => reserve(pool, &container).map_err(|error| error.msg.clone()),
        });
        let [one, other] = results;
        let path = |scratch: &Scratch| scratch.path().display().to_string();
        let without_path = |result: Result<Vec<String>, String>, scratch: &Scratch| {
            result.map_err(|msg| msg.replace(&path(scratch), ""))
        };
        assert_eq!(
            without_path(one, &with),
            without_path(other, &without),
            "round {round}, {container}"
        );
        assert_eq!(with.names("net"), without.names("net"), "round {round}");
    }
    assert!(
        indexed_rounds > 300,
        "only {indexed_rounds} rounds had an index"
    );
}

#[test]
fn random_adds_and_dels_match_a_model() {
    let scratch = Scratch::new();
    let ranges = r#"[[{"subnet":"10.1.0.0/29"}],[{"subnet":"fd00::/125","rangeEnd":"fd00::4"},{"subnet":"fd01::/126"}]]"#;
    let pool = plugin(&scratch, ranges, "");
    // Five of IPv4 are fewer than six of IPv6: three of each subnet.
    const SMALLEST: usize = 5;
    let mut random = TestRandom(0xadd);
    let mut model: BTreeMap<Attachment, BTreeSet<IpAddr>> = BTreeMap::new();
    for _ in 0..300 {
        let container = format!("c{}", random.below(5));
        let attachment = attachment_of(&container, random.choose(&["eth0", "net1"]));
        if random.below(3) == 0 {
            let held = pool.store.held(&attachment).unwrap();
            let addresses: BTreeSet<IpAddr> = held.addresses().iter().copied().collect();
            assert_eq!(
                addresses,
                model.remove(&attachment).unwrap_or_default(),
                "{attachment}"
            );
            pool.store.release(&attachment, &held).unwrap();
            continue;
        }
        let can_reserve = !model.contains_key(&attachment) && model.len() < SMALLEST;
        match pool.reserve(&attachment) {
            Ok(lease) => {
                assert!(
                    can_reserve,
                    "{attachment} was given {lease:?} with {model:?}"
                );
                let given: BTreeSet<IpAddr> =
                    lease.ips.iter().map(|ip| ip.address.address()).collect();
                assert!(given.len() == 2 && model.values().all(|held| held.is_disjoint(&given)));
                model.insert(attachment, given);
            }
            Err(error) => assert!(!can_reserve, "{attachment} was refused: {error}"),
        }
    }
    assert!(!model.is_empty());
}

/// The lease files that have an owner, with their content.
fn owned_files(directory: &Path, attachment: &Attachment) -> Vec<(PathBuf, Vec<u8>)> {
    let leases = fs::read_dir(directory).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name()?.to_str()?.parse::<IpAddr>().ok()?;
        let is_file = fs::symlink_metadata(&path).unwrap().is_file();
        let content = fs::read(&path).ok().filter(|_| is_file)?;
        (owner_for(&content, attachment) != LeaseOwner::Invalid).then_some((path, content))
    });
    leases.collect()
}

/// Creates random entries in a network's directory: files, symbolic links, directories.
fn add_random_entries(random: &mut TestRandom, directory: &Path, outside: &Path) {
    const NAMES: [&str; 12] = [
        "10.1.0.2",
        "10.1.0.3",
        "10.1.0.4",
        "10.1.0.5",
        "10.1.0.6",
        "fd00::2",
        "fd00::3",
        "lock",
        ".gangplank.new",
        ".gangplank.index",
        ".gangplank.boot",
        "last_reserved_ip.0",
    ];
    const CONTENTS: [&str; 9] = [
        "",
        "\0\0",
        "c1",
        "c1\r\neth0",
        "c1\r\nnet1",
        "c2\r\neth0",
        "10.1.0.4",
        // Reboots are tested in boot.rs.
        "boot \nmachine x\n",
        "gangplank leases \n 10.1.0.2 c1 eth0\n",
    ];
    for _ in 0..random.below(8) {
        let path = directory.join(random.choose(&NAMES));
        // Existing entries are kept.
        let _ = match random.below(8) {
            0 => std::os::unix::fs::symlink(outside, path),
            1 => fs::create_dir(path),
            _ if path.exists() => Ok(()),
            _ => fs::write(path, random.choose(&CONTENTS)),
        };
    }
}

#[test]
fn random_directory_entries_lose_no_lease_and_change_no_file_outside() {
    const TWO: &str = r#"[[{"subnet":"10.1.0.0/29"}],
        [{"subnet":"fd00::/125","rangeStart":"fd00::2","rangeEnd":"fd00::3"}]]"#;
    let mut random = TestRandom(0xd1ce);
    let (mut given, attachment) = (0, attachment_of("c1", "eth0"));
    for _ in 0..400 {
        let scratch = Scratch::new();
        let (pool, directory) = (plugin(&scratch, TWO, ""), scratch.path().join("net"));
        scratch.write("outside", "outside");
        fs::create_dir(&directory).unwrap();
        add_random_entries(&mut random, &directory, &scratch.path().join("outside"));
        let before = owned_files(&directory, &attachment);
        let reserved = pool.reserve(&attachment);
        assert_eq!(scratch.read("outside"), "outside", "a link was followed");
        let of_others = |(_, content): &&(PathBuf, Vec<u8>)| {
            !matches!(
                owner_for(content, &attachment),
                LeaseOwner::Attachment | LeaseOwner::Container
            )
        };
        if let Ok(lease) = reserved {
            given += 1;
            for ip in &lease.ips {
                let path = directory.join(ip.address.address().to_string());
                assert!(before.iter().all(|(taken, _)| *taken != path));
                assert_eq!(fs::read(path).unwrap(), b"c1\r\neth0");
            }
            pool.check(&attachment).unwrap();
            // A directory with the name of the temporary file cannot be removed.
            let released = pool
                .store
                .release(&attachment, &pool.store.held(&attachment).unwrap());
            assert!(released.is_ok() || directory.join(".gangplank.new").is_dir());
        } else {
            assert_eq!(
                owned_files(&directory, &attachment),
                before,
                "an error changes nothing"
            );
        }
        for (path, content) in before.iter().filter(of_others) {
            assert_eq!(
                fs::read(path).unwrap(),
                *content,
                "{path:?} has another owner"
            );
        }
    }
    assert!(given > 100, "{given}");
}
