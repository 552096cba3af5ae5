//! Links: interfaces, bridges and their ports.

use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State, Stats64,
};

use super::message::Message;
use crate::net::{Mac, VlanId};

/// The kind of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Bridge,
    Veth,
    /// IFLA_INFO_KIND; "device" for hardware and loopback, which have none.
    Other(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Bridge => "bridge",
            Kind::Veth => "veth",
            Kind::Other(kind) => kind,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Empty if the link has none.
    pub alias: String,
    pub kind: Kind,
    /// `None` if the link has no address of six bytes.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// IFF_UP.
    pub is_up: bool,
    /// Whether the operational state is up.
    pub is_running: bool,
    /// IFF_PROMISC, which a packet capture does not set.
    pub is_promiscuous: bool,
    /// IFF_ALLMULTI.
    pub receives_all_multicast: bool,
    /// In packets.
    pub tx_queue_length: u32,
    /// The index of the bridge of which the link is a port.
    pub master: Option<u32>,
    /// The index of the other end of a veth pair, in the network namespace of that end.
    pub peer: Option<u32>,
    pub filtering: VlanFiltering,
    /// `None` if the link is not a bridge port.
    pub port: Option<PortFlags>,
    /// If counters were requested.
    pub traffic: Option<Traffic>,
}

/// A setting of a link that can be changed while the link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSetting {
    Mac(Mac),
    /// IFF_PROMISC.
    Promiscuous(bool),
    /// In bytes.
    Mtu(u32),
    /// IFF_ALLMULTI.
    AllMulticast(bool),
    /// In packets.
    TxQueueLength(u32),
}

impl std::fmt::Display for LinkSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let switch = |enabled: &bool| if *enabled { "on" } else { "off" };
        match self {
            LinkSetting::Mac(mac) => write!(f, "MAC address {mac}"),
            LinkSetting::Promiscuous(enabled) => write!(f, "promiscuous mode {}", switch(enabled)),
            LinkSetting::Mtu(mtu) => write!(f, "MTU {mtu}"),
            LinkSetting::AllMulticast(enabled) => write!(f, "all-multicast {}", switch(enabled)),
            LinkSetting::TxQueueLength(length) => write!(f, "transmit queue length {length}"),
        }
    }
}

/// The counters of a link since it was created, received before sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received and sent.
    pub packets: [u64; 2],
    /// Bytes received and sent.
    pub bytes: [u64; 2],
    /// Packets dropped while receiving and sending.
    pub dropped: [u64; 2],
}

impl From<Stats64> for Traffic {
    fn from(stats: Stats64) -> Traffic {
        Traffic {
            packets: [stats.rx_packets, stats.tx_packets],
            bytes: [stats.rx_bytes, stats.tx_bytes],
            dropped: [stats.rx_dropped, stats.tx_dropped],
        }
    }
}

/// Flags of a bridge port (bridge(8), "bridge link set").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Frames may be sent to the port from which they were received.
    pub hairpin: bool,
    /// No frames are forwarded between isolated ports.
    pub isolated: bool,
}

impl PortFlags {
    /// Whether a port with these flags is as desired. Plugins that follow in the chain may isolate it.
    pub fn satisfy(self, desired: PortFlags) -> bool {
        self.hairpin == desired.hairpin && self.isolated >= desired.isolated
    }

    fn of(port: &[InfoBridgePort]) -> PortFlags {
        PortFlags {
            hairpin: port.contains(&InfoBridgePort::HairpinMode(true)),
            isolated: port.contains(&InfoBridgePort::Isolated(true)),
        }
    }
}

/// The VLAN filtering of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanFiltering {
    /// The kernel is built without CONFIG_BRIDGE_VLAN_FILTERING. Also for links that are not bridges.
    Unsupported,
    /// The bridge ignores VLAN tags.
    Off,
    /// The bridge filters by VLAN.
    On {
        /// The VLAN of new ports.
        default_pvid: Option<VlanId>,
    },
}

