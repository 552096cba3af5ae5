//! Kernel parameters of the calling thread's network namespace, under /proc/sys/net.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use crate::net::{Family, IfName};

/// A parameter of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Take router advertisements (net.ipv6.conf.*.accept_ra).
    AcceptRa,
    /// Detect duplicate addresses (net.ipv6.conf.*.accept_dad).
    AcceptDad,
    /// Send a nonce with the detection (net.ipv6.conf.*.enhanced_dad, RFC 7527).
    EnhancedDad,
    /// Whether IPv6 is off (net.ipv6.conf.*.disable_ipv6).
    DisableIpv6,
    /// Keep addresses while the link is down (net.ipv6.conf.*.keep_addr_on_down).
    KeepAddrOnDown,
    /// Announce addresses when the link comes up or changes its MAC (net.ipv4.conf.*.arp_notify).
    ArpNotify,
    /// The same for IPv6 neighbours (net.ipv6.conf.*.ndisc_notify).
    NdiscNotify,
}

impl Parameter {
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Parameter::AcceptRa => ("ipv6", "accept_ra"),
            Parameter::AcceptDad => ("ipv6", "accept_dad"),
            Parameter::EnhancedDad => ("ipv6", "enhanced_dad"),
            Parameter::DisableIpv6 => ("ipv6", "disable_ipv6"),
            Parameter::KeepAddrOnDown => ("ipv6", "keep_addr_on_down"),
            Parameter::ArpNotify => ("ipv4", "arp_notify"),
            Parameter::NdiscNotify => ("ipv6", "ndisc_notify"),
        }
    }

    /// Sets it for an interface.
    ///
    /// # Errors
    /// When the kernel has no such parameter (IPv6 compiled out, an old kernel) or does not permit it.
    pub fn set(self, interface: &IfName, value: u8) -> io::Result<()> {
        write(&self.path(interface), value)
    }

    /// Reads it for an interface.
    ///
    /// # Errors
    /// When the kernel has no such parameter.
    pub fn read(self, interface: &IfName) -> io::Result<String> {
        Ok(fs::read_to_string(self.path(interface))?.trim().to_owned())
    }

    fn path(self, interface: &IfName) -> String {
        let (family, key) = self.place();
        format!("/proc/sys/net/{family}/conf/{interface}/{key}")
    }
}

/// Lets the host forward packets of a family. Written only where it is off: /proc/sys may be read-only.
///
/// # Errors
/// When it is off and cannot be switched on; the message names the parameter.
pub fn enable_forwarding(family: Family) -> io::Result<()> {
    if forwards(family)? {
        return Ok(());
    }
    let path = forwarding(family);
    write(path, 1).map_err(|cause| named(path, cause))
}

/// Whether the host forwards packets of a family.
///
/// # Errors
/// When the kernel has no such parameter; the message names it.
pub fn forwards(family: Family) -> io::Result<bool> {
    let path = forwarding(family);
    let value = fs::read_to_string(path).map_err(|cause| named(path, cause))?;
    Ok(value.trim() == "1")
}

fn forwarding(family: Family) -> &'static str {
    match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    }
}

fn named(path: &str, cause: io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{path}: {cause}"))
}

/// Whether frames on bridges pass the rules of iptables; `None` where the kernel has no br_netfilter loaded.
pub fn bridge_calls_iptables() -> Option<bool> {
    let value = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").ok()?;
    Some(value.trim() == "1")
}

fn write(path: &str, value: u8) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(value.to_string().as_bytes())
}
