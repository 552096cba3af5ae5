//! Address ranges and range sets.
//!
//! One address is reserved per range set; the ranges of a set are alternatives.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::json::{JsonCursor, is_unset};
use crate::error::Error;
use crate::net::{Cidr, Family, ip_from_bits, ip_to_bits, parse_ip};

/// The keys of a range. Empty text means absent, except for `subnet`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RangeKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub subnet: Option<String>,
    #[serde(skip_serializing_if = "is_unset")]
    pub range_start: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub range_end: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub gateway: String,
}

/// A range of addresses in one subnet, including both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Cidr,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
    allocates_edges: bool,
}

impl Range {
    /// Parses `{subnet, rangeStart, rangeEnd, gateway}` and applies defaults.
    ///
    /// # Errors
    /// Code 6 for a wrong type, code 7 for a subnet with host bits or too few addresses, an end outside the subnet, an
    /// inverted range. The gateway may be outside the subnet: `fe80::1` is usual for IPv6.
    pub fn parse(json: &JsonCursor) -> Result<Range, Error> {
        let keys: RangeKeys = json.read()?;
        let subnet = parse_subnet(keys.subnet.as_deref(), json)?;
        let gateway = address(&keys.gateway, &json.at("gateway"))?;
        let within = |text: &str, key| address_within(text, &json.at(key), subnet);
        let first = within(&keys.range_start, "rangeStart")?;
        let last = within(&keys.range_end, "rangeEnd")?;
        let first = first.unwrap_or_else(|| subnet.first_host());
        let range = Range {
            subnet,
            first,
            // A range that starts at the broadcast address and has no end consists of that address.
            last: last.unwrap_or_else(|| last_host(subnet).max(first)),
            gateway: gateway.unwrap_or_else(|| subnet.first_host()),
            allocates_edges: false,
        };
        if range.first > range.last {
            let wanted = format!("it must not be above the range's end {}", range.last);
            return Err(json.at("rangeStart").invalid(range.first, wanted));
        }
        if range.has_mapped() {
            let wanted = "it must not reach into ::ffff:0:0/96: those are IPv4 addresses";
            return Err(json.at("subnet").invalid(subnet, wanted));
        }
        Ok(range)
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// As configured, or the first host of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The gateway with the subnet's prefix length; `None` for an IPv4 gateway of an IPv6 subnet with more than 32 bits.
    pub fn gateway_cidr(&self) -> Option<Cidr> {
        Cidr::new(self.gateway, self.subnet.prefix())
    }

    pub fn subnet(&self) -> Cidr {
        self.subnet
    }

    pub fn family(&self) -> Family {
        self.subnet.family()
    }

    /// Whether the subnet's network address and IPv4 broadcast address are allocated, because there is no other.
    pub fn allocates_edges(&self) -> bool {
        self.allocates_edges
    }

    /// False for an address of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        // `IpAddr` orders IPv4 before IPv6 and each by value.
        (self.first..=self.last).contains(&address)
    }

    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether the address is the subnet's network or IPv4 broadcast address and therefore allocated only on request.
    /// It may be an end of a range.
    pub fn is_edge(&self, address: IpAddr) -> bool {
        !self.allocates_edges
            && (address == self.subnet.address() || Some(address) == self.broadcast())
    }

    /// An address of the range with the subnet's prefix length.
    pub fn with_prefix(&self, address: IpAddr) -> Cidr {
        Cidr::new(address, self.subnet.prefix()).expect("the address is of the subnet's family")
    }

    /// Leases of IPv4-mapped addresses would not be found again: their file names are parsed as IPv4.
    fn has_mapped(&self) -> bool {
        let mapped = 0xffff_0000_0000..=0xffff_ffff_ffff;
        let (first, last) = (ip_to_bits(self.first), ip_to_bits(self.last));
        self.family() == Family::V6 && first <= *mapped.end() && last >= *mapped.start()
    }

    fn broadcast(&self) -> Option<IpAddr> {
        (self.family() == Family::V4).then(|| self.subnet.last())
    }

