//! A minimal container runtime: calls a plugin with the configuration of a network.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use gangplank::kernel::process;
use gangplank::net::Cidr;
use serde_json::Value;

use crate::Failure;
use crate::namespace::{BIN, Namespace};
use crate::topology::INTERFACE;

/// The time limit of a call.
const LIMIT: Duration = Duration::from_secs(40);

/// A network on a node.
pub struct Network<'n> {
    node: &'n Namespace,
    /// The configuration on stdin, without prevResult.
    config: Value,
}

/// An attached pod.
pub struct Attached {
    pub address: Cidr,
    pub gateway: IpAddr,
    /// The name of the host end of the veth pair.
    pub host_link: String,
    /// The duration of ADD, including the start of the process.
    pub took: Duration,
    result: Value,
}

/// The error of a plugin (CNI spec 1.1, section 5, "Error").
pub struct CniError {
    pub msg: String,
    details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl CniError {
    fn new(msg: impl ToString) -> CniError {
        CniError {
            msg: msg.to_string(),
            details: String::new(),
        }
    }
}

impl<'n> Network<'n> {
    /// Parses a network configuration list with one plugin. The plugin's configuration is its entry in the list, with
    /// name and cniVersion of the list.
    pub fn from_list(node: &'n Namespace, text: &str) -> Result<Network<'n>, Failure> {
        let mut list: Value = serde_json::from_str(text)?;
        let Some([plugin]) = list["plugins"].as_array_mut().map(Vec::as_mut_slice) else {
            return Err("the network configuration must have exactly one plugin".into());
        };
        let mut config = plugin.take();
        for key in ["name", "cniVersion"] {
            config[key] = list[key].take();
        }
        Ok(Network { node, config })
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config[key] = value.into();
    }

    pub fn name(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    pub fn bridge(&self) -> &str {
        self.config["bridge"].as_str().unwrap_or_default()
    }

    pub fn masquerades(&self) -> bool {
        self.config["ipMasq"] == true
    }

    pub fn add(&self, pod: &Namespace) -> Result<Attached, CniError> {
        let (answer, took) = self.call("ADD", pod, Some(&pod.netns_path()), None)?;
        let result: Value = serde_json::from_slice(&answer).map_err(CniError::new)?;
        let missing = |what: &str| CniError::new(format!("no {what} in the result: {result}"));
        let interfaces = result["interfaces"].as_array().into_iter().flatten();
        let on_host = |link: &&Value| link["sandbox"].as_str().unwrap_or_default().is_empty();
        let ip = &result["ips"][0];
        let parsed = |value: &Value| value.as_str().map(str::to_owned);
        let host_link = interfaces
            .filter(on_host)
            .filter_map(|link| link["name"].as_str())
            .find(|name| *name != self.bridge());
        Ok(Attached {
            address: parsed(&ip["address"])
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| missing("address"))?,
            gateway: parsed(&ip["gateway"])
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| missing("gateway"))?,
            host_link: host_link
                .ok_or_else(|| missing("host interface"))?
                .to_owned(),
            took,
            result,
        })
    }

    /// Calls CHECK with the result of ADD as prevResult.
    pub fn check(&self, pod: &Namespace, attached: &Attached) -> Result<Duration, CniError> {
        let result = Some(&attached.result);
        let (_, took) = self.call("CHECK", pod, Some(&pod.netns_path()), result)?;
        Ok(took)
    }

    /// Calls DEL with the network namespace, and with the result of ADD as prevResult.
    pub fn del(&self, pod: &Namespace, attached: &Attached) -> Result<Duration, CniError> {
        let result = Some(&attached.result);
        let (_, took) = self.call("DEL", pod, Some(&pod.netns_path()), result)?;
        Ok(took)
    }

    /// Calls DEL without network namespace and prevResult, as a runtime does after a crash.
    pub fn del_without_netns(&self, pod: &Namespace) -> Result<Duration, CniError> {
        let (_, took) = self.call("DEL", pod, None, None)?;
        Ok(took)
    }

    fn call(
        &self,
        verb: &str,
        pod: &Namespace,
        netns: Option<&str>,
        prev_result: Option<&Value>,
    ) -> Result<(Vec<u8>, Duration), CniError> {
        let mut config = self.config.clone();
        if let Some(result) = prev_result {
            config["prevResult"] = result.clone();
        }
        let plugin = Path::new(BIN).join(config["type"].as_str().unwrap_or_default());
        let mut env = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.name),
            ("CNI_IFNAME", INTERFACE),
            ("CNI_PATH", BIN),
        ];
        env.extend(netns.map(|path| ("CNI_NETNS", path)));
        let stdin = config.to_string();
        let start = Instant::now();
        let output = self
            .node
            .inside(|| process::run(&plugin, &[], &env, stdin.as_bytes(), LIMIT));
        let took = start.elapsed();
        let output = output.map_err(CniError::new)?;
        if output.status.success() {
            return Ok((output.stdout, took));
        }
        let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        Err(CniError {
            msg: text("msg").unwrap_or_else(|| output.stderr_summary()),
            details: text("details").unwrap_or_default(),
        })
    }
}
