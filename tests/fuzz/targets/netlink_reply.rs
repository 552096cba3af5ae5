//! Netlink messages of the kernel: links, addresses, routes.

#![no_main]

use gangplank::kernel::netlink::{Address, Link, RouteEntry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    match which % 3 {
        0 => {
            if let Some(link) = Link::parse(bytes) {
                assert!(link.peer != Some(0) && link.master != Some(0));
            }
        }
        1 => {
            if let Some(address) = Address::parse(bytes) {
                assert!(address.cidr.prefix() <= address.cidr.family().bits());
                assert_eq!(address.cidr.to_string().parse(), Ok(address.cidr));
            }
        }
        _ => {
            if let Some(route) = RouteEntry::parse(bytes) {
                assert_eq!(route.dst.to_string().parse(), Ok(route.dst));
            }
        }
    }
});
