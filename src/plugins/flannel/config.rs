//! The keys of `flannel`, and the configuration of its delegate.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cni::conf::NetConf;
use crate::error::{Code, Error};
use crate::plugins::flannel::subnet_env::SubnetEnv;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FlannelKeys {
    pub subnet_file: String,
    pub data_dir: String,
}

/// A `flannel` configuration.
#[derive(Clone, Debug, Default)]
pub struct FlannelConfig {
    keys: FlannelKeys,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
    runtime: Option<Map<String, Value>>,
}

impl FlannelConfig {
    /// # Errors
    /// Code 6 for a wrong type, 7 for a delegate that has a key which flannel sets; each names the key.
    pub fn parse(conf: &NetConf) -> Result<FlannelConfig, Error> {
        let config = FlannelConfig {
            keys: conf.root().read()?,
            delegate: object(conf, "delegate")?.unwrap_or_default(),
            ipam: object(conf, "ipam")?.unwrap_or_default(),
            runtime: object(conf, "runtimeConfig")?,
        };
        for key in ["name", "ipam"] {
            if let Some(value) = config.delegate.get(key) {
                let wanted = "flannel sets it: remove it from delegate";
                return Err(Error::config(format!("delegate.{key}"), value, wanted));
            }
        }
        if let Some(other) = config.delegate.get("type").filter(|it| !it.is_string()) {
            let wanted = "it must be the name of a plugin";
            return Err(Error::config("delegate.type", other, wanted));
        }
        Ok(config)
    }

    /// What names resources; invalid keys count as absent.
    pub fn names_of(conf: &NetConf) -> FlannelConfig {
        let object = |key: &str| object(conf, key).ok().flatten();
        FlannelConfig {
            keys: conf.root().read().unwrap_or_default(),
            delegate: object("delegate").unwrap_or_default(),
            ipam: object("ipam").unwrap_or_default(),
            runtime: object("runtimeConfig"),
        }
    }

    pub fn subnet_file(&self) -> &str {
        match self.keys.subnet_file.as_str() {
            "" => SUBNET_FILE,
            file => file,
        }
    }

    pub fn data_dir(&self) -> &str {
        match self.keys.data_dir.as_str() {
            "" => DATA_DIR,
            directory => directory,
        }
    }

    /// The configuration of the delegate; without an `env` only what names its resources. Keys and their order are those
    /// of the Go plugin, which may read the saved configuration.
    pub fn delegated(&self, conf: &NetConf, env: Option<&SubnetEnv>) -> Map<String, Value> {
        let mut delegated = self.delegate.clone();
        let mut ipam = self.ipam.clone();
        let mut set_default = |key: &str, value: Value| {
            delegated.entry(key).or_insert(value);
        };
        set_default("type", "bridge".into());
        if let Some(env) = env {
            set_default("ipMasq", (!env.is_masqueraded).into());
            set_default("mtu", env.mtu.into());
            let range = |subnet| json!([{ "subnet": subnet }]);
            ipam.insert("ranges".into(), env.subnets.iter().map(range).collect());
            let mut routes = match ipam.remove("routes") {
                Some(Value::Array(routes)) => routes,
                _ => Vec::new(),
            };
            routes.extend(env.networks.iter().map(|dst| json!({ "dst": dst })));
            ipam.insert("routes".into(), routes.into());
        }
        ipam.entry("type").or_insert_with(|| "host-local".into());
        if delegated["type"] == "bridge" {
            delegated.entry("isGateway").or_insert(true.into());
        }
        delegated.insert("name".into(), conf.name.as_str().into());
        delegated.insert("ipam".into(), ipam.into());
        if let Some(runtime) = &self.runtime {
            delegated.insert("runtimeConfig".into(), runtime.clone().into());
        }
        if let Ok(Some(version)) = conf.root().non_empty_text("cniVersion") {
            delegated.insert("cniVersion".into(), version.into());
        }
        delegated
    }
}

