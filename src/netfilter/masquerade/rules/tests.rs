use super::*;

const COMMENT: &str = r#"-m comment --comment "name: \"spec-masq\" id: \"spec-ctr-0001\"""#;
const NAME: &str = "CNI-9144d59fbceca2a02b5592f2";

fn chain() -> Chain {
    Chain::of(
        &"spec-masq".parse().unwrap(),
        &"spec-ctr-0001".parse().unwrap(),
    )
}

fn default_policy() -> Policy {
    Policy::default()
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The listing after a script ran on an empty table.
fn listing_after(script: &str) -> Listing {
    let chains = script.lines().filter_map(|line| line.strip_prefix("-N "));
    let chains: String = chains.map(|chain| format!(":{chain} - [0:0]\n")).collect();
    Listing::parse(&(chains + script))
}

#[test]
fn the_rules_are_those_of_the_go_plugin() {
    let expected = format!(
        "*nat\n-N {NAME}\n\
         -A {NAME} -d 10.104.0.0/24 {COMMENT} -j ACCEPT\n\
         -A {NAME} ! -d 224.0.0.0/4 {COMMENT} -j MASQUERADE\n\
         -A POSTROUTING -s 10.104.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n"
    );
    assert_eq!(
        chain().create(&cidrs(&["10.104.0.2/24"]), &default_policy()),
        expected
    );
    let v6 = chain().create(&cidrs(&["fd00:109::2/64"]), &default_policy());
    assert!(
        v6.contains("-d fd00:109::/64 ") && v6.contains("! -d ff00::/8 "),
        "{v6}"
    );
    assert!(v6.contains("-A POSTROUTING -s fd00:109::2/128 "), "{v6}");
}

#[test]
fn every_subnet_is_accepted_before_anything_is_masqueraded() {
    let script = chain().create(
        &cidrs(&["10.1.0.2/24", "10.2.0.2/24", "10.2.0.3/24"]),
        &default_policy(),
    );
    let targets: Vec<&str> = script
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert_eq!(
        targets[2..],
        ["ACCEPT", "ACCEPT", "MASQUERADE", NAME, NAME, NAME, "COMMIT"]
    );
}

#[test]
fn a_second_interface_adds_the_missing_rules_with_accept_rules_first() {
    let one = listing_after(&chain().create(&cidrs(&["10.1.0.2/24"]), &default_policy()));
    let same_subnet = chain()
        .complete(&cidrs(&["10.1.0.3/24"]), &default_policy(), &one)
        .unwrap();
    assert_eq!(
        same_subnet,
        format!("*nat\n-A POSTROUTING -s 10.1.0.3/32 {COMMENT} -j {NAME}\nCOMMIT\n")
    );
    let other_subnet = chain()
        .complete(&cidrs(&["10.2.0.3/24"]), &default_policy(), &one)
        .unwrap();
    assert!(
        other_subnet.contains(&format!("-I {NAME} 1 -d 10.2.0.0/24 ")),
        "{other_subnet}"
    );
    assert_eq!(
        chain().complete(&cidrs(&["10.1.0.2/24"]), &default_policy(), &one),
        None
    );
    let whole = chain().complete(
        &cidrs(&["10.1.0.2/24"]),
        &default_policy(),
        &Listing::default(),
    );
    assert_eq!(
        whole,
        Some(chain().create(&cidrs(&["10.1.0.2/24"]), &default_policy()))
    );
}

#[test]
fn the_chain_is_removed_with_the_last_jump_rule() {
    let both =
        listing_after(&chain().create(&cidrs(&["10.1.0.2/24", "10.1.0.3/24"]), &default_policy()));
    let first = chain().clear(Some(&ips(&["10.1.0.2"])), &both).unwrap();
    assert_eq!(
        first,
        format!("*nat\n-D POSTROUTING -s 10.1.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n")
    );
    let all = chain().clear(None, &both).unwrap();
    assert_eq!(all, chain().destroy(&ips(&["10.1.0.2", "10.1.0.3"])));
    assert_eq!(chain().clear(None, &Listing::default()), None);
}

#[test]
fn lacking_names_the_address_of_the_missing_rule() {
    let both = cidrs(&["10.1.0.2/24", "10.2.0.2/24"]);
    let script = chain().create(&both, &default_policy());
    assert_eq!(
        chain().lacking(&both, &default_policy(), &listing_after(&script)),
        None
    );
    for rule in script.lines().filter(|line| line.starts_with("-A ")) {
        let rest = script.replace(&format!("{rule}\n"), "");
        let lacking = chain().lacking(&both, &default_policy(), &listing_after(&rest));
        let expected = if rule.contains("10.2.0") {
            both[1]
        } else {
            both[0]
        };
        assert_eq!(lacking, Some(expected), "without {rule}");
    }
    let old = script.replace("-s 10.1.0.2/32", "-s 10.1.0.0/24");
    assert_eq!(
        chain().lacking(&both, &default_policy(), &listing_after(&old)),
        None
    );
}

#[test]
fn gc_removes_the_chains_of_a_network_except_the_valid_ones() {
    let of = |network: &str, container: &str| {
        Chain::of(&network.parse().unwrap(), &container.parse().unwrap())
    };
    let scripts: String = [
        ("n", "a", "10.1.0.2/24"),
        ("n", "b", "10.1.0.3/24"),
        ("n2", "c", "10.2.0.2/24"),
    ]
    .map(|(network, container, address)| {
        of(network, container).create(&cidrs(&[address]), &default_policy())
    })
    .concat();
    let listing = listing_after(&scripts);
    let network = "n".parse().unwrap();
    let attachment = |container: &str| crate::cni::names::Attachment {
        container: container.parse().unwrap(),
        interface: "eth0".parse().unwrap(),
    };
    let removed = |valid: &[&str]| {
        let valid = valid
            .iter()
            .map(|container| attachment(container))
            .collect();
        let names = names_of(&network, &valid);
        gc(
            &network,
            StaleChains {
                is_stale: &|name| !names.contains(name),
                known: &BTreeSet::new(),
            },
            &listing,
        )
    };
    assert_eq!(
        removed(&["b"]),
        Some(of("n", "a").destroy(&ips(&["10.1.0.2"])))
    );
    assert_eq!(removed(&["a", "b"]), None);
    let all = removed(&["c"]).unwrap();
    assert!(
        all.contains("10.1.0.2/32") && all.contains("10.1.0.3/32"),
        "{all}"
    );
    assert!(
        !all.contains("10.2.0.2") && all.matches("COMMIT").count() == 1,
        "{all}"
    );
}

#[test]
fn jump_rules_of_old_versions_for_the_whole_subnet_are_removed() {
    let old = format!(":{NAME} - [0:0]\n-A POSTROUTING -s 10.1.0.0/24 {COMMENT} -j {NAME}\n");
    let script = chain()
        .clear(Some(&ips(&["10.1.0.2"])), &Listing::parse(&old))
        .unwrap();
    assert!(
        script.contains("-D POSTROUTING -s 10.1.0.0/24 ") && script.contains("-X "),
        "{script}"
    );
}

fn policy(non_masquerade_cidrs: &[&str], snat_addresses: &[&str], ports: PortAllocation) -> Policy {
    Policy {
        backend: None,
        non_masquerade_cidrs: cidrs(non_masquerade_cidrs),
        snat_addresses: ips(snat_addresses),
        ports,
    }
}

#[test]
fn a_policy_adds_accept_rules_of_its_family_and_changes_the_target() {
    let policy = policy(
        &["192.168.0.0/16", "fd18::/16", "::/0"],
        &["203.0.113.7"],
        PortAllocation::Random,
    );
    let expected = format!(
        "*nat\n-N {NAME}\n\
         -A {NAME} -d 10.104.0.0/24 {COMMENT} -j ACCEPT\n\
         -A {NAME} -d 192.168.0.0/16 {COMMENT} -j ACCEPT\n\
         -A {NAME} ! -d 224.0.0.0/4 {COMMENT} -j SNAT --to-source 203.0.113.7 --random-fully\n\
         -A POSTROUTING -s 10.104.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n"
    );
    let script = chain().create(&cidrs(&["10.104.0.2/24"]), &policy);
    assert_eq!(script, expected);
    let v6 = chain().create(&cidrs(&["fd00::2/64"]), &policy);
    let rules = [
        format!("-A {NAME} -d fd18::/16 {COMMENT} -j ACCEPT\n"),
        format!("-A {NAME} {COMMENT} -j ACCEPT\n"),
        format!("-A {NAME} ! -d ff00::/8 {COMMENT} -j MASQUERADE --random-fully\n"),
    ];
    assert!(v6.contains(&rules.concat()), "{v6}");
}

#[test]
fn rules_of_an_earlier_policy_are_replaced() {
    let old = policy(
        &["192.168.0.0/16"],
        &["203.0.113.7"],
        PortAllocation::Preserve,
    );
    let two = cidrs(&["10.1.0.2/24", "10.2.0.2/24"]);
    let present = listing_after(&chain().create(&two, &old));
    let new = policy(&["172.16.0.0/12"], &[], PortAllocation::Random);
    // Only the first interface is updated: the accept rule of the second one's subnet is kept.
    let script = chain().complete(&two[..1], &new, &present).unwrap();
    let expected = format!(
        "*nat\n-D {NAME} -d 192.168.0.0/16 {COMMENT} -j ACCEPT\n\
         -D {NAME} ! -d 224.0.0.0/4 {COMMENT} -j SNAT --to-source 203.0.113.7\n\
         -I {NAME} 1 -d 172.16.0.0/12 {COMMENT} -j ACCEPT\n\
         -A {NAME} ! -d 224.0.0.0/4 {COMMENT} -j MASQUERADE --random-fully\nCOMMIT\n"
    );
    assert_eq!(script, expected);
    assert_eq!(chain().complete(&two, &old, &present), None);
    assert_eq!(chain().lacking(&two, &new, &present), Some(two[0]));
}
