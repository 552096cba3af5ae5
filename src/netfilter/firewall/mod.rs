//! Filter rules for the packets of containers that the host forwards.

pub mod inventory;
pub mod iptables;
pub mod rules;

use crate::net::IfName;

/// Which other bridges may send packets to the containers of a network (`ingressPolicy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    Open,
    /// Not bridges with a policy.
    SameBridge(IfName),
    /// Nor other containers on the bridge.
    Isolated(IfName),
}

impl Ingress {
    pub fn bridge(&self) -> Option<&IfName> {
        match self {
            Ingress::Open => None,
            Ingress::SameBridge(bridge) | Ingress::Isolated(bridge) => Some(bridge),
        }
    }
}