/// The object of a key as it was received: the delegate may be a plugin for which the case of keys matters.
fn object(conf: &NetConf, key: &str) -> Result<Option<Map<String, Value>>, Error> {
    if conf.root().object(key)?.is_none() {
        return Ok(None);
    }
    let received: Map<String, Value> = serde_json::from_slice(&conf.bytes).map_err(|cause| {
        let msg = format!("configuration: {key} cannot be passed on: {cause}");
        Error::new(Code::DECODE, msg)
    })?;
    let mut entries = received.into_iter();
    let found = entries.find(|(name, _)| name.eq_ignore_ascii_case(key));
    Ok(found.and_then(|(_, value)| match value {
        Value::Object(object) => Some(object),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delegated(keys: &str, env: Option<&SubnetEnv>) -> String {
        let text = format!(r#"{{"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"{keys}}}"#);
        let conf = NetConf::parse(text.into_bytes()).unwrap();
        let config = FlannelConfig::parse(&conf).unwrap();
        Value::Object(config.delegated(&conf, env)).to_string()
    }

    fn env(is_masqueraded: bool) -> SubnetEnv {
        SubnetEnv {
            networks: vec!["10.42.0.0/16".parse().unwrap()],
            subnets: vec!["10.42.1.0/24".parse().unwrap()],
            mtu: 1450,
            is_masqueraded,
        }
    }

    #[test]
    fn bridge_is_the_default_and_gets_what_flanneld_wrote() {
        let ipam = r#"{"ranges":[[{"subnet":"10.42.1.0/24"}]],"routes":[{"dst":"10.42.0.0/16"}],"type":"host-local"}"#;
        assert_eq!(
            delegated("", Some(&env(true))),
            format!(
                r#"{{"cniVersion":"1.0.0","ipMasq":false,"ipam":{ipam},"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}}"#
            )
        );
    }

    #[test]
    fn keys_of_delegate_and_ipam_are_kept() {
        let keys = r#", "delegate": {"ipMasq": false, "mtu": 1400, "bridge": "b"},
            "ipam": {"routes": [{"dst": "10.9.0.0/16"}], "dataDir": "/run/x"}, "runtimeConfig": {"mac": "02:00:00:00:00:01"}"#;
        let conf = delegated(keys, Some(&env(false)));
        for part in [
            r#""bridge":"b""#,
            r#""ipMasq":false"#,
            r#""mtu":1400"#,
            r#""dataDir":"/run/x""#,
            r#""routes":[{"dst":"10.9.0.0/16"},{"dst":"10.42.0.0/16"}]"#,
            r#""runtimeConfig":{"mac":"02:00:00:00:00:01"}"#,
        ] {
            assert!(conf.contains(part), "{part} in {conf}");
        }
        assert!(delegated("", Some(&env(false))).contains(r#""ipMasq":true"#));
    }

    #[test]
    fn another_delegate_is_no_gateway() {
        let conf = delegated(r#", "delegate": {"type": "ipvlan"}"#, None);
        assert_eq!(
            conf,
            r#"{"cniVersion":"1.0.0","ipam":{"type":"host-local"},"name":"cbr0","type":"ipvlan"}"#
        );
    }

    #[test]
    fn keys_that_flannel_sets_and_other_types_are_rejected() {
        for (delegate, key) in [
            (r#"{"name": "x"}"#, "delegate.name"),
            (r#"{"ipam": {}}"#, "delegate.ipam"),
            (r#"{"type": 5}"#, "delegate.type"),
            ("5", "delegate"),
        ] {
            let text = format!(r#"{{"name": "n", "delegate": {delegate}}}"#);
            let conf = NetConf::parse(text.into_bytes()).unwrap();
            let error = FlannelConfig::parse(&conf).unwrap_err();
            assert!(error.msg.contains(key), "{error:?}");
        }
    }
}
