//! The keys of a `bridge` configuration.

use serde::{Deserialize, Serialize};

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::json::{JsonCursor, is_unset};
use crate::cni::result::Dns;
use crate::cni::{Schema, Version};
use crate::error::Error;
use crate::kernel::netlink::{Netlink, PortFlags};
use crate::link::Context;
use crate::net::{IfName, Mac};
use crate::netfilter::forward::Forwarding;
use crate::netfilter::masquerade::Policy;
use crate::plugins::attachment::mtu::Mtu;
use crate::plugins::attachment::parse_dns;
use crate::plugins::bridge::vlan::Vlans;
use crate::state::DesiredBridge;

pub use crate::plugins::bridge::role::Gateway;

const DEFAULT_BRIDGE: &str = "cni0";

/// The keys of the plugin, without those of masquerading, VLANs and IPAM.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BridgeKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub bridge: Option<IfName>,
    #[serde(skip_serializing_if = "is_unset")]
    pub is_gateway: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub is_default_gateway: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub force_address: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub forward_accept: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub mtu: Mtu,
    #[serde(skip_serializing_if = "is_unset")]
    pub hairpin_mode: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub promisc_mode: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub port_isolation: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub macspoofchk: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub enabledad: bool,
    #[serde(skip_serializing_if = "is_unset")]
    pub disable_container_interface: bool,
}

/// What to do if the bridge has another address in place of the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressConflict {
    Reject,
    /// Replaces the other address (`forceAddress`).
    Replace,
}

/// A `bridge` configuration.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    pub bridge: IfName,
    pub gateway: Gateway,
    pub conflict: AddressConflict,
    /// `None` without `ipMasq`.
    pub masquerade: Option<Policy>,
    /// The accept rules in FORWARD (`forwardAccept`).
    pub forwarding: Option<Forwarding>,
    /// The MTU of bridge and veth pair.
    pub mtu: Mtu,
    /// `hairpinMode`: frames may leave by the port they came in.
    pub hairpin: bool,
    /// `promiscMode`.
    pub promiscuous: bool,
    /// `portIsolation`: no frames between isolated ports.
    pub isolated: bool,
    /// `macspoofchk`: frames with another source MAC address than the container's are dropped.
    pub mac_spoof_check: bool,
    /// `enabledad`: ADD waits for duplicate address detection of the container's IPv6 addresses.
    pub detect_duplicates: bool,
    /// `disableContainerInterface`: the container end stays down.
    pub leave_down: bool,
    /// The requested MAC address of the container end.
    pub mac: Option<Mac>,
    /// DNS settings that replace those of IPAM.
    pub dns: Option<Dns>,
    /// The VLANs of the container's port; `None` if the bridge does not filter VLANs.
    pub vlans: Option<Vlans>,
}

impl BridgeConfig {
    /// The state in which a bridge can serve this network.
    pub fn desired_bridge(&self) -> DesiredBridge {
        DesiredBridge {
            promiscuous: self.promiscuous,
            filters_vlans: self.vlans.is_some(),
        }
    }

