//! Rules that cannot be listed, large transactions, and attributes inherited from the parent process.

use serde_json::{Value, json};

use crate::implementation::Implementation::Gangplank;
use crate::implementation::{Attachment, BOTH, IPTABLES, node, ready};
use crate::rules::{FOREIGN, all_rules, masqueraded};
use crate::support::{Node, leases, requires};

const LOG: &str = "/run/trace";

/// The number of the first system call `name` at or after the line that contains `text`, as `when=` of strace counts
/// it.
fn occurrence(node: &Node, name: &str, text: &str) -> usize {
    let log = node.read(LOG);
    let before = log.lines().take_while(|line| !line.contains(text));
    let is_call = |line: &&str| line.contains(&format!("{name}("));
    assert!(log.contains(text), "{text}: {log}");
    before.filter(is_call).count() + 1
}

#[test]
fn del_keeps_the_lease_if_the_rules_cannot_be_listed() {
    if !ready(IPTABLES) {
        return;
    }
    requires!("strace");
    let node = node();
    let pod = node.pod("a");
    let mut attachment = Attachment::new(&node, &pod, &masqueraded());
    let traced = |attachment: &Attachment| {
        attachment
            .call(Gangplank, "DEL")
            .under(&format!("strace -o {LOG}"))
            .run()
            .ok()
    };
    // The kernel creates these files when the legacy tables are first used.
    node.run_all(FOREIGN);
    node.run("ip6tables-legacy -t nat -L");
    attachment.try_add(Gangplank).ok();
    traced(&attachment);
    let socket = occurrence(&node, "socket", "NETLINK_NETFILTER");
    let mut faults = vec![];
    for errno in ["EMFILE", "ENOBUFS", "EPERM", "EIO"] {
        faults.push(format!("--inject=socket:error={errno}:when={socket}"));
    }
    for list in ["net/ip_tables_names", "net/ip6_tables_names"] {
        let open = occurrence(&node, "openat", list);
        for errno in ["EACCES", "EIO", "EMFILE"] {
            faults.push(format!("--inject=openat:error={errno}:when={open}"));
        }
        let read = occurrence(&node, "read", list);
        faults.push(format!("--inject=read:error=EIO:when={read}"));
    }
    let list = occurrence(&node, "openat", "net/ip_tables_names");
    for fault in faults {
        let before = all_rules(&node).len();
        attachment.try_add(Gangplank).ok();
        let with_fault = format!("strace -o {LOG} {fault}");
        let error = attachment
            .call(Gangplank, "DEL")
            .under(&with_fault)
            .run()
            .error();
        assert!(error.text().contains("masquerade:"), "{fault}: {error:?}");
        assert_eq!(leases(&node, "small").len(), 1, "{fault}");
        attachment.del(Gangplank).ok();
        assert_eq!(all_rules(&node).len(), before, "{fault}");
    }
    // A kernel without nfnetlink or without the legacy tables has no rules there.
    for absent in [
        format!("--inject=socket:error=EPROTONOSUPPORT:when={socket}"),
        format!("--inject=openat:error=ENOENT:when={list}"),
    ] {
        attachment.config["ipMasq"] = false.into();
        attachment.try_add(Gangplank).ok();
        let without = format!("strace -o {LOG} {absent}");
        attachment.call(Gangplank, "DEL").under(&without).run().ok();
    }
}

/// The documented maximum number of destinations.
fn many_destinations(family: &str) -> Value {
    let network = |n: usize| match family {
        "IPv4" => format!("100.{}.{}.0/25", 64 + n / 256, n % 256),
        _ => format!("2001:db8:{n:x}::/49"),
    };
    (0..1024).map(network).collect::<Vec<String>>().into()
}

fn large(family: &str, backend: &str) -> Value {
    let mut config = masqueraded();
    if family == "IPv6" {
        config["ipam"]["subnet"] = "fd00:77::/64".into();
    }
    config["nonMasqueradeCIDRs"] = many_destinations(family);
    config["ipMasqBackend"] = backend.into();
    config
}

