//! A list of plugins, called as a runtime calls them (CNI specification, section 3).

use serde_json::{Value, json};

use super::implementation::Implementation;
use super::{Answer, Call, Node, Pod, small_network};

/// A network configuration list on a node.
#[derive(Clone)]
pub struct Chain<'n> {
    node: &'n Node,
    /// `cniVersion` and `name`, which each plugin gets.
    common: Value,
    pub plugins: Vec<Plugin>,
    /// `runtimeConfig`: each plugin gets the keys that it declares in `capabilities`.
    runtime: Value,
    /// CNI_ARGS.
    args: String,
}

#[derive(Clone)]
pub struct Plugin {
    pub config: Value,
    pub by: Implementation,
}

impl<'n> Chain<'n> {
    /// A list with the plugins under test.
    pub fn new(node: &'n Node, list: &Value) -> Chain<'n> {
        let plugin = |config: &Value| Plugin {
            config: config.clone(),
            by: Implementation::Gangplank,
        };
        Chain {
            node,
            common: json!({ "cniVersion": list["cniVersion"], "name": list["name"] }),
            plugins: list["plugins"]
                .as_array()
                .expect("a list of plugins")
                .iter()
                .map(plugin)
                .collect(),
            runtime: json!({}),
            args: String::new(),
        }
    }

    /// The same list with this value for a key of a plugin.
    pub fn with(&self, plugin: &str, key: &str, value: impl Into<Value>) -> Chain<'n> {
        let mut chain = self.clone();
        let of_type = |it: &&mut Plugin| it.config["type"] == plugin;
        let plugin = chain.plugins.iter_mut().find(of_type).expect("in the list");
        plugin.config[key] = value.into();
        chain
    }

    pub fn version(&self, version: &str) -> Chain<'n> {
        let mut chain = self.clone();
        chain.common["cniVersion"] = version.into();
        chain
    }

    pub fn named(&self, name: &str) -> Chain<'n> {
        let mut chain = self.clone();
        chain.common["name"] = name.into();
        chain
    }

    /// The same list with these values of `portMappings`.
    pub fn with_ports(&self, mappings: Value) -> Chain<'n> {
        self.with_capability("portMappings", mappings)
    }

    /// The same list with this value for the plugins that declare the capability.
    pub fn with_capability(&self, capability: &str, value: Value) -> Chain<'n> {
        let mut chain = self.clone();
        chain.runtime[capability] = value;
        chain
    }

    /// The same list with CNI_ARGS.
    pub fn with_args(&self, args: &str) -> Chain<'n> {
        let mut chain = self.clone();
        chain.args = args.to_owned();
        chain
    }

    /// The same list, each plugin executed by the implementation at its place.
    pub fn by(&self, implementations: &[Implementation]) -> Chain<'n> {
        assert_eq!(implementations.len(), self.plugins.len());
        let mut chain = self.clone();
        for (plugin, by) in chain.plugins.iter_mut().zip(implementations) {
            plugin.by = *by;
        }
        chain
    }

    /// The configuration of the plugin at `index`, without prevResult.
    pub fn config(&self, index: usize) -> Value {
        let mut config = self.plugins[index].config.clone();
        for (key, value) in self.common.as_object().expect("an object") {
            config[key] = value.clone();
        }
        for (capability, value) in self.runtime.as_object().expect("an object") {
            if config["capabilities"][capability] == true {
                config["runtimeConfig"][capability] = value.clone();
            }
        }
        config
    }

    /// The network configuration list.
    pub fn list(&self) -> Value {
        let mut list = self.common.clone();
        list["plugins"] = self.plugins.iter().map(|it| it.config.clone()).collect();
        list
    }

    /// The values that a runtime passes for capabilities.
    pub fn capability_args(&self) -> &Value {
        &self.runtime
    }

    /// A call of the plugin at `index`.
    pub fn call(&self, index: usize, verb: &str, prev: &Value) -> Call<'n> {
        let mut config = self.config(index);
        if !prev.is_null() {
            config["prevResult"] = prev.clone();
        }
        let by = self.plugins[index].by;
        let call = by.call_for(self.node, &config).verb(verb);
        match self.args.as_str() {
            "" => call,
            args => call.args(args),
        }
    }

    /// Runs a verb of each plugin for the pod's `eth0`, up to the first failure; DEL in reverse order. `prev` is the
    /// result of ADD, for other verbs. `execute` gets the index of the plugin and its call.
    pub fn run(
        &self,
        verb: &str,
        (pod, prev): (&Pod, &Value),
        mut execute: impl FnMut(usize, &Call) -> Answer,
    ) -> Answer {
        let mut prev = prev.clone();
        let mut order: Vec<usize> = (0..self.plugins.len()).collect();
        if verb == "DEL" {
            order.reverse();
        }
        let mut last = None;
        for index in order {
            let answer = execute(index, &self.call(index, verb, &prev).pod(pod));
            let failed = answer.code != Some(0);
            if verb == "ADD" && !failed {
                prev = answer.ok();
            }
            last = Some(answer);
            if failed {
                break;
            }
        }
        last.expect("a plugin")
    }

    /// Runs ADD. Returns the answer of the last executed plugin.
    pub fn try_add(&self, pod: &Pod) -> Answer {
        self.run("ADD", (pod, &Value::Null), |_, call| call.run())
    }

    /// Runs ADD, which must succeed.
    #[track_caller]
    pub fn add(&self, pod: &Pod) -> Value {
        self.try_add(pod).ok()
    }

    /// Runs CHECK with the result of ADD.
    pub fn check(&self, pod: &Pod, result: &Value) -> Answer {
        self.run("CHECK", (pod, result), |_, call| call.run())
    }

    pub fn try_del(&self, pod: &Pod, result: &Value) -> Answer {
        self.run("DEL", (pod, result), |_, call| call.run())
    }

    /// Runs DEL, which must succeed.
    #[track_caller]
    pub fn del(&self, pod: &Pod, result: &Value) {
        self.try_del(pod, result).ok();
    }
}

/// A list of bridge, portmap and firewall with addresses of both families: `10.77.0.0/24` on `br0`.
pub fn small_chain() -> Value {
    let mut bridge = small_network();
    bridge["isDefaultGateway"] = true.into();
    bridge["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    json!({
        "cniVersion": "1.0.0",
        "name": "small",
        "plugins": [
            bridge,
            { "type": "portmap", "capabilities": { "portMappings": true }, "backend": "iptables" },
            { "type": "firewall", "backend": "iptables" },
        ],
    })
}
