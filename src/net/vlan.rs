//! VLANs of IEEE 802.1Q, as a bridge's port has them.

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
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of VLANs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// No VLAN.
    pub const EMPTY: VlanSet = VlanSet([0; 64]);

    /// All VLANs from `first` to `last`; none when that is the smaller one.
    pub fn span(first: VlanId, last: VlanId) -> VlanSet {
        let mut set = VlanSet::EMPTY;
        for number in first.0..=last.0 {
            set.0[usize::from(number / 64)] |= 1 << (number % 64);
        }
        set
    }

    /// One VLAN.
    pub fn of(vlan: VlanId) -> VlanSet {
        VlanSet::span(vlan, vlan)
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        *self == VlanSet::EMPTY
    }

    /// Whether a VLAN is in it.
    pub fn contains(&self, vlan: VlanId) -> bool {
        self.0[usize::from(vlan.0 / 64)] >> (vlan.0 % 64) & 1 == 1
    }

    /// What is in this set or in the other one.
    pub fn or(mut self, other: VlanSet) -> VlanSet {
        let words = self.0.iter_mut().zip(other.0);
        words.for_each(|(word, other)| *word |= other);
        self
    }

    /// What is in this set and not in the other one.
    pub fn minus(mut self, other: VlanSet) -> VlanSet {
        let words = self.0.iter_mut().zip(other.0);
        words.for_each(|(word, other)| *word &= !other);
        self
    }

    /// The set as few ranges as there can be: the first and the last of each, in order.
    pub fn ranges(&self) -> Vec<(VlanId, VlanId)> {
        let mut ranges: Vec<(VlanId, VlanId)> = Vec::new();
        for vlan in VlanId::NUMBERS
            .map(VlanId)
            .filter(|vlan| self.contains(*vlan))
        {
            match ranges.last_mut() {
                Some((_, last)) if last.0 + 1 == vlan.0 => *last = vlan,
                _ => ranges.push((vlan, vlan)),
            }
        }
        ranges
    }
}

impl fmt::Display for VlanSet {
    /// `10-12,20`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (first, last) in self.ranges() {
            write!(f, "{separator}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The VLANs a port of a bridge is in (bridge(8), "bridge vlan").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlans {
    /// Where frames go that come in without a tag.
    pub pvid: Option<VlanId>,
    /// Frames of these leave without a tag.
    pub untagged: VlanSet,
    /// Frames of these leave with their tag. Shares nothing with `untagged`.
    pub tagged: VlanSet,
}

impl PortVlans {
    /// A port that is in no VLAN.
    pub const NONE: PortVlans = PortVlans {
        pvid: None,
        untagged: VlanSet::EMPTY,
        tagged: VlanSet::EMPTY,
    };

    /// Frames without a tag are in `native`, both ways; those of `tagged` keep their tag.
    pub fn new(native: VlanId, tagged: VlanSet) -> PortVlans {
        let untagged = VlanSet::of(native);
        PortVlans {
            pvid: Some(native),
            untagged,
            tagged: tagged.minus(untagged),
        }
    }

    /// All VLANs the port is in.
    pub fn all(&self) -> VlanSet {
        self.untagged.or(self.tagged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: impl IntoIterator<Item = u16>) -> VlanSet {
        let vlan = |number| VlanSet::of(VlanId::new(number).unwrap());
        numbers
            .into_iter()
            .map(vlan)
            .fold(VlanSet::EMPTY, VlanSet::or)
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
            (vec![63, 64, 127, 128, 4094], "63-64,127-128,4094"),
            ((1..=4094).collect(), "1-4094"),
        ] {
            assert_eq!(set(numbers).to_string(), text);
        }
    }

    #[test]
    fn sets_are_joined_and_taken_from_each_other() {
        let (some, others) = (set(60..=70), set([64, 4000]));
        assert_eq!(some.or(others).to_string(), "60-70,4000");
        assert_eq!(some.minus(others).to_string(), "60-63,65-70");
        assert!(some.minus(some).is_empty() && !some.is_empty());
        let vlan = |number| VlanId::new(number).unwrap();
        assert_eq!(VlanSet::span(vlan(60), vlan(70)), some);
        assert!(VlanSet::span(vlan(70), vlan(60)).is_empty());
    }

    #[test]
    fn the_native_vlan_is_not_tagged_too() {
        let vlans = PortVlans::new(VlanId::DEFAULT, set([1, 2]));
        assert_eq!(vlans.tagged, set([2]));
        assert_eq!(vlans.all(), set([1, 2]));
    }
}
