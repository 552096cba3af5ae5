//! Ranges of addresses: brought into canonical form once, then only asked.
//!
//! One address is reserved per range set; the ranges inside a set are alternatives. Knows nothing of who holds what.

use std::fmt;
use std::net::IpAddr;

use crate::cni::json::JsonCursor;
use crate::error::Error;
use crate::net::{Cidr, Family, ip_from_bits, ip_to_bits, parse_ip};

/// Addresses of one subnet, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Cidr,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
    edges: Edges,
}

/// Whether the network address of a subnet and its IPv4 broadcast address are given to those who do not ask for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edges {
    Kept,
    Given,
}

impl Range {
    /// Reads `{subnet, rangeStart, rangeEnd, gateway}` and fills in what is absent.
    ///
    /// # Errors
    /// Code 6 for a wrong type, code 7 for a subnet with host bits or without room, an end outside of it, an inverted
    /// range. The gateway may be anywhere: `fe80::1` is usual for IPv6.
    pub fn parse(shape: &JsonCursor) -> Result<Range, Error> {
        let subnet = parse_subnet(shape)?;
        let gateway = address(shape, "gateway")?;
        let first = address_within(shape, "rangeStart", subnet)?;
        let last = address_within(shape, "rangeEnd", subnet)?;
        let first = first.unwrap_or_else(|| subnet.first_host());
        let range = Range {
            subnet,
            first,
            // A start at the broadcast address without an end is a range of that address alone.
            last: last.unwrap_or_else(|| last_host(subnet).max(first)),
            gateway: gateway.unwrap_or_else(|| subnet.first_host()),
            edges: Edges::Kept,
        };
        if range.first > range.last {
            let wanted = format!("it must not be above the range's end {}", range.last);
            return Err(shape.at("rangeStart").invalid(range.first, wanted));
        }
        if range.has_mapped() {
            let wanted = "it must not reach into ::ffff:0:0/96: those are IPv4 addresses";
            return Err(shape.at("subnet").invalid(subnet, wanted));
        }
        Ok(range)
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The gateway of the subnet: given, or its first host.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The subnet.
    pub fn subnet(&self) -> Cidr {
        self.subnet
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.subnet.family()
    }

    /// Whether the network address and the IPv4 broadcast address of the subnet are given, for want of others.
    pub fn gives_edges(&self) -> bool {
        self.edges == Edges::Given
    }

    /// Whether the address lies between the ends; never for the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        // `IpAddr` orders IPv4 before IPv6 and each by value.
        (self.first..=self.last).contains(&address)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether the address stands for the subnet itself (its network or, in IPv4, broadcast address) and is kept: a range
    /// may name it as its end, but nobody gets it without asking, unless the range set has no other address.
    pub fn is_edge(&self, address: IpAddr) -> bool {
        self.edges == Edges::Kept
            && (address == self.subnet.address() || Some(address) == self.broadcast())
    }

    /// An address of the range as an interface has it.
    pub fn with_prefix(&self, address: IpAddr) -> Cidr {
        Cidr::new(address, self.subnet.prefix()).expect("the address is of the subnet's family")
    }

    /// Whether an IPv6 range has IPv4-mapped addresses. Nobody could find their leases again.
    fn has_mapped(&self) -> bool {
        let mapped = 0xffff_0000_0000..=0xffff_ffff_ffff;
        let (first, last) = (ip_to_bits(self.first), ip_to_bits(self.last));
        self.family() == Family::V6 && first <= *mapped.end() && last >= *mapped.start()
    }

    fn broadcast(&self) -> Option<IpAddr> {
        (self.family() == Family::V4).then(|| self.subnet.last())
    }

    /// How many addresses it can give to those who do not ask for one.
    fn usable(&self, gateways: &[IpAddr]) -> u128 {
        let size = (ip_to_bits(self.last) - ip_to_bits(self.first)).saturating_add(1);
        let edges = [Some(self.subnet.address()), self.broadcast()];
        let mut kept: Vec<IpAddr> = gateways.to_vec();
        kept.extend(
            edges
                .into_iter()
                .flatten()
                .filter(|edge| self.is_edge(*edge)),
        );
        kept.retain(|address| self.contains(*address));
        kept.sort();
        kept.dedup();
        size - kept.len() as u128
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Below this there is no room for a network address, a gateway, a container and a broadcast address.
const HOST_BITS: u8 = 2;

fn parse_subnet(shape: &JsonCursor) -> Result<Cidr, Error> {
    let Some(subnet) = shape.parsed::<Cidr>("subnet")? else {
        let wanted = "a range needs a subnet like 10.1.2.0/24 or fd00::/64";
        return Err(shape.at("subnet").invalid("missing", wanted));
    };
    let refuse = |wanted: String| Err(shape.at("subnet").invalid(subnet, wanted));
    if shape.text("subnet")?.is_some_and(|text| text.contains(':')) && subnet.family() == Family::V4
    {
        return refuse("an IPv4 subnet must be written as IPv4".to_owned());
    }
    let longest = subnet.family().bits() - HOST_BITS;
    if subnet.prefix() > longest {
        return refuse(format!(
            "its prefix must be at most /{longest} to have room for hosts"
        ));
    }
    if !subnet.is_network() {
        return refuse(format!(
            "it has host bits set: the network is {}",
            subnet.network()
        ));
    }
    Ok(subnet)
}

fn address(shape: &JsonCursor, key: &str) -> Result<Option<IpAddr>, Error> {
    let given = shape.get(key).filter(|given| given.as_text() != Ok(""));
    given.map(|given| given.parse_with(parse_ip)).transpose()
}

fn address_within(shape: &JsonCursor, key: &str, subnet: Cidr) -> Result<Option<IpAddr>, Error> {
    match address(shape, key)? {
        Some(address) if !subnet.contains(address) => {
            let wanted = format!("it must lie in the subnet {subnet}");
            Err(shape.at(key).invalid(address, wanted))
        }
        address => Ok(address),
    }
}

/// IPv6 has no broadcast address to leave out.
fn last_host(subnet: Cidr) -> IpAddr {
    match subnet.family() {
        Family::V4 => ip_from_bits(Family::V4, ip_to_bits(subnet.last()) - 1),
        Family::V6 => subnet.last(),
    }
}

/// Ranges of one family, of which one address is reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// Checks that the ranges can be alternatives; `place` is where they were read.
    ///
    /// # Errors
    /// Code 7 for an empty set, two families, ranges that overlap.
    pub fn new(ranges: Vec<Range>, place: &JsonCursor) -> Result<RangeSet, Error> {
        let Some(first) = ranges.first() else {
            return Err(place.invalid("empty", "a range set needs at least one range"));
        };
        if let Some(other) = ranges.iter().find(|other| other.family() != first.family()) {
            let wanted = "a range set must be of one family: give each family a set of its own";
            return Err(place.invalid(format!("of {first} and {other}"), wanted));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
                return Err(place.invalid(
                    format!("of {other} and {range}"),
                    "its ranges must not overlap",
                ));
            }
        }
        Ok(RangeSet { ranges })
    }

    /// Its ranges, at least one.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The family of its ranges.
    pub fn family(&self) -> Family {
        self.ranges[0].family()
    }

    /// The range that contains the address.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// Two ranges, one of each set, that share an address.
    pub fn overlap<'a>(&'a self, other: &'a RangeSet) -> Option<(&'a Range, &'a Range)> {
        let pairs = self
            .ranges
            .iter()
            .flat_map(|ours| other.ranges.iter().map(move |theirs| (ours, theirs)));
        pairs
            .into_iter()
            .find(|(ours, theirs)| ours.overlaps(theirs))
    }

