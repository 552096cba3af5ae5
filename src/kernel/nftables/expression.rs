//! The expressions of rules, as attributes in the order in which the kernel lists them. The numbers are those of
//! linux/netfilter/nf_tables.h.

use std::net::IpAddr;
use std::ops::Range;

use super::attribute::{Attributes, each, find, ip_bytes, text};
use crate::kernel::nat::PortAllocation;
use crate::net::{Cidr, Family, IfName};

/// What a list holds (enum nft_list_attributes), and an expression (nft_expr_attributes).
pub const LIST_ELEMENT: u16 = 1;
pub const EXPRESSION_NAME: u16 = 1;
pub const EXPRESSION_DATA: u16 = 2;

/// What data holds (enum nft_data_attributes), and a verdict (nft_verdict_attributes).
pub const DATA_VALUE: u16 = 1;
pub const DATA_VERDICT: u16 = 2;
pub const VERDICT_CODE: u16 = 1;
pub const VERDICT_CHAIN: u16 = 2;

/// Verdicts (NF_DROP, linux/netfilter.h, and enum nft_verdicts).
pub const DROP: i32 = 0;
pub const ACCEPT: i32 = 1;
pub const JUMP: i32 = -3;
pub const GOTO: i32 = -4;
pub const RETURN: i32 = -5;

/// The register of the verdict and the one for everything else (enum nft_registers).
pub const VERDICT_REGISTER: u32 = 0;
pub const REGISTER: u32 = 1;

/// What address translation does (NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_RANDOM_FULLY, linux/netfilter/nf_nat.h), and
/// in which direction (NFT_NAT_SNAT of enum nft_nat_types).
pub const NAT_TO_ADDRESS: u32 = 1;
pub const NAT_RANDOM_PORTS: u32 = 1 << 4;
pub const NAT_OF_SOURCE: u32 = 0;

/// How values are compared (enum nft_cmp_ops).
pub const EQUAL: u32 = 0;
pub const UNEQUAL: u32 = 1;

/// What is known of a packet beside its bytes (enum nft_meta_keys).
pub const META_INPUT_NAME: u32 = 6;
pub const META_OUTPUT_NAME: u32 = 7;
pub const NFT_META_NFPROTO: u32 = 15;

/// Where a payload is counted from (enum nft_payload_bases).
pub const NFT_PAYLOAD_LL_HEADER: u32 = 0;
pub const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;

/// Which operation on bits (NFTA_BITWISE_OP of enum nft_bitwise_attributes).
const BITWISE_OPERATION: u16 = 6;

/// The size of an interface's name as rules compare it (IFNAMSIZ, linux/if.h).
pub const NAME_SIZE: usize = 16;

pub fn expression(so_far: Attributes, name: &str, data: Attributes) -> Attributes {
    let expression = Attributes::default()
        .text(EXPRESSION_NAME, name)
        .nest(EXPRESSION_DATA, data);
    so_far.nest(LIST_ELEMENT, expression)
}

/// enum nft_meta_attributes: key, destination register.
pub fn meta(so_far: Attributes, key: u32) -> Attributes {
    let data = Attributes::default().number(2, key).number(1, REGISTER);
    expression(so_far, "meta", data)
}

/// Compares the name of an interface.
pub fn interface(so_far: Attributes, key: u32, name: &IfName) -> Attributes {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(NAME_SIZE, 0);
    equals(meta(so_far, key), &bytes)
}

/// The address goes through a register. The flag that says so the kernel would set itself, but not every version
/// lists it then.
pub fn source_nat(so_far: Attributes, address: IpAddr, ports: PortAllocation) -> Attributes {
    let (family, bytes) = (Family::of(address), ip_bytes(address));
    let load = Attributes::default()
        .number(1, REGISTER)
        .nest(2, data(&bytes));
    let random = match ports {
        PortAllocation::Preserve => 0,
        PortAllocation::Random => NAT_RANDOM_PORTS,
    };
    // enum nft_nat_attributes: type, family, first and last address, flags.
    let nat = Attributes::default()
        .number(1, NAT_OF_SOURCE)
        .number(2, protocol_of(family).into())
        .number(3, REGISTER)
        .number(4, REGISTER)
        .number(7, NAT_TO_ADDRESS | random);
    expression(expression(so_far, "immediate", load), "nat", nat)
}

