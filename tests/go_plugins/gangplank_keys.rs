//! Keys that only gangplank has: the Go plugins ignore them, and remove the resources they create, except for
//! forwardAccept and a textual MTU.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{Attachment, IPTABLES, node, ready, remains};
use crate::support::small_network;

fn config() -> Value {
    let mut config = small_network();
    for (key, value) in [
        ("ipMasq", json!(true)),
        ("nonMasqueradeCIDRs", json!(["10.0.0.0/8", "fd00::/8"])),
        ("snatAddresses", json!(["203.0.113.5"])),
        ("ipMasqRandomFully", json!(true)),
        ("logFile", json!("/run/gangplank.log")),
        ("logLevel", json!("debug")),
        ("logFormat", json!("json")),
    ] {
        config[key] = value;
    }
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

#[test]
fn both_implementations_work_with_gangplanks_keys_and_remove_each_others_resources() {
    if !ready(IPTABLES) {
        return;
    }
    for variant in ["xtables-nft-multi", "xtables-legacy-multi"] {
        let node = node();
        node.use_iptables_variant(variant);
        for (add, del) in [
            (Go, Go),
            (Gangplank, Go),
            (Go, Gangplank),
            (Gangplank, Gangplank),
        ] {
            let pod = node.pod(&format!("{add:?}-{del:?}"));
            let mut attachment = Attachment::new(&node, &pod, &config());
            attachment.try_add(add).ok();
            attachment.check(add).ok();
            attachment.del(del).ok();
            assert_eq!(
                remains(&node, "small", "br0"),
                [""; 0],
                "{variant}: {add:?}, then {del:?}"
            );
        }
    }
}

#[test]
fn rules_of_forward_accept_left_by_the_go_plugin_are_removed_by_the_next_del() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    let mut config = config();
    config["forwardAccept"] = true.into();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let mut first = Attachment::new(&node, &a, &config);
    first.try_add(Go).ok();
    let filter = || node.run("iptables -t filter -S");
    assert!(!filter().contains("br0"), "{}", filter());
    first.del(Go).ok();
    first.try_add(Gangplank).ok();
    first.del(Go).ok();
    assert!(
        filter().contains("GANGPLANK-br0"),
        "the Go plugin ignores them"
    );
    let mut second = Attachment::new(&node, &b, &config);
    second.try_add(Gangplank).ok();
    second.del(Gangplank).ok();
    assert!(!filter().contains("br0"), "{}", filter());
}

#[test]
fn the_go_plugin_rejects_mtu_auto_in_all_verbs() {
    if !ready(IPTABLES) {
        return;
    }
    let node = node();
    let pod = node.pod("a");
    let mut config = config();
    config["mtu"] = "auto".into();
    let mut attachment = Attachment::new(&node, &pod, &config);
    attachment.try_add(Gangplank).ok();
    for answer in [attachment.check(Go), attachment.del(Go)] {
        let error = answer.error();
        assert!(error.text().contains("mtu"), "{error:?}");
    }
    // With a number DEL works.
    attachment.config["mtu"] = 1500.into();
    attachment.del(Go).ok();
    assert_eq!(remains(&node, "small", "br0"), [""; 0]);
}
