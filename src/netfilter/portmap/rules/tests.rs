use std::num::NonZeroU16;

use super::*;
use crate::netfilter::iptables_save::listing_after;
use crate::netfilter::portmap::Settings;

const NAME: &str = "CNI-DN-c37c1b09cd1a8a00aefa6";

/// No stale chains.
const NONE: BTreeSet<String> = BTreeSet::new();

fn chain(network: &str, container: &str) -> Chain {
    Chain::of(&network.parse().unwrap(), &container.parse().unwrap())
}

fn settings(source_nat: SourceNat) -> Settings {
    Settings {
        source_nat,
        mark: MarkChain::Own { bit: 13 },
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    }
}

fn mapping(protocol: Protocol, host_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        protocol,
        host_port: NonZeroU16::new(host_port).unwrap(),
        container_port: NonZeroU16::new(80).unwrap(),
        host_ip: host_ip.map(|address| address.parse().unwrap()),
    }
}

fn forwarded<'a>(
    address: &str,
    mappings: &'a [PortMapping],
    settings: &'a Settings,
) -> Forwarded<'a> {
    Forwarded {
        address: address.parse().unwrap(),
        mappings,
        settings,
    }
}

#[test]
fn the_first_container_creates_the_chains_of_the_go_plugin() {
    let (settings, mappings) = (
        settings(SourceNat::Local),
        [
            mapping(Protocol::Tcp, 8080, None),
            mapping(Protocol::Udp, 5353, Some("192.0.2.1")),
        ],
    );
    let forwarded = forwarded("10.1.0.2/24", &mappings, &settings);
    let script = chain("net1", "p1").install(&forwarded, &Listing::default(), &NONE);
    let comment = r#"-m comment --comment "dnat name: \"net1\" id: \"p1\"""#;
    let expected = format!(
        "*nat\n-N CNI-HOSTPORT-SETMARK\n-N CNI-HOSTPORT-MASQ\n\
         -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         -I POSTROUTING 1 -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
         -N CNI-HOSTPORT-DNAT\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -N {NAME}\n\
         -A {NAME} -s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK\n\
         -A {NAME} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK\n\
         -A {NAME} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80\n\
         -A {NAME} -s 10.1.0.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK\n\
         -A {NAME} -s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK\n\
         -A {NAME} -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.1.0.2:80\n\
         -A CNI-HOSTPORT-DNAT -p tcp {comment} -m multiport --dports 8080 -j {NAME}\n\
         -A CNI-HOSTPORT-DNAT -p udp {comment} -m multiport --dports 5353 -j {NAME}\nCOMMIT\n"
    );
    assert_eq!(script, expected);
}

#[test]
fn a_repeated_add_changes_nothing_and_another_address_replaces_the_rules() {
    let (settings, mappings) = (
        settings(SourceNat::Local),
        [mapping(Protocol::Tcp, 8080, None)],
    );
    let chain = chain("net1", "p1");
    let first = forwarded("10.1.0.77/24", &mappings, &settings);
    let once = listing_after(&[&chain.install(&first, &Listing::default(), &NONE)]);
    let again = chain.install(&first, &once, &NONE);
    let install = chain.install(&first, &Listing::default(), &NONE);
    let twice = listing_after(&[&install, &again]);
    assert_eq!((&twice.chains, &twice.rules), (&once.chains, &once.rules));
    let other = forwarded("10.1.0.2/24", &mappings, &settings);
    let replaced = listing_after(&[&install, &chain.install(&other, &once, &NONE)]);
    assert!(
        replaced
            .rules
            .iter()
            .all(|rule| !rule.contains("10.1.0.77"))
    );
    assert_eq!(chain.difference(&other, &replaced), None);
    assert!(chain.difference(&other, &once).is_some());
}

#[test]
fn an_entry_rule_has_at_most_fifteen_ports() {
    let settings = settings(SourceNat::None);
    let mappings: Vec<PortMapping> = (1..=31)
        .map(|port| mapping(Protocol::Tcp, port, None))
        .collect();
    let forwarded = forwarded("fd00::2/64", &mappings, &settings);
    let script = chain("net1", "p1").install(&forwarded, &Listing::default(), &NONE);
    let entries: Vec<&str> = script
        .lines()
        .filter(|line| line.contains("--dports"))
        .collect();
    assert_eq!(entries.len(), 3);
    assert!(entries[2].contains("--dports 31 "), "{entries:?}");
    assert!(script.contains("--to-destination [fd00::2]:80\n") && !script.contains("MARK"));
}

#[test]
fn a_jump_behind_an_accept_rule_is_moved_to_the_top() {
    let (settings, mappings) = (
        settings(SourceNat::All),
        [mapping(Protocol::Tcp, 8080, None)],
    );
    let forwarded = forwarded("10.1.0.2/24", &mappings, &settings);
    let chain = chain("net1", "p1");
    let mut listing = listing_after(&[&chain.install(&forwarded, &Listing::default(), &NONE)]);
    listing
        .rules
        .insert(0, "-A POSTROUTING -j KUBE-POSTROUTING".to_owned());
    assert_eq!(chain.difference(&forwarded, &listing), None);
    listing
        .rules
        .insert(0, "-A POSTROUTING -s 10.1.0.0/24 -j ACCEPT".to_owned());
    assert!(chain.difference(&forwarded, &listing).is_some());
    let script = chain.install(&forwarded, &listing, &NONE);
    let moved = script.lines().filter(|line| line.contains("requiring"));
    let commands: Vec<&str> = moved.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(commands, ["-D", "-I"]);
}

#[test]
fn the_shared_chains_are_removed_with_the_last_container() {
    let (settings, mappings) = (
        settings(SourceNat::Local),
        [mapping(Protocol::Tcp, 8080, None)],
    );
    let forwarded = forwarded("10.1.0.2/24", &mappings, &settings);
    let (first, second) = (chain("net1", "p1"), chain("net1", "p2"));
    let one = first.install(&forwarded, &Listing::default(), &NONE);
    let two = second.install(&forwarded, &listing_after(&[&one]), &NONE);
    let both = listing_after(&[&one, &two]);
    let three = first.remove(&both).unwrap();
    assert!(!three.contains("HOSTPORT-MASQ") && three.contains(&format!("-X {NAME}")));
    let rest = listing_after(&[&one, &two, &three]);
    assert_eq!(first.remove(&rest), None);
    let last = second.remove(&rest).unwrap();
    let nothing = listing_after(&[&one, &two, &three, &last]);
    assert_eq!(
        (nothing.chains.len(), nothing.rules.len()),
        (0, 0),
        "{last}"
    );
}

#[test]
fn mapped_ports_are_listed_with_their_owners() {
    let (settings, mappings) = (
        settings(SourceNat::Local),
        [
            mapping(Protocol::Tcp, 8080, None),
            mapping(Protocol::Udp, 53, Some("192.0.2.1")),
        ],
    );
    let forwarded = forwarded("10.1.0.2/24", &mappings, &settings);
    let script = chain("net1", "p1").install(&forwarded, &Listing::default(), &NONE);
    let mapped = mapped(&listing_after(&[&script]));
    let found: Vec<PortMapping> = mapped.iter().map(|it| it.mapping).collect();
    assert_eq!(found, mappings);
    assert_eq!(
        (mapped[0].network.as_str(), mapped[0].container.as_str()),
        ("net1", "p1")
    );
    assert_eq!(mapped[1].address, forwarded.address.address());
}
