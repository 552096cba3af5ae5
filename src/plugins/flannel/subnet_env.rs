//! The file that flanneld writes (flannel, Documentation/configuration.md, "subnet.env"): lines of KEY=VALUE.

use std::str::FromStr;

use crate::error::{Code, Error};
use crate::net::{Cidr, Family};

/// The addresses of the node's pods, as flanneld leased them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks of all nodes' pods, without duplicates, IPv4 first.
    pub networks: Vec<Cidr>,
    /// The subnets of this node's pods, at most one of each family, IPv4 first.
    pub subnets: Vec<Cidr>,
    /// In bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades, so that the delegate need not.
    pub is_masqueraded: bool,
}

impl SubnetEnv {
    /// # Errors
    /// Code 11 if the file cannot be read: flanneld has not written it yet. 7 if it has an invalid value or lacks one.
    pub fn read(file: &str) -> Result<SubnetEnv, Error> {
        let text = std::fs::read_to_string(file).map_err(|cause| {
            Error::new(Code::TRY_AGAIN, format!("cannot read subnetFile {file}: {cause}"))
                .details("flanneld writes it when it has a subnet: check that flanneld is running on this node")
        })?;
        SubnetEnv::parse(&text).map_err(|error| error.context(file))
    }

    fn parse(text: &str) -> Result<SubnetEnv, Error> {
        let value = |key: &str| {
            let mut lines = text.lines().rev();
            lines.find_map(|line| line.trim_end().strip_prefix(key)?.strip_prefix('='))
        };
        let (mut networks, mut subnets) = (Vec::new(), Vec::new());
        for (family, network, subnet) in [
            (Family::V4, "FLANNEL_NETWORK", "FLANNEL_SUBNET"),
            (Family::V6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
        ] {
            for text in value(network).into_iter().flat_map(|list| list.split(',')) {
                let cidr = parse_network(network, text, family)?;
                if !networks.contains(&cidr) {
                    networks.push(cidr);
                }
            }
            if let Some(text) = value(subnet) {
                subnets.push(parse_network(subnet, text, family)?);
            }
        }
        let missing = |key: &str| Error::config(key, "missing", "flanneld writes it");
        if networks.is_empty() {
            return Err(missing("FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK"));
        }
        if subnets.is_empty() {
            return Err(missing("FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET"));
        }
        let mtu = value("FLANNEL_MTU").ok_or_else(|| missing("FLANNEL_MTU"))?;
        let is_masqueraded = value("FLANNEL_IPMASQ").ok_or_else(|| missing("FLANNEL_IPMASQ"))?;
        Ok(SubnetEnv {
            networks,
            subnets,
            mtu: parse("FLANNEL_MTU", mtu, "a number")?,
            is_masqueraded: parse("FLANNEL_IPMASQ", is_masqueraded, "true or false")?,
        })
    }
}

fn parse<T: FromStr>(key: &str, text: &str, wanted: &str) -> Result<T, Error> {
    let invalid = |_| Error::config(key, format!("{text:?}"), format!("it must be {wanted}"));
    text.parse().map_err(invalid)
}

fn parse_network(key: &str, text: &str, family: Family) -> Result<Cidr, Error> {
    let cidr: Cidr = parse(key, text, "an address with a prefix length")?;
    if cidr.family() != family {
        return Err(Error::config(key, text, format!("it must be {family}")));
    }
    Ok(cidr.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16,10.43.0.0/16,10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn networks_and_subnets_of_both_families_are_read() {
        let env = SubnetEnv::parse(DUAL).unwrap();
        let text = |list: &[Cidr]| {
            list.iter()
                .map(Cidr::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(&env.networks),
            "10.42.0.0/16 10.43.0.0/16 fd00:42::/56"
        );
        assert_eq!(text(&env.subnets), "10.42.1.0/24 fd00:42:0:1::/64");
        assert_eq!((env.mtu, env.is_masqueraded), (1450, true));
    }

    #[test]
    fn incomplete_and_invalid_files_are_rejected() {
        for (from, to, says) in [
            ("FLANNEL_MTU=1450\n", "", "FLANNEL_MTU"),
            ("FLANNEL_IPMASQ=true\n", "", "FLANNEL_IPMASQ"),
            ("1450", "many", "FLANNEL_MTU is \"many\""),
            ("=true", "=maybe", "true or false"),
            ("10.42.1.1/24", "10.42.1.1", "FLANNEL_SUBNET"),
            ("10.42.1.1/24", "fd00::/64", "it must be IPv4"),
            (
                "FLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET",
                "X",
                "FLANNEL_SUBNET and",
            ),
        ] {
            let error = SubnetEnv::parse(&DUAL.replace(from, to)).unwrap_err();
            assert!(error.msg.contains(says) && error.code.0 == 7, "{error:?}");
        }
        assert!(SubnetEnv::parse("").is_err());
    }
}
