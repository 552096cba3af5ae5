//! A container runtime, as small as one can be: from a list of plugins to calls, and what they answer.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use gangplank::kernel::process;
use gangplank::net::Cidr;
use serde_json::Value;

use crate::Failure;
use crate::namespace::{BIN, Namespace};
use crate::scene::CARD;

/// How long a call may take. The plugin's own waits are bounded too.
const LIMIT: Duration = Duration::from_secs(40);

/// A network on a node.
pub struct Network<'n> {
    node: &'n Namespace,
    /// What the plugin reads on stdin, but for prevResult.
    config: Value,
}

/// An attached pod.
pub struct Attached {
    /// Its address.
    pub address: Cidr,
    /// Its next hop.
    pub gateway: IpAddr,
    /// The name of its link on the node.
    pub host_link: String,
    /// How long ADD took, the process's start and end included.
    pub took: Duration,
    result: Value,
}

/// An error document.
pub struct Refusal {
    /// Its message.
    pub msg: String,
    details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl Refusal {
    fn new(msg: impl ToString) -> Refusal {
        Refusal {
            msg: msg.to_string(),
            details: String::new(),
        }
    }
}

impl<'n> Network<'n> {
    /// The network of a list with one plugin: a plugin's configuration is its entry, with the list's name and version.
    pub fn from_list(node: &'n Namespace, text: &str) -> Result<Network<'n>, Failure> {
        let mut list: Value = serde_json::from_str(text)?;
        let Some([plugin]) = list["plugins"].as_array_mut().map(Vec::as_mut_slice) else {
            return Err("the list has not exactly one plugin".into());
        };
        let mut config = plugin.take();
        for key in ["name", "cniVersion"] {
            config[key] = list[key].take();
        }
        Ok(Network { node, config })
    }

    /// Changes a key of the configuration.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config[key] = value.into();
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    /// The name of its bridge.
    pub fn bridge(&self) -> &str {
        self.config["bridge"].as_str().unwrap_or_default()
    }

    /// Whether packets that leave the node take its address.
    pub fn masquerades(&self) -> bool {
        self.config["ipMasq"] == true
    }

    /// ADD.
    pub fn add(&self, pod: &Namespace) -> Result<Attached, Refusal> {
        let (answer, took) = self.call("ADD", pod, Some(&pod.netns_path()), None)?;
        let result: Value = serde_json::from_slice(&answer).map_err(Refusal::new)?;
        let missing = |what: &str| Refusal::new(format!("no {what} in the result: {result}"));
        let interfaces = result["interfaces"].as_array().into_iter().flatten();
        let of_node = |link: &&Value| link["sandbox"].as_str().unwrap_or_default().is_empty();
        let ip = &result["ips"][0];
        let parsed = |value: &Value| value.as_str().map(str::to_owned);
        let host_link = interfaces
            .filter(of_node)
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
                .ok_or_else(|| missing("link of the node"))?
                .to_owned(),
            took,
            result,
        })
    }

    /// CHECK, with the result that ADD gave.
    pub fn check(&self, pod: &Namespace, attached: &Attached) -> Result<Duration, Refusal> {
        let result = Some(&attached.result);
        let (_, took) = self.call("CHECK", pod, Some(&pod.netns_path()), result)?;
        Ok(took)
    }

    /// DEL, with all that a runtime knows.
    pub fn del(&self, pod: &Namespace, attached: &Attached) -> Result<Duration, Refusal> {
        let result = Some(&attached.result);
        let (_, took) = self.call("DEL", pod, Some(&pod.netns_path()), result)?;
        Ok(took)
    }

    /// DEL, with the names alone.
    pub fn del_blind(&self, pod: &Namespace) -> Result<Duration, Refusal> {
        let (_, took) = self.call("DEL", pod, None, None)?;
        Ok(took)
    }

    fn call(
        &self,
        verb: &str,
        pod: &Namespace,
        netns: Option<&str>,
        prev_result: Option<&Value>,
    ) -> Result<(Vec<u8>, Duration), Refusal> {
        let mut config = self.config.clone();
        if let Some(result) = prev_result {
            config["prevResult"] = result.clone();
        }
        let plugin = Path::new(BIN).join(config["type"].as_str().unwrap_or_default());
        let mut env = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.name),
            ("CNI_IFNAME", CARD),
            ("CNI_PATH", BIN),
        ];
        env.extend(netns.map(|path| ("CNI_NETNS", path)));
        let stdin = config.to_string();
        let start = Instant::now();
        let output = self
            .node
            .inside(|| process::run(&plugin, &[], &env, stdin.as_bytes(), LIMIT));
        let took = start.elapsed();
        let output = output.map_err(Refusal::new)?;
        if output.status.success() {
            return Ok((output.stdout, took));
        }
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |key: &str| document[key].as_str().map(str::to_owned);
        Err(Refusal {
            msg: text("msg").unwrap_or_else(|| output.stderr_summary()),
            details: text("details").unwrap_or_default(),
        })
    }
}
