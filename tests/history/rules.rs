//! Packet filter rules of other tools, of both iptables variants and of the Go plugins.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, BOTH, IPTABLES, Implementation, node, ready};
use crate::support::{Answer, Call, Node, chain_of, leases, small_network};

/// Rules of an administrator in the legacy tables.
pub const FOREIGN: &str = "\
    iptables-legacy -t nat -A POSTROUTING -s 192.0.2.0/24 -o eth7 -j MASQUERADE\n\
    iptables-legacy -t nat -N CNI-aaaaaaaaaaaaaaaaaaaaaaaa\n\
    iptables-legacy -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080";

pub fn masqueraded() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config
}

/// The nat rules of both variants and families.
pub fn all_rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables", "ip6tables"] {
        for variant in ["nft", "legacy"] {
            let program = format!("{program}-{variant}");
            let table = node.run(&format!("{program} -t nat -S"));
            let lines = table.lines().filter(|line| !line.starts_with("-P "));
            rules.extend(lines.map(|line| format!("{program} {line}")));
        }
    }
    rules
}

/// Takes the xtables lock of iptables-legacy.
fn lock_legacy(node: &Node) -> File {
    let open = || {
        let mut options = File::options();
        options.create(true).append(true).open("/run/xtables.lock")
    };
    let file = node.inside(open).unwrap();
    file.lock().unwrap();
    file
}

fn timed(call: &Call) -> (Answer, Duration) {
    let began = Instant::now();
    let answer = call.run();
    (answer, began.elapsed())
}

#[test]
fn del_without_ip_masq_does_not_wait_for_the_lock_of_legacy_iptables() {
    if !ready(IPTABLES) {
        return;
    }
    for by in BOTH {
        let node = node();
        node.run_all(FOREIGN);
        let before = all_rules(&node);
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &small_network());
        attachment.try_add(by).ok();
        let lock = lock_legacy(&node);
        for _ in 0..2 {
            let (answer, took) = timed(&attachment.call(by, "DEL"));
            answer.ok();
            assert!(took < Duration::from_secs(5), "{by:?}: {took:?}");
        }
        drop(lock);
        assert_eq!(leases(&node, "small").len(), 0);
        assert_eq!(all_rules(&node), before, "{by:?}");
    }
}

#[test]
fn del_removes_a_legacy_chain_of_an_earlier_configuration_or_keeps_the_lease() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    node.run_all(FOREIGN);
    let before = all_rules(&node);
    let pod = node.pod("a");
    let mut attachment = Attachment::new(&node, &pod, &masqueraded());
    attachment.config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    node.use_iptables_variant("xtables-legacy-multi");
    attachment.try_add(Gangplank).ok();
    restore_iptables_variant(&node);
    assert_eq!(all_rules(&node).len(), before.len() + 8);
    attachment.config["ipMasq"] = false.into();
    let lock = lock_legacy(&node);
    let error = attachment.del(Gangplank).error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.text().contains("lock"), "{error:?}");
    assert_eq!(leases(&node, "small").len(), 2);
    drop(lock);
    attachment.del(Gangplank).ok();
    assert_eq!(all_rules(&node), before);
    assert_eq!(leases(&node, "small").len(), 0);
}

/// Undoes [`Node::use_iptables_variant`].
pub fn restore_iptables_variant(node: &Node) {
    node.unbind("/usr/sbin/xtables-nft-multi");
}

/// Attaches a pod while the legacy variant or iptables-nft is the node's default.
fn add_under<'n>(
    node: &'n Node,
    pod: &'n crate::support::Pod,
    (by, variant): (Implementation, &str),
) -> Attachment<'n> {
    let mut attachment = Attachment::new(node, pod, &masqueraded());
    attachment.config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    let is_legacy = variant == "legacy";
    if is_legacy {
        node.use_iptables_variant("xtables-legacy-multi");
    }
    attachment.try_add(by).ok();
    if is_legacy {
        restore_iptables_variant(node);
    }
    attachment
}

