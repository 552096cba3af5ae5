//! VLANs of IEEE 802.1Q, as a bridge's port has them.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// The number of a VLAN: 1 to 4094 (0 and 4095 are reserved, IEEE 802.1Q, table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The numbers there are.
    pub const NUMBERS: RangeInclusive<u16> = 1..=4094;

    /// The VLAN that ports of a bridge are in when nobody says otherwise (default_pvid, bridge(8)).
    pub const DEFAULT: VlanId = VlanId(1);

    /// The VLAN of that number, if it is one.
    pub fn new(number: u16) -> Option<VlanId> {
        VlanId::NUMBERS.contains(&number).then_some(VlanId(number))
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// All VLANs from `first` to `last`; none when that is the smaller one.
    pub fn span(first: VlanId, last: VlanId) -> impl Iterator<Item = VlanId> {
        (first.0..=last.0).map(VlanId)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The VLANs a port of a bridge is in (bridge(8), "bridge vlan").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortVlans {
    /// Where frames go that come in without a tag.
    pub pvid: Option<VlanId>,
    /// Frames of these leave without a tag.
    pub untagged: BTreeSet<VlanId>,
    /// Frames of these leave with their tag. Shares nothing with `untagged`.
    pub tagged: BTreeSet<VlanId>,
}

impl PortVlans {
    /// Frames without a tag are in `native`, both ways; those of `tagged` keep their tag.
    pub fn new(native: VlanId, tagged: BTreeSet<VlanId>) -> PortVlans {
        let mut tagged = tagged;
        tagged.remove(&native);
        PortVlans {
            pvid: Some(native),
            untagged: BTreeSet::from([native]),
            tagged,
        }
    }

    /// Whether the port is in a VLAN.
    pub fn contains(&self, vlan: VlanId) -> bool {
        self.untagged.contains(&vlan) || self.tagged.contains(&vlan)
    }

    /// All VLANs the port is in, in order.
    pub fn all(&self) -> BTreeSet<VlanId> {
        self.untagged.union(&self.tagged).copied().collect()
    }
}

/// Compresses a set into as few ranges as there can be, in order.
pub fn ranges(vlans: &BTreeSet<VlanId>) -> Vec<RangeInclusive<VlanId>> {
    let mut ranges: Vec<RangeInclusive<VlanId>> = Vec::new();
    for vlan in vlans {
        match ranges.last_mut() {
            Some(range) if range.end().0 + 1 == vlan.0 => *range = *range.start()..=*vlan,
            _ => ranges.push(*vlan..=*vlan),
        }
    }
    ranges
}

/// A set for people: `10-12,20`.
pub fn describe(vlans: &BTreeSet<VlanId>) -> String {
    let range = |range: &RangeInclusive<VlanId>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let ranges: Vec<String> = ranges(vlans).iter().map(range).collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u16]) -> BTreeSet<VlanId> {
        let vlan = |number: &u16| VlanId::new(*number).unwrap();
        numbers.iter().map(vlan).collect()
    }

    #[test]
    fn the_reserved_numbers_are_no_vlans() {
        for (number, is_vlan) in [(0, false), (1, true), (4094, true), (4095, false)] {
            assert_eq!(VlanId::new(number).is_some(), is_vlan, "{number}");
        }
    }

    #[test]
    fn neighbours_become_one_range() {
        for (numbers, text) in [
            (vec![], ""),
            (vec![7], "7"),
            (vec![3, 1, 2], "1-3"),
            (vec![1, 3, 4, 6], "1,3-4,6"),
            ((1..=4094).collect(), "1-4094"),
        ] {
            assert_eq!(describe(&set(&numbers)), text);
        }
    }

    #[test]
    fn the_native_vlan_is_not_tagged_too() {
        let vlans = PortVlans::new(VlanId::DEFAULT, set(&[1, 2]));
        assert_eq!(vlans.tagged, set(&[2]));
        assert_eq!(vlans.all(), set(&[1, 2]));
    }
}
