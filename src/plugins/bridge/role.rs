//! The keys `isGateway` and `isDefaultGateway`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// The bridge has no gateway address.
    None,
    /// The bridge has the gateway address (`isGateway`).
    Address,
    /// In addition, containers get a default route through it (`isDefaultGateway`).
    DefaultRoute,
}
