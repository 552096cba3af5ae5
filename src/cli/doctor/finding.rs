//! A finding: its ID, severity, cause, evidence and remedy, and how `--fix` repairs it.

use serde::Serialize;

use crate::cni::names::{Attachment, NetworkName};
use crate::kernel::netlink::Link;
use crate::net::{Family, IfName};
use crate::netfilter::masquerade::MasqueradeEntry;
use crate::netfilter::portmap::inventory::{MappedPort, SharedRepair};
use crate::plugins::bridge::reconcile::Repair;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods do not work, or new pods will not.
    Error,
    /// Pods work, but resources are wasted or a later failure is likely.
    Warning,
}

/// Declares [`Id`] from a list of its variants, each with its name and its usual severity.
macro_rules! findings {
    ($($id:ident $name:literal $severity:ident,)*) => {
        /// The ID of a finding. Its name does not change between releases: scripts compare it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum Id {
            $(#[serde(rename = $name)] $id,)*
        }

        impl Id {
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Id::$id => $name,)*
                }
            }

            fn severity(self) -> Severity {
                match self {
                    $(Id::$id => Severity::$severity,)*
                }
            }
        }
    };
}

// A test compares this list with the table in .github/docs/operating.md.
findings! {
    AdvertisedRoute "advertised-route" Error,
    BandwidthLeftOver "bandwidth-left-over" Warning,
    BridgeAddress "bridge-address" Error,
    BridgeDown "bridge-down" Error,
    BridgeMac "bridge-mac" Warning,
    BridgeMissing "bridge-missing" Error,
    BridgeNetfilter "bridge-netfilter" Error,
    FirewallLeftOver "firewall-left-over" Warning,
    FirewallMissing "firewall-missing" Error,
    ForwardAcceptMissing "forward-accept-missing" Error,
    ForwardDrop "forward-drop" Error,
    ForwardingOff "forwarding-off" Error,
    GarbledLease "garbled-lease" Warning,
    GatewayAddress "gateway-address" Error,
    LinkWithoutLease "link-without-lease" Error,
    MacCheckMissing "mac-check-missing" Error,
    MasqueradeLeftOver "masquerade-left-over" Warning,
    MasqueradeMissing "masquerade-missing" Error,
    MtuDiffers "mtu-differs" Warning,
    MtuUplink "mtu-uplink" Warning,
    NotABridge "not-a-bridge" Error,
    NotSeen "not-seen" Error,
    OverlappingRanges "overlapping-ranges" Error,
    PluginCniVersion "plugin-cni-version" Error,
    PluginForeign "plugin-foreign" Warning,
    PluginMissing "plugin-missing" Error,
    PluginStatus "plugin-status" Error,
    PluginVersion "plugin-version" Warning,
    PodLinkDown "pod-link-down" Error,
    Port "port" Error,
    PortElsewhere "port-elsewhere" Error,
    PortFlags "port-flags" Warning,
    PortMappingLeftOver "port-mapping-left-over" Warning,
    PortMappingMissing "port-mapping-missing" Error,
    QuestionableKey "questionable-key" Warning,
    RangeFull "range-full" Error,
    RangeNearlyFull "range-nearly-full" Warning,
    RouteFromPod "route-from-pod" Error,
    RouterAdvertisements "router-advertisements" Error,
    SameName "same-name" Warning,
    SharedLeases "shared-leases" Warning,
    StaleLease "stale-lease" Error,
    TwoIptables "two-iptables" Warning,
    UnknownNetwork "unknown-network" Warning,
    UnusableConfiguration "unusable-configuration" Error,
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub id: Id,
    pub severity: Severity,
    /// What is wrong and why, in one line.
    pub cause: String,
    pub evidence: Vec<String>,
    pub remedy: String,
    /// Set if `--fix` can repair it without interrupting a pod.
    #[serde(skip)]
    pub fix: Option<Fix>,
}

/// A repair that interrupts no pod. A number is the index of a network in [`crate::cli::node::Node::networks`], unless
/// specified otherwise.
#[derive(Clone, Debug)]
pub enum Fix {
    /// Like a DEL without a namespace.
    Detach(usize, Attachment),
    /// Removes lease files that name no owner.
    RemoveInvalidLeases(usize),
    /// Removes these masquerade entries.
    RemoveMasquerade(NetworkName, Vec<MasqueradeEntry>),
    Reconcile(usize, Box<Repair>),
    /// Repeats the ADD of a plugin: the index of [`crate::cli::node::Node::differing_calls`].
    RestoreCall(usize),
    RestoreShared(SharedRepair),
    RemovePortMappings(Vec<MappedPort>),
    RemoveFirewall(NetworkName, Attachment),
    /// Deletes an ifb of bandwidth.
    RemoveIfb(Box<Link>),
    /// Removes the isolation rules of these bridges.
    RemoveIsolation(Vec<String>),
    EnableForwarding(Family),
    /// Sets `accept_ra` of an interface to 2: router advertisements are accepted although the host forwards.
    AcceptRouterAdvertisements(IfName),
}

impl Finding {
    /// A finding of the usual severity of its ID.
    pub fn new(id: Id, cause: impl Into<String>) -> Finding {
        Finding {
            id,
            severity: id.severity(),
            cause: cause.into(),
            evidence: Vec::new(),
            remedy: String::new(),
            fix: None,
        }
    }

    /// Lowers the severity to a warning.
    pub fn warning(mut self) -> Finding {
        self.severity = Severity::Warning;
        self
    }

    pub fn evidence(mut self, evidence: impl Into<String>) -> Finding {
        self.evidence.push(evidence.into());
        self
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }

    pub fn fix(mut self, fix: Fix) -> Finding {
        self.fix = Some(fix);
        self
    }
}
