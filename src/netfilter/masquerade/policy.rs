//! The masquerade settings of a network: destinations that are excluded, and the source address for the others.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::json::{JsonCursor, is_unset};
use crate::error::Error;
use crate::kernel::nat::PortAllocation;
use crate::net::{Cidr, Family, parse_ip};

/// The largest number of excluded destinations. Each is a rule that packets traverse.
const MAX_NON_MASQUERADE_CIDRS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// iptables-nft or iptables-legacy.
    Iptables,
    /// nftables, over netlink.
    Nftables,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Backend::Iptables => "iptables",
            Backend::Nftables => "nftables",
        }
    }
}

/// The keys of masquerading.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MasqueradeKeys {
    pub ip_masq: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub ip_masq_backend: Option<String>,
    #[serde(skip_serializing_if = "is_unset")]
    pub ip_masq_random_fully: bool,
    #[serde(rename = "nonMasqueradeCIDRs", skip_serializing_if = "is_unset")]
    pub non_masquerade_cidrs: Vec<Cidr>,
    #[serde(skip_serializing_if = "is_unset")]
    pub snat_addresses: Vec<String>,
}

/// The masquerade settings; by default those of the Go plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `ipMasqBackend`.
    pub backend: Option<Backend>,
    /// `nonMasqueradeCIDRs`, without duplicates: destinations that see the pod's own address.
    pub non_masquerade_cidrs: Vec<Cidr>,
    /// `snatAddresses`: source addresses in place of that of the outgoing interface, at most one of each family.
    pub snat_addresses: Vec<IpAddr>,
    /// `ipMasqRandomFully`.
    pub ports: PortAllocation,
}

impl Policy {
    /// Parses the keys; `None` without `ipMasq`, but an invalid value is reported before it takes effect.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value; each names the key.
    pub fn parse(root: &JsonCursor) -> Result<Option<Policy>, Error> {
        let keys: MasqueradeKeys = root.read()?;
        let policy = Policy {
            backend: parse_backend(&keys, root)?,
            non_masquerade_cidrs: non_masquerade_cidrs(keys.non_masquerade_cidrs)?,
            snat_addresses: parse_snat_addresses(&keys.snat_addresses)?,
            ports: match keys.ip_masq_random_fully {
                true => PortAllocation::Random,
                false => PortAllocation::Preserve,
            },
        };
        Ok(keys.ip_masq.then_some(policy))
    }

    pub fn non_masquerade_cidrs_of(&self, family: Family) -> impl Iterator<Item = Cidr> {
        let non_masquerade_cidrs = self.non_masquerade_cidrs.iter().copied();
        non_masquerade_cidrs.filter(move |cidr| cidr.family() == family)
    }

    /// The source address for a family.
    pub fn source_of(&self, family: Family) -> Option<IpAddr> {
        let mut snat_addresses = self.snat_addresses.iter().copied();
        snat_addresses.find(|address| Family::of(*address) == family)
    }
}

fn parse_backend(keys: &MasqueradeKeys, root: &JsonCursor) -> Result<Option<Backend>, Error> {
    match keys.ip_masq_backend.as_deref() {
        None => Ok(None),
        Some("iptables") => Ok(Some(Backend::Iptables)),
        Some("nftables") => Ok(Some(Backend::Nftables)),
        // The Go plugin reads the value only if it masquerades.
        Some(_) if !keys.ip_masq || !has_ipam(root)? => Ok(None),
        Some(other) => {
            let wanted = "it must be \"iptables\" or \"nftables\"";
            Err(Error::config("ipMasqBackend", format!("{other:?}"), wanted))
        }
    }
}

fn has_ipam(root: &JsonCursor) -> Result<bool, Error> {
    let ipam = root.object("ipam")?;
    let plugin = ipam.map(|ipam| ipam.non_empty_text("type")).transpose()?;
    Ok(plugin.flatten().is_some())
}

/// The networks without duplicates.
fn non_masquerade_cidrs(list: Vec<Cidr>) -> Result<Vec<Cidr>, Error> {
    const KEY: &str = "nonMasqueradeCIDRs";
    let mut cidrs = Vec::new();
    if list.len() > MAX_NON_MASQUERADE_CIDRS {
        let what = format!("a list of {}", list.len());
        let wanted = format!("it must not have more than {MAX_NON_MASQUERADE_CIDRS} networks");
        return Err(Error::config(KEY, what, wanted));
    }
    for (index, cidr) in list.into_iter().enumerate() {
        if !cidr.is_network() {
            let wanted = format!("its network is {}", cidr.network());
            return Err(Error::config(format!("{KEY}[{index}]"), cidr, wanted));
        }
        if !cidrs.contains(&cidr) {
            cidrs.push(cidr);
        }
    }
    Ok(cidrs)
}

