use super::*;

const COMMENT: &str = r#"-m comment --comment "name: \"spec-masq\" id: \"spec-ctr-0001\"""#;
const NAME: &str = "CNI-9144d59fbceca2a02b5592f2";

fn chain() -> Chain {
    Chain::of(
        &"spec-masq".parse().unwrap(),
        &"spec-ctr-0001".parse().unwrap(),
    )
}

fn usual() -> Policy {
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
fn the_rules_are_the_references() {
    let expected = format!(
        "*nat\n-N {NAME}\n\
         -A {NAME} -d 10.104.0.0/24 {COMMENT} -j ACCEPT\n\
         -A {NAME} ! -d 224.0.0.0/4 {COMMENT} -j MASQUERADE\n\
         -A POSTROUTING -s 10.104.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n"
    );
    assert_eq!(
        chain().create(&cidrs(&["10.104.0.2/24"]), &usual()),
        expected
    );
    let v6 = chain().create(&cidrs(&["fd00:109::2/64"]), &usual());
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
        &usual(),
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
fn a_second_interface_adds_only_what_is_missing_and_accepts_first() {
    let one = listing_after(&chain().create(&cidrs(&["10.1.0.2/24"]), &usual()));
    let same_subnet = chain()
        .complete(&cidrs(&["10.1.0.3/24"]), &usual(), &one)
        .unwrap();
    assert_eq!(
        same_subnet,
        format!("*nat\n-A POSTROUTING -s 10.1.0.3/32 {COMMENT} -j {NAME}\nCOMMIT\n")
    );
    let other_subnet = chain()
        .complete(&cidrs(&["10.2.0.3/24"]), &usual(), &one)
        .unwrap();
    assert!(
        other_subnet.contains(&format!("-I {NAME} 1 -d 10.2.0.0/24 ")),
        "{other_subnet}"
    );
    assert_eq!(
        chain().complete(&cidrs(&["10.1.0.2/24"]), &usual(), &one),
        None
    );
    let whole = chain().complete(&cidrs(&["10.1.0.2/24"]), &usual(), &Listing::default());
    assert_eq!(
        whole,
        Some(chain().create(&cidrs(&["10.1.0.2/24"]), &usual()))
    );
}

#[test]
fn the_chain_goes_with_the_last_way_into_it() {
    let both = listing_after(&chain().create(&cidrs(&["10.1.0.2/24", "10.1.0.3/24"]), &usual()));
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
fn an_address_lacks_a_rule_that_is_not_listed() {
    let both = cidrs(&["10.1.0.2/24", "10.2.0.2/24"]);
    let script = chain().create(&both, &usual());
    assert_eq!(
        chain().lacking(&both, &usual(), &listing_after(&script)),
        None
    );
    for rule in script.lines().filter(|line| line.starts_with("-A ")) {
        let rest = script.replace(&format!("{rule}\n"), "");
        let lacking = chain().lacking(&both, &usual(), &listing_after(&rest));
        let expected = if rule.contains("10.2.0") {
            both[1]
        } else {
            both[0]
        };
        assert_eq!(lacking, Some(expected), "without {rule}");
    }
    let old = script.replace("-s 10.1.0.2/32", "-s 10.1.0.0/24");
    assert_eq!(chain().lacking(&both, &usual(), &listing_after(&old)), None);
}

#[test]
fn a_sweep_takes_the_chains_of_the_network_but_the_valid_ones() {
    let of = |network: &str, container: &str| {
        Chain::of(&network.parse().unwrap(), &container.parse().unwrap())
    };
    let scripts: String = [
        ("n", "a", "10.1.0.2/24"),
        ("n", "b", "10.1.0.3/24"),
        ("n2", "c", "10.2.0.2/24"),
    ]
    .map(|(network, container, address)| {
        of(network, container).create(&cidrs(&[address]), &usual())
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
fn a_way_in_from_the_whole_subnet_is_of_an_old_version_and_goes_too() {
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
fn a_policy_is_rules_of_its_family_before_the_masquerading_and_another_target() {
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
fn a_chain_of_an_older_policy_is_brought_to_the_newer_one() {
    let old = policy(
        &["192.168.0.0/16"],
        &["203.0.113.7"],
        PortAllocation::Preserve,
    );
    let two = cidrs(&["10.1.0.2/24", "10.2.0.2/24"]);
    let present = listing_after(&chain().create(&two, &old));
    let new = policy(&["172.16.0.0/12"], &[], PortAllocation::Random);
    // Of the two interfaces one is asked about: what the other one needs stays.
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
