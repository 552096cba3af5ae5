//! Network address translation, by iptables or nftables.

/// The source port of a translated connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortAllocation {
    /// The original port, unless it is in use.
    #[default]
    Preserve,
    /// A random port (NF_NAT_RANGE_PROTO_RANDOM_FULLY).
    Random,
}
