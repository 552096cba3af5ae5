use super::*;
use crate::netfilter::firewall::{Backend, Settings};
use crate::netfilter::iptables_save::listing_after;

fn settings(ingress: Ingress) -> Settings {
    Settings {
        backend: Backend::Iptables,
        admin_chain: "CNI-ADMIN".to_owned(),
        zone: String::new(),
        ingress,
    }
}

fn wanted<'a>(addresses: &'a [IpAddr], settings: &'a Settings) -> Wanted<'a> {
    Wanted {
        addresses,
        settings,
    }
}

/// The listing after scripts ran on an empty table.
fn after(scripts: &[&Option<String>]) -> Listing {
    let scripts: Vec<&str> = scripts.iter().filter_map(|it| it.as_deref()).collect();
    listing_after(&scripts)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn same_bridge() -> Ingress {
    Ingress::SameBridge("br0".parse().unwrap())
}

#[test]
fn the_first_attachment_creates_the_chains_of_the_go_plugin() {
    let (settings, addresses) = (settings(same_bridge()), [ip("10.1.0.2")]);
    let script = install(&wanted(&addresses, &settings), &[], &Listing::default());
    let both =
        "-m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\"";
    let expected = format!(
        "*filter\n-N CNI-FORWARD\n-N CNI-ADMIN\n-N CNI-ISOLATION-STAGE-1\n-N CNI-ISOLATION-STAGE-2\n\
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
        let settings = settings(ingress);
        let wanted = wanted(&addresses, &settings);
        let listing = after(&[&install(&wanted, &[], &Listing::default())]);
        assert_eq!(install(&wanted, &[], &listing), None, "{settings:?}");
        assert_eq!(difference(&wanted, &listing), None);
    }
}

#[test]
fn new_connections_are_accepted_if_forward_drops_them() {
    let addresses = [ip("10.1.0.2")];
    let cases = [
        (Ingress::Open, "-A CNI-FORWARD -d 10.1.0.2/32 -j ACCEPT"),
        (
            same_bridge(),
            "-A CNI-FORWARD -d 10.1.0.2/32 -m conntrack --ctstate DNAT -j ACCEPT",
        ),
    ];
    for (ingress, rule) in cases {
        let settings = settings(ingress);
        let wanted = wanted(&addresses, &settings);
        for listing in [
            ":FORWARD DROP [0:0]\n",
            ":FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT\n",
        ] {
            let script = install(&wanted, &[], &Listing::parse(listing)).unwrap();
            assert!(script.lines().any(|line| line == rule), "{script}");
        }
        let accepting = Listing::parse(":FORWARD ACCEPT [0:0]\n");
        let script = install(&wanted, &[], &accepting).unwrap();
        assert!(script.lines().all(|line| line != rule), "{script}");
    }
}

#[test]
fn the_last_attachment_removes_all_but_the_chain_of_the_administrator() {
    let settings = settings(same_bridge());
    let (first, second) = ([ip("10.1.0.2")], [ip("10.1.0.3")]);
    let one = install(&wanted(&first, &settings), &[], &Listing::default());
    let two = install(&wanted(&second, &settings), &[], &after(&[&one]));
    // The second one is not recorded, as if the Go plugin had added it.
    let leads_to = |address| (address == second[0]).then(|| "br0".to_owned());
    let three = remove((&first, &[]), &leads_to, &after(&[&one, &two]));
    let script = three.as_deref().unwrap();
    assert!(
        !script.contains("ISOLATION") && !script.contains("-X CNI-FORWARD"),
        "{script}"
    );
    let rest = after(&[&one, &two, &three]);
    assert_eq!(remove((&first, &[]), &leads_to, &rest), None);
    let four = remove((&second, &[]), &leads_to, &rest);
    let nothing = after(&[&one, &two, &three, &four]);
    assert_eq!(
        (nothing.chains, nothing.rules.len()),
        (vec!["CNI-ADMIN".to_owned()], 0)
    );
}

#[test]
fn another_policy_replaces_the_rules_of_the_bridge() {
    let addresses = [ip("10.1.0.2")];
    let strict = settings(Ingress::Isolated("br0".parse().unwrap()));
    let open = settings(same_bridge());
    let one = install(&wanted(&addresses, &strict), &[], &Listing::default());
    let before = after(&[&one]);
    assert!(difference(&wanted(&addresses, &open), &before).is_some());
    let two = install(&wanted(&addresses, &open), &[], &before);
    let after = after(&[&one, &two]);
    assert!(after.rules().all(|rule| !rule.contains("-i br0 -o br0")));
    assert_eq!(difference(&wanted(&addresses, &open), &after), None);
}

#[test]
fn jumps_behind_a_rule_for_all_packets_are_moved_to_the_top() {
    let addresses = [ip("10.1.0.2")];
    let settings = settings(Ingress::Open);
    let wanted = wanted(&addresses, &settings);
    let mut listing = after(&[&install(&wanted, &[], &Listing::default())]);
    listing
        .rules
        .insert(0, "-A FORWARD -s 192.0.2.1/32 -j DROP".to_owned());
    assert_eq!(install(&wanted, &[], &listing), None);
    listing.rules.insert(
        0,
        "-A FORWARD -j REJECT --reject-with icmp-port-unreachable".to_owned(),
    );
    let moved = install(&wanted, &[], &listing).unwrap();
    assert!(
        moved.contains("-D FORWARD") && moved.contains("-I FORWARD 1"),
        "{moved}"
    );
}