impl VlanFiltering {
    /// Every kernel sends IFLA_BR_VLAN_FILTERING; only those with VLAN filtering send IFLA_BR_VLAN_DEFAULT_PVID
    /// (`br_fill_info`, net/bridge/br_netlink.c).
    fn of(bridge: &[InfoBridge]) -> VlanFiltering {
        let default_pvid = bridge.iter().find_map(|attribute| match attribute {
            InfoBridge::VlanDefaultPvid(vlan) => Some(VlanId::new(*vlan)),
            _ => None,
        });
        match default_pvid {
            None => VlanFiltering::Unsupported,
            Some(default_pvid) if bridge.contains(&InfoBridge::VlanFiltering(true)) => {
                VlanFiltering::On { default_pvid }
            }
            Some(_) => VlanFiltering::Off,
        }
    }
}

impl Link {
    /// Name and alias; the alias of a host end names its attachment.
    pub fn display_name(&self) -> String {
        match self.alias.as_str() {
            "" => self.name.clone(),
            alias => format!("{} ({alias})", self.name),
        }
    }

    /// The current value of the same setting; `None` if the link has no address of six bytes.
    pub fn current(&self, setting: LinkSetting) -> Option<LinkSetting> {
        Some(match setting {
            LinkSetting::Mac(_) => LinkSetting::Mac(self.mac?),
            LinkSetting::Promiscuous(_) => LinkSetting::Promiscuous(self.is_promiscuous),
            LinkSetting::Mtu(_) => LinkSetting::Mtu(self.mtu),
            LinkSetting::AllMulticast(_) => LinkSetting::AllMulticast(self.receives_all_multicast),
            LinkSetting::TxQueueLength(_) => LinkSetting::TxQueueLength(self.tx_queue_length),
        })
    }

    /// Decodes an RTM_NEWLINK message without its netlink header; `None` when it is truncated.
    pub fn parse(bytes: &[u8]) -> Option<Link> {
        LinkMessage::decode(bytes).map(Link::from)
    }

    fn read_info(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => self.kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => self.kind = Kind::Veth,
            LinkInfo::Kind(kind) => self.kind = Kind::Other(kind.to_string()),
            LinkInfo::Data(InfoData::Bridge(bridge)) => self.filtering = VlanFiltering::of(&bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                self.port = Some(PortFlags::of(&port));
            }
            _ => {}
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            kind: Kind::Other("device".to_owned()),
            mac: None,
            mtu: 0,
            is_up: flags.contains(LinkFlags::Up),
            is_running: false,
            is_promiscuous: flags.contains(LinkFlags::Promisc),
            receives_all_multicast: flags.contains(LinkFlags::Allmulti),
            tx_queue_length: 0,
            master: None,
            peer: None,
            filtering: VlanFiltering::Unsupported,
            port: None,
            traffic: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_length = length,
                LinkAttribute::Address(mac) => {
                    link.mac = <[u8; 6]>::try_from(mac).ok().map(Mac::from_bytes);
                }
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::Controller(index) => link.master = (index != 0).then_some(index),
                LinkAttribute::Link(index) => link.peer = (index != 0).then_some(index),
                LinkAttribute::Stats64(stats) => link.traffic = Some(stats.into()),
                LinkAttribute::LinkInfo(infos) => {
                    infos.into_iter().for_each(|info| link.read_info(info));
                }
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};
    use netlink_packet_route::link::InfoPortKind;
    use nix::libc::{IFLA_IFNAME, IFLA_MTU};

    use super::*;

    fn parse(attributes: Vec<LinkAttribute>) -> Link {
        Link::parse(&bytes(attributes)).unwrap()
    }

