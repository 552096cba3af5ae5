//! Valid addresses, prefixes, interface names and MAC addresses: parsed once, not checked again.
//!
//! IPv4-mapped IPv6 addresses are converted to IPv4.

mod route;
mod vlan;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Error;

pub use route::{Route, RouteAttributes};
pub use vlan::{PortVlans, VlanId, VlanSet};

/// Invalid text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {wanted}")]
pub struct ParseError {
    pub value: String,
    /// The expected form.
    pub wanted: &'static str,
}

impl ParseError {
    /// The error of a configuration whose key `field` has this text.
    pub fn at(&self, field: impl fmt::Display) -> Error {
        let wanted = format!("it must be {}", self.wanted);
        Error::config(field, format!("{:?}", self.value), wanted)
    }

    fn new(value: &str, wanted: &'static str) -> ParseError {
        ParseError {
            value: value.to_owned(),
            wanted,
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// IPv4 first, as in results.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Address length: 32 or 128 bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn default_destination(self) -> Cidr {
        let any = match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Cidr(IpNetwork::new(any, 0).expect("0 is a prefix length of both families"))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Parses an address; IPv4-mapped IPv6 becomes IPv4. Zones and leading zeros are rejected.
pub fn parse_ip(text: &str) -> Result<IpAddr, ParseError> {
    text.parse::<IpAddr>()
        .map(|ip| ip.to_canonical())
        .map_err(|_| ParseError::new(text, "an IP address like 10.1.2.3 or fd00::3"))
}

/// The address as an integer; the inverse is [`ip_from_bits`].
pub fn ip_to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The inverse of [`ip_to_bits`]; bits above the family's length are dropped.
pub fn ip_from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(bits as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

/// An address with a prefix length. Host bits are kept: `10.1.2.3/24` is an interface address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct Cidr(IpNetwork);

impl Cidr {
    const WANTED: &'static str = "an address with a prefix length like 10.1.2.0/24 or fd00::/64";

    /// `address/prefix`; `None` when the prefix is longer than the family's addresses.
    ///
    /// The prefix length of an IPv4-mapped address includes the 96 bits in front of the IPv4 address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Cidr> {
        let canonical = address.to_canonical();
        let mapped_bits = Family::of(address).bits() - Family::of(canonical).bits();
        let prefix = prefix.checked_sub(mapped_bits)?;
        IpNetwork::new(canonical, prefix).ok().map(Cidr)
    }

    /// A host route: /32 or /128.
    pub fn host(address: IpAddr) -> Cidr {
        Cidr(IpNetwork::from(address.to_canonical()))
    }

    /// The address, including host bits.
    pub fn address(self) -> IpAddr {
        self.0.ip()
    }

    pub fn prefix(self) -> u8 {
        self.0.prefix()
    }

    pub fn family(self) -> Family {
        Family::of(self.address())
    }

    /// The network address with the same prefix length.
    pub fn network(self) -> Cidr {
        Cidr(IpNetwork::new(self.0.network(), self.prefix()).expect("the prefix is unchanged"))
    }

    /// Whether no host bit is set.
    pub fn is_network(self) -> bool {
        self == self.network()
    }

    /// Prefix length 0.
    pub fn is_default(self) -> bool {
        self.prefix() == 0
    }

    /// In `fe80::/10`.
    pub fn is_ipv6_link_local(self) -> bool {
        matches!(self.address(), IpAddr::V6(v6) if v6.is_unicast_link_local())
    }

    /// False for an address of the other family.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other.0.network()) || other.contains(self.0.network())
    }

    /// The first address after the network address: the gateway, unless one is configured.
    pub fn first_host(self) -> IpAddr {
        ip_from_bits(self.family(), ip_to_bits(self.0.network()).wrapping_add(1))
    }

    /// The last address; in IPv4, the broadcast address.
    pub fn last(self) -> IpAddr {
        self.0.broadcast()
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Cidr, ParseError> {
        let invalid = || ParseError::new(text, Cidr::WANTED);
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let address = address.parse().map_err(|_| invalid())?;
        let prefix = prefix.parse().map_err(|_| invalid())?;
        Cidr::new(address, prefix).ok_or_else(invalid)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix())
    }
}

/// A network interface name: 1 to 15 bytes (`dev_valid_name`, net/core/dev.c). Names that the kernel treats specially
/// are rejected: `%` is a pattern (`dev_prep_valid_name`), `all` and `default` are directories of net.ipv4.conf.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IfName(String);

impl IfName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A prefix of three letters or more and the first bits of a hash in hexadecimal: 15 bytes, the longest name.
    pub fn derived(prefix: &str, digest: impl AsRef<[u8]>) -> IfName {
        let bytes = digest.as_ref().iter().take(6);
        let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{prefix}{hex}");
        IfName(format!("{name:.15}"))
    }

    /// Whether a name has the form of the host interfaces of [`IfName::derived`]. The veth names of the Go plugins have eight digits instead of
    /// eleven.
    pub fn is_derived_veth(name: &str) -> bool {
        let digits = name.strip_prefix("veth").unwrap_or_default();
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        digits.len() == 11 && digits.bytes().all(is_digit)
    }
}

impl FromStr for IfName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<IfName, ParseError> {
        let wanted = if text.len() > 15 {
            "an interface name: it is longer than the kernel's 15 bytes"
        } else {
            "an interface name: 1 to 15 bytes, not \".\", \"..\", \"all\" or \"default\", no \"/\", \":\", \"%\", NUL or white space"
        };
        let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        if text.is_empty()
            || text.len() > 15
            || matches!(text, "." | ".." | "all" | "default")
            || text.contains(forbidden)
        {
            return Err(ParseError::new(text, wanted));
        }
        Ok(IfName(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Any six bytes, as the kernel reports them.
    pub fn from_bytes(bytes: [u8; 6]) -> Mac {
        Mac(bytes)
    }

    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// All zero, as for a bridge without ports and without a configured address.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The same address as unicast and locally administered (IEEE 802c).
    pub fn to_locally_administered(self) -> Mac {
        let mut bytes = self.0;
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Mac(bytes)
    }

    /// Neither multicast nor zero (`is_valid_ether_addr`, linux/etherdevice.h).
    pub fn is_assignable(self) -> bool {
        self.0[0] & 1 == 0 && !self.is_zero()
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    /// Accepts `02:42:ac:11:00:02`, `02-42-ac-11-00-02` and `0242.ac11.0002`.
    fn from_str(text: &str) -> Result<Mac, ParseError> {
        let invalid = || ParseError::new(text, "a MAC address of six bytes like 02:42:ac:11:00:02");
        let (separator, digits) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let groups: Vec<&str> = text.split(separator).collect();
        let hex = |group: &&str| {
            group.len() == digits && group.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if groups.len() * digits != 12 || !groups.iter().all(hex) {
            return Err(invalid());
        }
        let number = u64::from_str_radix(&groups.concat(), 16).map_err(|_| invalid())?;
        let [_, _, bytes @ ..] = number.to_be_bytes();
        Ok(Mac(bytes))
    }
}

/// Deserializes text; the error of another text is the expected form.
macro_rules! deserialize_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|invalid: ParseError| D::Error::custom(invalid.wanted))
            }
        }
    )*};
}

