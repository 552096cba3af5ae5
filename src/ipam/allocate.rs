//! Round-robin allocation in a range set. Pure: the caller knows which addresses are taken.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::ipam::range::{Range, RangeSet};
use crate::net::{ip_from_bits, ip_to_bits};

/// The next free address after the last reserved one.
///
/// `excluded` addresses are never allocated: the gateways of the whole configuration, not only of this set.
pub fn next_free<'a>(
    set: &'a RangeSet,
    last: Option<IpAddr>,
    excluded: &[IpAddr],
    is_taken: impl Fn(IpAddr) -> bool,
) -> Option<(&'a Range, IpAddr)> {
    round_robin(set.ranges(), last).find(|(range, address)| {
        !range.is_edge(*address) && !excluded.contains(address) && !is_taken(*address)
    })
}

/// Each address once, lazily: from the one after `last` to the end of its range, through the other ranges, and around
/// to `last`. Starts at the first range if `last` is in none.
fn round_robin(ranges: &[Range], last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
    let position = last.and_then(|last| {
        let index = ranges.iter().position(|range| range.contains(last))?;
        Some((index, ip_to_bits(last)))
    });
    let whole = |range| {
        let range: &Range = range;
        (range, ip_to_bits(range.first())..=ip_to_bits(range.last()))
    };
    let mut segments: Vec<(&Range, RangeInclusive<u128>)> = Vec::with_capacity(ranges.len() + 1);
    match position {
        None => segments.extend(ranges.iter().map(whole)),
        Some((index, last)) => {
            let (current, all) = whole(&ranges[index]);
            // No address follows the highest IPv6 address.
            segments.extend(last.checked_add(1).map(|next| (current, next..=*all.end())));
            segments.extend(ranges[index + 1..].iter().map(whole));
            segments.extend(ranges[..index].iter().map(whole));
            segments.push((current, *all.start()..=last));
        }
    }
    segments
        .into_iter()
        .flat_map(|(range, bits)| bits.map(move |bits| (range, ip_from_bits(range.family(), bits))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json::{self, JsonCursor};
    use crate::test_random::TestRandom;
    use std::collections::BTreeSet;

    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        let parse = |(subnet, start, end): &(&str, &str, &str)| {
            let text =
                format!(r#"{{"subnet":"{subnet}","rangeStart":"{start}","rangeEnd":"{end}"}}"#);
            let value = json::parse("configuration", text.as_bytes()).unwrap();
            Range::parse(&JsonCursor::root("configuration", &value)).unwrap()
        };
        let ranges = ranges.iter().map(parse).collect();
        let document = serde_json::Value::Null;
        RangeSet::new(ranges, &JsonCursor::root("configuration", &document)).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        round_robin(set.ranges(), last.map(ip))
            .map(|(_, address)| address.to_string())
            .collect()
    }

    #[test]
    fn allocation_is_round_robin_and_ends_with_the_last_address() {
        let set = set(&[
            ("10.1.2.0/24", "10.1.2.4", "10.1.2.6"),
            ("10.1.3.0/24", "10.1.3.8", "10.1.3.9"),
        ]);
        let from_start = ["10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.3.8", "10.1.3.9"];
        assert_eq!(order(&set, None), from_start);
        assert_eq!(order(&set, Some("10.1.9.9")), from_start);
        assert_eq!(order(&set, Some("fd00::1")), from_start);
        assert_eq!(order(&set, Some("10.1.3.9")), from_start);
        assert_eq!(
            order(&set, Some("10.1.2.5")),
            ["10.1.2.6", "10.1.3.8", "10.1.3.9", "10.1.2.4", "10.1.2.5"]
        );
        assert_eq!(
            order(&set, Some("10.1.3.8")),
            ["10.1.3.9", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.3.8"]
        );
    }

    #[test]
    fn the_highest_addresses_do_not_overflow() {
        let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let set = set(&[("ffff::/16", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", top)]);
        assert_eq!(order(&set, Some(top)).len(), 2);
        let high = super::tests::set(&[("255.255.255.0/24", "255.255.255.254", "255.255.255.255")]);
        assert_eq!(order(&high, Some("255.255.255.255")).len(), 2);
    }

    #[test]
    fn large_subnets_are_not_enumerated() {
        let set = set(&[("fd00::/64", "", "")]);
        let (_, address) = next_free(&set, None, &[ip("fd00::1")], |_| false).unwrap();
        assert_eq!(address, ip("fd00::2"));
        let last = Some(ip("fd00::ffff:ffff:ffff:ffff"));
        let (_, address) = next_free(&set, last, &[ip("fd00::1")], |_| false).unwrap();
        assert_eq!(address, ip("fd00::2"));
    }

    #[test]
    fn network_broadcast_and_gateway_addresses_are_not_allocated() {
        let set = set(&[("10.1.2.0/29", "10.1.2.0", "10.1.2.7")]);
        let excluded = [ip("10.1.2.1"), ip("10.1.2.5")];
        let mut taken = BTreeSet::new();
        while let Some((_, address)) = next_free(&set, None, &excluded, |ip| taken.contains(&ip)) {
            taken.insert(address);
        }
        let allocated: Vec<_> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(allocated, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.6"]);
    }

    /// Model: a cyclic search in a list of all addresses.
    fn model(all: &[IpAddr], last: Option<IpAddr>, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let start = last
            .and_then(|last| all.iter().position(|address| *address == last))
            .map_or(0, |index| index + 1);
        let cycle = (0..all.len()).map(|step| all[(start + step) % all.len()]);
        cycle.into_iter().find(|address| !taken.contains(address))
    }

    #[test]
    fn random_allocations_match_a_simple_model() {
        let mut random = TestRandom(0x5eed);
        for _ in 0..200 {
            let starts = [1, 30, 80].map(|from| from + random.below(10));
            let texts = starts.map(|start| {
                let end = start + random.below(12);
                (format!("10.0.0.{start}"), format!("10.0.0.{end}"))
            });
            let ranges = texts
                .each_ref()
                .map(|(start, end)| ("10.0.0.0/24", start.as_str(), end.as_str()));
            let set = set(&ranges[..=random.below(3)]);
            let excluded = [ip("10.0.0.1"), ip("10.0.0.35")];
            let all: Vec<IpAddr> = order(&set, None).iter().map(|text| ip(text)).collect();
            let usable: Vec<IpAddr> = all
                .iter()
                .copied()
                .filter(|a| !excluded.contains(a))
                .collect();
            if usable.is_empty() {
                continue;
            }
            let (mut taken, mut last) = (BTreeSet::new(), None);
            for _ in 0..100 {
                if random.below(3) == 0 {
                    taken.remove(&usable[random.below(usable.len())]);
                    continue;
                }
                let next = next_free(&set, last, &excluded, |address| taken.contains(&address));
                let next = next.map(|(_, address)| address);
                assert_eq!(next, model(&usable, last, &taken), "{set} after {last:?}");
                if let Some(address) = next {
                    taken.insert(address);
                    last = Some(address);
                }
            }
        }
    }
}