/// enum nft_payload_attributes: destination register, base, offset, length.
pub fn payload(so_far: Attributes, base: u32, place: Range<u32>) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, base)
        .number(3, place.start)
        .number(4, place.end - place.start);
    expression(so_far, "payload", data)
}

pub fn equals(so_far: Attributes, value: &[u8]) -> Attributes {
    compare(so_far, EQUAL, value)
}

/// enum nft_cmp_attributes: source register, operation, data.
fn compare(so_far: Attributes, operation: u32, value: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, operation)
        .nest(3, data(value));
    expression(so_far, "cmp", data)
}

fn data(value: &[u8]) -> Attributes {
    Attributes::default().bytes(DATA_VALUE, value)
}

/// enum nft_immediate_attributes: destination register, data.
pub fn immediate(so_far: Attributes, verdict: Attributes) -> Attributes {
    let data = Attributes::default()
        .number(1, VERDICT_REGISTER)
        .nest(2, verdict);
    expression(so_far, "immediate", data)
}

/// A verdict as data.
pub fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::default().number(VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        verdict = verdict.text(VERDICT_CHAIN, chain);
    }
    Attributes::default().nest(DATA_VERDICT, verdict)
}

/// NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
pub fn protocol_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Compares the network part of the destination.
pub fn destination(so_far: Attributes, cidr: Cidr) -> Attributes {
    // Paths in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h).
    let start = match cidr.family() {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    compare_network(so_far, start, cidr, EQUAL)
}

/// Compares the network part of an address as nft(8) and iptables do: only its bytes where the prefix ends at a byte,
/// else the whole address under a mask. `start` is the address's place in the header.
pub fn compare_network(so_far: Attributes, start: u32, cidr: Cidr, operation: u32) -> Attributes {
    let network = ip_bytes(cidr.network().address());
    let prefix = usize::from(cidr.prefix());
    if prefix > 0 && prefix.is_multiple_of(8) {
        let part = &network[..prefix / 8];
        let place = start..start + part.len() as u32;
        return compare(
            payload(so_far, NFT_PAYLOAD_NETWORK_HEADER, place),
            operation,
            part,
        );
    }
    let length = network.len() as u32;
    let mask: Vec<u8> = (0..network.len())
        .map(|index| mask_byte(prefix, index))
        .collect();
    // enum nft_bitwise_attributes: source and destination register, length, operation (NFT_BITWISE_MASK_XOR), mask, xor.
    let bitwise = Attributes::default()
        .number(1, REGISTER)
        .number(2, REGISTER)
        .number(3, length)
        .number(BITWISE_OPERATION, 0)
        .nest(4, data(&mask))
        .nest(5, data(&vec![0; network.len()]));
    let loaded = payload(so_far, NFT_PAYLOAD_NETWORK_HEADER, start..start + length);
    compare(expression(loaded, "bitwise", bitwise), operation, &network)
}

/// The same expressions as kernels before 5.6 list them: they know one operation on bits, and do not name it.
pub fn without_bitwise_operation(expressions: &[u8]) -> Attributes {
    each(expressions).fold(Attributes::default(), |so_far, (kind, one)| {
        let name = find(one, EXPRESSION_NAME).and_then(text);
        let Some(data) = find(one, EXPRESSION_DATA).filter(|_| name == Some("bitwise")) else {
            return so_far.bytes(kind, one);
        };
        let kept = each(data).filter(|(kind, _)| *kind != BITWISE_OPERATION);
        let add = |so_far: Attributes, (kind, value)| so_far.bytes(kind, value);
        expression(so_far, "bitwise", kept.fold(Attributes::default(), add))
    })
}

/// The byte at that position of the mask of a prefix.
fn mask_byte(prefix: usize, index: usize) -> u8 {
    let bits = prefix.saturating_sub(index * 8).min(8);
    (0xff00_u16 >> bits) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_end_within_a_byte() {
        let mask = |prefix| {
            (0..4)
                .map(|index| mask_byte(prefix, index))
                .collect::<Vec<_>>()
        };
        assert_eq!(mask(4), [0xf0, 0, 0, 0]);
        assert_eq!(mask(25), [0xff, 0xff, 0xff, 0x80]);
        assert_eq!(mask(0), [0; 4]);
    }
}