    /// The number of addresses that can be allocated without being requested.
    fn usable(&self, gateways: &[IpAddr]) -> u128 {
        let size = (ip_to_bits(self.last) - ip_to_bits(self.first)).saturating_add(1);
        let edges = [Some(self.subnet.address()), self.broadcast()];
        let mut excluded: Vec<IpAddr> = gateways.to_vec();
        excluded.extend(
            edges
                .into_iter()
                .flatten()
                .filter(|edge| self.is_edge(*edge)),
        );
        excluded.retain(|address| self.contains(*address));
        excluded.sort();
        excluded.dedup();
        size - excluded.len() as u128
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Room for the network address, a gateway, a container and the broadcast address.
const HOST_BITS: u8 = 2;

fn parse_subnet(text: Option<&str>, json: &JsonCursor) -> Result<Cidr, Error> {
    let json = json.at("subnet");
    let Some(text) = text else {
        let wanted = "a range needs a subnet like 10.1.2.0/24 or fd00::/64";
        return Err(json.invalid("missing", wanted));
    };
    let subnet: Cidr = json.parse_text(text, str::parse)?;
    let invalid = |wanted: String| Err(json.invalid(subnet, wanted));
    if text.contains(':') && subnet.family() == Family::V4 {
        return invalid("an IPv4 subnet must be written as IPv4".to_owned());
    }
    let longest = subnet.family().bits() - HOST_BITS;
    if subnet.prefix() > longest {
        return invalid(format!(
            "its prefix must be at most /{longest} to have room for hosts"
        ));
    }
    if !subnet.is_network() {
        return invalid(format!(
            "it has host bits set: the network is {}",
            subnet.network()
        ));
    }
    Ok(subnet)
}

fn address(text: &str, json: &JsonCursor) -> Result<Option<IpAddr>, Error> {
    let text = Some(text).filter(|text| !text.is_empty());
    text.map(|text| json.parse_text(text, parse_ip)).transpose()
}

fn address_within(text: &str, json: &JsonCursor, subnet: Cidr) -> Result<Option<IpAddr>, Error> {
    match address(text, json)? {
        Some(address) if !subnet.contains(address) => {
            let wanted = format!("it must lie in the subnet {subnet}");
            Err(json.invalid(address, wanted))
        }
        address => Ok(address),
    }
}

/// IPv6 has no broadcast address.
fn last_host(subnet: Cidr) -> IpAddr {
    match subnet.family() {
        Family::V4 => ip_from_bits(Family::V4, ip_to_bits(subnet.last()) - 1),
        Family::V6 => subnet.last(),
    }
}

/// Disjoint ranges of one family, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// Checks that the ranges are alternatives; `json` is the path in errors.
    ///
    /// # Errors
    /// Code 7 for an empty set, mixed families or overlapping ranges.
    pub fn new(ranges: Vec<Range>, json: &JsonCursor) -> Result<RangeSet, Error> {
        let Some(first) = ranges.first() else {
            return Err(json.invalid("empty", "a range set needs at least one range"));
        };
        if let Some(other) = ranges.iter().find(|other| other.family() != first.family()) {
            let wanted = "a range set must be of one family: give each family a set of its own";
            return Err(json.invalid(format!("of {first} and {other}"), wanted));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
                return Err(json.invalid(
                    format!("of {other} and {range}"),
                    "its ranges must not overlap",
                ));
            }
        }
        Ok(RangeSet { ranges })
    }

    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    pub fn family(&self) -> Family {
        self.ranges[0].family()
    }

    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// A pair of overlapping ranges, one of each set.
    pub fn overlap<'a>(&'a self, other: &'a RangeSet) -> Option<(&'a Range, &'a Range)> {
        let mut pairs = self
            .ranges
            .iter()
            .flat_map(|first| other.ranges.iter().map(move |second| (first, second)));
        pairs.find(|(first, second)| first.overlaps(second))
    }

    /// Allocates network and broadcast addresses, too, if no other address is usable.
    pub fn allow_edges_if_needed(&mut self, gateways: &[IpAddr]) {
        if self.usable(gateways) == 0 {
            for range in &mut self.ranges {
                range.allocates_edges = true;
            }
        }
    }

    /// Like [`Range::usable`], of all ranges.
    pub fn usable(&self, gateways: &[IpAddr]) -> u128 {
        let sizes = self.ranges.iter().map(|range| range.usable(gateways));
        sizes.fold(0, u128::saturating_add)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json;
    use crate::test_random::TestRandom;
    use std::collections::BTreeSet;

    fn range(text: &str) -> Result<Range, Error> {
        let value = json::parse("configuration", text.as_bytes()).unwrap();
        Range::parse(&JsonCursor::root("configuration", &value))
    }

    #[test]
    fn defaults_are_applied() {
        for (text, range_text, gateway) in [
            (
                r#"{"subnet":"10.1.2.0/24"}"#,
                "10.1.2.1-10.1.2.254",
                "10.1.2.1",
            ),
            (
                r#"{"subnet":"10.1.2.0/30"}"#,
                "10.1.2.1-10.1.2.2",
                "10.1.2.1",
            ),
            (
                r#"{"subnet":"0.0.0.0/0"}"#,
                "0.0.0.1-255.255.255.254",
                "0.0.0.1",
            ),
            (
                r#"{"subnet":"fd00::/64"}"#,
                "fd00::1-fd00::ffff:ffff:ffff:ffff",
                "fd00::1",
            ),
            (r#"{"subnet":"fd00::4/126"}"#, "fd00::5-fd00::7", "fd00::5"),
            (
                r#"{"subnet":"10.10.0.0/16","rangeStart":"10.10.1.1","rangeEnd":"10.10.1.101","gateway":"10.10.1.0"}"#,
                "10.10.1.1-10.10.1.101",
                "10.10.1.0",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeStart":"","rangeEnd":"","gateway":"10.1.2.254"}"#,
                "10.1.2.1-10.1.2.254",
                "10.1.2.254",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.255","gateway":"::ffff:10.1.2.0"}"#,
                "10.1.2.0-10.1.2.255",
                "10.1.2.0",
            ),
            (
                r#"{"subnet":"fd00::/64","gateway":"fe80::1"}"#,
                "fd00::1-fd00::ffff:ffff:ffff:ffff",
                "fe80::1",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","gateway":"10.1.3.1"}"#,
                "10.1.2.1-10.1.2.254",
                "10.1.3.1",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","gateway":"fd00::1"}"#,
                "10.1.2.1-10.1.2.254",
                "fd00::1",
            ),
        ] {
            let range = range(text).unwrap();
            assert_eq!(range.to_string(), range_text);
            assert_eq!(range.gateway().to_string(), gateway);
        }
    }

    #[test]
    fn a_gateway_of_the_other_family_need_not_have_a_prefix_length() {
        let cidr = |text: &str| range(text).unwrap().gateway_cidr();
        let v6_in_v4 = cidr(r#"{"subnet":"10.1.2.0/24","gateway":"fe80::1"}"#);
        assert_eq!(v6_in_v4, "fe80::1/24".parse().ok());
        assert_eq!(cidr(r#"{"subnet":"fd00::/64","gateway":"10.9.0.1"}"#), None);
    }

    #[test]
    fn errors_name_field_and_value() {
        for (text, expected) in [
            ("{}", "subnet is missing"),
            (r#"{"subnet":5}"#, "subnet is 5"),
            (r#"{"subnet":""}"#, r#"subnet is """#),
            (r#"{"subnet":"10.1.2.0"}"#, r#"subnet is "10.1.2.0""#),
            (r#"{"subnet":"10.1.2.5/24"}"#, "the network is 10.1.2.0/24"),
            (r#"{"subnet":"10.1.2.0/31"}"#, "at most /30"),
            (r#"{"subnet":"10.1.2.0/32"}"#, "at most /30"),
            (r#"{"subnet":"fd00::/127"}"#, "at most /126"),
            (r#"{"subnet":"::ffff:10.1.2.0/120"}"#, "written as IPv4"),
            (r#"{"subnet":"::/80"}"#, "must not reach into ::ffff:0:0/96"),
            (r#"{"subnet":"::/0"}"#, "must not reach into ::ffff:0:0/96"),
            (
                r#"{"subnet":"10.1.2.0/24","gateway":"10.1.3.1/24"}"#,
                "gateway is \"10.1.3.1/24\"",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.1.9"}"#,
                "rangeStart is 10.1.1.9",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeEnd":"10.1.2.9/24"}"#,
                "rangeEnd is \"10.1.2.9/24\"",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeEnd":false}"#,
                "rangeEnd is false",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.8"}"#,
                "rangeStart is 10.1.2.9, but it must not be above the range's end 10.1.2.8",
            ),
            (
                r#"{"subnet":"10.1.2.0/24","rangeEnd":"10.1.2.0"}"#,
                "above the range's end 10.1.2.0",
            ),
        ] {
            let error = range(text).unwrap_err();
            assert!(error.msg.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn network_broadcast_and_gateway_addresses_are_not_usable() {
        let whole = r#"{"subnet":"10.1.2.0/29","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.7"}"#;
        let set = RangeSet {
            ranges: vec![range(whole).unwrap()],
        };
        let gateways = ["10.1.2.1", "10.1.2.6", "10.9.9.9"].map(|ip| ip.parse().unwrap());
        assert_eq!(set.usable(&gateways), 4);
        let all = RangeSet {
            ranges: vec![range(r#"{"subnet":"8000::/1","rangeStart":"8000::"}"#).unwrap()],
        };
        assert_eq!(all.usable(&[]), (1 << 127) - 1);
    }

    #[test]
    fn edges_are_allocated_if_there_is_no_other_address() {
        let usable = |ranges: &[&str], gateways: &[&str]| {
            let ranges = ranges.iter().map(|text| range(text).unwrap()).collect();
            let mut set = RangeSet { ranges };
            let gateways: Vec<IpAddr> = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
            set.allow_edges_if_needed(&gateways);
            set.usable(&gateways)
        };
        let low = r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.1"}"#;
        let high = r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.255","rangeEnd":"10.1.2.255"}"#;
        let zero = r#"{"subnet":"fd00::/64","rangeStart":"fd00::","rangeEnd":"fd00::"}"#;
        assert_eq!(usable(&[low], &["10.1.2.1"]), 1);
        assert_eq!(usable(&[low, high], &["10.1.2.1"]), 2);
        assert_eq!(usable(&[low, high], &["10.1.2.9"]), 1);
        assert_eq!(usable(&[zero], &["fe80::1"]), 1);
        assert_eq!(usable(&[zero], &["fd00::"]), 0);
    }

    #[test]
    fn overlap_is_between_ranges_not_subnets() {
        let of = |start: &str, end: &str| {
            range(&format!(
                r#"{{"subnet":"10.1.2.0/24","rangeStart":"{start}","rangeEnd":"{end}"}}"#
            ))
            .unwrap()
        };
        let low = of("10.1.2.1", "10.1.2.9");
        assert!(!low.overlaps(&of("10.1.2.10", "10.1.2.20")));
        assert!(low.overlaps(&of("10.1.2.9", "10.1.2.20")));
        assert!(low.overlaps(&of("10.1.2.3", "10.1.2.4")));
        assert!(of("10.1.2.3", "10.1.2.4").overlaps(&low));
        assert!(!low.overlaps(&range(r#"{"subnet":"fd00::/64"}"#).unwrap()));
    }

    /// A range in a small subnet, and the set of its addresses.
    fn small(random: &mut TestRandom) -> (Range, BTreeSet<IpAddr>) {
        let (subnet, family) = random.choose(&[
            ("10.1.2.0/28", Family::V4),
            ("255.255.255.240/28", Family::V4),
            ("0.0.0.0/28", Family::V4),
            ("fd00::/124", Family::V6),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", Family::V6),
        ]);
        let base = ip_to_bits(subnet.parse::<Cidr>().unwrap().address());
        let ends = [random.below(16), random.below(16)];
        let (first, last) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let ip = |offset: usize| ip_from_bits(family, base + offset as u128);
        let text = format!(
            r#"{{"subnet":"{subnet}","rangeStart":"{}","rangeEnd":"{}","gateway":"{}"}}"#,
            ip(first),
            ip(last),
            ip(random.below(16))
        );
        (range(&text).unwrap(), (first..=last).map(ip).collect())
    }

    #[test]
    fn random_ranges_match_a_model_of_address_sets() {
        let mut random = TestRandom(0xcafe);
        for _ in 0..3000 {
            let ((one, ours), (other, theirs)) = (small(&mut random), small(&mut random));
            assert_eq!(
                one.overlaps(&other),
                !ours.is_disjoint(&theirs),
                "{one} {other}"
            );
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            for address in ours.union(&theirs) {
                assert_eq!(
                    one.contains(*address),
                    ours.contains(address),
                    "{one} {address}"
                );
            }
            let gateways = [one.gateway(), other.gateway()];
            let is_usable =
                |address: &&IpAddr| !one.is_edge(**address) && !gateways.contains(address);
            let usable = ours.iter().filter(is_usable).count();
            assert_eq!(
                one.usable(&gateways),
                usable as u128,
                "{one} without {gateways:?}"
            );
            let document = serde_json::Value::Null;
            let set = RangeSet::new(
                vec![one.clone(), other.clone()],
                &JsonCursor::root("t", &document),
            );
            let is_valid = ours.is_disjoint(&theirs) && one.family() == other.family();
            assert_eq!(set.is_ok(), is_valid, "{one} {other}");
        }
    }
}
