//! VLANs of a bridge and of its ports (bridge(8), "bridge vlan").

use super::link::HEADER;
use super::links::{IFLA_EXT_MASK, header};
use super::message::{Message, Verb};
use super::{Netlink, NetlinkError};
use crate::host::attribute::{Attributes, each, find, native, native_short};
use crate::net::{PortVlans, VlanId, VlanSet};

/// Attributes of a bridge and of its ports (linux/if_link.h, linux/if_bridge.h).
const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const RTEXT_FILTER_BRVLAN_COMPRESSED: u32 = 4;

/// The family of messages about VLANs (AF_BRIDGE, linux/socket.h).
const AF_BRIDGE: u8 = 7;

/// Flags of a VLAN of a port (linux/if_bridge.h).
const PVID: u16 = 2;
const UNTAGGED: u16 = 4;
const RANGE_BEGIN: u16 = 8;
const RANGE_END: u16 = 16;

/// Whether a bridge keeps VLANs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// The kernel cannot: it is built without CONFIG_BRIDGE_VLAN_FILTERING. Also where the link is no bridge.
    Impossible,
    /// It could, but does not: tags mean nothing to it.
    Off,
    /// It does.
    On {
        /// The VLAN that it gives to every new port (default_pvid).
        given: Option<VlanId>,
    },
}

impl Filtering {
    /// From a bridge's attributes. All kernels tell vlan_filtering, but only those that know VLANs tell default_pvid
    /// (`br_fill_info`, net/bridge/br_netlink.c).
    pub(super) fn of(bridge: &[u8]) -> Filtering {
        let is_on = find(bridge, IFLA_BR_VLAN_FILTERING).is_some_and(|on| on != [0]);
        match find(bridge, IFLA_BR_VLAN_DEFAULT_PVID).and_then(native_short) {
            None => Filtering::Impossible,
            Some(_) if !is_on => Filtering::Off,
            Some(pvid) => Filtering::On {
                given: VlanId::new(pvid),
            },
        }
    }
}

impl Netlink {
    /// Puts a port into VLANs, all of them in one request; those it is in already stay.
    ///
    /// # Errors
    /// When there is no such port, or the kernel does not know VLANs.
    pub fn join_vlans(&self, port: u32, vlans: &PortVlans) -> Result<(), NetlinkError> {
        self.change(about(Verb::SetLink, port, entries(vlans)), 0)
    }

    /// Takes a port out of a VLAN.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when it is not in that one, or there is no such port.
    pub fn leave_vlan(&self, port: u32, vlan: VlanId) -> Result<(), NetlinkError> {
        let left = entry(Attributes::default(), vlan, 0);
        self.change(about(Verb::DelLink, port, left), 0)
    }

    /// The VLANs of a port. The kernel tells those of all ports or of none.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn port_vlans(&self, port: u32) -> Result<PortVlans, NetlinkError> {
        let wanted = Attributes::default().native(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN_COMPRESSED);
        let request = || Message::new(Verb::GetLink, &bridge_header(0), &wanted);
        let mut vlans = PortVlans::NONE;
        for answer in self.dump(request)? {
            let split = answer.split_at_checked(HEADER);
            let (header, attributes) = split.ok_or(NetlinkError::Unreadable)?;
            if native(&header[4..8]) == Some(port) {
                read(attributes, &mut vlans);
            }
        }
        Ok(vlans)
    }
}

fn bridge_header(port: u32) -> [u8; HEADER] {
    let mut header = header(port);
    header[0] = AF_BRIDGE;
    header
}

fn about(verb: Verb, port: u32, entries: Attributes) -> Message {
    let attributes = Attributes::default().nest(IFLA_AF_SPEC, entries);
    Message::new(verb, &bridge_header(port), &attributes)
}

