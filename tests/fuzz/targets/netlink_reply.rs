//! Messages of the kernel, through the decoder we use: links, addresses, routes.

#![no_main]

use gangplank::host::netlink::{Address, Link, RouteEntry, RouteQuery};
use gangplank::net::Family;
use libfuzzer_sys::fuzz_target;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    // Half of the inputs say only what is behind the header, so that the fuzzer need not guess lengths.
    let framed;
    let bytes = if first & 1 == 0 {
        data
    } else {
        let kind: u16 = [16, 20, 24, 2][usize::from(first >> 1) % 4];
        let length = u32::try_from(data.len() + 16).unwrap();
        framed = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], data].concat();
        &framed
    };
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
        return;
    };
    let NetlinkPayload::InnerMessage(message) = message.payload else {
        return;
    };
    match message {
        RouteNetlinkMessage::NewLink(message) => {
            let link = Link::of(message);
            assert!(link.peer != Some(0) && link.master != Some(0));
        }
        RouteNetlinkMessage::NewAddress(message) => {
            if let Some(address) = Address::of(&message) {
                assert!(address.cidr.prefix() <= address.cidr.family().bits());
                assert_eq!(address.cidr.to_string().parse(), Ok(address.cidr));
            }
        }
        RouteNetlinkMessage::NewRoute(message) => {
            for family in Family::BOTH {
                let query = RouteQuery { family, link: Some(2) };
                if let Some(route) = RouteEntry::of(&message, query) {
                    assert_eq!(route.dst.to_string().parse(), Ok(route.dst));
                }
            }
        }
        _ => {}
    }
});
