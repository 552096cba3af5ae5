//! The key `mtu`.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::kernel::netlink::Netlink;

/// The MTU of a network's links: a number or `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// The kernel's default: 1500. Numbers below 1 mean "not set", as in the Go plugin.
    #[default]
    Kernel,
    Bytes(u32),
    /// That of the node's uplink (`"auto"`), looked up when the link is created.
    Uplink,
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mtu, D::Error> {
        deserializer.deserialize_any(MtuVisitor)
    }
}

struct MtuVisitor;

impl Visitor<'_> for MtuVisitor {
    type Value = Mtu;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or \"auto\"")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Mtu, E> {
        if number <= 0 {
            return Ok(Mtu::Kernel);
        }
        let bytes = u32::try_from(number).ok();
        let bytes = bytes.filter(|bytes| MTUS.contains(bytes)).map(Mtu::Bytes);
        let wanted = || format!("{} to {}", MTUS.start(), MTUS.end());
        bytes.ok_or_else(|| E::custom(wanted()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Mtu, E> {
        match text {
            "auto" => Ok(Mtu::Uplink),
            _ => Err(E::custom("a number or \"auto\"")),
        }
    }
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Mtu::Kernel => serializer.serialize_none(),
            Mtu::Bytes(bytes) => serializer.serialize_u32(*bytes),
            Mtu::Uplink => serializer.serialize_str("auto"),
        }
    }
}

/// The smallest MTU of IPv4 (RFC 791) and the largest of a veth (`ETH_MAX_MTU`), in bytes.
pub const MTUS: RangeInclusive<u32> = 68..=65535;

impl Mtu {
    /// The MTU in bytes; `None` for the kernel's default. `"auto"` is that of the uplink now, without an uplink
    /// `fallback`.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn resolve(
        self,
        host: &Netlink,
        fallback: impl FnOnce() -> Result<Option<u32>, Error>,
    ) -> Result<Option<u32>, Error> {
        match self {
            Mtu::Kernel => return Ok(None),
            Mtu::Bytes(mtu) => return Ok(Some(mtu)),
            Mtu::Uplink => {}
        }
        let found = host.uplink_mtu().map_err(|cause| {
            Error::failed(format!("cannot find the MTU of the uplink: {cause}"))
                .details("mtu is \"auto\"; a number needs no uplink")
        })?;
        let found = found.map_or_else(fallback, |mtu| Ok(Some(mtu)))?;
        Ok(found.map(|mtu| mtu.clamp(*MTUS.start(), *MTUS.end())))
    }
}
