//! VLANs of a bridge and of its ports (bridge(8), "bridge vlan").

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags as Flags, InfoBridge, InfoData,
    LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};

use super::message::Message;
use super::{Netlink, NetlinkError};
use crate::net::{PortVlans, VlanId, VlanSet};

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
    pub(super) fn of(infos: &[LinkInfo]) -> Filtering {
        let bridge = infos.iter().filter_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(attributes)) => Some(attributes),
            _ => None,
        });
        let (mut is_on, mut default_pvid) = (false, None);
        for attribute in bridge.flatten() {
            match attribute {
                InfoBridge::VlanFiltering(on) => is_on = *on,
                InfoBridge::VlanDefaultPvid(pvid) => default_pvid = Some(*pvid),
                _ => {}
            }
        }
        match default_pvid {
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
        let wanted = LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]);
        let request = about(0, wanted);
        let mut vlans = PortVlans::NONE;
        for answer in self.dump(Message::GetLink(request))? {
            let Message::NewLink(link) = answer else {
                continue;
            };
            if link.header.index == port {
                read(&link, &mut vlans);
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
fn read(link: &LinkMessage, vlans: &mut PortVlans) {
    let specs = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(specs) => Some(specs),
            _ => None,
        });
    let mut begun = None;
    for spec in specs.flatten() {
        let AfSpecBridge::VlanInfo(info) = spec else {
            continue;
        };
        let Some(vlan) = VlanId::new(info.vid) else {
            continue;
        };
        if info.flags.contains(Flags::RangeBegin) {
            begun = Some(vlan);
            continue;
        }
        let first = begun.take().unwrap_or(vlan);
        let set = match info.flags.contains(Flags::Untagged) {
            true => &mut vlans.untagged,
            false => &mut vlans.tagged,
        };
        *set = set.or(VlanSet::span(first, vlan));
        if info.flags.contains(Flags::Pvid) {
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
            let mut read_again = PortVlans::NONE;
            read(&about(7, entries(&wanted)), &mut read_again);
            assert_eq!(read_again, wanted);
        }
    }

    #[test]
    fn a_bridge_tells_whether_its_kernel_knows_vlans() {
        let filtering = |attributes: Vec<InfoBridge>| {
            Filtering::of(&[LinkInfo::Data(InfoData::Bridge(attributes))])
        };
        let (on, pvid) = (InfoBridge::VlanFiltering, InfoBridge::VlanDefaultPvid);
        assert_eq!(filtering(vec![on(false)]), Filtering::Impossible);
        assert_eq!(filtering(vec![on(false), pvid(1)]), Filtering::Off);
        let given = VlanId::new(1);
        assert_eq!(filtering(vec![on(true), pvid(1)]), Filtering::On { given });
        let given = None;
        assert_eq!(filtering(vec![on(true), pvid(0)]), Filtering::On { given });
        assert_eq!(Filtering::of(&[]), Filtering::Impossible);
    }
}