fn parse_snat_addresses(list: &[String]) -> Result<Vec<IpAddr>, Error> {
    let mut snat_addresses: Vec<IpAddr> = Vec::new();
    for (index, text) in list.iter().enumerate() {
        let key = format!("snatAddresses[{index}]");
        let address = parse_ip(text).map_err(|cause| cause.at(&key))?;
        if !can_be_source(address) {
            let wanted = "it must be a unicast address that others can answer to";
            return Err(Error::config(key, address, wanted));
        }
        let family = Family::of(address);
        if let Some(other) = snat_addresses
            .iter()
            .find(|other| Family::of(**other) == family)
        {
            let wanted =
                format!("{other} is listed already, and there can be one {family} address");
            return Err(Error::config(key, address, wanted));
        }
        snat_addresses.push(address);
    }
    Ok(snat_addresses)
}

/// Whether replies can be routed to an address (RFC 6890).
fn can_be_source(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && v4.octets()[0] < 240,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Policy>, Error> {
        let value = crate::cni::json::parse("configuration", text.as_bytes())?;
        Policy::parse(&JsonCursor::root("configuration", &value))
    }

    #[test]
    fn the_defaults_are_those_of_the_go_plugin() {
        let default = Some(Policy::default());
        assert_eq!(parse(r#"{"ipMasq": true}"#).unwrap(), default);
        let unset = r#"{"ipMasq": true, "nonMasqueradeCIDRs": null, "snatAddresses": [], "ipMasqRandomFully": false}"#;
        assert_eq!(parse(unset).unwrap(), default);
        assert_eq!(parse("{}").unwrap(), None);
    }

    #[test]
    fn duplicate_networks_are_removed_and_snat_addresses_are_chosen_by_family() {
        let policy = parse(
            r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8", "::/0"],
                "snatAddresses": ["fd18::9", "192.0.2.7"], "ipMasqRandomFully": true, "ipMasq": true}"#,
        );
        let policy = policy.unwrap().unwrap();
        let non_masquerade_cidrs = |family| -> Vec<String> {
            policy
                .non_masquerade_cidrs_of(family)
                .map(|cidr| cidr.to_string())
                .collect()
        };
        assert_eq!(non_masquerade_cidrs(Family::V4), ["10.0.0.0/8"]);
        assert_eq!(non_masquerade_cidrs(Family::V6), ["fd00::/8", "::/0"]);
        assert_eq!(policy.source_of(Family::V4), "192.0.2.7".parse().ok());
        assert_eq!(policy.source_of(Family::V6), "fd18::9".parse().ok());
        assert_eq!(policy.ports, PortAllocation::Random);
    }

    #[test]
    fn errors_name_path_and_value() {
        for (text, path, code) in [
            (
                r#"{"nonMasqueradeCIDRs": "10.0.0.0/8"}"#,
                "nonMasqueradeCIDRs is",
                6,
            ),
            (
                r#"{"nonMasqueradeCIDRs": [5]}"#,
                "nonMasqueradeCIDRs[0] is 5",
                6,
            ),
            (
                r#"{"nonMasqueradeCIDRs": ["10.0.0.0"]}"#,
                "nonMasqueradeCIDRs[0]",
                7,
            ),
            (
                r#"{"nonMasqueradeCIDRs": ["10.0.0.1/8"]}"#,
                "its network is 10.0.0.0/8",
                7,
            ),
            (r#"{"snatAddresses": "192.0.2.7"}"#, "snatAddresses is", 6),
            (
                r#"{"snatAddresses": ["192.0.2.7/32"]}"#,
                "snatAddresses[0]",
                7,
            ),
            (
                r#"{"snatAddresses": ["192.0.2.7", "192.0.2.8"]}"#,
                "snatAddresses[1]",
                7,
            ),
            (r#"{"ipMasqRandomFully": "yes"}"#, "ipMasqRandomFully", 6),
            (r#"{"ipMasqBackend": 5}"#, "ipMasqBackend", 6),
            (
                r#"{"ipMasq": true, "ipam": {"type": "x"}, "ipMasqBackend": "pf"}"#,
                "ipMasqBackend",
                7,
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.msg.contains(path) && error.code.0 == code,
                "{text}: {error:?}"
            );
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
        ] {
            let error = parse(&format!(r#"{{"snatAddresses": ["{address}"]}}"#)).unwrap_err();
            assert!(error.msg.contains(address), "{error}");
        }
    }
}
