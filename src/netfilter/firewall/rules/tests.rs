use super::*;
use crate::netfilter::iptables_save::listing_after;

fn record(container: &str) -> Record {
    let attachment = Attachment {
        container: container.parse().unwrap(),
        interface: "eth0".parse().unwrap(),
    };
    Record::of(&"net1".parse().unwrap(), &attachment)
}

fn wanted<'a>(addresses: &'a [IpAddr], ingress: &'a Ingress) -> Wanted<'a> {
    Wanted {
        addresses,
        admin_chain: "CNI-ADMIN",
        ingress,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn same_bridge() -> Ingress {
    Ingress::SameBridge("br0".parse().unwrap())
}

#[test]
fn the_first_attachment_creates_the_chains_of_the_go_plugin() {
    let (ingress, addresses) = (same_bridge(), [ip("10.1.0.2")]);
    let script = record("p1").install(&wanted(&addresses, &ingress), &Listing::default());
    let name = record("p1").name;
    let both =
        "-m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\"";
    let expected = format!(
        "*filter\n-N CNI-FORWARD\n-N CNI-ADMIN\n-N CNI-ISOLATION-STAGE-1\n-N CNI-ISOLATION-STAGE-2\n-N {name}\n\
         -A {name} -s 10.1.0.2/32 -i br0 -m comment --comment \"name: \\\"net1\\\" id: \\\"p1\\\" if: \\\"eth0\\\"\"\n\
         -I FORWARD 1 -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n\
         -I FORWARD 1 {both} -j CNI-ISOLATION-STAGE-1\n\
         -I CNI-FORWARD 1 -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN\n\
         -A CNI-FORWARD -d 10.1.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A CNI-FORWARD -s 10.1.0.2/32 -j ACCEPT\n\
         -I CNI-ISOLATION-STAGE-1 1 -i br0 ! -o br0 -m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge)\" -j CNI-ISOLATION-STAGE-2\n\
         -A CNI-ISOLATION-STAGE-1 {both} -j RETURN\n\
         -I CNI-ISOLATION-STAGE-2 1 -o br0 {both} -j DROP\n\
         -A CNI-ISOLATION-STAGE-2 {both} -j RETURN\nCOMMIT\n"
    );
    assert_eq!(script.unwrap(), expected);
}

#[test]
fn a_repeated_add_changes_nothing() {
    for ingress in [
        Ingress::Open,
        same_bridge(),
        Ingress::Isolated("br0".parse().unwrap()),
    ] {
        let addresses = [ip("10.1.0.2"), ip("10.1.0.3")];
        let wanted = wanted(&addresses, &ingress);
        let script = record("p1").install(&wanted, &Listing::default()).unwrap();
        let listing = listing_after(&[&script]);
        assert_eq!(record("p1").install(&wanted, &listing), None, "{ingress:?}");
        assert_eq!(record("p1").difference(&wanted, &listing), None);
    }
}

#[test]
fn the_last_attachment_removes_all_but_the_chain_of_the_administrator() {
    let (ingress, first, second) = (same_bridge(), [ip("10.1.0.2")], [ip("10.1.0.3")]);
    let one = record("p1")
        .install(&wanted(&first, &ingress), &Listing::default())
        .unwrap();
    let two = record("p2")
        .install(&wanted(&second, &ingress), &listing_after(&[&one]))
        .unwrap();
    let three = record("p1")
        .remove(&[], &|_| None, &listing_after(&[&one, &two]))
        .unwrap();
    assert!(
        !three.contains("ISOLATION") && !three.contains("-X CNI-FORWARD"),
        "{three}"
    );
    let rest = listing_after(&[&one, &two, &three]);
    assert_eq!(record("p1").remove(&[], &|_| None, &rest), None);
    let four = record("p2").remove(&[], &|_| None, &rest).unwrap();
    let nothing = listing_after(&[&one, &two, &three, &four]);
    assert_eq!(
        (nothing.chains, nothing.rules.len()),
        (vec!["CNI-ADMIN".to_owned()], 0)
    );
}

#[test]
fn an_address_of_another_attachment_keeps_its_rules() {
    let addresses = [ip("10.1.0.2")];
    let wanted = wanted(&addresses, &Ingress::Open);
    let one = record("p1").install(&wanted, &Listing::default()).unwrap();
    let two = record("p2")
        .install(&wanted, &listing_after(&[&one]))
        .unwrap();
    let late = record("p1")
        .remove(&[], &|_| None, &listing_after(&[&one, &two]))
        .unwrap();
    let left = listing_after(&[&one, &two, &late]);
    assert_eq!(record("p2").difference(&wanted, &left), None);
}

#[test]
fn another_policy_replaces_the_rules_of_the_bridge() {
    let addresses = [ip("10.1.0.2")];
    let (strict, open) = (Ingress::Isolated("br0".parse().unwrap()), same_bridge());
    let one = record("p1")
        .install(&wanted(&addresses, &strict), &Listing::default())
        .unwrap();
    let before = listing_after(&[&one]);
    assert!(
        record("p1")
            .difference(&wanted(&addresses, &open), &before)
            .is_some()
    );
    let two = record("p1")
        .install(&wanted(&addresses, &open), &before)
        .unwrap();
    let after = listing_after(&[&one, &two]);
    assert!(after.rules().all(|rule| !rule.contains("-i br0 -o br0")));
    assert_eq!(
        record("p1").difference(&wanted(&addresses, &open), &after),
        None
    );
}

#[test]
fn jumps_behind_a_rule_for_all_packets_are_moved_to_the_top() {
    let addresses = [ip("10.1.0.2")];
    let wanted = wanted(&addresses, &Ingress::Open);
    let script = record("p1").install(&wanted, &Listing::default()).unwrap();
    let mut listing = listing_after(&[&script]);
    listing
        .rules
        .insert(0, "-A FORWARD -s 192.0.2.1/32 -j DROP".to_owned());
    assert_eq!(record("p1").install(&wanted, &listing), None);
    listing.rules.insert(
        0,
        "-A FORWARD -j REJECT --reject-with icmp-port-unreachable".to_owned(),
    );
    let moved = record("p1").install(&wanted, &listing).unwrap();
    assert_eq!(moved.lines().count(), 4, "{moved}");
}
