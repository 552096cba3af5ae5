//! VLANs (IEEE 802.1Q) of bridge ports.

use std::fmt;
use std::ops::RangeInclusive;

/// 1 to 4094; 0 and 4095 are reserved (IEEE 802.1Q, table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    pub const RANGE: RangeInclusive<u16> = 1..=4094;

    /// The default PVID of a bridge (default_pvid, bridge(8)).
    pub const DEFAULT: VlanId = VlanId(1);

    pub fn new(number: u16) -> Option<VlanId> {
        VlanId::RANGE.contains(&number).then_some(VlanId(number))
    }

    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    pub const EMPTY: VlanSet = VlanSet([0; 64]);

    /// All VLANs from `first` to `last`; empty if `last` is smaller.
    pub fn span(first: VlanId, last: VlanId) -> VlanSet {
        let mut set = VlanSet::EMPTY;
        for number in first.0..=last.0 {
            set.0[usize::from(number / 64)] |= 1 << (number % 64);
        }
        set
    }

    pub fn of(vlan: VlanId) -> VlanSet {
        VlanSet::span(vlan, vlan)
    }

    pub fn is_empty(&self) -> bool {
        *self == VlanSet::EMPTY
    }

    pub fn contains(&self, vlan: VlanId) -> bool {
        self.0[usize::from(vlan.0 / 64)] >> (vlan.0 % 64) & 1 == 1
    }

    /// Union.
    pub fn union(mut self, other: VlanSet) -> VlanSet {
        let words = self.0.iter_mut().zip(other.0);
        words.for_each(|(word, other)| *word |= other);
        self
    }

    /// Difference.
    pub fn difference(mut self, other: VlanSet) -> VlanSet {
        let words = self.0.iter_mut().zip(other.0);
        words.for_each(|(word, other)| *word &= !other);
        self
    }

    /// The maximal ranges, in ascending order.
    pub fn ranges(&self) -> Vec<(VlanId, VlanId)> {
        let mut ranges: Vec<(VlanId, VlanId)> = Vec::new();
        for vlan in VlanId::RANGE
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

/// The VLANs of a bridge port (bridge(8), "bridge vlan").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlans {
    /// VLAN of frames that arrive without a tag.
    pub pvid: Option<VlanId>,
    /// VLANs whose frames leave without a tag.
    pub untagged: VlanSet,
    /// VLANs whose frames leave with a tag. Disjoint from `untagged`.
    pub tagged: VlanSet,
}

impl PortVlans {
    pub const NONE: PortVlans = PortVlans {
        pvid: None,
        untagged: VlanSet::EMPTY,
        tagged: VlanSet::EMPTY,
    };

    /// Untagged frames belong to `native`; `native` is removed from `tagged`.
    pub fn new(native: VlanId, tagged: VlanSet) -> PortVlans {
        let untagged = VlanSet::of(native);
        PortVlans {
            pvid: Some(native),
            untagged,
            tagged: tagged.difference(untagged),
        }
    }

    pub fn all(&self) -> VlanSet {
        self.untagged.union(self.tagged)
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
            .fold(VlanSet::EMPTY, VlanSet::union)
    }

    #[test]
    fn reserved_numbers_are_rejected() {
        for (number, is_vlan) in [(0, false), (1, true), (4094, true), (4095, false)] {
            assert_eq!(VlanId::new(number).is_some(), is_vlan, "{number}");
        }
    }

    #[test]
    fn consecutive_vlans_are_displayed_as_a_range() {
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
    fn union_and_difference() {
        let (some, others) = (set(60..=70), set([64, 4000]));
        assert_eq!(some.union(others).to_string(), "60-70,4000");
        assert_eq!(some.difference(others).to_string(), "60-63,65-70");
        assert!(some.difference(some).is_empty() && !some.is_empty());
        let vlan = |number| VlanId::new(number).unwrap();
        assert_eq!(VlanSet::span(vlan(60), vlan(70)), some);
        assert!(VlanSet::span(vlan(70), vlan(60)).is_empty());
    }

    #[test]
    fn the_native_vlan_is_untagged() {
        let vlans = PortVlans::new(VlanId::DEFAULT, set([1, 2]));
        assert_eq!(vlans.tagged, set([2]));
        assert_eq!(vlans.all(), set([1, 2]));
    }
}
