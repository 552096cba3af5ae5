//! The keys of `portmap`.

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::cni::json::JsonCursor;
use crate::error::Error;
use crate::net::{Family, parse_ip};
use crate::netfilter::iptables::check_chain_name;
use crate::netfilter::portmap::{Backend, MarkChain, PortMapping, Protocol, Settings, SourceNat};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortmapKeys {
    pub backend: Option<String>,
    pub snat: Option<bool>,
    pub masq_all: bool,
    pub mark_masq_bit: Option<i64>,
    pub external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4")]
    pub conditions_v4: Vec<String>,
    #[serde(rename = "conditionsV6")]
    pub conditions_v6: Vec<String>,
    pub runtime_config: RuntimeKeys,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeKeys {
    pub port_mappings: Vec<MappingKeys>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MappingKeys {
    pub host_port: i64,
    pub container_port: i64,
    pub protocol: String,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// The default of `markMasqBit`.
const MARK_BIT: i64 = 13;

/// A `portmap` configuration.
#[derive(Clone, Debug)]
pub struct PortmapConfig {
    pub mappings: Vec<PortMapping>,
    pub settings: Settings,
    /// `None` for the default.
    pub backend: Option<Backend>,
}

impl PortmapConfig {
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value; each names the key.
    pub fn parse(root: &JsonCursor) -> Result<PortmapConfig, Error> {
        let keys: PortmapKeys = root.read()?;
        Ok(PortmapConfig {
            settings: Settings {
                source_nat: match (keys.snat, keys.masq_all) {
                    (Some(false), _) => SourceNat::None,
                    (_, true) => SourceNat::All,
                    (_, false) => SourceNat::Local,
                },
                mark: keys.mark_chain()?,
                conditions_v4: keys.conditions_v4.clone(),
                conditions_v6: keys.conditions_v6.clone(),
            },
            backend: keys.backend()?,
            mappings: keys.mappings()?,
        })
    }
}

impl PortmapKeys {
    fn mark_chain(&self) -> Result<MarkChain, Error> {
        if let Some(chain) = &self.external_set_mark_chain {
            if self.mark_masq_bit.is_some() {
                let wanted =
                    "Cannot specify externalSetMarkChain and markMasqBit: remove one of them";
                return Err(Error::config(
                    "externalSetMarkChain",
                    format!("{chain:?}"),
                    wanted,
                ));
            }
            check_chain_name("externalSetMarkChain", chain)?;
            return Ok(MarkChain::External(chain.clone()));
        }
        let bit = self.mark_masq_bit.unwrap_or(MARK_BIT);
        match u8::try_from(bit) {
            Ok(bit @ 0..=31) => Ok(MarkChain::Own { bit }),
            _ => {
                let wanted = "MasqMarkBit must be between 0 and 31";
                Err(Error::config("markMasqBit", bit, wanted))
            }
        }
    }

    /// The configured backend, or the one whose syntax the conditions have.
    fn backend(&self) -> Result<Option<Backend>, Error> {
        let configured = match self.backend.as_deref() {
            None => None,
            Some("iptables") => Some(Backend::Iptables),
            Some("nftables") => Some(Backend::Nftables),
            Some(other) => {
                let wanted = "unrecognized backend: it must be \"iptables\" or \"nftables\"";
                return Err(Error::config("backend", format!("{other:?}"), wanted));
            }
        };
        let conditions = [
            ("conditionsV4", &self.conditions_v4),
            ("conditionsV6", &self.conditions_v6),
        ];
        let mut backend = configured;
        for (key, words) in conditions {
            check_words(key, words)?;
            let Some(syntax) = syntax_of(words) else {
                continue;
            };
            if backend.is_some_and(|backend| backend != syntax) {
                let wanted = match syntax {
                    Backend::Iptables => {
                        "it has the syntax of iptables, and the backend is nftables"
                    }
                    Backend::Nftables => {
                        "it has the syntax of nftables, and the backend is iptables"
                    }
                };
                return Err(Error::config(key, format!("{words:?}"), wanted));
            }
            backend = Some(syntax);
        }
        Ok(backend)
    }

    fn mappings(&self) -> Result<Vec<PortMapping>, Error> {
        let mut mappings: Vec<PortMapping> = Vec::new();
        for (index, keys) in self.runtime_config.port_mappings.iter().enumerate() {
            let path = format!("runtimeConfig.portMappings[{index}]");
            let mapping = keys.parse(&path)?;
            let earlier = mappings.iter().find(|other| other.overlaps(&mapping));
            match earlier {
                // The Go plugin adds the rules twice.
                Some(other) if *other == mapping => {}
                Some(other) => {
                    let wanted =
                        format!("{other} is mapped to port {} already", other.container_port);
                    return Err(Error::config(path, mapping, wanted));
                }
                None => mappings.push(mapping),
            }
        }
        Ok(mappings)
    }
}

/// Conditions are words of a rule, so they must not end its line.
fn check_words(key: &str, words: &[String]) -> Result<(), Error> {
    let is_invalid = |word: &String| {
        word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    match words.iter().position(is_invalid) {
        Some(index) => {
            let value = format!("{:?}", words[index]);
            let wanted = "it must be one word without white space";
            Err(Error::config(format!("{key}[{index}]"), value, wanted))
        }
        None => Ok(()),
    }
}

/// As the Go plugin decides, by the first word.
fn syntax_of(words: &[String]) -> Option<Backend> {
    let first = words.first()?;
    match first.starts_with(['-', '!']) {
        true => Some(Backend::Iptables),
        false => Some(Backend::Nftables),
    }
}

impl MappingKeys {
    fn parse(&self, path: &str) -> Result<PortMapping, Error> {
        let port = |key: &str, number: i64| {
            let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
            let name = match key {
                "hostPort" => "host",
                _ => "container",
            };
            let wanted = || format!("Invalid {name} port number: it must be 1 to 65535");
            port.ok_or_else(|| Error::config(format!("{path}.{key}"), number, wanted()))
        };
        let container_port = port("containerPort", self.container_port)?;
        let host_port = port("hostPort", self.host_port)?;
        let protocol = self.protocol.to_ascii_lowercase();
        let protocol = Protocol::ALL.into_iter().find(|it| it.name() == protocol);
        let protocol = protocol.ok_or_else(|| {
            let value = format!("{:?}", self.protocol);
            Error::config(
                format!("{path}.protocol"),
                value,
                "it must be \"tcp\", \"udp\" or \"sctp\"",
            )
        })?;
        let key = format!("{path}.hostIP");
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(parse_ip(text).map_err(|invalid| invalid.at(&key))?),
        };
        if let Some(address @ IpAddr::V6(v6)) = host_ip
            && v6.is_loopback()
        {
            let wanted = format!(
                "the kernel does not forward packets from ::1 ({} has no route_localnet)",
                Family::V6
            );
            return Err(Error::config(key, address, wanted));
        }
        Ok(PortMapping {
            protocol,
            host_port,
            container_port,
            host_ip,
        })
    }
}
