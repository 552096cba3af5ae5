//! The keys of `firewall`.

use serde::{Deserialize, Serialize};

use crate::cni::json::JsonCursor;
use crate::error::Error;
use crate::netfilter::iptables::check_chain_name;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FirewallKeys {
    pub backend: Option<String>,
    pub iptables_admin_chain_name: String,
    pub firewalld_zone: String,
    pub ingress_policy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Iptables,
    Nftables,
    Firewalld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressPolicy {
    Open,
    SameBridge,
    Isolated,
}

/// A `firewall` configuration.
#[derive(Clone, Debug)]
pub struct FirewallConfig {
    /// `None` for the default.
    pub backend: Option<Backend>,
    pub admin_chain: String,
    pub zone: String,
    pub policy: IngressPolicy,
}

impl FirewallConfig {
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value; each names the key.
    pub fn parse(root: &JsonCursor) -> Result<FirewallConfig, Error> {
        let keys: FirewallKeys = root.read()?;
        let invalid = |key: &str, value: &str, wanted: &str| {
            Err(Error::config(key, format!("{value:?}"), wanted))
        };
        let backend = match keys.backend.as_deref() {
            None | Some("") => None,
            Some("iptables") => Some(Backend::Iptables),
            Some("nftables") => Some(Backend::Nftables),
            Some("firewalld") => Some(Backend::Firewalld),
            Some(other) => {
                let wanted = "it must be \"iptables\", \"nftables\" or \"firewalld\"";
                return invalid("backend", other, wanted);
            }
        };
        let policy = match keys.ingress_policy.as_str() {
            "" | "open" => IngressPolicy::Open,
            "same-bridge" => IngressPolicy::SameBridge,
            "isolated" => IngressPolicy::Isolated,
            other => {
                let wanted =
                    "unknown ingress policy: it must be \"open\", \"same-bridge\" or \"isolated\"";
                return invalid("ingressPolicy", other, wanted);
            }
        };
        let admin_chain = match keys.iptables_admin_chain_name {
            name if name.is_empty() => "CNI-ADMIN".to_owned(),
            name => name,
        };
        check_chain_name("iptablesAdminChainName", &admin_chain)?;
        Ok(FirewallConfig {
            backend,
            admin_chain,
            zone: or_default_zone(keys.firewalld_zone),
            policy,
        })
    }
}

/// `firewalldZone`, or its default if the configuration is invalid.
pub fn zone_of(root: &JsonCursor) -> String {
    let keys: FirewallKeys = root.read().unwrap_or_default();
    or_default_zone(keys.firewalld_zone)
}

fn or_default_zone(configured: String) -> String {
    match configured {
        zone if zone.is_empty() => "trusted".to_owned(),
        zone => zone,
    }
}
