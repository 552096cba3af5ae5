//! Sysctls of the calling thread's network namespace (/proc/sys/net).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use crate::net::{Family, IfName};

/// A sysctl of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// net.ipv6.conf.*.accept_ra
    AcceptRa,
    /// net.ipv6.conf.*.accept_dad
    AcceptDad,
    /// net.ipv6.conf.*.enhanced_dad (RFC 7527)
    EnhancedDad,
    /// net.ipv6.conf.*.disable_ipv6
    DisableIpv6,
    /// net.ipv6.conf.*.keep_addr_on_down
    KeepAddrOnDown,
    /// net.ipv4.conf.*.arp_notify: announce addresses when the link comes up or changes its MAC address.
    ArpNotify,
    /// net.ipv6.conf.*.ndisc_notify: the same for IPv6.
    NdiscNotify,
    /// net.ipv4.conf.*.route_localnet: 127.0.0.0/8 is routed like other addresses.
    RouteLocalnet,
}

impl Parameter {
    fn family_and_key(self) -> (&'static str, &'static str) {
        match self {
            Parameter::AcceptRa => ("ipv6", "accept_ra"),
            Parameter::AcceptDad => ("ipv6", "accept_dad"),
            Parameter::EnhancedDad => ("ipv6", "enhanced_dad"),
            Parameter::DisableIpv6 => ("ipv6", "disable_ipv6"),
            Parameter::KeepAddrOnDown => ("ipv6", "keep_addr_on_down"),
            Parameter::ArpNotify => ("ipv4", "arp_notify"),
            Parameter::NdiscNotify => ("ipv6", "ndisc_notify"),
            Parameter::RouteLocalnet => ("ipv4", "route_localnet"),
        }
    }

    /// # Errors
    /// If the kernel lacks the sysctl (IPv6 is compiled out, an old kernel) or writing is not permitted.
    pub fn set(self, interface: &IfName, value: u8) -> io::Result<()> {
        write(&self.path(interface), value)
    }

    ///
    /// # Errors
    /// If the kernel lacks the sysctl.
    pub fn read(self, interface: &IfName) -> io::Result<String> {
        Ok(fs::read_to_string(self.path(interface))?.trim().to_owned())
    }

    /// The value that new interfaces get.
    ///
    /// # Errors
    /// If the kernel lacks the sysctl.
    pub fn read_default(self) -> io::Result<String> {
        let (family, key) = self.family_and_key();
        let path = format!("/proc/sys/net/{family}/conf/default/{key}");
        Ok(fs::read_to_string(path)?.trim().to_owned())
    }

    fn path(self, interface: &IfName) -> String {
        let (family, key) = self.family_and_key();
        format!("/proc/sys/net/{family}/conf/{interface}/{key}")
    }
}

/// Enables IP forwarding. Written only if it is disabled, because /proc/sys may be read-only.
///
/// # Errors
/// If it is disabled and cannot be enabled; the message names the sysctl.
pub fn enable_forwarding(family: Family) -> io::Result<()> {
    if forwards(family)? {
        return Ok(());
    }
    let path = forwarding(family);
    write(path, 1).map_err(|cause| named(path, cause))
}

/// Whether IP forwarding is enabled.
///
/// # Errors
/// If the kernel lacks the sysctl; the message names it.
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

/// Whether bridged packets traverse iptables; `None` if br_netfilter is not loaded.
pub fn bridge_calls_iptables() -> Option<bool> {
    let value = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").ok()?;
    Some(value.trim() == "1")
}

/// Any sysctl below net.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetSysctl(String);

impl NetSysctl {
    /// A sysctl by its path below /proc/sys, for example `net/core/somaxconn`; `None` if it is not below net.
    pub fn at(path: &str) -> Option<NetSysctl> {
        let segments: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
        let is_below = segments.len() > 1 && segments[0] == "net";
        let is_plain = |segment: &&str| !matches!(*segment, "." | "..") && !segment.contains('\0');
        (is_below && segments.iter().all(is_plain)).then(|| NetSysctl(segments.join("/")))
    }

    /// The path below /proc/sys.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The value without the newline at its end.
    ///
    /// # Errors
    /// If the kernel lacks the sysctl or it can only be written.
    pub fn read(&self) -> io::Result<String> {
        let bytes = fs::read(self.file())?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// # Errors
    /// If the kernel lacks the sysctl or refuses the value.
    pub fn set(&self, value: &str) -> io::Result<()> {
        write(&self.file(), value)
    }

    fn file(&self) -> String {
        format!("/proc/sys/{}", self.0)
    }
}

fn write(path: &str, value: impl ToString) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_below_net_are_accepted() {
        let path = |text: &str| NetSysctl::at(text).map(|it| it.path().to_owned());
        let accepted = path("/net//core/somaxconn");
        assert_eq!(accepted.as_deref(), Some("net/core/somaxconn"));
        for refused in [
            "",
            "net",
            "net/",
            "kernel/x",
            "net/../kernel/x",
            "net/./x",
            "net/a\0",
        ] {
            assert_eq!(path(refused), None, "{refused:?}");
        }
    }
}
