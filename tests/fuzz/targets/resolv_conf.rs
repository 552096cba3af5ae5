//! A resolv.conf: parsing and printing it is lossless.

#![no_main]

use gangplank::ipam::resolv::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let dns = parse(&String::from_utf8_lossy(data));
    let mut text = String::new();
    for server in &dns.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text.push_str(&format!("domain {}\n", dns.domain));
    text.push_str(&format!("search {}\n", dns.search.join(" ")));
    text.push_str(&format!("options {}\n", dns.options.join("\t")));
    assert_eq!(parse(&text), dns);
});