    /// Gives the edges of its subnets too if it has no other address that is not a gateway.
    pub fn settle_edges(&mut self, gateways: &[IpAddr]) {
        if self.usable(gateways) == 0 {
            for range in &mut self.ranges {
                range.edges = Edges::Given;
            }
        }
    }

    /// How many addresses it can give to those who do not ask for one.
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
    fn what_is_absent_is_filled_in() {
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
    fn what_cannot_be_is_refused_with_field_and_value() {
        for (text, says) in [
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
            assert!(error.msg.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn edges_and_gateways_are_not_counted_as_usable() {
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
    fn edges_are_given_where_there_is_no_other_address() {
        let settled = |ranges: &[&str], gateways: &[&str]| {
            let ranges = ranges.iter().map(|text| range(text).unwrap()).collect();
            let mut set = RangeSet { ranges };
            let gateways: Vec<IpAddr> = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
            set.settle_edges(&gateways);
            set.usable(&gateways)
        };
        let low = r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.1"}"#;
        let high = r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.255","rangeEnd":"10.1.2.255"}"#;
        let zero = r#"{"subnet":"fd00::/64","rangeStart":"fd00::","rangeEnd":"fd00::"}"#;
        assert_eq!(settled(&[low], &["10.1.2.1"]), 1);
        assert_eq!(settled(&[low, high], &["10.1.2.1"]), 2);
        assert_eq!(settled(&[low, high], &["10.1.2.9"]), 1);
        assert_eq!(settled(&[zero], &["fe80::1"]), 1);
        assert_eq!(settled(&[zero], &["fd00::"]), 0);
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

    /// A range within one small subnet, and all its addresses one by one.
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
    fn ranges_agree_with_sets_of_their_addresses() {
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
            let is_given =
                |address: &&IpAddr| !one.is_edge(**address) && !gateways.contains(address);
            let given = ours.iter().filter(is_given).count();
            assert_eq!(
                one.usable(&gateways),
                given as u128,
                "{one} without {gateways:?}"
            );
            let place = serde_json::Value::Null;
            let set = RangeSet::new(
                vec![one.clone(), other.clone()],
                &JsonCursor::root("t", &place),
            );
            let fits = ours.is_disjoint(&theirs) && one.family() == other.family();
            assert_eq!(set.is_ok(), fits, "{one} {other}");
        }
    }
}
