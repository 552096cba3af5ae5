//! The output of iptables-save: scripts change only the own chain and the jumps to it.

#![no_main]

use std::net::IpAddr;
use std::sync::OnceLock;

use gangplank::net::Cidr;
use gangplank::netfilter::iptables_save::Listing;
use gangplank::netfilter::masquerade::Policy;
use gangplank::netfilter::masquerade::rules::Chain;
use libfuzzer_sys::fuzz_target;

const NAME: &str = "CNI-9144d59fbceca2a02b5592f2";

fuzz_target!(|data: &[u8]| {
    static CHAIN: OnceLock<Chain> = OnceLock::new();
    let chain = CHAIN.get_or_init(|| {
        Chain::of(
            &"spec-masq".parse().unwrap(),
            &"spec-ctr-0001".parse().unwrap(),
        )
    });
    let listing = Listing::parse(&String::from_utf8_lossy(data));
    let addresses: [Cidr; 2] = ["10.1.0.2/24", "10.1.0.3/24"].map(|text| text.parse().unwrap());
    let only: [IpAddr; 1] = [addresses[0].address()];
    let policy = Policy {
        non_masquerade_cidrs: vec!["192.168.0.0/16".parse().unwrap()],
        ..Policy::default()
    };
    for script in [
        chain.complete(&addresses, &policy, &listing),
        chain.clear(None, &listing),
        chain.clear(Some(&only), &listing),
    ]
    .into_iter()
    .flatten()
    {
        assert!(script.starts_with("*nat\n") && script.ends_with("\nCOMMIT\n"));
        let lines: Vec<&str> = script.split('\n').collect();
        for line in &lines[1..lines.len() - 2] {
            let own = ["-N", "-F", "-X"]
                .iter()
                .any(|verb| *line == format!("{verb} {NAME}"));
            let inside = ["-A", "-D"]
                .iter()
                .any(|verb| line.starts_with(&format!("{verb} {NAME} ")))
                || line.starts_with(&format!("-I {NAME} 1 "));
            let jump = line.starts_with("-A POSTROUTING -s 10.1.0.") || line.starts_with("-D ");
            assert!(
                own || inside || (jump && line.ends_with(&format!("-j {NAME}"))),
                "{line:?}"
            );
        }
    }
});