#[test]
fn an_add_with_1024_non_masquerade_cidrs_works_with_both_backends() {
    if !ready(IPTABLES) {
        return;
    }
    requires!("strace", "nft");
    for family in ["IPv4", "IPv6"] {
        for backend in ["nftables", "iptables"] {
            let node = node();
            let pod = node.pod("a");
            let mut attachment = Attachment::new(&node, &pod, &large(family, backend));
            let call = attachment
                .call(Gangplank, "ADD")
                .under("strace -f -e trace=sendto -e raw=sendto -o /run/trace");
            attachment.result = call.run().ok();
            // In a user namespace SO_SNDBUFFORCE is not permitted, so the request must fit into the default send
            // buffer.
            assert!(!node.read(LOG).contains("EMSGSIZE"), "{family} {backend}");
            attachment.check(Gangplank).ok();
            let ruleset = node.run("nft list ruleset");
            let rules = ruleset
                .lines()
                .filter(|line| line.contains("/25") || line.contains("/49"));
            assert_eq!(rules.count(), 1024, "{family} {backend}");
            // An ADD with another policy replaces all of them.
            if backend == "nftables" {
                let other = node.pod("b");
                let mut changed = Attachment::new(&node, &other, &attachment.config);
                changed.config["nonMasqueradeCIDRs"] = json!(["192.0.2.0/25"]);
                changed.try_add(Gangplank).ok();
                changed.del(Gangplank).ok();
            }
            attachment.del(Gangplank).ok();
            let remaining = node.run("nft list ruleset");
            assert!(
                !remaining.contains("/25")
                    && !remaining.contains("/49")
                    && !remaining.contains("CNI-")
            );
        }
    }
}

#[test]
fn gc_removes_any_number_of_stale_elements() {
    if !ready(&["nft"]) {
        return;
    }
    for count in [3_500, 20_000] {
        let node = node();
        let kept = node.pod("kept");
        let mut config = masqueraded();
        config["ipMasqBackend"] = "nftables".into();
        config["ipam"]["subnet"] = "10.77.0.0/16".into();
        let mut attachment = Attachment::new(&node, &kept, &config);
        attachment.try_add(Gangplank).ok();
        let own_map = node.run("nft list map inet gangplank pods4");
        let comment = own_map.split("comment \"").nth(1).unwrap();
        let network = comment.split('-').next().unwrap();
        let elements: Vec<String> = (0..count)
            .map(|n| {
                let address = format!("10.77.{}.{}", 100 + n / 250, 1 + n % 250);
                let comment = format!("{network}-{n:016x}, net: small, if: eth0, id: gone{n}");
                format!("{address} comment \"{comment}\" : goto net-small")
            })
            .collect();
        let text = format!(
            "add element inet gangplank pods4 {{ {} }}",
            elements.join(", ")
        );
        node.write("/run/elements", &text);
        node.run("nft -f /run/elements");
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
        node.cni("bridge").verb("GC").config(&config).run().ok();
        let remaining = node.run("nft list map inet gangplank pods4");
        assert_eq!(remaining.matches("comment").count(), 1, "{count}");
        attachment.check(Gangplank).ok();
    }
}

#[test]
fn plugins_work_if_the_parent_ignores_sigchld() {
    if !ready(IPTABLES) {
        return;
    }
    for by in BOTH {
        let node = node();
        node.write("/run/ignoring", "trap '' CHLD\nexec \"$@\"");
        let pod = node.pod("a");
        let mut attachment = Attachment::new(&node, &pod, &masqueraded());
        let call = |attachment: &Attachment, verb| {
            attachment.call(by, verb).under("sh /run/ignoring").run()
        };
        attachment.result = call(&attachment, "ADD").ok();
        call(&attachment, "CHECK").ok();
        call(&attachment, "DEL").ok();
        assert_eq!(all_rules(&node), [""; 0], "{by:?}");
        // An external IPAM plugin is a child process too. The Go plugin does not find it under this name.
        if by == Gangplank {
            let mut delegated = Attachment::new(&node, &pod, &masqueraded());
            delegated.config["ipam"]["type"] = "go-host-local".into();
            delegated.result = call(&delegated, "ADD").ok();
            call(&delegated, "DEL").ok();
        }
        assert_eq!(leases(&node, "small").len(), 0, "{by:?}");
    }
}

#[test]
fn a_large_iptables_script_is_written_without_a_thread() {
    if !ready(IPTABLES) {
        return;
    }
    requires!("strace");
    let node = node();
    let pod = node.pod("a");
    let mut attachment = Attachment::new(&node, &pod, &large("IPv4", "iptables"));
    // The first clone starts iptables-restore.
    let without_threads = "strace --inject=clone,clone3:error=EAGAIN:when=2+ -o /run/trace";
    let answer = attachment
        .call(Gangplank, "ADD")
        .under(without_threads)
        .run();
    attachment.result = answer.ok();
    attachment.check(Gangplank).ok();
    // DEL starts no child process.
    let without_threads = "strace --inject=clone,clone3:error=EAGAIN -o /run/trace";
    attachment
        .call(Gangplank, "DEL")
        .under(without_threads)
        .run()
        .ok();
    assert_eq!(all_rules(&node), [""; 0]);
    assert_eq!(leases(&node, "small").len(), 0);
}
