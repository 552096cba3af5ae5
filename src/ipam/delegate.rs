//! Addresses from another IPAM plugin.

use crate::cni::names::Attachment;
use crate::cni::result::AddResult;
use crate::delegate::Delegate;
use crate::error::Error;
use crate::ipam::Lease;

/// Runs ADD, and DEL if the result is invalid.
///
/// # Errors
/// See [`Delegate::add`]; 999 if the result has no address.
pub fn reserve(plugin: &Delegate, attachment: &Attachment) -> Result<Lease, Error> {
    plugin.add(attachment, lease)
}

/// # Errors
/// Code 999 if the result has no address.
pub fn lease(result: AddResult) -> Result<Lease, Error> {
    if result.ips.is_empty() {
        return Err(Error::failed("its result has no address"));
    }
    let mut ips = result.ips;
    for ip in &mut ips {
        // An IPAM plugin does not know the interfaces.
        ip.interface = None;
    }
    Ok(Lease {
        ips,
        routes: result.routes,
        dns: result.dns,
    })
}