    /// The MTU of bridge and veth pair in bytes; `None` for the kernel's default. With `"auto"` and without an uplink,
    /// that of the bridge.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn resolve_mtu(&self, host: &Netlink) -> Result<Option<u32>, Error> {
        let name = &self.bridge;
        self.mtu.resolve(host, || {
            let bridge = host.link(name).context("look up bridge", name)?;
            Ok(bridge.map(|bridge| bridge.mtu))
        })
    }

    pub fn port_flags(&self) -> PortFlags {
        PortFlags {
            hairpin: self.hairpin,
            isolated: self.isolated,
        }
    }

    /// Parses a configuration for an ADD or CHECK.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value, 2 for a key that is not supported; each names the key.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<BridgeConfig, Error> {
        let root = conf.root();
        let keys: BridgeKeys = root.read()?;
        let gateway = match (keys.is_gateway, keys.is_default_gateway) {
            (_, true) => Gateway::DefaultRoute,
            (true, false) => Gateway::Address,
            (false, false) => Gateway::None,
        };
        let conflict = match keys.force_address {
            true => AddressConflict::Replace,
            false => AddressConflict::Reject,
        };
        if keys.hairpin_mode && keys.promisc_mode {
            let wanted = "promiscMode is set too: a bridge in promiscuous mode would see each frame twice; set one of them";
            return Err(Error::config("hairpinMode", "true", wanted));
        }
        let bridge = keys.bridge.unwrap_or_else(default_bridge);
        let forwarding = keys.forward_accept.then(|| forwarding_of(&bridge));
        Ok(BridgeConfig {
            forwarding: forwarding.transpose()?,
            vlans: Vlans::parse(&root, &bridge, gateway)?,
            bridge,
            gateway,
            conflict,
            masquerade: Policy::parse(&root)?,
            mtu: keys.mtu,
            hairpin: keys.hairpin_mode,
            promiscuous: keys.promisc_mode,
            isolated: keys.port_isolation,
            mac_spoof_check: keys.macspoofchk,
            detect_duplicates: keys.enabledad,
            leave_down: keys.disable_container_interface,
            mac: parse_mac(&root, args)?,
            dns: parse_dns(&root)?,
        })
    }

    /// Rejects keys that contradict the presence or absence of IPAM.
    ///
    /// # Errors
    /// Code 7 for `disableContainerInterface` with IPAM, code 1 for layer 2 in a version without such results.
    pub fn validate(&self, mode: AddressingMode, version: Version) -> Result<(), Error> {
        match mode {
            AddressingMode::Layer3 if self.leave_down => Err(Error::config(
                "disableContainerInterface",
                "true",
                "ipam is set too: an interface that stays down cannot have addresses",
            )),
            AddressingMode::Layer2 if version.schema() == Schema::V0_1 => {
                crate::cni::result::AddResult::default().representable(version)
            }
            _ => Ok(()),
        }
    }
}

/// Whether containers get addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressingMode {
    /// No `ipam`: the container's interface has no addresses.
    Layer2,
    /// IPAM provides addresses and routes.
    Layer3,
}

impl AddressingMode {
    pub fn of<T>(ipam: Option<T>) -> AddressingMode {
        match ipam {
            Some(_) => AddressingMode::Layer3,
            None => AddressingMode::Layer2,
        }
    }
}

/// The bridge that a configuration names.
///
/// # Errors
/// Code 6 or 7 for an invalid name.
pub fn bridge_of(root: &JsonCursor) -> Result<IfName, Error> {
    Ok(root.parsed("bridge")?.unwrap_or_else(default_bridge))
}

fn default_bridge() -> IfName {
    DEFAULT_BRIDGE.parse().expect("it is a name")
}

fn forwarding_of(bridge: &IfName) -> Result<Forwarding, Error> {
    let wanted = "with forwardAccept it must be made of letters, digits, \"-\", \"_\" and \".\"";
    let invalid = || Error::config("bridge", format!("{:?}", bridge.as_str()), wanted);
    Forwarding::of(bridge).ok_or_else(invalid)
}

fn parse_mac(root: &JsonCursor, args: &Args) -> Result<Option<Mac>, Error> {
    let args_cni = root
        .object("args")?
        .map(|args| args.object("cni"))
        .transpose()?
        .flatten();
    let objects = [root.object("runtimeConfig")?, args_cni];
    for object in objects.iter().flatten() {
        if object.non_empty_text("mac")?.is_some() {
            let mac: Option<Mac> = object.parsed("mac")?;
            return mac
                .map(|mac| assignable(mac, &object.at("mac")))
                .transpose();
        }
    }
    args.mac()?
        .map(|mac| assignable(mac, &root.at("CNI_ARGS MAC")))
        .transpose()
}

