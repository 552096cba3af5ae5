//! The MTU of the way out of the node, for `mtu` "auto".

use crate::error::Error;
use crate::kernel::netlink::Netlink;
use crate::plugins::bridge::config::{BridgeConfig, MTUS, Mtu};
use crate::plugins::bridge::links::failed;

/// The MTU for a network's links: where the uplink's is asked for, that, now. Without an uplink it is that of the bridge,
/// and without a bridge the kernel's default.
///
/// # Errors
/// When the kernel refuses to tell.
pub(super) fn settle(host: &Netlink, config: &BridgeConfig) -> Result<Mtu, Error> {
    if config.mtu != Mtu::Uplink {
        return Ok(config.mtu);
    }
    let found = host.uplink_mtu().map_err(|cause| {
        Error::failed(format!("cannot find the MTU of the uplink: {cause}"))
            .details("mtu is \"auto\"; a number needs no uplink")
    })?;
    let name = &config.bridge;
    let found = match found {
        Some(mtu) => Some(mtu),
        None => {
            let bridge = host.link(name);
            let bridge = bridge.map_err(|cause| failed("look up bridge", name, cause))?;
            bridge.map(|bridge| bridge.mtu)
        }
    };
    let within = |mtu: u32| Mtu::Bytes(mtu.clamp(*MTUS.start(), *MTUS.end()));
    Ok(found.map_or(Mtu::Kernel, within))
}
