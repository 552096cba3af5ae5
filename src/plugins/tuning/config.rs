//! The keys of `tuning`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::json::{self, JsonCursor, within};
use crate::error::{Code, Error};
use crate::kernel::netlink::LinkSetting;
use crate::kernel::sysctl::NetSysctl;
use crate::net::{IfName, Mac};

/// The default of `dataDir`.
const DATA_DIR: &str = "/run/cni/tuning";

/// ETH_MIN_MTU (linux/if_ether.h).
const MIN_MTU: u32 = 68;

/// In the name of a sysctl, stands for the container's interface.
const INTERFACE: &str = "IFNAME";

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TuningKeys {
    pub data_dir: String,
    pub runtime_config: RuntimeKeys,
    pub args: ArgsKeys,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RuntimeKeys {
    pub mac: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ArgsKeys {
    pub cni: LinkKeys,
}

/// The keys of the configuration and of `args.cni`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct LinkKeys {
    pub mac: Option<String>,
    pub promisc: Option<bool>,
    pub mtu: Option<i64>,
    pub allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    pub tx_queue_length: Option<i64>,
}

/// A `tuning` configuration.
#[derive(Clone, Debug)]
pub struct TuningConfig {
    /// The MAC address as configured, for the result.
    pub mac: Option<String>,
    /// `None` for no change.
    pub mtu: Option<u32>,
    pub settings: Vec<LinkSetting>,
    own_sysctls: Vec<(String, String)>,
    /// Of `args.cni`, which take precedence.
    args_sysctls: Vec<(String, String)>,
}

impl TuningConfig {
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value; each names the key.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<TuningConfig, Error> {
        let root = conf.root();
        let (keys, own): (TuningKeys, LinkKeys) = (root.read()?, root.read()?);
        let cni = &keys.args.cni;
        let mac = requested_mac(&keys, &own, args)?;
        let mtu = of_args_or_own(cni.mtu, own.mtu, "mtu").filter(|(_, mtu)| *mtu != 0);
        let mtu = mtu.map(|(key, mtu)| within(&key, mtu, MIN_MTU..=i32::MAX as u32));
        let mtu = mtu.transpose()?;
        let queue = of_args_or_own(cni.tx_queue_length, own.tx_queue_length, "txQLen");
        // -1 is the largest length, as with the Go plugin.
        let queue = queue.map(|(key, length)| within(&key, length, -1..=i64::from(u32::MAX)));
        let queue = queue.transpose()?.map(|length| length as u32);
        let promiscuous = cni.promisc.or(own.promisc).filter(|enabled| *enabled);
        let settings = [
            mac.as_ref().map(|(_, mac)| LinkSetting::Mac(*mac)),
            promiscuous.map(LinkSetting::Promiscuous),
            mtu.map(LinkSetting::Mtu),
            cni.allmulti.or(own.allmulti).map(LinkSetting::AllMulticast),
            queue.map(LinkSetting::TxQueueLength),
        ];
        let config = TuningConfig {
            mac: mac.map(|(text, _)| text),
            mtu,
            settings: settings.into_iter().flatten().collect(),
            own_sysctls: own_sysctls(conf)?,
            args_sysctls: sysctls(conf, &["args", "cni", "sysctl"])?,
        };
        let placeholder = INTERFACE.parse().expect("it is a name");
        config.sysctls(&placeholder)?;
        Ok(config)
    }

    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.sysctl_names().next().is_none()
    }

    /// The names of the sysctls as configured.
    pub fn sysctl_names(&self) -> impl Iterator<Item = &str> {
        let all = self.own_sysctls.iter().chain(&self.args_sysctls);
        all.map(|(name, _)| name.as_str())
    }

    /// The sysctls and their values, in the order of the configuration.
    ///
    /// # Errors
    /// Code 7 for a name that is not below net, and for two values of one sysctl.
    pub fn sysctls(&self, interface: &IfName) -> Result<Vec<(NetSysctl, String)>, Error> {
        let mut sysctls: Vec<(NetSysctl, String)> = Vec::new();
        for (name, value) in &self.own_sysctls {
            let sysctl = sysctl_of(name, interface)?;
            match sysctls.iter().find(|(known, _)| *known == sysctl) {
                Some((_, other)) if other != value => {
                    let wanted = format!("another key sets {} to {other:?}", sysctl.path());
                    return Err(Error::config(key_of(name), format!("{value:?}"), wanted));
                }
                Some(_) => {}
                None => sysctls.push((sysctl, value.clone())),
            }
        }
        for (name, value) in &self.args_sysctls {
            let sysctl = sysctl_of(name, interface)?;
            match sysctls.iter_mut().find(|(known, _)| *known == sysctl) {
                Some((_, own)) => own.clone_from(value),
                None => sysctls.push((sysctl, value.clone())),
            }
        }
        // The kernel ignores an empty write.
        sysctls.retain(|(_, value)| !value.is_empty());
        Ok(sysctls)
    }
}