fn assignable(mac: Mac, json: &JsonCursor) -> Result<Mac, Error> {
    if mac.is_assignable() {
        return Ok(mac);
    }
    Err(json.invalid(
        mac,
        "an interface's address must be unicast and not all zero",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &str) -> Result<BridgeConfig, Error> {
        let text = format!(r#"{{"name": "n", "cniVersion": "1.0.0", {keys}}}"#);
        BridgeConfig::parse(
            &NetConf::parse(text.into_bytes()).unwrap(),
            &Args::default(),
        )
    }

    #[test]
    fn an_empty_configuration_is_a_layer_2_bridge_named_cni0() {
        let config = parse(r#""type": "bridge""#).unwrap();
        assert_eq!(
            (config.bridge.as_str(), config.gateway, config.mtu),
            ("cni0", Gateway::None, Mtu::Kernel)
        );
        assert!(config.masquerade.is_none() && config.mac.is_none() && config.dns.is_none());
    }

    #[test]
    fn default_gateway_implies_gateway() {
        assert_eq!(
            parse(r#""isDefaultGateway": true"#).unwrap().gateway,
            Gateway::DefaultRoute
        );
        assert_eq!(
            parse(r#""isgateway": true"#).unwrap().gateway,
            Gateway::Address
        );
    }

    #[test]
    fn the_mac_of_the_runtime_wins() {
        let keys = r#""runtimeConfig": {"mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}"#;
        assert_eq!(parse(keys).unwrap().mac, "02:00:00:00:00:01".parse().ok());
        let keys = r#""runtimeConfig": {"mac": ""}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}"#;
        assert_eq!(parse(keys).unwrap().mac, "02:00:00:00:00:02".parse().ok());
    }

    #[test]
    fn dns_replaces_that_of_ipam_if_a_list_or_domain_is_set() {
        assert!(parse(r#""dns": {}"#).unwrap().dns.is_none());
        assert!(
            parse(r#""dns": {"nameservers": null}"#)
                .unwrap()
                .dns
                .is_none()
        );
        assert!(parse(r#""dns": {"search": []}"#).unwrap().dns.is_some());
        assert_eq!(
            parse(r#""dns": {"domain": "x"}"#)
                .unwrap()
                .dns
                .unwrap()
                .domain,
            "x"
        );
    }

    #[test]
    fn values_that_the_go_plugin_ignores_are_accepted() {
        assert_eq!(parse(r#""mtu": -1"#).unwrap().mtu, Mtu::Kernel);
        let config = parse(r#""ipMasqBackend": "ipvs", "ipam": {"type": "x"}"#);
        assert!(config.unwrap().masquerade.is_none());
        assert!(parse(r#""ipMasqBackend": "ipvs", "ipMasq": true"#).is_ok());
    }

    #[test]
    fn errors_name_the_invalid_key() {
        for (keys, key, code) in [
            (r#""mtu": 67"#, "mtu", 7),
            (r#""mtu": 65536"#, "mtu", 7),
            (
                r#""mtu": "1500""#,
                "mtu is \"1500\", but it must be a number",
                7,
            ),
            (r#""mtu": [1500]"#, "mtu", 6),
            (r#""vlan": 4095"#, "vlan", 7),
            (r#""vlanTrunk": [null]"#, "vlanTrunk[0]", 6),
            (r#""bridge": """#, "bridge", 7),
            (
                r#""hairpinMode": true, "promiscMode": true"#,
                "hairpinMode",
                7,
            ),
            (
                r#""ipMasq": true, "ipam": {"type": "x"}, "ipMasqBackend": "ipvs""#,
                "ipMasqBackend",
                7,
            ),
            (r#""ipMasqBackend": 5"#, "ipMasqBackend", 6),
            (
                r#""runtimeConfig": {"mac": "01:00:5e:00:00:01"}"#,
                "runtimeConfig.mac",
                7,
            ),
            (r#""isGateway": "yes""#, "isGateway", 6),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(
                error.msg.contains(key) && error.code.0 == code,
                "{keys}: {error:?}"
            );
        }
    }
}
