//! The forwarding databases of bridges: which MAC address is behind which port.

use super::message::{Message, Verb};
use super::{Netlink, NetlinkError};
use crate::host::attribute::{Attributes, find, native};
use crate::net::Mac;

/// The length of what stands before the attributes (struct ndmsg, linux/neighbour.h), in bytes.
const HEADER: usize = 12;

/// The family of a bridge's forwarding database (AF_BRIDGE, linux/socket.h).
const AF_BRIDGE: u8 = 7;

/// The MAC address of an entry, and its bridge (linux/neighbour.h).
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;

/// Set in the state of what was not learned but put there: a port's own address, multicast groups (linux/neighbour.h).
const NUD_PERMANENT: u8 = 0x80;

impl Netlink {
    /// The MAC addresses from which bridges got frames, each with the index of the port, for as long as they remember:
    /// five minutes by default.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn learned(&self) -> Result<Vec<(u32, Mac)>, NetlinkError> {
        let mut header = [0; HEADER];
        header[0] = AF_BRIDGE;
        let request = || Message::new(Verb::GetNeighbour, &header, &Attributes::default());
        let answers = self.dump(request)?;
        Ok(answers.iter().filter_map(|bytes| read(bytes)).collect())
    }

    /// The index of the port to which a bridge assigns a MAC address; the bridge's own for its own MAC address, unless a
    /// port has the same one.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the bridge has no such entry, [`NetlinkError::Unsupported`] before kernel 5.0.
    pub fn fdb_entry(&self, bridge: u32, mac: Mac) -> Result<u32, NetlinkError> {
        let mut header = [0; HEADER];
        header[0] = AF_BRIDGE;
        let wanted = Attributes::default().bytes(NDA_LLADDR, &mac.bytes());
        let wanted = wanted.native(NDA_MASTER, bridge);
        let answer = self.fetch(Message::new(Verb::GetNeighbour, &header, &wanted))?;
        let index = answer.as_deref().and_then(|bytes| bytes.get(4..8));
        index.and_then(native).ok_or(NetlinkError::Unreadable)
    }
}

/// The port and the address of a learned entry.
fn read(bytes: &[u8]) -> Option<(u32, Mac)> {
    let (header, attributes) = bytes.split_at_checked(HEADER)?;
    if header[8] & NUD_PERMANENT != 0 {
        return None;
    }
    let mac = <[u8; 6]>::try_from(find(attributes, NDA_LLADDR)?).ok()?;
    Some((native(&header[4..8])?, Mac::from_bytes(mac)))
}
