//! Addresses, names and MAC addresses: parsing and printing them is lossless.

#![no_main]

use gangplank::cni::args::parse_requested_ip;
use gangplank::cni::names::{ContainerId, NetworkName};
use gangplank::net::{Cidr, Family, IfName, Mac, ip_from_bits, ip_to_bits, parse_ip};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(address) = parse_ip(text) {
        assert_eq!(parse_ip(&address.to_string()), Ok(address));
        assert_eq!(
            ip_from_bits(Family::of(address), ip_to_bits(address)),
            address
        );
        assert_eq!(parse_requested_ip(text), Ok(address));
    }
    if let Ok(cidr) = text.parse::<Cidr>() {
        assert_eq!(cidr.to_string().parse(), Ok(cidr));
        assert!(cidr.prefix() <= cidr.family().bits());
        let network = cidr.network();
        assert!(network.is_network() && network.contains(cidr.address()) && cidr.overlaps(network));
        assert!(network.contains(cidr.last()) && network.address() <= cidr.last());
        assert!(cidr.prefix() == cidr.family().bits() || cidr.contains(cidr.first_host()));
        assert_eq!(parse_requested_ip(text), Ok(cidr.address()));
    }
    if let Ok(mac) = text.parse::<Mac>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert!(mac.to_locally_administered().is_assignable());
    }
    if let Ok(name) = text.parse::<IfName>() {
        assert_eq!(name.as_str(), text);
    }
    assert_eq!(
        text.parse::<ContainerId>().is_ok(),
        text.parse::<NetworkName>().is_ok()
    );
    if let Ok(id) = text.parse::<ContainerId>() {
        assert!(
            id.as_str() == text && text.is_ascii() && !text.contains(['/', '"', '\n', ' ', ';'])
        );
    }
});
