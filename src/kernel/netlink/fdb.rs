//! The forwarding databases of bridges: which MAC address is behind which port.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::connection::Netlink;
use super::error::NetlinkError;
use crate::net::Mac;

impl Netlink {
    /// The dynamic entries: MAC addresses of received frames, each with the index of the port. By default a bridge
    /// removes an entry five minutes after the last frame.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn fdb(&self) -> Result<Vec<(u32, Mac)>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let entries = self.dump(&message)?;
        Ok(entries.iter().filter_map(dynamic_entry).collect())
    }

    /// The index of the port to which a bridge assigns a MAC address; the bridge's own for its own MAC address, unless
    /// a port has the same one.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the bridge has no such entry, [`NetlinkError::Unsupported`] before kernel 5.0.
    pub fn fdb_entry(&self, bridge: u32, mac: Mac) -> Result<u32, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()),
            NeighbourAttribute::Controller(bridge),
        ];
        Ok(self.fetch(&message)?.header.ifindex)
    }
}

/// The port and the address of a dynamic entry: a port's own address and multicast groups are permanent.
fn dynamic_entry(entry: &NeighbourMessage) -> Option<(u32, Mac)> {
    if entry.header.state == NeighbourState::Permanent {
        return None;
    }
    let mac = entry.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(&mac[..]).ok(),
        _ => None,
    });
    Some((entry.header.ifindex, Mac::from_bytes(mac?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_learned_mac_addresses_are_listed() {
        let mut entry = NeighbourMessage::default();
        entry.header.ifindex = 3;
        entry.header.state = NeighbourState::Reachable;
        assert_eq!(dynamic_entry(&entry), None);
        let mac = [2, 0, 0, 0, 0, 1];
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        assert_eq!(dynamic_entry(&entry), Some((3, Mac::from_bytes(mac))));
        entry.header.state = NeighbourState::Permanent;
        assert_eq!(dynamic_entry(&entry), None);
    }
}
