//! VLANs of bridge ports (bridge(8), "bridge vlan").

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use nix::libc::{RTM_DELLINK, RTM_SETLINK};

use super::connection::Netlink;
use super::error::NetlinkError;
use crate::net::{PortVlans, VlanId, VlanSet};

impl Netlink {
    /// Adds VLANs to a port in one request; the others that it has stay.
    ///
    /// # Errors
    /// When there is no such port, or the kernel has no VLAN filtering.
    pub fn join_vlans(&self, port: u32, vlans: &PortVlans) -> Result<(), NetlinkError> {
        let vlans = LinkAttribute::AfSpecBridge(entries(vlans));
        self.change(RTM_SETLINK, &message(port, vlans), 0)
    }

    /// Removes a VLAN from a port.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the port does not have it, or there is no such port.
    pub fn leave_vlan(&self, port: u32, vlan: VlanId) -> Result<(), NetlinkError> {
        let vlan = LinkAttribute::AfSpecBridge(vec![entry(vlan, BridgeVlanInfoFlags::empty())]);
        self.change(RTM_DELLINK, &message(port, vlan), 0)
    }

    /// The VLANs of a port. The kernel lists those of all ports only.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn port_vlans(&self, port: u32) -> Result<PortVlans, NetlinkError> {
        let ranges = LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]);
        let mut vlans = PortVlans::NONE;
        for answer in self.dump(&message(0, ranges))? {
            if answer.header.index == port {
                read(&answer, &mut vlans);
            }
        }
        Ok(vlans)
    }
}

fn message(port: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    message.attributes.push(attribute);
    message
}

/// The VLANs of a port, consecutive ones as a range.
fn entries(vlans: &PortVlans) -> Vec<AfSpecBridge> {
    let mut entries = Vec::new();
    for (set, flags) in [
        (vlans.untagged, BridgeVlanInfoFlags::Untagged),
        (vlans.tagged, BridgeVlanInfoFlags::empty()),
    ] {
        for (first, last) in set.ranges() {
            if first != last {
                entries.push(entry(first, flags | BridgeVlanInfoFlags::RangeBegin));
                entries.push(entry(last, flags | BridgeVlanInfoFlags::RangeEnd));
            } else if vlans.pvid == Some(first) {
                entries.push(entry(first, flags | BridgeVlanInfoFlags::Pvid));
            } else {
                entries.push(entry(first, flags));
            }
        }
    }
    entries
}

fn entry(vlan: VlanId, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
    let vid = vlan.number();
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

/// Adds the VLANs in a message to `vlans`.
fn read(message: &LinkMessage, vlans: &mut PortVlans) {
    let entries = message.attributes.iter().filter_map(|it| match it {
        LinkAttribute::AfSpecBridge(entries) => Some(entries),
        _ => None,
    });
    let mut begin = None;
    for entry in entries.flatten() {
        let AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) = entry else {
            continue;
        };
        let Some(vlan) = VlanId::new(*vid) else {
            continue;
        };
        if flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(vlan);
            continue;
        }
        let first = begin.take().unwrap_or(vlan);
        let set = match flags.contains(BridgeVlanInfoFlags::Untagged) {
            true => &mut vlans.untagged,
            false => &mut vlans.tagged,
        };
        *set = set.union(VlanSet::span(first, vlan));
        if flags.contains(BridgeVlanInfoFlags::Pvid) {
            vlans.pvid = Some(vlan);
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};

    use super::super::message::Message;
    use super::*;

    fn vlans(native: u16, tagged: &[u16]) -> PortVlans {
        let vlan = |number: u16| VlanId::new(number).unwrap();
        let tagged = tagged.iter().map(|number| VlanSet::of(vlan(*number)));
        PortVlans::new(vlan(native), tagged.fold(VlanSet::EMPTY, VlanSet::union))
    }

    /// What the kernel and this module make of the entries of a port.
    fn decoded(entries: Vec<AfSpecBridge>) -> PortVlans {
        let message = message(3, LinkAttribute::AfSpecBridge(entries));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let message = LinkMessage::decode(&bytes).unwrap();
        assert_eq!(message.header.index, 3);
        let mut vlans = PortVlans::NONE;
        read(&message, &mut vlans);
        vlans
    }

    #[test]
    fn all_vlans_of_a_port_are_one_message_with_ranges() {
        let flags = [
            BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            BridgeVlanInfoFlags::RangeBegin,
            BridgeVlanInfoFlags::RangeEnd,
            BridgeVlanInfoFlags::empty(),
        ];
        let expected = [100, 3, 5, 9].into_iter().zip(flags);
        let expected: Vec<AfSpecBridge> = expected
            .map(|(vid, flags)| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }))
            .collect();
        assert_eq!(entries(&vlans(100, &[3, 4, 5, 9])), expected);
    }

    #[test]
    fn encoded_vlans_are_decoded_to_the_same() {
        for wanted in [
            PortVlans::NONE,
            vlans(1, &[]),
            vlans(1, &[2, 3, 4094]),
            vlans(5, &(6..=4094).collect::<Vec<u16>>()),
        ] {
            assert_eq!(decoded(entries(&wanted)), wanted);
        }
    }

    #[test]
    fn other_attributes_and_invalid_vlans_are_skipped() {
        let vlan = VlanId::new(7).unwrap();
        let invalid = BridgeVlanInfo {
            flags: BridgeVlanInfoFlags::empty(),
            vid: 4095,
        };
        let entries = vec![
            AfSpecBridge::Other(DefaultNla::new(6, vec![1, 2, 3])),
            AfSpecBridge::VlanInfo(invalid),
            entry(vlan, BridgeVlanInfoFlags::empty()),
        ];
        assert_eq!(decoded(entries).tagged, VlanSet::of(vlan));
    }
}
