//! The expressions of rules, encoded as the kernel lists them.

use std::net::IpAddr;
use std::ops::Range;

use super::attribute::{Attributes, attributes, get, get_str, ip_bytes};
use super::uapi::*;
use crate::kernel::nat::PortAllocation;
use crate::net::{Cidr, Family, IfName};

/// A list of expressions (NFTA_RULE_EXPRESSIONS), which the kernel evaluates in order.
///
/// The attributes of each are in the order in which the kernel lists them, so that a listed rule can be compared
/// with a wanted one byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expressions(Attributes);

impl Expressions {
    pub fn push(self, name: &str, data: Attributes) -> Expressions {
        let expression = Attributes::default()
            .put_strz(NFTA_EXPR_NAME, name)
            .put_nested(NFTA_EXPR_DATA, data);
        Expressions(self.0.put_nested(NFTA_LIST_ELEM, expression))
    }

    /// Adds an encoded expression.
    pub fn push_encoded(self, expression: &[u8]) -> Expressions {
        Expressions(self.0.put(NFTA_LIST_ELEM, expression))
    }

    /// Loads metadata of the packet (NFT_META_*).
    pub fn meta(self, key: u32) -> Expressions {
        self.meta_to(NFT_REG_1, key)
    }

    fn meta_to(self, register: u32, key: u32) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_META_KEY, key)
            .put_be32(NFTA_META_DREG, register);
        self.push("meta", data)
    }

    /// Loads bytes of a header (NFT_PAYLOAD_*).
    pub fn payload(self, base: u32, bytes: Range<u32>) -> Expressions {
        self.payload_to(NFT_REG_1, base, bytes)
    }

    fn payload_to(self, register: u32, base: u32, bytes: Range<u32>) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_PAYLOAD_DREG, register)
            .put_be32(NFTA_PAYLOAD_BASE, base)
            .put_be32(NFTA_PAYLOAD_OFFSET, bytes.start)
            .put_be32(NFTA_PAYLOAD_LEN, bytes.end - bytes.start);
        self.push("payload", data)
    }

    /// Compares the loaded value (NFT_CMP_*). The kernel leaves the rule if the comparison is false.
    pub fn cmp(self, operation: u32, value: &[u8]) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_CMP_SREG, NFT_REG_1)
            .put_be32(NFTA_CMP_OP, operation)
            .put_nested(NFTA_CMP_DATA, data_value(value));
        self.push("cmp", data)
    }

    fn bitwise_and(self, mask: &[u8]) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_BITWISE_SREG, NFT_REG_1)
            .put_be32(NFTA_BITWISE_DREG, NFT_REG_1)
            .put_be32(NFTA_BITWISE_LEN, mask.len() as u32)
            .put_be32(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR)
            .put_nested(NFTA_BITWISE_MASK, data_value(mask))
            .put_nested(NFTA_BITWISE_XOR, data_value(&vec![0; mask.len()]));
        self.push("bitwise", data)
    }

    /// Ends the evaluation with a verdict.
    pub fn verdict(self, code: i32, chain: Option<&str>) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .put_nested(NFTA_IMMEDIATE_DATA, verdict(code, chain));
        self.push("immediate", data)
    }

    /// Compares the name of the input or output interface (NFT_META_IIFNAME, NFT_META_OIFNAME).
    pub fn interface(self, key: u32, operation: u32, name: &IfName) -> Expressions {
        self.meta(key).cmp(operation, &interface_key(name.as_str()))
    }

    /// Compares the network part of an address at this offset of the network header, as nft(8) and iptables do: of a
    /// prefix that ends at a byte boundary only the bytes of the prefix, otherwise the whole address under a mask.
    pub fn network(self, offset: u32, operation: u32, cidr: Cidr) -> Expressions {
        let address = ip_bytes(cidr.network().address());
        let prefix = usize::from(cidr.prefix());
        let is_masked = prefix == 0 || !prefix.is_multiple_of(8);
        let compared = match is_masked {
            true => &address[..],
            false => &address[..prefix / 8],
        };
        let bytes = offset..offset + compared.len() as u32;
        let mut loaded = self.payload(NFT_PAYLOAD_NETWORK_HEADER, bytes);
        if is_masked {
            let mask: Vec<u8> = (0..address.len())
                .map(|index| mask_byte(prefix, index))
                .collect();
            loaded = loaded.bitwise_and(&mask);
        }
        loaded.cmp(operation, compared)
    }

    /// Translates the source address, which the expression takes from a register. The kernel sets the flag
    /// NF_NAT_RANGE_MAP_IPS itself, but only some versions list it then.
    pub fn source_nat(self, address: IpAddr, ports: PortAllocation) -> Expressions {
        let load = Attributes::default()
            .put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_1)
            .put_nested(NFTA_IMMEDIATE_DATA, data_value(&ip_bytes(address)));
        let nat = Attributes::default()
            .put_be32(NFTA_NAT_TYPE, NFT_NAT_SNAT)
            .put_be32(NFTA_NAT_FAMILY, nfproto(Family::of(address)).into())
            .put_be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
            .put_be32(NFTA_NAT_REG_ADDR_MAX, NFT_REG_1)
            .put_be32(NFTA_NAT_FLAGS, NF_NAT_RANGE_MAP_IPS | nat_flags(ports));
        self.push("immediate", load).push("nat", nat)
    }

    /// Masquerades. The kernel lists flags only if they are not 0.
    pub fn masquerade(self, ports: PortAllocation) -> Expressions {
        let data = match nat_flags(ports) {
            0 => Attributes::default(),
            flags => Attributes::default().put_be32(NFTA_MASQ_FLAGS, flags),
        };
        self.push("masq", data)
    }

    /// Loads fields of the packet into consecutive registers: a concatenation.
    pub fn load(self, fields: &[Load]) -> Expressions {
        let (mut loaded, mut slot) = (self, 0);
        for field in fields {
            let register = register(slot);
            loaded = match *field {
                Load::Protocol => loaded.meta_to(register, NFT_META_L4PROTO),
                // In the headers of TCP, UDP and SCTP, the destination port follows the source port.
                Load::DestinationPort => {
                    loaded.payload_to(register, NFT_PAYLOAD_TRANSPORT_HEADER, 2..4)
                }
                Load::Source(family) => {
                    let start = source_offset(family);
                    let bytes = start..start + address_length(family);
                    loaded.payload_to(register, NFT_PAYLOAD_NETWORK_HEADER, bytes)
                }
                Load::Destination(family) => {
                    let start = destination_offset(family);
                    let bytes = start..start + address_length(family);
                    loaded.payload_to(register, NFT_PAYLOAD_NETWORK_HEADER, bytes)
                }
                Load::OriginalDestinationPort => {
                    let data = Attributes::default()
                        .put_be32(NFTA_CT_DREG, register)
                        .put_be32(NFTA_CT_KEY, NFT_CT_PROTO_DST)
                        .put(NFTA_CT_DIRECTION, &[IP_CT_DIR_ORIGINAL]);
                    loaded.push("ct", data)
                }
            };
            slot += field.length().div_ceil(4);
        }
        loaded
    }

    /// Applies the verdict that a map has for the loaded value.
    pub fn verdict_map(self, map: &str) -> Expressions {
        self.lookup(map, NFT_REG_VERDICT)
    }

    fn lookup(self, map: &str, register: u32) -> Expressions {
        let data = Attributes::default()
            .put_strz(NFTA_LOOKUP_SET, map)
            .put_be32(NFTA_LOOKUP_SREG, NFT_REG_1)
            .put_be32(NFTA_LOOKUP_DREG, register)
            .put_be32(NFTA_LOOKUP_FLAGS, 0);
        self.push("lookup", data)
    }

    /// Translates the destination to the address and port that a map has for the loaded value.
    pub fn destination_nat(self, family: Family, map: &str) -> Expressions {
        let port = register(address_length(family) / 4);
        let nat = Attributes::default()
            .put_be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
            .put_be32(NFTA_NAT_FAMILY, nfproto(family).into())
            .put_be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
            .put_be32(NFTA_NAT_REG_ADDR_MAX, NFT_REG_1)
            .put_be32(NFTA_NAT_REG_PROTO_MIN, port)
            .put_be32(NFTA_NAT_REG_PROTO_MAX, port)
            .put_be32(
                NFTA_NAT_FLAGS,
                NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED,
            );
        self.lookup(map, NFT_REG_1).push("nat", nat)
    }

    /// Matches packets to an address of the host (`fib daddr type local`).
    pub fn local_destination(self) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_FIB_DREG, NFT_REG_1)
            .put_be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .put_be32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
        self.push("fib", data)
            .cmp(NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// Matches connections that have one of these bits in a field of their entry (NFT_CT_*).
    pub fn connection(self, key: u32, bits: u32) -> Expressions {
        let data = Attributes::default()
            .put_be32(NFTA_CT_DREG, NFT_REG_1)
            .put_be32(NFTA_CT_KEY, key);
        self.push("ct", data)
            .bitwise_and(&bits.to_ne_bytes())
            .cmp(NFT_CMP_NEQ, &[0; 4])
    }

    /// The same expressions as kernels before 5.6 list them, which lack NFTA_BITWISE_OP.
    pub fn before_5_6(&self) -> Expressions {
        let expressions = attributes(self.as_bytes()).map(|(_, expression)| expression);
        expressions.fold(Expressions::default(), |so_far, expression| {
            let is_bitwise = name_of(expression) == Some("bitwise");
            let data = get(expression, NFTA_EXPR_DATA).filter(|_| is_bitwise);
            let Some(data) = data else {
                return so_far.push_encoded(expression);
            };
            let kept = attributes(data).filter(|(kind, _)| *kind != NFTA_BITWISE_OP);
            let data = kept.fold(Attributes::default(), |data, (kind, value)| {
                data.put(kind, value)
            });
            so_far.push("bitwise", data)
        })
    }

    pub fn into_attributes(self) -> Attributes {
        self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A field of a packet or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    DestinationPort,
    Source(Family),
    Destination(Family),
    /// `ct original proto-dst`
    OriginalDestinationPort,
}

impl Load {
    /// In bytes.
    fn length(self) -> u32 {
        match self {
            Load::Protocol => 1,
            Load::DestinationPort | Load::OriginalDestinationPort => 2,
            Load::Source(family) | Load::Destination(family) => address_length(family),
        }
    }
}

/// The register that begins at a slot of four bytes, as the kernel lists it (`nft_dump_register`).
fn register(slot: u32) -> u32 {
    match slot.is_multiple_of(4) {
        true => NFT_REG_1 + slot / 4,
        false => NFT_REG32_00 + slot,
    }
}

/// The name of an interface, as metadata and maps contain it.
pub fn interface_key(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

/// The name of an expression.
pub(super) fn name_of(expression: &[u8]) -> Option<&str> {
    get_str(expression, NFTA_EXPR_NAME)
}

pub(super) fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::default().put_be32(NFTA_VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        verdict = verdict.put_strz(NFTA_VERDICT_CHAIN, chain);
    }
    Attributes::default().put_nested(NFTA_DATA_VERDICT, verdict)
}

pub(super) fn data_value(value: &[u8]) -> Attributes {
    Attributes::default().put(NFTA_DATA_VALUE, value)
}

pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// The offset of the source address in struct iphdr (linux/ip.h) and struct ipv6hdr (linux/ipv6.h), in bytes.
pub(super) fn source_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 12,
        Family::V6 => 8,
    }
}

/// The offset of the destination address, which follows the source address, in bytes.
pub(super) fn destination_offset(family: Family) -> u32 {
    source_offset(family) + address_length(family)
}

/// The length of an address, in bytes.
pub(super) fn address_length(family: Family) -> u32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn nat_flags(ports: PortAllocation) -> u32 {
    match ports {
        PortAllocation::Preserve => 0,
        PortAllocation::Random => NF_NAT_RANGE_PROTO_RANDOM_FULLY,
    }
}

/// A byte of the mask of a prefix.
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
