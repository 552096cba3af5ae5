//! Rules that cannot be observed, transactions that are large, and what a parent process leaves to a plugin.

use serde_json::{Value, json};

use crate::implementation::Implementation::Gangplank;
use crate::implementation::{Attachment, BOTH, IPTABLES, node, ready};
use crate::rules::{FOREIGN, all_rules, masqueraded};
use crate::support::{Node, leases, requires};

const LOG: &str = "/run/trace";

/// How many-th call of that name is the first one from the line with a text on, in the run that was traced.
fn occurrence(node: &Node, name: &str, text: &str) -> usize {
    let log = node.read(LOG);
    let before = log.lines().take_while(|line| !line.contains(text));
    let is_call = |line: &&str| line.contains(&format!("{name}("));
    assert!(log.contains(text), "{text}: {log}");
    before.filter(is_call).count() + 1
}

#[test]
fn del_keeps_the_lease_when_the_kernel_cannot_be_asked_for_rules() {
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
    // The lists exist once the variant was used.
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
        let disturbed = format!("strace -o {LOG} {fault}");
        let error = attachment
            .call(Gangplank, "DEL")
            .under(&disturbed)
            .run()
            .error();
        assert!(error.text().contains("masquerade:"), "{fault}: {error:?}");
        assert_eq!(leases(&node, "small").len(), 1, "{fault}");
        attachment.del(Gangplank).ok();
        assert_eq!(all_rules(&node).len(), before, "{fault}");
    }
    // A kernel without nfnetlink, or without the legacy variant, has no rules there.
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

/// As many destinations as are documented to be the most.
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
fn a_thousand_destinations_that_keep_their_address_fit_into_an_add_of_either_backend() {
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
            // In a user namespace the send buffer cannot be enlarged as needed.
            assert!(!node.read(LOG).contains("EMSGSIZE"), "{family} {backend}");
            attachment.check(Gangplank).ok();
            let ruleset = node.run("nft list ruleset");
            let rules = ruleset
                .lines()
                .filter(|line| line.contains("/25") || line.contains("/49"));
            assert_eq!(rules.count(), 1024, "{family} {backend}");
            // Another policy replaces all of them.
            if backend == "nftables" {
                let other = node.pod("b");
                let mut changed = Attachment::new(&node, &other, &attachment.config);
                changed.config["nonMasqueradeCIDRs"] = json!(["192.0.2.0/25"]);
                changed.try_add(Gangplank).ok();
                changed.del(Gangplank).ok();
            }
            attachment.del(Gangplank).ok();
            let left = node.run("nft list ruleset");
            assert!(!left.contains("/25") && !left.contains("/49") && !left.contains("CNI-"));
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
        let own = node.run("nft list map inet gangplank pods4");
        let comment = own.split("comment \"").nth(1).unwrap();
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
        let left = node.run("nft list map inet gangplank pods4");
        assert_eq!(left.matches("comment").count(), 1, "{count}");
        attachment.check(Gangplank).ok();
    }
}

#[test]
fn a_parent_that_ignores_sigchld_changes_nothing() {
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
        // A delegate is a program too; the Go plugin finds this one under no other name.
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
fn a_large_script_for_iptables_needs_no_thread() {
    if !ready(IPTABLES) {
        return;
    }
    requires!("strace");
    let node = node();
    let pod = node.pod("a");
    let mut attachment = Attachment::new(&node, &pod, &large("IPv4", "iptables"));
    // The first one becomes iptables-restore.
    let starved = "strace --inject=clone,clone3:error=EAGAIN:when=2+ -o /run/trace";
    let answer = attachment.call(Gangplank, "ADD").under(starved).run();
    attachment.result = answer.ok();
    attachment.check(Gangplank).ok();
    // Nor does a DEL: it does the same without one.
    let starved = "strace --inject=clone,clone3:error=EAGAIN -o /run/trace";
    attachment.call(Gangplank, "DEL").under(starved).run().ok();
    assert_eq!(all_rules(&node), [""; 0]);
    assert_eq!(leases(&node, "small").len(), 0);
}
