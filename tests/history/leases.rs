//! Lease directories that were written by another implementation, restored from a backup, shared or damaged.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::implementation::{self, Attachment, BOTH, Implementation};
use crate::support::{
    Answer, Network, Node, NodeState, Pod, binary, leases, note, requires, small_network,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const LEASES: &str = "/var/lib/cni/networks";

fn dual_stack() -> Value {
    let mut config = small_network();
    config["cniVersion"] = "0.4.0".into();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

fn host_local(data_dir: Option<&str>) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "host-local",
        "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" },
    });
    if let Some(data_dir) = data_dir {
        config["ipam"]["dataDir"] = data_dir.into();
    }
    config
}

/// Calls host-local directly, for a container without interfaces. Returns the address.
fn lease(node: &Node, config: &Value, verb: &str, container: &str) -> Result<String, String> {
    let call = node.cni("host-local").verb(verb).container(container);
    let answer = call
        .ifname("eth0")
        .netns("/run/netns/none")
        .config(config)
        .run();
    match answer.code {
        Some(0) => Ok(answer.ok()["ips"][0]["address"]
            .as_str()
            .unwrap_or_default()
            .to_owned()),
        _ => Err(answer.error().text()),
    }
}

/// Bind-mounts another boot ID over the kernel's, as nspawn and LXC do.
fn set_boot_id(node: &Node, id: &str) {
    let file = format!("/run/boot-{}", &id[..8]);
    node.write(&file, &format!("{id}\n"));
    node.bind(&file, BOOT_ID);
}

const SECOND: &str = "11111111-2222-3333-4444-555555555555";
const THIRD: &str = "22222222-2222-3333-4444-555555555555";

/// Runs `doctor --fix` on a node with one configuration.
fn doctor_fix(node: &Node, config: &Value) -> Answer {
    node.run("mkdir -p /run/net.d /run/results");
    let list =
        json!({ "cniVersion": config["cniVersion"], "name": config["name"], "plugins": [config] });
    node.write("/run/net.d/10.conflist", &list.to_string());
    let command = format!(
        "{} doctor --fix --json --conf-dir /run/net.d --cache-dir /run/results --data-dir {LEASES} --cni-path {}",
        binary().display(),
        Node::BIN
    );
    Answer::of(node.try_run(&command))
}

#[test]
fn running_pods_keep_leases_and_links_if_the_boot_id_changes() {
    requires!("ping", "cni:bridge", "cni:host-local");
    for by in BOTH {
        let node = implementation::node();
        let config = dual_stack();
        // The first ADD of gangplank records the boot ID.
        node.network(config.clone()).add(&node.pod("first"));
        let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
        for pod in [&a, &b] {
            let _ = Attachment::new(&node, pod, &config).try_add(by).ok();
        }
        set_boot_id(&node, SECOND);
        let before = NodeState::of_pods(&node);
        let _ = doctor_fix(&node, &config);
        assert_eq!(NodeState::of_pods(&node).links, before.links, "{by:?}");
        assert_eq!(NodeState::of_pods(&node).files, before.files, "{by:?}");
        let _ = Attachment::new(&node, &c, &config).try_add(by).ok();
        assert_eq!(leases(&node, "small").len(), 8, "{by:?}");
        a.wait_for_dad();
        a.reaches("10.77.0.4");
        a.reaches("fd00:77::4");
        c.reaches("10.77.0.4");
        // The same holds for the next ADD, under a third boot ID.
        set_boot_id(&node, THIRD);
        let mut d = config.clone();
        d["cniVersion"] = "1.0.0".into();
        node.network(d).add(&node.pod("d"));
        assert_eq!(leases(&node, "small").len(), 10, "{by:?}");
        b.reaches("10.77.0.3");
    }
}

#[test]
fn pods_whose_namespaces_are_in_another_mount_namespace_keep_their_leases() {
    requires!("ping", "unshare");
    let node = Node::new("node");
    let network = node.network(dual_stack());
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    network.add(&a);
    network.add(&b);
    set_boot_id(&node, SECOND);
    node.write(
        "/run/hidden",
        "umount -l /run/netns/a /run/netns/b && exec \"$@\"\n",
    );
    let call = network.call("ADD", &c);
    let _ = call.under("unshare --mount sh /run/hidden").run().ok();
    assert_eq!(leases(&node, "small").len(), 6);
    b.reaches("10.77.0.2");
}

