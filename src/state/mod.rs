//! Desired and observed state of a bridge and its ports.
//!
//! CHECK, `reconcile`, `doctor` and `status` share this comparison: CHECK reports the first difference, `reconcile` and
//! `doctor --fix` repair those that an ADD would repair, `status` shows them.

use std::fmt;

use crate::kernel::netlink::{Kind, Link, PortFlags, VlanFiltering};
use crate::net::Cidr;

/// The bridge that a configuration requires.
#[derive(Clone, Copy, Debug, Default)]
pub struct DesiredBridge {
    pub promiscuous: bool,
    pub filters_vlans: bool,
}

/// A difference between a bridge and its desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeDifference {
    Missing,
    /// An interface of another kind has its name.
    OtherKind(Kind),
    Down,
    NotPromiscuous,
    VlanFilteringDisabled,
}

impl DesiredBridge {
    /// The differences of the interface with the bridge's name.
    pub fn differences(&self, observed: Option<&Link>) -> Vec<BridgeDifference> {
        let Some(bridge) = observed else {
            return vec![BridgeDifference::Missing];
        };
        if bridge.kind != Kind::Bridge {
            return vec![BridgeDifference::OtherKind(bridge.kind.clone())];
        }
        let filters_vlans = matches!(bridge.filtering, VlanFiltering::On { .. });
        let differences = [
            (!bridge.is_up, BridgeDifference::Down),
            (
                self.promiscuous && !bridge.is_promiscuous,
                BridgeDifference::NotPromiscuous,
            ),
            (
                self.filters_vlans && !filters_vlans,
                BridgeDifference::VlanFilteringDisabled,
            ),
        ];
        only_true(differences)
    }
}

/// The desired addresses that an interface does not have.
pub fn missing_addresses(desired: &[Cidr], observed: &[Cidr]) -> Vec<Cidr> {
    let is_missing = |address: &&Cidr| !observed.contains(address);
    desired.iter().filter(is_missing).copied().collect()
}

/// A difference between the host end of a veth pair and a port of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortDifference {
    /// Not a port of the bridge.
    Detached,
    Down,
    /// The flags differ from these.
    Flags(PortFlags),
}

/// The differences of a port; `desired` is `None` if any flags are accepted.
pub fn port_differences(
    port: &Link,
    bridge: Option<&Link>,
    desired: Option<PortFlags>,
) -> Vec<PortDifference> {
    let is_attached = port.master.is_some() && port.master == bridge.map(|bridge| bridge.index);
    let flags = desired.unwrap_or_default();
    let has_flags = desired.is_none() || port.port.is_some_and(|it| it.satisfy(flags));
    only_true([
        (!is_attached, PortDifference::Detached),
        (!port.is_up, PortDifference::Down),
        (is_attached && !has_flags, PortDifference::Flags(flags)),
    ])
}

fn only_true<T, const N: usize>(differences: [(bool, T); N]) -> Vec<T> {
    let found = differences.into_iter().filter(|(differs, _)| *differs);
    found.map(|(_, difference)| difference).collect()
}

impl fmt::Display for BridgeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BridgeDifference::Missing => f.write_str("is missing"),
            BridgeDifference::OtherKind(kind) => write!(f, "is not a bridge but a {kind}"),
            BridgeDifference::Down => f.write_str("is down"),
            BridgeDifference::NotPromiscuous => {
                f.write_str("is not promiscuous, though promiscMode is set")
            }
            BridgeDifference::VlanFilteringDisabled => f.write_str("has VLAN filtering disabled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Link {
        Link {
            index: 3,
            name: "cni0".to_owned(),
            alias: String::new(),
            kind: Kind::Bridge,
            mac: None,
            mtu: 1500,
            is_up: true,
            is_running: true,
            is_promiscuous: false,
            receives_all_multicast: false,
            tx_queue_length: 0,
            master: None,
            peer: None,
            filtering: VlanFiltering::Off,
            port: None,
            traffic: None,
        }
    }

    fn port() -> Link {
        Link {
            index: 4,
            kind: Kind::Veth,
            master: Some(3),
            port: Some(PortFlags::default()),
            ..bridge()
        }
    }

    #[test]
    fn a_bridge_as_desired_has_no_differences() {
        assert_eq!(DesiredBridge::default().differences(Some(&bridge())), []);
    }

    #[test]
    fn each_difference_of_a_bridge_is_found() {
        let desired = DesiredBridge {
            promiscuous: true,
            filters_vlans: true,
        };
        let missing = desired.differences(None);
        assert_eq!(missing, [BridgeDifference::Missing]);
        let veth = desired.differences(Some(&port()));
        assert_eq!(veth, [BridgeDifference::OtherKind(Kind::Veth)]);
        let down = Link {
            is_up: false,
            ..bridge()
        };
        assert_eq!(
            desired.differences(Some(&down)),
            [
                BridgeDifference::Down,
                BridgeDifference::NotPromiscuous,
                BridgeDifference::VlanFilteringDisabled
            ]
        );
    }

    #[test]
    fn each_difference_of_a_port_is_found() {
        let (bridge, hairpin) = (
            bridge(),
            PortFlags {
                hairpin: true,
                isolated: false,
            },
        );
        let of = |port: &Link, flags| port_differences(port, Some(&bridge), flags);
        assert_eq!(of(&port(), Some(PortFlags::default())), []);
        assert_eq!(of(&port(), Some(hairpin)), [PortDifference::Flags(hairpin)]);
        assert_eq!(of(&port(), None), []);
        let detached = Link {
            master: None,
            is_up: false,
            ..port()
        };
        let both = [PortDifference::Detached, PortDifference::Down];
        assert_eq!(of(&detached, Some(hairpin)), both);
        assert_eq!(
            port_differences(&port(), None, None),
            [PortDifference::Detached]
        );
    }
}