#[test]
fn del_removes_the_rules_of_either_variant_if_the_other_is_the_default() {
    if !ready(IPTABLES) {
        return;
    }
    for by in BOTH {
        for (first, then) in [("legacy", "nft"), ("nft", "legacy")] {
            let node = node();
            node.run_all(FOREIGN);
            node.run("iptables-nft -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE");
            let before = all_rules(&node);
            let pod = node.pod("a");
            let attachment = add_under(&node, &pod, (by, first));
            assert_eq!(all_rules(&node).len(), before.len() + 8);
            let is_legacy = then == "legacy";
            if is_legacy {
                node.use_iptables_variant("xtables-legacy-multi");
            }
            attachment.check(Gangplank).ok();
            attachment.del(Gangplank).ok();
            if is_legacy {
                restore_iptables_variant(&node);
            }
            assert_eq!(all_rules(&node), before, "{by:?} {first} {then}");
            assert_eq!(leases(&node, "small").len(), 0);
        }
    }
}

#[test]
fn gc_removes_stale_chains_of_both_variants_and_keeps_those_of_valid_attachments() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    node.run_all(FOREIGN);
    let names = ["legacy-gone", "nft-gone", "legacy-kept", "nft-kept"];
    let pods = names.map(|name| node.pod(name));
    for (pod, by) in pods.iter().zip([Go, Go, Gangplank, Gangplank]) {
        let variant = pod.id().split('-').next().unwrap();
        add_under(&node, pod, (by, variant));
    }
    let mut config = masqueraded();
    config["cniVersion"] = "1.1.0".into();
    let valid = ["legacy-kept", "nft-kept"];
    let valid = valid.map(|id| json!({ "containerID": id, "ifname": "eth0" }));
    config["cni.dev/valid-attachments"] = json!(valid);
    let gc = node.cni("bridge").verb("GC").config(&config);
    gc.run().ok();
    let left = all_rules(&node);
    for name in names {
        let chain = chain_of("small", name);
        let count = left.iter().filter(|rule| rule.contains(&chain)).count();
        let expected = if name.ends_with("kept") { 8 } else { 0 };
        assert_eq!(count, expected, "{name}: {left:#?}");
    }
    assert!(left.iter().any(|rule| rule.contains("-o eth7")));
    assert!(
        left.iter()
            .any(|rule| rule.contains("CNI-aaaaaaaaaaaaaaaaaaaaaaaa"))
    );
}

#[test]
fn the_first_iptables_in_path_is_used() {
    if !ready(IPTABLES) {
        return;
    }
    for by in BOTH {
        let node = node();
        let bundle = "/run/bundle";
        node.run(&format!("mkdir {bundle}"));
        for program in ["iptables", "iptables-save", "iptables-restore"] {
            node.run(&format!(
                "ln -s /usr/sbin/xtables-legacy-multi {bundle}/{program}"
            ));
        }
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &masqueraded());
        let path = format!("{bundle}:{}", crate::support::PATH);
        let add = attachment.call(by, "ADD").env("PATH", &path).run();
        attachment.result = add.ok();
        let rules = all_rules(&node);
        let legacy = rules
            .iter()
            .filter(|rule| rule.starts_with("iptables-legacy "));
        assert_eq!((legacy.count(), rules.len()), (4, 4), "{by:?}: {rules:#?}");
        // DEL with another PATH.
        attachment.del(Gangplank).ok();
        assert_eq!(all_rules(&node), [""; 0]);
    }
}

/// Hides the programs of one variant.
fn uninstall(node: &Node, variant: &str) {
    node.bind("/dev/null", &format!("/usr/sbin/xtables-{variant}-multi"));
}