/// The directory of the backup files.
///
/// # Errors
/// Code 6 for a wrong type.
pub fn data_dir(root: &JsonCursor) -> Result<PathBuf, Error> {
    Ok(root.non_empty_text("dataDir")?.unwrap_or(DATA_DIR).into())
}

/// The requested MAC address and its text.
fn requested_mac(
    keys: &TuningKeys,
    own: &LinkKeys,
    args: &Args,
) -> Result<Option<(String, Mac)>, Error> {
    let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let sources = [
        ("args.cni.mac", keys.args.cni.mac.clone()),
        ("runtimeConfig.mac", non_empty(&keys.runtime_config.mac)),
        ("MAC in CNI_ARGS", args.mac_text().map(str::to_owned)),
        ("mac", own.mac.clone()),
    ];
    let mut sources = sources
        .into_iter()
        .filter_map(|(key, mac)| Some((key, mac?)));
    let Some((key, text)) = sources.next().filter(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let mac: Mac = text
        .parse()
        .map_err(|invalid: crate::net::ParseError| invalid.at(key))?;
    if !mac.is_assignable() {
        let wanted = "it must be a unicast address";
        return Err(Error::config(key, format!("{text:?}"), wanted));
    }
    Ok(Some((text, mac)))
}

/// A value and its key.
fn of_args_or_own<T>(of_args: Option<T>, own: Option<T>, key: &str) -> Option<(String, T)> {
    let of_args = of_args.map(|value| (format!("args.cni.{key}"), value));
    of_args.or_else(|| Some((key.to_owned(), own?)))
}

fn key_of(name: &str) -> String {
    format!("sysctl[{name:?}]")
}

fn own_sysctls(conf: &NetConf) -> Result<Vec<(String, String)>, Error> {
    let sysctls = sysctls(conf, &["sysctl"])?;
    let mut names = BTreeSet::new();
    match sysctls.iter().find(|(name, _)| !names.insert(name)) {
        None => Ok(sysctls),
        Some((name, value)) => {
            let wanted = "duplicated sysctl keys are not allowed";
            Err(Error::config(key_of(name), format!("{value:?}"), wanted))
        }
    }
}

/// The names and values of the objects at a path. The parsed configuration has the names in lower case.
fn sysctls(conf: &NetConf, path: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let entries = json::entries("configuration", &conf.bytes, path)?;
    let text = |(name, value): (String, Value)| match value {
        Value::String(value) => Ok((name, value)),
        Value::Null => Ok((name, String::new())),
        other => {
            let error = Error::config(key_of(&name), other, "it must be a string");
            Err(error.with_code(Code::DECODE))
        }
    };
    entries.into_iter().map(text).collect()
}

/// Dots separate the components of a name; an interface name may contain dots too.
fn sysctl_of(name: &str, interface: &IfName) -> Result<NetSysctl, Error> {
    let path = name.replace('.', "/");
    NetSysctl::at(&path.replacen(INTERFACE, interface.as_str(), 1)).ok_or_else(|| {
        let wanted = "invalid net sysctl key: it must begin with \"net.\"";
        Error::config("a key of sysctl", format!("{name:?}"), wanted)
    })
}

#[cfg(test)]
mod tests;