#[test]
fn leases_from_before_a_reboot_are_released() {
    requires!("ping");
    let node = Node::new("node");
    let network = node.network(dual_stack());
    let (a, b) = (node.pod("a"), node.pod("b"));
    network.add(&a);
    network.add(&b);
    a.end();
    b.end();
    node.wait_until_veths_are_deleted();
    set_boot_id(&node, SECOND);
    // podman and Nomad restart a container with the same ID.
    let a = node.pod("a");
    let result = network.add(&a);
    assert_eq!(leases(&node, "small").len(), 2);
    network.check(&a, &result).ok();
    a.reaches("10.77.0.1");
}

#[test]
fn running_pods_with_macvlan_interfaces_keep_their_leases() {
    requires!("ping", "cni:macvlan");
    let node = Node::new("node");
    node.run_all(
        "ip link add eth9 type veth peer name far9\nip link set eth9 up\nip link set far9 up",
    );
    if !node
        .try_run("ip link add probe link eth9 type macvlan mode bridge")
        .status
        .success()
    {
        note("cannot run: this kernel has no macvlan");
        return;
    }
    node.run("ip link del probe");
    node.install("macvlan");
    let mut config = host_local(None);
    config["type"] = "macvlan".into();
    config["master"] = "eth9".into();
    let network = node.network(config);
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    network.add(&a);
    network.add(&b);
    b.end();
    std::thread::sleep(std::time::Duration::from_millis(300));
    set_boot_id(&node, SECOND);
    assert_eq!(Network::address(&network.add(&c)), "10.1.0.4");
    assert_eq!(node.lease("lan", "10.1.0.2").unwrap(), "a\r\neth0");
    assert_eq!(leases(&node, "lan").len(), 2);
    c.reaches("10.1.0.2");
}

#[test]
fn the_lease_of_a_container_with_a_running_plugin_is_kept() {
    requires!("sleep", "env");
    let node = Node::new("node");
    let config = host_local(None);
    for container in ["working", "idle"] {
        lease(&node, &config, "ADD", container).unwrap();
    }
    let mut plugin = node.inside(|| {
        let mut sleep = std::process::Command::new("sleep");
        sleep
            .arg("60")
            .env("CNI_CONTAINERID", "working")
            .spawn()
            .unwrap()
    });
    set_boot_id(&node, SECOND);
    let added = lease(&node, &config, "ADD", "next");
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    added.unwrap();
    assert_eq!(node.lease("lan", "10.1.0.2").unwrap(), "working\r\neth0");
    assert_eq!(node.lease("lan", "10.1.0.3"), None);
}

#[test]
fn leases_are_kept_if_the_boot_id_was_unreadable() {
    requires!();
    let node = Node::new("node");
    let config = host_local(None);
    lease(&node, &config, "ADD", "a").unwrap();
    set_boot_id(&node, SECOND);
    for unreadable in ["", "\n"] {
        node.write("/run/none", unreadable);
        node.bind("/run/none", BOOT_ID);
        let container = format!("b{}", unreadable.len());
        lease(&node, &config, "ADD", &container).unwrap();
        let record = format!("{LEASES}/lan/.gangplank.boot");
        assert!(!node.files(LEASES).contains_key(&record));
        node.unbind(BOOT_ID);
        lease(&node, &config, "ADD", &format!("c{}", unreadable.len())).unwrap();
        lease(&node, &config, "CHECK", &container).unwrap();
        assert!(node.files(LEASES).contains_key(&record));
    }
}

/// A directory that two nodes share.
struct Shared(PathBuf);