#[test]
fn rules_of_iptables_nft_are_removed_after_iptables_was_uninstalled() {
    if !ready(IPTABLES) {
        return;
    }
    for by in BOTH {
        for verb in ["DEL", "GC"] {
            let node = node();
            let admin = [
                "iptables -t nat -A POSTROUTING -s 192.0.2.1 -j MASQUERADE",
                "iptables -t nat -A POSTROUTING -s 192.0.2.2 -j MASQUERADE",
            ];
            node.run(admin[0]);
            let pods = [node.pod("a"), node.pod("b")];
            let [gone, kept] = pods
                .each_ref()
                .map(|pod| add_under(&node, pod, (by, "nft")));
            node.run(admin[1]);
            let chain = chain_of("small", "a");
            let mut expected = all_rules(&node);
            expected.retain(|rule| !rule.contains(&chain));
            uninstall(&node, "nft");
            uninstall(&node, "legacy");
            let mut config = gone.config.clone();
            config["cniVersion"] = "1.1.0".into();
            config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
            match verb {
                "GC" => node.cni("bridge").verb("GC").config(&config).run().ok(),
                _ => gone.del(Gangplank).ok(),
            };
            kept.check(Gangplank).ok();
            node.unbind("/usr/sbin/xtables-nft-multi");
            node.unbind("/usr/sbin/xtables-legacy-multi");
            assert_eq!(all_rules(&node), expected, "{by:?} {verb}");
        }
    }
}

#[test]
fn del_fails_and_keeps_the_lease_if_legacy_rules_exist_but_iptables_legacy_does_not() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    let pod = node.pod("a");
    let attachment = add_under(&node, &pod, (Gangplank, "legacy"));
    uninstall(&node, "legacy");
    let error = attachment.del(Gangplank).error();
    assert!(
        error.text().contains("iptables-legacy-restore"),
        "{error:?}"
    );
    assert_eq!(leases(&node, "small").len(), 2);
    // A pod with rules in nf_tables and a pod without rules need no legacy program.
    let other = node.pod("b");
    let mut with_rules = Attachment::new(&node, &other, &masqueraded());
    with_rules.try_add(Gangplank).ok();
    with_rules.del(Gangplank).ok();
    let mut plain = Attachment::new(&node, &other, &small_network());
    plain.try_add(Gangplank).ok();
    plain.del(Gangplank).ok();
    node.unbind("/usr/sbin/xtables-legacy-multi");
    attachment.del(Gangplank).ok();
    assert_eq!(all_rules(&node), [""; 0]);
    assert_eq!(leases(&node, "small").len(), 0);
}

#[test]
fn del_removes_all_jumps_to_its_chain_and_keeps_all_other_rules() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    node.run("iptables -t nat -N ADMIN");
    node.run("iptables -t nat -A ADMIN -s 192.0.2.1 -j MASQUERADE");
    let before = all_rules(&node);
    let pod = node.pod("a");
    let attachment = add_under(&node, &pod, (Go, "nft"));
    let chain = chain_of("small", "a");
    node.run(&format!(
        "iptables -t nat -I ADMIN 1 -m comment --comment mine -j {chain}"
    ));
    // As a firewall that restores saved rules: the jump in POSTROUTING exists twice.
    let script = "iptables-save -t nat > /run/saved; iptables-restore --noflush < /run/saved";
    node.write("/run/restore", script);
    node.run("sh /run/restore");
    let jumps = |rule: &&String| rule.contains(&format!("-j {chain}"));
    assert!(all_rules(&node).iter().filter(jumps).count() >= 3);
    attachment.del(Gangplank).ok();
    assert_eq!(all_rules(&node), before);
}

#[test]
fn an_add_names_the_table_that_iptables_cannot_read() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    let pod = node.pod("a");
    let attachment = add_under(&node, &pod, (Gangplank, "nft"));
    // iptables has no match for it, and does not list the table from now on.
    node.run("nft add rule ip nat POSTROUTING numgen random mod 2 0 counter");
    let before = leases(&node, "small");
    let mut second = Attachment::new(&node, &pod, &masqueraded());
    second.ifname = "eth1";
    let error = second.try_add(Gangplank).error();
    let text = error.text();
    assert!(
        text.contains("cannot list the nat table") && text.contains("nft"),
        "{text}"
    );
    assert_eq!(leases(&node, "small"), before);
    // Calls that do not need a listing succeed.
    attachment.check(Gangplank).ok();
    let other = node.pod("b");
    let mut third = Attachment::new(&node, &other, &masqueraded());
    third.try_add(Gangplank).ok();
    third.del(Gangplank).ok();
    attachment.del(Gangplank).ok();
    assert!(!node.run("nft list ruleset").contains("CNI-"));
}