deserialize_text!(Cidr, IfName, Mac);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_random::TestRandom;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cidr_keeps_its_host_bits() {
        let address = cidr("10.1.2.3/24");
        assert_eq!(address.to_string(), "10.1.2.3/24");
        assert_eq!(address.network().to_string(), "10.1.2.0/24");
        assert_eq!(address.first_host().to_string(), "10.1.2.1");
        assert_eq!(address.last().to_string(), "10.1.2.255");
        assert!(!address.is_network() && address.network().is_network());
        assert_eq!(cidr("FD00:0::7/64").to_string(), "fd00::7/64");
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        assert_eq!(parse_ip("::ffff:10.1.2.3").unwrap().to_string(), "10.1.2.3");
        assert_eq!(cidr("::ffff:10.1.2.3/120").to_string(), "10.1.2.3/24");
        assert!("::ffff:10.1.2.3/64".parse::<Cidr>().is_err());
        // Addresses from the kernel are converted, too.
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(Cidr::new(mapped, 120), Some(cidr("10.1.2.3/24")));
        assert_eq!(Cidr::new(mapped, 8), None);
        assert_eq!(Cidr::host(mapped), cidr("10.1.2.3/32"));
    }

    #[test]
    fn invalid_cidrs_are_rejected() {
        for invalid in [
            "",
            "10.1.2.3",
            "10.1.2.3/",
            "10.1.2.3/33",
            "10.1.2.3/+8",
            "10.1.2/24",
            "010.1.2.3/24",
            "10.1.2.3/24 ",
            "fd00::1/129",
            "fe80::1%eth0/64",
            "10.1.2.3/0x8",
            "10.1.2.3/256",
        ] {
            assert!(invalid.parse::<Cidr>().is_err(), "{invalid:?} was accepted");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        assert!(cidr("10.1.0.0/16").overlaps(cidr("10.1.2.0/24")));
        assert!(cidr("10.1.2.0/24").overlaps(cidr("10.1.0.0/16")));
        assert!(!cidr("10.1.2.0/24").overlaps(cidr("10.1.3.0/24")));
        assert!(!cidr("0.0.0.0/0").overlaps(cidr("::/0")));
    }

    #[test]
    fn interface_names_are_those_that_the_kernel_accepts() {
        for valid in ["eth0", "a", "ünï", "eth0.100", "123456789012345"] {
            assert!(valid.parse::<IfName>().is_ok(), "{valid:?} was rejected");
        }
        for invalid in [
            "",
            ".",
            "..",
            "all",
            "default",
            "br%d",
            "a/b",
            "a:b",
            "a b",
            "a\u{a0}b",
            "a\0",
            "1234567890123456",
        ] {
            assert!(
                invalid.parse::<IfName>().is_err(),
                "{invalid:?} was accepted"
            );
        }
    }

    #[test]
    fn a_mac_is_parsed_from_three_notations() {
        let mac = "02:42:ac:11:00:02".parse::<Mac>().unwrap();
        assert_eq!("02-42-AC-11-00-02".parse(), Ok(mac));
        assert_eq!("0242.ac11.0002".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        for invalid in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03:04",
            "02:42-ac:11:00:02",
            "0242ac110002",
            "02:42:ac:11:00:0g",
            "+2:42:ac:11:00:02",
        ] {
            assert!(invalid.parse::<Mac>().is_err(), "{invalid:?} was accepted");
        }
        assert!(!"01:00:5e:00:00:01".parse::<Mac>().unwrap().is_assignable());
    }

    #[test]
    fn arithmetic_on_prefixes_is_arithmetic_on_bits() {
        let mut random = TestRandom(0xbeef);
        for _ in 0..5000 {
            let family = random.choose(&Family::BOTH);
            let bits = u128::from(random.bits()) << 64 | u128::from(random.bits());
            let bits = if family == Family::V4 {
                bits & 0xffff_ffff
            } else {
                bits
            };
            let prefix = random.below(usize::from(family.bits()) + 1) as u8;
            let address = ip_from_bits(family, bits);
            assert_eq!(ip_to_bits(address), bits);
            let cidr = Cidr::new(address, prefix).unwrap();
            assert_eq!(cidr.to_string().parse(), Ok(cidr));
            let host = u32::from(family.bits() - prefix);
            let mask = 1u128.checked_shl(host).map_or(u128::MAX, |size| size - 1);
            assert_eq!(ip_to_bits(cidr.network().address()), bits & !mask);
            assert_eq!(ip_to_bits(cidr.last()), bits | mask);
            let near = ip_from_bits(family, bits ^ (1 << random.below(family.bits().into())));
            let is_inside = (ip_to_bits(near) ^ bits) & !mask == 0;
            assert_eq!(cidr.contains(near), is_inside, "{cidr} {near}");
        }
    }
}
