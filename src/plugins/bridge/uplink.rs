//! The MTU of the node's uplink, for `"mtu": "auto"`.

use crate::error::Error;
use crate::kernel::netlink::Netlink;
use crate::link::Context;
use crate::plugins::bridge::config::{BridgeConfig, MTUS, Mtu};

/// The MTU of a network's links in bytes: with `"auto"` that of the uplink now, without an uplink that of the bridge, without
/// a bridge the kernel's default (`None`).
///
/// # Errors
/// If the kernel refuses a request.
pub(super) fn resolve_mtu(host: &Netlink, config: &BridgeConfig) -> Result<Option<u32>, Error> {
    match config.mtu {
        Mtu::Kernel => return Ok(None),
        Mtu::Bytes(mtu) => return Ok(Some(mtu)),
        Mtu::Uplink => {}
    }
    let found = host.uplink_mtu().map_err(|cause| {
        Error::failed(format!("cannot find the MTU of the uplink: {cause}"))
            .details("mtu is \"auto\"; a number needs no uplink")
    })?;
    let name = &config.bridge;
    let found = match found {
        Some(mtu) => Some(mtu),
        None => {
            let bridge = host.link(name).context("look up bridge", name)?;
            bridge.map(|bridge| bridge.mtu)
        }
    };
    Ok(found.map(|mtu| mtu.clamp(*MTUS.start(), *MTUS.end())))
}
