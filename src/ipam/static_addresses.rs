//! The IPAM plugin static, in process: addresses from the configuration or the runtime. It keeps no state.

use serde::{Deserialize, Serialize};

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::json::is_unset;
use crate::cni::result::{AddResult, Dns, IpConfig, RouteKeys};
use crate::cni::{Schema, Version};
use crate::error::Error;
use crate::ipam::Lease;
use crate::ipam::config::{check_families, parse_routes};
use crate::net::{Cidr, Family, Route, parse_ip};

/// The keys of static in a configuration.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StaticKeys {
    pub ipam: IpamKeys,
    #[serde(skip_serializing_if = "is_unset")]
    pub runtime_config: RequestKeys,
    #[serde(skip_serializing_if = "is_unset")]
    pub args: ArgsKeys,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct IpamKeys {
    pub addresses: Vec<AddressKeys>,
    pub routes: Vec<RouteKeys>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct AddressKeys {
    pub address: String,
    pub gateway: String,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ArgsKeys {
    pub cni: RequestKeys,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RequestKeys {
    pub ips: Vec<String>,
}

/// A `static` configuration with the addresses that the runtime requests.
#[derive(Clone, Debug)]
pub struct StaticAddresses {
    lease: Lease,
    /// For CHECK.
    previous: Result<Option<AddResult>, Error>,
}

impl StaticAddresses {
    /// # Errors
    /// Code 6, 7 or 4 for an invalid or missing value.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<StaticAddresses, Error> {
        let root = conf.root();
        let Some(ipam) = root.object("ipam")? else {
            let wanted = "static needs an object with addresses";
            return Err(root.at("ipam").invalid("missing", wanted));
        };
        let keys: StaticKeys = root.read()?;
        let ips = addresses(&keys, args, conf.version)?;
        let dns = ipam
            .object("dns")?
            .map(|dns| Dns::parse(&dns))
            .transpose()?;
        let routes = parse_routes(&ipam, conf.version, |family| {
            ips.iter().any(|ip| ip.address.family() == family)
        })?;
        Ok(StaticAddresses {
            lease: Lease {
                ips,
                routes,
                dns: dns.unwrap_or_default(),
            },
            previous: conf.prev_result(),
        })
    }

    /// The result of static, which may have no address.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The lease of a link, which needs an address.
    ///
    /// # Errors
    /// If there is none.
    pub fn lease_for_link(&self) -> Result<Lease, Error> {
        match self.lease.ips.is_empty() {
            false => Ok(self.lease.clone()),
            true => {
                let msg = "static: neither the configuration nor the runtime specifies an address";
                let keys = "ipam.addresses, runtimeConfig.ips, args.cni.ips or IP in CNI_ARGS";
                Err(Error::failed(msg).details(format!("set {keys}")))
            }
        }
    }

    pub fn routes(&self) -> &[Route] {
        &self.lease.routes
    }

    /// The families of the addresses.
    pub fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = self
            .lease
            .ips
            .iter()
            .map(|ip| ip.address.family())
            .collect();
        families.sort();
        families.dedup();
        families
    }

    /// Whether prevResult has the addresses.
    ///
    /// # Errors
    /// The first address that is missing or has another gateway.
    pub fn check(&self) -> Result<(), Error> {
        let previous = self.previous.clone()?;
        let previous =
            previous.ok_or_else(|| Error::failed("static: Required prevResult missing"))?;
        for ip in &self.lease.ips {
            let mut found = previous.ips.iter();
            let found = found.find(|found| found.address == ip.address);
            let differs = match found {
                None => "has no such address".to_owned(),
                Some(found) if ip.gateway.is_none() || found.gateway == ip.gateway => continue,
                Some(IpConfig {
                    gateway: Some(other),
                    ..
                }) => format!("has gateway {other}"),
                Some(_) => "has no gateway for it".to_owned(),
            };
            let gateway = ip
                .gateway
                .map(|it| format!(" with gateway {it}"))
                .unwrap_or_default();
            let msg = format!(
                "static: Failed to match addr {}{gateway}: prevResult {differs}",
                ip.address
            );
            return Err(Error::failed(msg));
        }
        Ok(())
    }
}

/// The last of these that is not empty: `ipam.addresses` with those of CNI_ARGS, `args.cni.ips`, `runtimeConfig.ips`.
fn addresses(keys: &StaticKeys, args: &Args, version: Version) -> Result<Vec<IpConfig>, Error> {
    let of_args = args.cidrs()?;
    let requested = [
        ("runtimeConfig", &keys.runtime_config.ips),
        ("args.cni", &keys.args.cni.ips),
    ];
    let requested = requested.into_iter().find(|(_, ips)| !ips.is_empty());
    let mut ips: Vec<IpConfig> = match requested {
        Some((key, ips)) => {
            let ips = ips.iter().enumerate();
            let parse = |(index, text): (usize, &String)| {
                let address = text.parse::<Cidr>();
                address
                    .map(with_no_gateway)
                    .map_err(|it| it.at(format!("{key}.ips[{index}]")))
            };
            ips.map(parse).collect::<Result<_, _>>()?
        }
        None => {
            let configured = keys.ipam.addresses.iter().enumerate();
            let configured = configured.map(|(index, keys)| keys.parse(index));
            let of_args = of_args.into_iter().map(with_no_gateway).map(Ok);
            configured.chain(of_args).collect::<Result<_, _>>()?
        }
    };
    let mut gateways = args.gateways()?;
    // The last one in a subnet is used, as with the Go plugin.
    gateways.reverse();
    // A requested address replaces a configured one, whose gateway is that of the subnet.
    let configured = keys
        .ipam
        .addresses
        .iter()
        .filter_map(|keys| keys.parse(0).ok()?.gateway);
    gateways.extend(configured.filter(|_| requested.is_some()));
    for ip in ips.iter_mut().filter(|ip| ip.gateway.is_none()) {
        let mut gateways = gateways.iter().copied();
        ip.gateway = gateways.find(|gateway| ip.address.contains(*gateway));
    }
    let families = ips.iter().map(|ip| ip.address.family());
    check_families(families, version).map_err(|(family, wanted)| {
        let value = format!("more than one {family} address");
        Error::config("ipam.addresses", value, wanted)
    })?;
    if version.schema() == Schema::V0_1 {
        ips.sort_by_key(|ip| ip.address.family());
    }
    Ok(ips)
}

fn with_no_gateway(address: Cidr) -> IpConfig {
    IpConfig {
        interface: None,
        address,
        gateway: None,
    }
}

impl AddressKeys {
    fn parse(&self, index: usize) -> Result<IpConfig, Error> {
        let key = format!("ipam.addresses[{index}]");
        let gateway = match self.gateway.as_str() {
            "" => None,
            text => Some(parse_ip(text).map_err(|it| it.at(format!("{key}.gateway")))?),
        };
        let address = self.address.parse::<Cidr>();
        Ok(IpConfig {
            gateway,
            ..with_no_gateway(address.map_err(|it| it.at(format!("{key}.address")))?)
        })
    }
}

#[cfg(test)]
mod tests;