impl Shared {
    fn new(name: &str) -> Shared {
        let path = std::env::temp_dir().join(format!("gangplank-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Shared(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn nodes_with_a_shared_lease_directory_keep_each_others_leases() {
    requires!("ping");
    for (name, machine) in [
        ("same-id", None),
        ("other-id", Some("0123456789abcdef0123456789abcdef")),
    ] {
        let shared = Shared::new(name);
        let mut config = dual_stack();
        config["ipam"]["dataDir"] = shared.0.to_str().unwrap().into();
        let (one, two) = (Node::new("one"), Node::new("two"));
        set_boot_id(&two, SECOND);
        if let Some(machine) = machine {
            two.write("/run/machine-id", &format!("{machine}\n"));
            two.bind("/run/machine-id", "/etc/machine-id");
        }
        let (on_one, on_two) = (one.network(config.clone()), two.network(config.clone()));
        let (a, b, c) = (one.pod("a"), one.pod("b"), two.pod("c"));
        let result_a = on_one.add(&a);
        let result_b = on_one.add(&b);
        let result_c = on_two.add(&c);
        a.reaches("10.77.0.3");
        on_one.check(&a, &result_a).ok();
        on_one.check(&b, &result_b).ok();
        assert_eq!(Network::address(&result_c), "10.77.0.4", "{name}");
        // A reboot of the first node does not free the leases of the second.
        set_boot_id(&one, THIRD);
        on_one.add(&one.pod("d"));
        on_two.check(&c, &result_c).ok();
        on_two.add(&two.pod("e"));
        on_one.check(&a, &result_a).ok();
    }
}

/// The number of exclusive locks of leases in a trace, and those that were taken through a descriptor not opened for
/// writing.
fn exclusive_locks(node: &Node, trace: &str) -> (usize, Vec<String>) {
    let trace = node.read(trace);
    let mut opened = std::collections::BTreeMap::new();
    let (mut count, mut read_only) = (0, Vec::new());
    for line in trace.lines() {
        let call = line
            .split_once(' ')
            .map_or(line, |(_, call)| call.trim_start());
        let result = line
            .rsplit_once("= ")
            .map_or("", |(_, result)| result.trim());
        if call.starts_with("open") {
            opened.insert(result.to_owned(), call.to_owned());
        } else if let Some(arguments) = call.strip_prefix("flock(")
            && arguments.contains("LOCK_EX")
        {
            let file = arguments.split(',').next().unwrap();
            let how = opened.get(file).cloned().unwrap_or_default();
            // Changes of nf_tables: the file of a network namespace is not on NFS.
            if how.contains("/ns/net\"") {
                continue;
            }
            count += 1;
            if !how.contains("O_RDWR") {
                read_only.push(format!("{line}: {how}"));
            }
        }
    }
    (count, read_only)
}

#[test]
fn exclusive_locks_are_taken_through_descriptors_opened_for_writing() {
    requires!("strace", "iptables", "ip6tables");
    let node = Node::new("node");
    let mut config = dual_stack();
    config["cniVersion"] = "1.1.0".into();
    config["ipMasq"] = true.into();
    let network = node.network(config.clone());
    let pod = node.pod("a");
    let under = "strace -f -qq -e trace=open,openat,openat2,flock -o /run/trace";
    let mut locks = 0;
    let mut result = Value::Null;
    for verb in ["ADD", "CHECK", "GC", "DEL"] {
        let mut network = network.clone();
        if !result.is_null() && verb != "GC" {
            network = network.with("prevResult", result.clone());
        }
        if verb == "GC" {
            let valid = json!([{ "containerID": "a", "ifname": "eth0" }]);
            network = network.with("cni.dev/valid-attachments", valid);
        }
        let answer = network.call(verb, &pod).under(under).run().ok();
        if verb == "ADD" {
            result = answer;
        }
        let (count, read_only) = exclusive_locks(&node, "/run/trace");
        assert_eq!(read_only, [""; 0], "{verb}");
        locks += count;
    }
    // ADD and DEL lock the directory and both leases, GC locks the directory.
    assert!(locks >= 7, "{locks}");
    // A lease without write permission can be released.
    let _ = network.add(&pod);
    node.run(&format!("chmod 400 {LEASES}/small/10.77.0.3"));
    network.del(&pod);
    assert_eq!(leases(&node, "small").len(), 0);
}

#[test]
fn del_fails_and_keeps_all_leases_while_one_cannot_be_read() {
    requires!("strace");
    for plugin in ["bridge", "host-local"] {
        let node = Node::new("node");
        let mut config = dual_stack();
        config["type"] = plugin.into();
        let network = node.network(config);
        let pod = node.pod("a");
        network.add(&pod);
        let lease = format!("{LEASES}/small/10.77.0.2");
        for fault in [
            "openat:error=EIO",
            "openat:error=EINVAL",
            "openat:error=ESTALE",
            "openat:error=EACCES",
            "read:error=EIO",
        ] {
            let under = format!("strace -o /run/trace -P {lease} -e inject={fault}");
            let error = network.call("DEL", &pod).under(&under).run().error();
            assert!(error.text().contains(&lease), "{plugin} {fault}: {error:?}");
            assert_eq!(leases(&node, "small").len(), 2, "{plugin} {fault}");
        }
        network.del(&pod);
        assert_eq!(leases(&node, "small").len(), 0);
        network.del(&pod);
    }
}

#[test]
fn files_that_are_not_leases_but_are_named_like_one_are_ignored() {
    requires!("mkfifo");
    let node = Node::new("node");
    let network = node.network(dual_stack());
    let pod = node.pod("a");
    let directory = format!("{LEASES}/small");
    node.run_all(&format!(
        "mkdir -p {directory}/10.77.0.2\nln -s /etc/passwd {directory}/10.77.0.3\nmkfifo {directory}/10.77.0.4"
    ));
    node.inside(|| {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"10.77.0.5\xff");
        fs::write(std::path::Path::new(&directory).join(name), "x\r\neth0").unwrap();
    });
    node.write(&format!("{directory}/10.77.0.6"), &"x".repeat(5 << 20));
    node.write(&format!("{directory}/last_reserved_ip.0"), "\0\0rubbish");
    let result = network.add(&pod);
    assert_eq!(Network::address(&result), "10.77.0.5");
    network.check(&pod, &result).ok();
    network.del(&pod);
    assert_eq!(node.lease("small", "10.77.0.5"), None);
    assert!(
        node.try_run(&format!("test -d {directory}/10.77.0.2"))
            .status
            .success()
    );
    assert!(
        node.try_run(&format!("test -p {directory}/10.77.0.4"))
            .status
            .success()
    );
    // As restored by a program that converts line endings to LF.
    network.add(&pod);
    node.write(&format!("{directory}/10.77.0.5"), "a\neth0");
    network.del(&pod);
    assert_eq!(node.lease("small", "10.77.0.5"), None);
}

/// A GC that keeps the `eth0` of these pods.
fn gc(node: &Node, config: &Value, keep: &[(&Pod, &str)]) -> Answer {
    let keep = keep
        .iter()
        .map(|(pod, ifname)| json!({ "containerID": pod.id(), "ifname": ifname }));
    let mut config = config.clone();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = keep.collect();
    let plugin = config["type"].as_str().unwrap();
    node.cni(plugin).verb("GC").config(&config).run()
}

#[test]
fn gc_deletes_the_link_of_a_stale_attachment_of_the_go_plugin_before_its_lease() {
    requires!("ping", "cni:bridge", "cni:host-local");
    let node = implementation::node();
    let config = dual_stack();
    let (kept, stale) = (node.pod("kept"), node.pod("stale"));
    for (pod, ifname) in [
        (&kept, "eth0"),
        (&stale, "eth0"),
        (&kept, "net1"),
        (&stale, "lan0"),
    ] {
        let mut attachment = Attachment::new(&node, pod, &config).named(ifname);
        let _ = attachment.try_add(Implementation::Go).ok();
    }
    gc(&node, &config, &[(&kept, "eth0")]).ok();
    assert_eq!(leases(&node, "small").len(), 2);
    for (pod, ifname) in [(&stale, "eth0"), (&stale, "lan0"), (&kept, "net1")] {
        assert_eq!(pod.link(ifname), None, "{} {ifname}", pod.id());
    }
    assert_eq!(kept.addresses("eth0"), ["10.77.0.2/24", "fd00:77::2/64"]);
    kept.reaches("10.77.0.1");
    let next = node.pod("next");
    node.network(config.clone()).add(&next);
    next.reaches("10.77.0.2");
    gc(&node, &config, &[(&kept, "eth0"), (&next, "eth0")]).ok();
    next.reaches("10.77.0.2");
}

#[test]
fn gc_keeps_a_lease_whose_address_is_on_a_link_of_an_unknown_network() {
    requires!("ping", "cni:bridge", "cni:host-local");
    let node = implementation::node();
    let config = dual_stack();
    let mut other = config.clone();
    other["name"] = "other".into();
    let pod = node.pod("theirs");
    let mut attachment = Attachment::new(&node, &pod, &other);
    let _ = attachment.try_add(Implementation::Go).ok();
    // A lease of a deleted container, with the same address on the same bridge.
    node.run(&format!("mkdir -p {LEASES}/small"));
    node.write(&format!("{LEASES}/small/10.77.0.2"), "gone\r\neth0");
    node.write(&format!("{LEASES}/small/10.77.0.9"), "gone\r\neth0");
    let error = gc(&node, &config, &[]).error();
    for word in ["10.77.0.2", "gone", "network beside this one"] {
        assert!(error.text().contains(word), "{error:?}");
    }
    assert!(
        node.lease("small", "10.77.0.2").is_some() && node.lease("small", "10.77.0.9").is_none()
    );
    pod.reaches("10.77.0.1");
    // With another bridge name in the configuration, the port's network is unknown too.
    node.run(&format!("rm -r {LEASES}/other"));
    let mut renamed = config.clone();
    renamed["bridge"] = "br1".into();
    let error = gc(&node, &renamed, &[]).error();
    assert!(error.text().contains("no port of bridge br1"), "{error:?}");
    pod.reaches("10.77.0.1");
    // host-local called directly deletes no links.
    let mut alone = config;
    alone["type"] = "host-local".into();
    let error = gc(&node, &alone, &[]).error();
    assert!(error.text().contains("10.77.0.2"), "{error:?}");
    assert!(node.lease("small", "10.77.0.2").is_some());
}

#[test]
fn the_lease_index_is_rebuilt_after_a_backup_was_restored() {
    requires!("tar", "cp");
    let restores = [
        "tar -C /run/backup -cf /run/b.tar lan && tar -C /var/lib/cni/networks -xpf /run/b.tar",
        "cp -a /run/backup/lan/. /var/lib/cni/networks/lan/",
        "cp -a /run/backup/lan /var/lib/cni/networks/",
        "rm -r /var/lib/cni/networks/lan && cp -a /run/backup/lan /var/lib/cni/networks/",
        "cp -a /run/backup/lan/.gangplank.index /var/lib/cni/networks/lan/ && touch -r /run/backup/lan /var/lib/cni/networks/lan",
    ];
    for by in BOTH {
        for restore in restores {
            // The Go plugins have no lease index.
            if by == Implementation::Go && restore.contains(".gangplank.index") {
                continue;
            }
            let node = implementation::node();
            let config = host_local(None);
            let call = |verb: &str, container: &str| {
                let call = by.call(&node, "host-local").verb(verb).container(container);
                call.ifname("eth0")
                    .netns("/run/netns/none")
                    .config(&config)
                    .run()
            };
            for n in 0..12 {
                let _ = call("ADD", &format!("old{n}")).ok();
            }
            node.run("mkdir /run/backup");
            node.run(&format!("cp -a {LEASES}/lan /run/backup/"));
            let _ = call("ADD", "new0").ok();
            let _ = call("DEL", "old3").ok();
            let _ = call("ADD", "new1").ok();
            node.write("/run/restore", restore);
            node.run("sh /run/restore");
            let exists = |name: &str| {
                let files = node.files(&format!("{LEASES}/lan"));
                files
                    .values()
                    .any(|content| content == format!("{name}\r\neth0").as_bytes())
            };
            for name in ["new0", "new1", "old3", "old5"] {
                let held = exists(name);
                assert_eq!(
                    call("CHECK", name).code == Some(0),
                    held,
                    "{by:?} {restore} {name}"
                );
                let _ = call("DEL", name).ok();
                assert!(!exists(name), "{by:?} {restore} {name}");
            }
            let before = leases(&node, "lan").len();
            for n in 0..6 {
                let _ = call("ADD", &format!("later{n}")).ok();
            }
            assert_eq!(leases(&node, "lan").len(), before + 6, "{by:?} {restore}");
        }
    }
}

#[test]
fn del_in_a_namespace_of_another_pod_removes_only_its_own_rules() {
    requires!("iptables", "ip6tables");
    let node = Node::new("node");
    node.use_iptables_variant("xtables-nft-multi");
    let config = |address: &str| {
        let mut config = small_network();
        config["cniVersion"] = "0.3.1".into();
        config["ipMasq"] = true.into();
        config["ipMasqBackend"] = "iptables".into();
        config["ipam"] = json!({ "type": "static", "addresses": [{ "address": address }] });
        config
    };
    let (first, second) = (config("10.77.0.2/24"), config("10.77.0.3/24"));
    let pod = node.pod("shared");
    let call = |verb: &str, container: &str, config: &Value| {
        let call = node.cni("bridge").verb(verb).container(container);
        call.ifname("eth0").netns(&pod.path).config(config).run()
    };
    let _ = call("ADD", "old", &first).ok();
    // The link was deleted, and the namespace now belongs to another pod.
    pod.run("ip link del eth0");
    let _ = call("ADD", "new", &second).ok();
    let of = |container: &str| {
        let rules = node.nat("iptables");
        rules
            .iter()
            .filter(|rule| rule.contains(&format!("id: \\\"{container}\\\"")))
            .count()
    };
    assert!(of("old") > 0 && of("new") > 0, "{:?}", node.nat("iptables"));
    let before = of("new");
    let _ = call("DEL", "old", &first);
    assert_eq!(
        (of("old"), of("new")),
        (0, before),
        "{:?}",
        node.nat("iptables")
    );
}

#[test]
fn leases_are_created_on_filesystems_without_hard_links() {
    requires!("strace");
    let node = Node::new("node");
    let network = node.network(dual_stack());
    let add = |pod: &Pod, failing_calls: &[&str]| {
        let inject: String = failing_calls
            .iter()
            .map(|it| format!(" -e inject={it}"))
            .collect();
        network
            .call("ADD", pod)
            .under(&format!("strace -f -o /run/trace{inject}"))
            .run()
    };
    let links = "link,linkat";
    let renames = "renameat2";
    for (n, errno) in ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"]
        .into_iter()
        .enumerate()
    {
        for without_rename in [false, true] {
            let pod = node.pod(&format!("p{n}{without_rename}"));
            let mut failing_calls = vec![format!("{links}:error={errno}")];
            if without_rename {
                failing_calls.push(format!("{renames}:error=EINVAL"));
            }
            let failing_calls: Vec<&str> = failing_calls.iter().map(String::as_str).collect();
            let result = add(&pod, &failing_calls).ok();
            let address = Network::address(&result);
            let content = node.lease("small", &address).unwrap();
            assert_eq!(content, format!("{}\r\neth0", pod.id()));
            network.check(&pod, &result).ok();
        }
    }
    assert_eq!(leases(&node, "small").len(), 16);
    let left = format!("{LEASES}/small/.gangplank.new");
    assert!(!node.files(LEASES).contains_key(&left));
    // A corrupt lease file is replaced, and a failed ADD leaves no file.
    node.write(&format!("{LEASES}/small/10.77.0.20"), "");
    let config = network.with("args", json!({ "cni": { "ips": ["10.77.0.20"] } }));
    let pod = node.pod("z");
    let no_links = format!(
        "strace -f -o /run/trace -e inject={links}:error=EPERM -e inject={renames}:error=ENOSYS"
    );
    let _ = config.call("ADD", &pod).under(&no_links).run().ok();
    assert_eq!(node.lease("small", "10.77.0.20").unwrap(), "z\r\neth0");
    let before = NodeState::of_pods(&node);
    let error = add(&node.pod("y"), &["link,linkat:error=ENOSPC"]).error();
    assert!(error.text().contains("lease"), "{error:?}");
    assert_eq!(NodeState::of_pods(&node).files, before.files);
}