    fn bytes(attributes: Vec<LinkAttribute>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn bridge_port() -> Vec<LinkAttribute> {
        let port = vec![
            InfoBridgePort::HairpinMode(true),
            InfoBridgePort::Isolated(false),
        ];
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ];
        vec![
            LinkAttribute::IfName("veth1".to_owned()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(2),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::OperState(State::Up),
            LinkAttribute::LinkInfo(info),
        ]
    }

    #[test]
    fn a_bridge_port_is_decoded() {
        let link = parse(bridge_port());
        assert_eq!((link.index, link.mtu), (7, 1400));
        assert_eq!((link.master, link.peer), (Some(3), Some(2)));
        assert_eq!((&*link.name, link.kind), ("veth1", Kind::Veth));
        assert!(link.is_running && !link.is_up);
        let (hairpin, isolated) = (true, false);
        assert_eq!(link.port, Some(PortFlags { hairpin, isolated }));
    }

    #[test]
    fn a_bridge_reports_vlan_filtering_if_its_kernel_supports_it() {
        let filtering = |bridge: Vec<InfoBridge>| {
            let bridge = LinkInfo::Data(InfoData::Bridge(bridge));
            let info = vec![LinkInfo::Kind(InfoKind::Bridge), bridge];
            let link = parse(vec![LinkAttribute::LinkInfo(info)]);
            assert_eq!(link.kind, Kind::Bridge);
            link.filtering
        };
        let on = InfoBridge::VlanFiltering;
        let pvid = InfoBridge::VlanDefaultPvid;
        assert_eq!(filtering(vec![]), VlanFiltering::Unsupported);
        assert_eq!(filtering(vec![on(false)]), VlanFiltering::Unsupported);
        assert_eq!(filtering(vec![on(false), pvid(1)]), VlanFiltering::Off);
        let default_pvid = VlanId::new(1);
        let is_on = VlanFiltering::On { default_pvid };
        assert_eq!(filtering(vec![on(true), pvid(1)]), is_on);
        let default_pvid = None;
        let is_on = VlanFiltering::On { default_pvid };
        assert_eq!(filtering(vec![on(true), pvid(0)]), is_on);
        assert_eq!(parse(vec![]).filtering, VlanFiltering::Unsupported);
    }

    #[test]
    fn attributes_that_cannot_be_decoded_are_skipped() {
        let raw = |kind, value: &[u8]| DefaultNla::new(kind, value.to_vec());
        // IFLA_BR_FORWARD_DELAY, IFLA_BR_MULTI_BOOLOPT and IFLA_BR_MCAST_QUERIER_STATE with values of other lengths.
        let bridge = [(1, &[1][..]), (46, &[1, 2]), (47, &[1, 2, 3])];
        let bridge = bridge.map(|(kind, value)| InfoBridge::Other(raw(kind, value)));
        let mut bridge = bridge.to_vec();
        bridge.push(InfoBridge::VlanDefaultPvid(1));
        // The value of IFLA_INFO_DATA of an unknown kind of interface.
        let unknown = vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Other(vec![1, 2, 3, 4, 5])),
        ];
        for (info, kind, filtering) in [
            (
                vec![
                    LinkInfo::Kind(InfoKind::Bridge),
                    LinkInfo::Data(InfoData::Bridge(bridge)),
                ],
                Kind::Bridge,
                VlanFiltering::Off,
            ),
            (
                unknown,
                Kind::Other("vxlan".to_owned()),
                VlanFiltering::Unsupported,
            ),
        ] {
            let link = parse(vec![
                LinkAttribute::Other(raw(IFLA_IFNAME, b"br\xff\0")),
                LinkAttribute::Other(raw(IFLA_MTU, &[1, 2])),
                LinkAttribute::LinkInfo(info),
                LinkAttribute::Controller(3),
            ]);
            assert_eq!((&*link.name, link.mtu), ("br\u{fffd}", 0));
            assert_eq!((link.kind, link.filtering), (kind, filtering));
            assert_eq!(link.master, Some(3));
        }
    }

    #[test]
    fn a_truncated_link_is_decoded_up_to_the_end_or_refused() {
        let bytes = bytes(bridge_port());
        for length in 0..bytes.len() {
            let link = Link::parse(&bytes[..length]);
            assert_eq!(link.is_some(), length >= 16, "{length} bytes");
            assert!(link.is_none_or(|link| link.index == 7 && link.port.is_none()));
        }
    }
}
