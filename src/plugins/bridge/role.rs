//! The keys `isGateway` and `isDefaultGateway`.

/// What the bridge is for its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// A switch only.
    None,
    /// It has the gateway's address (`isGateway`).
    Address,
    /// And containers have a default route to it (`isDefaultGateway`).
    DefaultRoute,
}