/// The VLANs of a port, those that follow each other as a range.
fn entries(vlans: &PortVlans) -> Attributes {
    let mut entries = Attributes::default();
    for (set, flags) in [(vlans.untagged, UNTAGGED), (vlans.tagged, 0)] {
        for (first, last) in set.ranges() {
            if first == last {
                let is_pvid = vlans.pvid == Some(first);
                let pvid = if is_pvid { PVID } else { 0 };
                entries = entry(entries, first, flags | pvid);
            } else {
                entries = entry(entries, first, flags | RANGE_BEGIN);
                entries = entry(entries, last, flags | RANGE_END);
            }
        }
    }
    entries
}

/// struct bridge_vlan_info: flags and number.
fn entry(entries: Attributes, vlan: VlanId, flags: u16) -> Attributes {
    let info = [flags.to_ne_bytes(), vlan.number().to_ne_bytes()].concat();
    entries.bytes(IFLA_BRIDGE_VLAN_INFO, &info)
}

/// Adds the VLANs that the kernel tells of a port.
fn read(attributes: &[u8], vlans: &mut PortVlans) {
    let mut begun = None;
    for (kind, value) in each(find(attributes, IFLA_AF_SPEC).unwrap_or(&[])) {
        let info = (kind == IFLA_BRIDGE_VLAN_INFO).then(|| value.split_at_checked(2));
        let Some((flags, vid)) = info.flatten() else {
            continue;
        };
        let flags = native_short(flags).unwrap_or(0);
        let Some(vlan) = native_short(vid).and_then(VlanId::new) else {
            continue;
        };
        if flags & RANGE_BEGIN != 0 {
            begun = Some(vlan);
            continue;
        }
        let first = begun.take().unwrap_or(vlan);
        let set = match flags & UNTAGGED != 0 {
            true => &mut vlans.untagged,
            false => &mut vlans.tagged,
        };
        *set = set.or(VlanSet::span(first, vlan));
        if flags & PVID != 0 {
            vlans.pvid = Some(vlan);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlans(native: u16, tagged: &[u16]) -> PortVlans {
        let vlan = |number: u16| VlanId::new(number).unwrap();
        let tagged = tagged.iter().map(|number| VlanSet::of(vlan(*number)));
        PortVlans::new(vlan(native), tagged.fold(VlanSet::EMPTY, VlanSet::or))
    }

    #[test]
    fn all_vlans_of_a_port_are_one_message_with_ranges() {
        let entries = entries(&vlans(100, &[3, 4, 5, 9]));
        let info = |value: &[u8]| {
            [native_short(&value[..2]), native_short(&value[2..])].map(Option::unwrap)
        };
        let infos: Vec<[u16; 2]> = each(entries.as_bytes())
            .map(|(_, value)| info(value))
            .collect();
        assert_eq!(
            infos,
            [
                [PVID | UNTAGGED, 100],
                [RANGE_BEGIN, 3],
                [RANGE_END, 5],
                [0, 9]
            ]
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        for wanted in [
            PortVlans::NONE,
            vlans(1, &[]),
            vlans(1, &[2, 3, 4094]),
            vlans(5, &(6..=4094).collect::<Vec<u16>>()),
        ] {
            let attributes = Attributes::default().nest(IFLA_AF_SPEC, entries(&wanted));
            let mut read_again = PortVlans::NONE;
            read(attributes.as_bytes(), &mut read_again);
            assert_eq!(read_again, wanted);
        }
    }

    #[test]
    fn a_bridge_tells_whether_its_kernel_knows_vlans() {
        let on = |on: u8| Attributes::default().bytes(IFLA_BR_VLAN_FILTERING, &[on]);
        let pvid = |bridge: Attributes, pvid: u16| {
            bridge.bytes(IFLA_BR_VLAN_DEFAULT_PVID, &pvid.to_ne_bytes())
        };
        let filtering = |bridge: Attributes| Filtering::of(bridge.as_bytes());
        assert_eq!(filtering(on(0)), Filtering::Impossible);
        assert_eq!(filtering(pvid(on(0), 1)), Filtering::Off);
        let given = VlanId::new(1);
        assert_eq!(filtering(pvid(on(1), 1)), Filtering::On { given });
        let given = None;
        assert_eq!(filtering(pvid(on(1), 0)), Filtering::On { given });
        assert_eq!(Filtering::of(&[]), Filtering::Impossible);
    }
}
