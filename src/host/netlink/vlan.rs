//! VLANs of a bridge and of its ports (bridge(8), "bridge vlan").

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags as Flags, LinkAttribute, LinkExtentMask,
    LinkMessage,
};

use super::link::HEADER;
use super::message::Message;
use super::{Netlink, NetlinkError};
use crate::host::attribute::{each, find, native, native_short};
use crate::net::{PortVlans, VlanId, VlanSet};

/// Attributes of a bridge and of its ports (linux/if_link.h, linux/if_bridge.h).
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;

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
        let request = about(port, entries(vlans));
        self.change(Message::SetLink(request), 0)
    }

    /// Takes a port out of a VLAN.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when it is not in that one, or there is no such port.
    pub fn leave_vlan(&self, port: u32, vlan: VlanId) -> Result<(), NetlinkError> {
        let left = LinkAttribute::AfSpecBridge(vec![entry(vlan, Flags::empty())]);
        self.change(Message::DelLink(about(port, left)), 0)
    }

    /// The VLANs of a port. The kernel tells those of all ports or of none.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn port_vlans(&self, port: u32) -> Result<PortVlans, NetlinkError> {
        let request = || {
            let wanted = LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]);
            Message::GetLink(about(0, wanted))
        };
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

fn about(port: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    message.attributes = vec![attribute];
    message
}

/// The VLANs of a port, those that follow each other as a range.
fn entries(vlans: &PortVlans) -> LinkAttribute {
    let mut entries = Vec::new();
    for (set, flags) in [
        (vlans.untagged, Flags::Untagged),
        (vlans.tagged, Flags::empty()),
    ] {
        for (first, last) in set.ranges() {
            if first == last {
                let is_pvid = vlans.pvid == Some(first);
                let pvid = if is_pvid { Flags::Pvid } else { Flags::empty() };
                entries.push(entry(first, flags | pvid));
            } else {
                entries.push(entry(first, flags | Flags::RangeBegin));
                entries.push(entry(last, flags | Flags::RangeEnd));
            }
        }
    }
    LinkAttribute::AfSpecBridge(entries)
}

fn entry(vlan: VlanId, flags: Flags) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo {
        flags,
        vid: vlan.number(),
    })
}

/// Adds the VLANs that the kernel tells of a port.
fn read(attributes: &[u8], vlans: &mut PortVlans) {
    let mut begun = None;
    for (kind, value) in each(find(attributes, IFLA_AF_SPEC).unwrap_or(&[])) {
        // struct bridge_vlan_info: flags and number, two bytes each.
        let info = (kind == IFLA_BRIDGE_VLAN_INFO).then(|| value.split_at_checked(2));
        let Some((flags, vid)) = info.flatten() else {
            continue;
        };
        let flags = Flags::from_bits_retain(native_short(flags).unwrap_or(0));
        let Some(vlan) = native_short(vid).and_then(VlanId::new) else {
            continue;
        };
        if flags.contains(Flags::RangeBegin) {
            begun = Some(vlan);
            continue;
        }
        let first = begun.take().unwrap_or(vlan);
        let set = match flags.contains(Flags::Untagged) {
            true => &mut vlans.untagged,
            false => &mut vlans.tagged,
        };
        *set = set.or(VlanSet::span(first, vlan));
        if flags.contains(Flags::Pvid) {
            vlans.pvid = Some(vlan);
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable;

    use super::*;
    use crate::host::attribute::Attributes;

    fn vlans(native: u16, tagged: &[u16]) -> PortVlans {
        let vlan = |number: u16| VlanId::new(number).unwrap();
        let tagged = tagged.iter().map(|number| VlanSet::of(vlan(*number)));
        PortVlans::new(vlan(native), tagged.fold(VlanSet::EMPTY, VlanSet::or))
    }

    #[test]
    fn all_vlans_of_a_port_are_one_message_with_ranges() {
        let message = about(7, entries(&vlans(100, &[3, 4, 5, 9])));
        assert_eq!(message.header.index, 7);
        assert_eq!(message.header.interface_family, AddressFamily::Bridge);
        let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        assert_eq!(
            message.attributes,
            [LinkAttribute::AfSpecBridge(vec![
                info(100, Flags::Pvid | Flags::Untagged),
                info(3, Flags::RangeBegin),
                info(5, Flags::RangeEnd),
                info(9, Flags::empty()),
            ])]
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
            let message = about(7, entries(&wanted));
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let mut read_again = PortVlans::NONE;
            read(&bytes[HEADER..], &mut read_again);
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
